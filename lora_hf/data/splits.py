"""Load the splits of a dataset from the embedded sample, local files, or the Hub."""

import gzip
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from lora_hf.config import DataConfig
from lora_hf.config.model import EMBEDDED, EMBEDDED_SAMPLE
from lora_hf.data.columns import DIALOGUE, PLAIN, Columns, Row, find_columns, head_of
from lora_hf.data.examples import (
    Example,
    check_each,
    check_rows,
    dialogues_of,
    group_rows,
    one_per_reference,
)
from lora_hf.data.folders import SPLITS, Split, find_files, is_saved_dataset
from lora_hf.data.hub_dataset import read_hub
from lora_hf.data.opened import endings
from lora_hf.data.overlap import plain_text
from lora_hf.data.readers import READERS, iterate_rows, read_rows, read_utf8
from lora_hf.errors import UserError, first_line, is_windows_path, path_hint
from lora_hf.hub.names import refuse_address

logger = logging.getLogger(__name__)


def load_split(config: DataConfig, split: Split) -> list[Example]:
    """Load the dialogues of a split in the source's order, at most `max_<split>_samples` of them.

    Raises:
        UserError: no such source, split or column, an empty split, or a row without text.
    """
    limit = _limit(config, split)
    if (scored := scored_split(config, split)) != split:
        text = "%s: the test split has no references; scores are those of the validation split"
        logger.info(f"{text} (`lora-hf predict` summarizes the test dialogues)", config.dataset_name)
    if config.streaming:
        return group_rows(list(_until(iterate_split(config, scored), limit)))
    part = _part(config, scored)
    rows, columns = _read(part, config)
    checked = check_rows(list(rows), columns, config, part.name)
    if part.homes:
        checked = _slice(checked, config, scored, part)
    return group_rows(checked)[:limit]


def iterate_split(config: DataConfig, split: Split) -> Iterator[Row]:
    """Yield the checked rows of a split, one per reference; at most `max_train_samples` of train.

    Each row has its texts under `dialogue` and `summary`, beside the columns of its source.

    Raises:
        UserError: as `load_split`, when the faulty row is reached.
    """
    part = _part(config, scored_split(config, split))
    rows, columns = _read(part, config)
    rows = check_each(rows, columns, config, part.name)
    if part.homes:
        rows = filter(lambda row: _home(row[DIALOGUE], config, part) in part.homes, rows)
    rows = one_per_reference(rows)
    first = next(rows, None)
    if first is None:
        raise UserError(f"data.dataset_name={config.dataset_name!r}: no rows belong to the split {split}")
    yield from islice(chain([first], rows), config.max_train_samples if split == "train" else None)


def scored_split(config: DataConfig, split: Split) -> Split:
    """Return the split itself, or validation for a test split of a folder that has no references."""
    path = Path(config.dataset_name).expanduser()
    if split != "test" or not path.is_dir() or is_saved_dataset(path):
        return split
    part = _part(config, split)
    head = head_of(part.rows, config)
    if not head or find_columns(head, config, part.name, needs_references=False).references:
        return split
    return "validation"


def _read(part: "Part", config: DataConfig, needs_references: bool = True) -> tuple[Iterator[Row], Columns]:
    """Return the rows with their texts under the keys of `columns`, and the columns."""
    head = head_of(part.rows, config)
    if not head:
        return iter(()), PLAIN
    columns = find_columns(head, config, part.name, needs_references)
    if columns.is_found and needs_references:
        logger.info("%s: columns %s (data.dialogue_column, data.summary_column)", part.name, columns)
    elif columns.is_found and columns.dialogue != config.dialogue_column:
        logger.info("%s: the dialogues are in column %r (--dialogue-column)", part.name, columns.dialogue)
    return map(columns.read, chain(head, part.rows)), columns


class Part(NamedTuple):
    """The rows that a split is in."""

    rows: Iterator[Row]
    """All rows of the source, or those of one of its splits."""
    name: str
    """What messages call them."""
    homes: frozenset[Split] = frozenset()
    """The splits by `_home` whose rows are the split's; empty where all rows are."""
    is_one_file: bool = False


def _part(config: DataConfig, split: Split) -> Part:
    path, name = Path(config.dataset_name).expanduser(), config.dataset_name
    if path.is_file() or is_saved_dataset(path):
        return Part(_read_source(path), name, frozenset([split]), is_one_file=True)
    if not path.is_dir():
        return Part(_rows(config, split), f"{name} [{split}]")
    files, missing = find_files(path, split)
    origin: Split = "train" if split in missing else split
    if any(_is_renamed(file, path, origin) for file in files):
        names = [file.relative_to(path).as_posix() for file in files]
        logger.info("%s [%s]: %s", name, origin, ", ".join(names[:5]) + (", ..." if len(names) > 5 else ""))
    rows = chain.from_iterable(map(_read_source, files))
    homes = frozenset[Split]()
    if origin == "train" and missing:
        homes = frozenset([split]) if split in missing else frozenset(SPLITS) - missing
    return Part(rows, f"{name} [{origin}]", homes)


