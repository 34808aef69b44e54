"""Rows of a dataset on the Hub, always of the commit that its revision names.

Where loading fails for whatever reason, `datasets` falls back on the copy that was last prepared on this
machine, whichever revision it is of, with a warning. Here the commit is resolved first, by one request that
fails at once, and rows of another commit are refused.
"""

import json
import logging
import re
import warnings
from ast import literal_eval
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from traceback import walk_tb
from typing import Any

from lora_hf.config import DataConfig
from lora_hf.config.model import EMBEDDED
from lora_hf.data.folders import split_of_file
from lora_hf.errors import NOT_JSON, UserError, did_you_mean, few, first_line
from lora_hf.files import GIT_LFS
from lora_hf.hub.download import find_dataset
from lora_hf.hub.errors import AGAIN, causes, hub_errors, is_connection_lost

logger = logging.getLogger(__name__)

IS_POINTER = (
    "a file is a Git LFS pointer, not the file itself: whoever uploaded the dataset has to run "
    "`git lfs pull`, and upload it again"
)


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hub at one commit."""

    name: str
    what: str
    """Begins its messages."""
    names: tuple[str, ...]
    """Its splits; empty where `datasets` does not say."""
    read: Callable[[str], Iterable[dict[str, Any]]]
    is_csv: bool = False
    """True if the rows of each split are read from csv, one by one."""

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of one of its splits; with `streaming`, they are downloaded as they are read.

        Raises:
            UserError: an interrupted download.
        """
        with hub_errors(self.what, REMEDY), readable_files(self.what, self.name):
            rows = with_label_names(self.read(split))
            while True:
                with no_lost_cells(self.what) if self.is_csv else nullcontext():
                    row = next(rows, None)
                if row is None:
                    return
                if any(name.startswith(GIT_LFS.decode()) for name in row):  # a csv of which it is the header
                    raise UserError(f"{self.what}: {IS_POINTER}")
                yield row


