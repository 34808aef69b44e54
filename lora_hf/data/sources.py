"""Find the rows of a split: in the package, in files and folders, at an address, or on the Hub."""

import gzip
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from lora_hf.config import DataConfig
from lora_hf.config.model import EMBEDDED, EMBEDDED_SAMPLE
from lora_hf.data.columns import Row
from lora_hf.data.explode import exploded
from lora_hf.data.folders import data_files_in, find_files, in_order, is_saved_dataset, split_of_file
from lora_hf.data.hub_dataset import open_hub, with_label_names
from lora_hf.data.opened import Form, endings
from lora_hf.data.readers import BINARY, READERS, REMEDIES, iterate_numbered, iterate_rows, parallel_to
from lora_hf.data.remote import address_of, files_at, is_address
from lora_hf.data.split_names import NAMES, SPLITS, Split
from lora_hf.errors import UserError, few, first_line, is_windows_path, path_hint
from lora_hf.hub.names import is_hub_name, refuse_address

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """The rows that a split is in."""

    rows: Iterator[Row]
    """All rows of the source, or those of one of its splits."""
    name: str
    """Their name in messages."""
    homes: frozenset[Split] = frozenset()
    """The splits whose share of the rows is the split's; empty where all rows are."""
    is_one_file: bool = False
    files: tuple[Path, ...] = ()
    """The files of the rows, where they have any."""
    form: Form = Form()
    origin: Split | None = None
    """The split of the source that the rows are; None if they are a whole source."""
    notes: tuple[str, ...] = ()
    """How its files were found."""

    def log_notes(self) -> None:
        """Log how the files were found."""
        for note in self.notes:
            logger.info("%s", note)

    @property
    def keeps_order(self) -> bool:
        """Return whether the keys of an object are in the order in which someone wrote them."""
        return bool(self.files) and all(endings(file)[0] in WRITTEN for file in self.files)

    @property
    def is_csv(self) -> bool:
        """Return whether each cell is a text."""
        return bool(self.files) and all(endings(file)[0] in CSV for file in self.files)

    def place(self, number: int) -> str:
        """Return the file and line of a row by its number from 1: `a.csv, line 3`. Empty if there is none."""
        at = 0
        for file in self.files:
            if is_saved_dataset(file):
                return ""
            name = file.name if len(self.files) > 1 else ""
            for line, _ in iterate_numbered(file, self.form):
                at += 1
                if at == number:
                    return ", ".join(part for part in (name, f"line {line}" if line else "") if part)
        return ""


def open_part(config: DataConfig, split: Split) -> Part:
    """Return the rows of a split, or of what the split is a share of.

    Raises:
        UserError: no such source, or it has neither the split nor train.
    """
    name = config.dataset_name
    if config.data_files is not None and not is_on_hub(config):
        return _of_files(named_files(config), split, "data.data_files", config)
    if is_address(name):
        files = files_at(name, "data.dataset_name")
        return _of_files({"train": files}, split, name, config, is_one_file=True)
    path = Path(name).expanduser()
    if path.is_file() or is_saved_dataset(path):
        return _of_files({"train": [path]}, split, name, config, is_one_file=True)
    if name == EMBEDDED:
        _check_effect(config, SPLITS, [])
        rows = islice(_read_sample(split), limit_of(config, split))
        return Part(with_explode(rows, config.explode, name), f"{name} [{split}]")
    if path.is_dir():
        form = Form.of(config)
        found = find_files(path, split, form)
        origin: Split = split if split in found else "train"
        _check_readable(path, found)
        notes = [*_unused(path, found, form)] if split == "train" else []
        if any(file.parent != path or file.name.partition(".")[0] != origin for file in found[origin]):
            names = [file.relative_to(path).as_posix() for file in found[origin]]
            more = ", ..." if len(names) > 5 else ""
            notes.append(f"{name} [{origin}]: {', '.join(names[:5])}{more}")
        return replace(_of_files(found, split, name, config), notes=tuple(notes))
    return _on_hub(config, split)


def _check_readable(folder: Path, found: Mapping[Split, Sequence[Path]]) -> None:
    """Refuse a split in a file that cannot be read; a share of train would take its place in silence.

    Raises:
        UserError: a file is named like a split that no other file holds.
    """
    for file in sorted(data_files_in(folder, read=REMEDIES)):
        place, remedy = file.relative_to(folder), REMEDIES.get(endings(file)[0])
        if remedy and (split := split_of_file(place)) is not None and split not in found:
            raise UserError(
                f"{file} is named like the split {split}, and such files are not read{remedy}, or move it "
                f"out of the folder: {split} is then a share of train"
            )


def _unused(folder: Path, found: Mapping[Split, Sequence[Path]], form: Form) -> Iterator[str]:
    """Yield notes on the files of a folder that no split is read from, with the reason."""
    used = {file for files in found.values() for file in files}
    unused = [file.relative_to(folder) for file in data_files_in(folder, form) if file not in used]
    for beside in (None, *SPLITS):
        if names := [file.as_posix() for file in unused if split_of_file(file) == beside]:
            if beside is None:
                reason = "because their names say no split"
            else:
                reason = f"because {beside} is read from {found[beside][0].name}"
            yield f"{folder}: not used, {reason}: {few(names, most=5)} (data.data_files)"


