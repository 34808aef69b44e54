"""Find the files of each split in a folder, by the names that people and `datasets` give them.

A split is named anywhere in the name of a file (`dialogsum.dev.jsonl`, `train-00000-of-00002.parquet`), or by
the folder that the file is in (`data/val/a.csv`). What `Dataset.save_to_disk` wrote counts as one file. Runs,
reports, adapters and models that were written in the folder are no data.
"""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath

from lora_hf.data.opened import SEEN, Form, endings
from lora_hf.data.readers import READERS, REMEDIES
from lora_hf.data.split_names import SPLITS, Split, split_named
from lora_hf.errors import UserError, few
from lora_hf.run_files import outputs_among

DEEPEST = 3
"""Levels of subfolders that are looked through."""
SHARD = re.compile(r"(\d+)-of-(\d+)")
SAVED_STATE = "state.json"
"""File of every folder that `Dataset.save_to_disk` writes."""
NOT_ROWS = {SAVED_STATE, "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
"""Files beside the rows, in folders that `datasets` and the Hub make."""
WEIGHTS = (".safetensors", ".onnx", "model.bin")
"""Ends of files of weights: the .json files beside them are settings of an adapter or a model."""


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder is one that `Dataset.save_to_disk` wrote."""
    return (path / SAVED_STATE).is_file()


def find_files(folder: Path, split: Split, form: Form = SEEN) -> dict[Split, list[Path]]:
    """Return the files of each split that a folder has; those of the split, or else of train, are checked.

    Several files are shards, in their order. A folder with one file that names no split holds train.

    Raises:
        UserError: neither the split nor train, several files that are not shards, or missing shards.
    """
    files = sorted(data_files_in(folder, form), key=in_order)
    found: dict[Split, list[Path]] = {}
    for name in SPLITS:
        exact = [file for file in files if file.parent == folder and _stem(file) == name]
        chosen = exact or [file for file in files if split_of_file(file.relative_to(folder)) == name]
        if chosen:
            found[name] = chosen
    if not found and len(files) == 1:
        found["train"] = files
    origin: Split = split if split in found else "train"
    chosen = found.get(origin, [])
    if not chosen or (len(chosen) > 1 and not _are_shards(chosen, folder)):
        raise UserError(_must_hold(folder, origin if chosen else split, chosen or files, files, form))
    _check_complete(chosen, folder, origin)
    return found


def _must_hold(folder: Path, split: Split, candidates: list[Path], files: list[Path], form: Form) -> str:
    names = [file.relative_to(folder).as_posix() for file in files]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    remedy = ""
    if candidates:
        chosen = candidates[0].relative_to(folder).as_posix()
        if all(SHARD.search(file.name) for file in candidates):  # of several formats
            chosen = f"[{', '.join(file.relative_to(folder).as_posix() for file in candidates)}]"
        remedy = f". Rename them, or write data.data_files: {{{split}: {chosen}}}"
    kinds = (
        f"{split}.csv, {split}.jsonl, {split}.parquet, ..., or shards such as {split}-00000-of-00002.jsonl"
    )
    kinds = f"{split}{form.parallel[0]}" if form.parallel else kinds
    must_hold = f"data.dataset_name={str(folder)!r} must hold one {split} file ({kinds}); "
    if not files and outputs_among([path.name for path in folder.iterdir()]):
        return (
            f"data.dataset_name={str(folder)!r} holds what lora-hf wrote (a run or a report) and no data; "
            "give the file or the folder of the texts"
        )
    if not files and (others := _unreadable(folder)):
        return f"{must_hold}none of its files can be read: {others}"
    return f"{must_hold}it holds {names[:5]}{more}{remedy}"


def _unreadable(folder: Path) -> str:
    """Return the names of the files in a folder that holds no rows, and what makes rows of them."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name[0] not in "._")
    first: dict[str, Path] = {}
    for file in files:
        remedy = REMEDIES.get(endings(file)[0], "")
        source = first.setdefault(file.stem, file)
        if not remedy and source is not file and source.suffix and file.suffix:  # train.de and train.en
            pair = f"{source.suffix[1:]}, {file.suffix[1:]}"
            remedy = f"; if their lines correspond, set data.parallel_files: [{pair}], source first"
        if remedy:
            return few(one.name for one in files) + remedy
    return few(file.name for file in files)


def data_files_in(folder: Path, form: Form = SEEN, read: Collection[str] = ()) -> Iterator[Path]:
    """Yield the files that can be read, and the folders of `save_to_disk`, in a folder and below it.

    Of parallel files, these are the sources. With `read`, they are the files with one of these endings. What
    this package wrote there is left out: a run below its data would otherwise change them.

    Raises:
        UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}")

    read = read or form.parallel[:1] or READERS
    for place, folders, names in os.walk(folder, onerror=refuse):
        here = Path(place)
        depth = len(here.relative_to(folder).parts)
        yield from (here / name for name in folders if is_saved_dataset(here / name))
        others = NOT_ROWS | outputs_among([*folders, *names])
        if any(name.endswith(WEIGHTS) for name in names):
            others |= {name for name in names if name.endswith(".json")}
        folders[:] = [
            name
            for name in folders
            if depth < DEEPEST
            and name[0] not in "._"
            and name not in others
            and not is_saved_dataset(here / name)
        ]
        for name in names:
            if name[0] not in "._" and name not in others and endings(Path(name))[0] in read:
                yield here / name


def _stem(file: PurePath) -> str:
    return file.name.lower().removesuffix("".join(endings(file)))


def split_of_file(file: PurePath) -> Split | None:
    """Return the split that a relative path names: its name, or else the nearest folder that names one."""
    words = (_stem(file), *reversed(file.parts[:-1]))
    return next((split for word in words if (split := split_named(word))), None)


def in_order(file: Path) -> list[tuple[int, str]]:
    """Return a sort key that puts `train-2` before `train-10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(file))]


def _are_shards(files: list[Path], folder: Path) -> bool:
    """Return whether files are parts of one split: numbered alike, or alone in a folder that names it."""
    if len({endings(file) for file in files}) > 1 or len({file.parent for file in files}) > 1:
        return False
    numbered = all(re.search(r"\d", _stem(file)) for file in files)
    alike = len({re.sub(r"\d+", "#", file.name) for file in files}) == 1
    unnamed = not any(split_named(_stem(file)) for file in files)
    return (numbered and alike) or (unnamed and files[0].parent != folder)


def _check_complete(files: list[Path], folder: Path, split: Split) -> None:
    """Refuse shards of which some are missing, by the total in their names."""
    totals = {int(match[2]) for file in files if (match := SHARD.search(file.name))}
    if totals and totals != {len(files)}:
        raise UserError(
            f"data.dataset_name={str(folder)!r} holds {len(files)} of the {max(totals)} shards of "
            f"{split}, by the name {files[0].name}; copy the others too"
        )