def with_label_names(dataset: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset with the names of its labels in the place of their numbers.

    -1, which stands for no label in test splits, becomes None.
    """
    from datasets import ClassLabel

    features = getattr(dataset, "features", None) or {}
    labels = {name: one for name, one in features.items() if isinstance(one, ClassLabel)}
    for row in dataset:
        named = {
            name: label.int2str(row[name]) if row[name] >= 0 else None
            for name, label in labels.items()
            if isinstance(row.get(name), int)
        }
        yield row | named if named else row


CSV_AS_TEXT: dict[str, Any] = {
    "converters": dict.fromkeys(range(1000), str),
    "na_filter": False,
    "index_col": False,
}
"""Options by which `datasets` leaves the cells of csv as they are: `NA`, `007` and `1e5` are texts.

By default it reads a missing value and numbers, and shifts all rows if the first has one cell too many."""


@contextmanager
def no_lost_cells(what: str) -> Iterator[None]:
    """Refuse a csv whose rows have more cells than columns: pandas drops the last ones with a warning.

    Raises:
        UserError: there is such a row.
    """
    from pandas.errors import ParserWarning

    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=ParserWarning)
        try:
            yield
        except Exception as error:
            if any(isinstance(one, ParserWarning) for one in causes(error)):
                remedy = "put cells that contain a comma in quotes, or set data.delimiter"
                raise UserError(f"{what}: rows of its csv have more cells than columns; {remedy}") from error
            raise


REMEDY = f" (give a folder or a file, a dataset on the Hub that can be reached, or {EMBEDDED!r})"


def open_hub(config: DataConfig, split: str) -> HubDataset:
    """Find a dataset on the Hub, and its splits; without `streaming`, download it.

    Args:
        config: name, revision, configuration and files of the dataset.
        split: the split that is wanted, for messages.

    Raises:
        UserError: no such dataset or revision, no access, an interrupted download, or the Hub does not
            respond and the dataset at this revision was not prepared here before.
    """
    from datasets import load_dataset_builder

    name, revision = config.dataset_name, config.dataset_revision
    at = f" at data.dataset_revision={revision!r}" if revision else ""
    what = f"data.dataset_name={name!r}{at} [{split}] did not load"
    commit, unreachable, held = find_dataset(name, revision, what, REMEDY)
    if unreachable is not None:
        # A copy that was prepared from other files or in another form would be other data.
        builder = None if _options(config) else _prepared(config, commit)
        with hub_errors(what, REMEDY):
            if builder is None:
                raise unreachable
            logger.info("the Hub cannot be reached: %s is read from its local copy", name)
            return HubDataset(name, what, _split_names(builder), builder.as_dataset)
    _check_named(config, held, what)
    with hub_errors(what, REMEDY), readable_files(what, name, config.dataset_config):
        options = _options(config)
        builder = load_dataset_builder(name, config.dataset_config, revision=revision, **options)
        if is_csv := hasattr(getattr(builder, "config", None), "converters"):
            options |= CSV_AS_TEXT
            builder = load_dataset_builder(name, config.dataset_config, revision=revision, **options)
        if builder.hash != commit:
            raise UserError(
                f"{what}: its files could not be downloaded, and the local copy is of another commit, "
                f"{builder.hash}; {AGAIN}"
            )
        check_archives(builder, name, what, config.streaming)
        if config.streaming:
            splits = builder.as_streaming_dataset()
            return HubDataset(name, what, tuple(splits), lambda split: splits[split], is_csv)
        with no_lost_cells(what) if is_csv else nullcontext():
            builder.download_and_prepare()
        return HubDataset(name, what, _split_names(builder), builder.as_dataset)


def _check_named(config: DataConfig, held: Collection[str], what: str) -> None:
    """Check that a dataset has the files that a config names; `datasets` would look for an earlier copy.

    Raises:
        UserError: it has not. Patterns and addresses are not looked at.
    """
    given = config.data_files if isinstance(config.data_files, dict) else {"": config.data_files or ()}
    names = [file for files in given.values() for file in ([files] if isinstance(files, str) else files)]
    plain = [file for file in names if not re.search(r"[*?\[{]|://", file)]
    if missing := [file for file in plain if held and PurePosixPath(file).as_posix() not in held]:
        raise UserError(
            f"{what}: data.data_files names {missing[0]}, and the dataset has no such file; it holds "
            f"{few(sorted(file for file in held if file[0] != '.'))}.{did_you_mean(missing[0], held)}"
        )


ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Endings of archives, whose files `datasets` reads as those of one split."""


def check_archives(builder: Any, name: str, what: str, streaming: bool) -> None:
    """Refuse an archive with the files of several splits, all of which `datasets` would read as one split.

    Args:
        builder: the dataset's; its archives are downloaded, or for streaming the lists of their files.
        name: the dataset's.
        what: begins the message.
        streaming: whether the rows will be read as they are downloaded.

    Raises:
        UserError: there is such an archive.
    """
    from datasets import DownloadManager, StreamingDownloadManager

    of_splits = getattr(getattr(builder, "config", None), "data_files", None) or {}
    archives = [(s, str(file)) for s in of_splits for file in of_splits[s] if _is_archive(str(file))]
    for split, file in archives:
        manager: Any = StreamingDownloadManager(name) if streaming else DownloadManager(name)
        root = manager.download_and_extract(file)
        inside = [_inside(path, root) for path in manager.iter_files(root)]
        named = {home: path for path in inside if (home := split_of_file(path))}
        if len(named) > 1:
            raise UserError(
                f"{what}: its archive {PurePosixPath(file).name} holds files of several splits "
                f"({few(map(str, named.values()))}), which would all be read as {split}: "
                + DOWNLOAD.format(name, ", unpack it")
            )


DOWNLOAD = (
    "download it (`hf download {} --repo-type dataset --local-dir talks`){}, and give the folder of the "
    "files as data.dataset_name"
)
"""What to do with a dataset that is read from files here and not by `datasets`."""


def _is_archive(file: str) -> bool:
    return file.lower().endswith(ARCHIVES)


CONFIGURATIONS = re.compile(r"(?:Available|the available configs): (\[.*\])")
"""Where `datasets` lists the configurations of a dataset, if none or another one was asked for."""


@contextmanager
def readable_files(what: str, name: str, configuration: str | None = None) -> Iterator[None]:
    """Say what to do about files of a dataset that `datasets` cannot read, or not together.

    Args:
        what: begins the message.
        name: the dataset's.
        configuration: the one that was asked for.

    Raises:
        UserError: text in another encoding than UTF-8, splits in several formats, files that are broken or
            differ in their columns, or no such configuration.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and (found := CONFIGURATIONS.search(str(error))):
            names = literal_eval(found[1])
            if configuration is None:
                why = (
                    f"it has several configurations; set data.dataset_config to one of {few(names, most=12)}"
                )
            else:
                near = did_you_mean(configuration, names)
                why = f"data.dataset_config={configuration!r} is not one of {few(names, most=12)}"
                why += f".{near}" if near else ""
            raise UserError(f"{what}: {why}") from error
        if any(isinstance(one, UnicodeDecodeError) for one in causes(error)):
            remedy = "set data.encoding to its encoding, such as data.encoding: cp1252"
            raise UserError(f"{what}: a file is not UTF-8 text: {remedy}") from error
        if "the same data file format" in str(error):
            remedy = DOWNLOAD.format(name, "")
            raise UserError(f"{what}: its splits are files of several formats: {remedy}") from error
        came_from = causes(error)
        if any("git-lfs.github.com" in str(one) for one in came_from):
            raise UserError(f"{what}: {IS_POINTER}") from error
        if columns := next(filter(None, map(_other_columns, came_from)), ""):
            remedy = "set data.data_files to files that have the same columns"
            raise UserError(f"{what}: its files differ in their columns: {columns}; {remedy}") from error
        is_read = not is_connection_lost(error) and not any(isinstance(one, OSError) for one in came_from)
        for one in reversed(came_from):
            if is_read and isinstance(one, ValueError) and (file := _file_read(one)):
                remedy = DOWNLOAD.format(name, ", mend the file")
                raise UserError(f"{what}: {file} cannot be read: {first_line(one)}; {remedy}") from error
        raise


def _other_columns(error: BaseException) -> str:
    """Return in which columns the files of one split differ, by the errors of `datasets` and of pyarrow."""
    if found := re.search(r"same columns, but at some point (.+)", str(error)):
        return found[1].removesuffix(".")
    if found := re.search(r"Schema at index \d+ was different: \n(.+)\nvs\n(.+)", str(error), re.DOTALL):
        return few({*found[1].splitlines()} ^ {*found[2].splitlines()}, most=12)
    return ""


def _file_read(error: BaseException) -> str:
    """Return the name of the file in which a reader of `datasets` failed; empty if none did.

    Its errors do not name the file: the frame of the reader does.
    """
    readers = "datasets.packaged_modules."
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    files = [one.f_locals.get("file") for one in frames if one.f_globals["__name__"].startswith(readers)]
    return next((PurePosixPath(str(file)).name for file in files if file), "")


def _inside(path: str, root: str) -> PurePosixPath:
    """Return a path in an archive: in the folder that it was unpacked to, or in the address of one."""
    if root.startswith("zip://"):
        return PurePosixPath(path.removeprefix("zip://").partition("::")[0])
    return PurePosixPath(Path(path).relative_to(root).as_posix())


def _options(config: DataConfig) -> dict[str, Any]:
    """Return the fields of the config that `datasets` takes under its own names."""
    given = {
        "data_files": _by_name(config.data_files),
        "encoding": config.encoding,
        "delimiter": config.delimiter,
        "escapechar": config.escapechar,
        "column_names": None if config.column_names is None else list(config.column_names),
        "field": config.json_field,
    }
    return {key: value for key, value in given.items() if value is not None}


def _by_name(data_files: Any) -> Any:
    """Return `data_files` with lists in the place of tuples."""
    if isinstance(data_files, dict):
        return {name: _by_name(files) for name, files in data_files.items()}
    return list(data_files) if isinstance(data_files, tuple) else data_files


def _split_names(builder: Any) -> tuple[str, ...]:
    return tuple(builder.info.splits or ())


def _configuration_of(path: Path) -> str | None:
    """Return the configuration that `datasets` has prepared in a folder as `open_hub` does; else None."""
    from datasets import BuilderConfig

    try:
        info = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON):
        return None
    name, options = info.get("config_name"), CSV_AS_TEXT if info.get("builder_name") == "csv" else {}
    is_own = name is not None and path.parts[-3] == BuilderConfig(name).create_config_id(options)
    return str(name) if is_own else None


def _prepared(config: DataConfig, commit: str | None) -> Any:
    """Return what `datasets` has prepared of a commit before, or of the last one where it is not known."""
    from datasets.packaged_modules.cache.cache import Cache

    name = config.dataset_name
    known = {"repo_id": name, "dataset_name": name.split("/")[-1]}
    config_name = config.dataset_config or "default"
    any_folder = Cache(**known, config_name=config_name, hash=commit or "any").cache_dir
    root = Path(any_folder).parents[2]  # of config/version/commit
    names = {path: _configuration_of(path) for path in root.glob(f"*/*/{commit or '*'}")}
    wanted = config.dataset_config
    found = [path for path, own in names.items() if own is not None and wanted in (None, own)]
    if not found:
        return None
    latest = max(found, key=lambda path: (names[path] == config_name, path.stat().st_mtime))
    return Cache(**known, config_name=latest.parts[-3], version=latest.parts[-2], hash=latest.name)