CSV = (".csv", ".tsv")
WRITTEN = (".json", ".jsonl", ".ndjson")
"""Formats that keep the order of an object's keys."""
READ_BY = {
    "encoding": tuple(ending for ending in READERS if ending not in BINARY),
    "delimiter": CSV,
    "escapechar": CSV,
    "column_names": CSV,
    "json_field": (".json",),
    "parallel_files": (),
}
"""Fields of the form of files, and the endings of those that are read by them."""


def _check_effect(config: DataConfig, present: Iterable[Split], files: Sequence[Path] | None) -> None:
    """Refuse fields that nothing reads: shares of splits that are there, forms of other files.

    Raises:
        UserError: such a field, with the remedy.
    """
    there = frozenset(present)
    unread = {
        "validation_share": "a validation split" if "validation" in there else "",
        "test_share": "a test split" if "test" in there else "",
        "split_seed": "all splits" if there == {*SPLITS} else "",
    }
    for name, own in unread.items():
        value = getattr(config, name)
        if own and value != DataConfig.model_fields[name].default:
            raise UserError(f"data.{name}={value} has no effect: the data has {own} of its own; remove it")
    if files is not None:
        check_form(Form.of(config), files)


def check_form(form: Form, files: Sequence[Path], is_text: bool = False) -> None:
    """Refuse fields of a form by which none of the files is read.

    Args:
        form: as the user gave it.
        files: all files that are read.
        is_text: whether some of them are plain text, which has an encoding and no other field.

    Raises:
        UserError: such a field, with the remedy.
    """
    for name, kinds in READ_BY.items():
        value = getattr(form, name)
        kinds = form.parallel if form.parallel and name in ("encoding", "parallel_files") else kinds
        if value is None or (is_text and name == "encoding"):
            continue
        if not any(endings(file)[0] in kinds for file in files):
            raise UserError(
                f"data.{name}={value!r} has no effect: none of the files ends in {', '.join(kinds)}; "
                "remove it"
            )


def refuse_columns(place: str, given: Mapping[str, Any]) -> None:
    """Refuse columns of a plain text.

    Args:
        place: the text, for errors.
        given: the columns, by the field or option that names each; None is none.

    Raises:
        UserError: there is one.
    """
    for name, value in given.items():
        if value is not None:
            raise UserError(
                f"{name}={value!r} has no effect: {place} is plain text, which has no columns; remove it"
            )


def _of_files(
    found: Mapping[Split, Sequence[Path]],
    split: Split,
    name: str,
    config: DataConfig,
    is_one_file: bool = False,
) -> Part:
    """Return the part of a split in files by split; a missing split is a share of train."""
    form = Form.of(config)
    _check_effect(config, found, [file for files in found.values() for file in files])
    origin: Split = split if split in found else "train"
    files = tuple(found[origin])
    rows = chain.from_iterable(read_source(file, form) for file in files)
    homes = homes_of(split, origin, frozenset(found))
    shown = name if is_one_file else f"{name} [{origin}]"
    return Part(rows, shown, homes, is_one_file, files, form, None if is_one_file else origin)


def homes_of(split: Split, origin: Split, present: frozenset[Split]) -> frozenset[Split]:
    """Return the splits whose share of `origin` is the split's: train gives one to each missing split."""
    missing = frozenset(SPLITS) - present
    if origin != "train" or not missing:
        return frozenset()
    return frozenset([split]) if split in missing else frozenset(SPLITS) - missing


def _on_hub(config: DataConfig, split: Split) -> Part:
    name = config.dataset_name
    refuse_address(name, "data.dataset_name", "data.dataset_revision")
    path = Path(name).expanduser()
    is_path = bool(config.parallel_files) or not is_hub_name(name) or is_windows_path(name)
    if is_path or endings(path)[0] in READERS:
        if set(name) & PATTERN:
            raise UserError(
                f"data.dataset_name={name!r} is not one file or folder; give a pattern as "
                f"data.data_files: {{train: {name!r}}}"
            )
        text = f"data.dataset_name={name!r}: no such file or folder."
        raise UserError(f"{text}{path_hint(name)}".removesuffix("."))
    hub = open_hub(config, split)
    known = {NAMES[one]: one for one in reversed(hub.names) if one in NAMES}
    known |= {one: one for one in SPLITS if one in hub.names}  # the name itself wins
    origin: Split = split if split in known or not hub.names else "train"
    if origin not in known and hub.names:
        raise UserError(
            f"{hub.what}: it has no split {split!r}, only {', '.join(hub.names)}. Set data.data_files to "
            "its files by split, {train: FILE, test: FILE}, or save its rows as files"
        )
    homes = homes_of(split, origin, frozenset(known)) if hub.names else frozenset()
    if hub.names:
        _check_effect(config, known, None)
    rows = with_explode(hub.rows(known.get(origin, origin)), config.explode, name)
    return Part(rows, f"{name} [{origin}]", homes, origin=origin)