def _is_renamed(file: Path, folder: Path, split: Split) -> bool:
    return file.parent != folder or file.name.partition(".")[0] != split


def _read_source(path: Path) -> Iterator[Row]:
    if not is_saved_dataset(path):
        return iterate_rows(path)
    from datasets import load_from_disk

    try:
        return iter(load_from_disk(str(path)))
    except Exception as error:  # whatever pyarrow and datasets raise for a folder that is not whole
        raise UserError(f"{path} is not a whole folder of save_to_disk: {first_line(error)}") from error


def is_on_hub(config: DataConfig) -> bool:
    """Return whether the data is a repository on the Hub."""
    return config.dataset_name != EMBEDDED and not Path(config.dataset_name).expanduser().exists()


def _until(rows: Iterator[Row], limit: int | None) -> Iterator[Row]:
    """Yield the rows of the first `limit` dialogues, reading one row further at most."""
    seen: set[str] = set()
    for row in rows:
        seen.add(row[DIALOGUE])
        if limit is not None and len(seen) > limit:
            return
        yield row


def _limit(config: DataConfig, split: Split) -> int | None:
    return {
        "train": config.max_train_samples,
        "validation": config.max_eval_samples,
        "test": config.max_test_samples,
    }[split]


def read_file(file: Path, config: DataConfig) -> list[Example]:
    """Read the dialogues of one file, one per row, without references.

    Raises:
        UserError: no such file or column, or a row without text.
    """
    if file.suffix.lower() == ".txt" and file.is_file():
        rows = [{config.dialogue_column: read_utf8(file).strip()}]
    else:
        rows = read_rows(file)
    if not rows:
        raise UserError(f"{file} has no rows")
    part = Part(iter(rows), str(file))
    try:
        read, columns = _read(part, config, needs_references=False)
    except UserError as error:
        raise UserError(str(error).replace("data.dialogue_column=", "--dialogue-column=", 1)) from error
    columns = replace(columns, references=())
    return dialogues_of(check_rows(list(read), columns, config, str(file)))


def _rows(config: DataConfig, split: Split) -> Iterator[Row]:
    if config.dataset_name == EMBEDDED:
        return islice(_read_sample(split), _limit(config, split))
    path = Path(config.dataset_name).expanduser()
    refuse_address(config.dataset_name, "data.dataset_name", "data.dataset_revision")
    is_path = path.is_absolute() or config.dataset_name.startswith((".", "~"))
    is_path = is_path or is_windows_path(config.dataset_name)
    if is_path or endings(path)[0] in READERS or len(path.parts) > 2:
        text = f"data.dataset_name={config.dataset_name!r}: no such file or folder."
        raise UserError(f"{text}{path_hint(config.dataset_name)}".removesuffix("."))
    return read_hub(config, split)


def _read_sample(split: Split) -> Iterator[Row]:
    with gzip.open(EMBEDDED_SAMPLE / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def _home(dialogue: str, config: DataConfig, part: Part) -> Split:
    """Return the split of a dialogue in data without that split, by its hash: 80 % train, 10 % each other.

    Copies of a dialogue with other spaces or in another case have the same home. One file with the default
    seed is divided as it always was, by its dialogues to the letter, so that earlier runs stay valid.
    """
    if part.is_one_file and config.split_seed == 0:
        text = dialogue.encode()
    else:
        text = f"{config.split_seed}\n".encode() + plain_text(dialogue)
    digest = sha256(text).digest()[0] % 10
    return "test" if digest == 9 else "validation" if digest == 8 else "train"


def _slice(rows: list[Row], config: DataConfig, split: Split, part: Part) -> list[Row]:
    chosen = [row for row in rows if _home(row[DIALOGUE], config, part) in part.homes]
    count = f"{len(chosen):,} of {len(rows):,} rows"
    if part.is_one_file:
        logger.info("%s [%s]: %s", config.dataset_name, split, count)
    else:
        held = [name for name in SPLITS if (name in part.homes) == (split != "train")]
        text = "%s [%s]: %s of train; %s is missing and taken from train by a hash (data.split_seed=%d)"
        logger.info(text, config.dataset_name, split, count, " and ".join(held), config.split_seed)
    if not chosen:
        what = "one file" if part.is_one_file else f"a folder without the split {split}"
        raise UserError(
            f"data.dataset_name={config.dataset_name!r} is {what}, split 80/10/10 by a hash of the "
            f"dialogue, and none of its {len(rows)} rows belongs to {split}; give more rows, or a folder "
            f"with a file for each of {', '.join(SPLITS)}"
        )
    return chosen