def unpacked(data: DataConfig) -> DataConfig:
    """Return the section `data` of a task, with the folder in the package in the place of `embedded/NAME`."""
    prefix, slash, name = data.dataset_name.partition("/")
    if prefix != EMBEDDED or not slash:
        return data
    folder = EMBEDDED_SAMPLE.with_name("retention") / name
    if not folder.is_dir():
        known = ", ".join(f"{EMBEDDED}/{path.name}" for path in sorted(folder.parent.iterdir()))
        raise UserError(f"data.dataset_name={data.dataset_name!r} is not one of {known}")
    return data.model_copy(update={"dataset_name": str(folder)})


def is_on_hub(config: DataConfig) -> bool:
    """Return whether the data is a dataset on the Hub."""
    name = config.dataset_name
    return name != EMBEDDED and not is_address(name) and not Path(name).expanduser().exists()


def named_files(config: DataConfig) -> dict[Split, list[Path]]:
    """Return the files that `data.data_files` names, by split.

    Raises:
        UserError: there is no such file, or none for train.
    """
    given: Any = config.data_files
    by_split = given if isinstance(given, dict) else {"train": given}
    base = Path(config.dataset_name).expanduser()
    found: dict[Split, list[Path]] = {}
    for name, patterns in by_split.items():
        files: list[Path] = []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            files += _matching(base, pattern, f"data.data_files.{name}")
        found[NAMES[name]] = files
    if "train" not in found:
        raise UserError(f"data.data_files names {', '.join(by_split)} and no train; add train: FILE")
    return found


PATTERN = set("*?[")
"""Characters of a pattern of files."""


def _matching(base: Path, pattern: str, field: str) -> list[Path]:
    if is_address(pattern):
        return files_at(pattern, field)
    path = base / Path(pattern).expanduser()
    if path.exists():
        return [path]
    if set(pattern) & PATTERN:
        from datasets.data_files import resolve_pattern

        try:
            return sorted(map(Path, resolve_pattern(pattern, str(base.absolute()))), key=in_order)
        except FileNotFoundError:
            raise UserError(f"{field}={pattern!r} matches no file in {base.absolute()}") from None
    raise UserError(f"{field}={pattern!r}: no such file.{path_hint(str(path))}")


def is_remote(config: DataConfig) -> bool:
    """Return whether the data has to be downloaded: a dataset on the Hub, or files at an address."""
    given = config.data_files or ()
    lists = list(given.values()) if isinstance(given, dict) else [given]
    texts = [text for one in lists for text in ([one] if isinstance(one, str) else one)]
    name = config.dataset_name
    is_name = is_on_hub(config) and is_hub_name(name) and endings(Path(name))[0] not in READERS
    return is_name or is_address(name) or any(map(is_address, texts))


def local_files(config: DataConfig) -> list[Path] | None:
    """Return all files on this machine that the data comes from; None if it has to be downloaded.

    Raises:
        UserError: `data.data_files` names a file that does not exist.
        OSError: a folder cannot be read.
    """
    name = config.dataset_name
    if is_remote(config):
        return None
    if config.data_files is not None:
        named = [file for files in named_files(config).values() for file in files]
        return sorted(file for one in named for file in _within(one, config))
    if name == EMBEDDED:
        return _within(EMBEDDED_SAMPLE, config)
    path = Path(name).expanduser()
    if path.is_dir() and not is_saved_dataset(path):
        found = data_files_in(path, Form.of(config))
        return sorted(file for one in found for file in _within(one, config))
    return _within(path, config) if path.exists() else None


def _within(path: Path, config: DataConfig) -> list[Path]:
    if path.is_file() and endings(path)[0] in Form.of(config).parallel:
        return parallel_to(path, Form.of(config))
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def limit_of(config: DataConfig, split: Split) -> int | None:
    """Return the largest number of dialogues of a split."""
    return {
        "train": config.max_train_samples,
        "validation": config.max_eval_samples,
        "test": config.max_test_samples,
    }[split]


def read_source(path: Path, form: Form) -> Iterator[Row]:
    """Yield the rows of a file, or of a folder of `save_to_disk`.

    Raises:
        UserError: as `iterate_rows`, or the folder is not whole.
    """
    if not is_saved_dataset(path):
        try:
            yield from iterate_rows(path, form)
        except UserError as error:
            if address := address_of(path):
                raise UserError(str(error).replace(str(path), address)) from error
            raise
        return
    from datasets import load_from_disk

    try:
        yield from with_explode(with_label_names(load_from_disk(str(path))), form.explode, str(path))
    except UserError:
        raise
    except Exception as error:  # whatever pyarrow and datasets raise for a folder that is not whole
        raise UserError(f"{path} is not a whole folder of save_to_disk: {first_line(error)}") from error


def with_explode(rows: Iterator[Row], column: str | None, source: str) -> Iterator[Row]:
    """Return the rows by `data.explode`, where it is set."""
    return rows if column is None else (row for _, row in exploded(zip(repeat(None), rows), column, source))


def _read_sample(split: Split) -> Iterator[Row]:
    with gzip.open(EMBEDDED_SAMPLE / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)
