"""Load the splits of a dataset from the embedded sample, local files, or the Hub."""

import gzip
import json
import logging
from collections.abc import Iterator
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Literal, get_args

from lora_hf.config import DataConfig
from lora_hf.config.model import EMBEDDED, EMBEDDED_SAMPLE
from lora_hf.data.examples import Example, Row, check_each, check_rows, dialogues_of, group_rows
from lora_hf.data.hub_dataset import read_hub
from lora_hf.data.opened import endings
from lora_hf.data.readers import READERS, iterate_rows, read_rows, read_utf8
from lora_hf.errors import UserError, is_windows_path, path_hint
from lora_hf.hub.names import refuse_address

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
logger = logging.getLogger(__name__)


def load_split(config: DataConfig, split: Split) -> list[Example]:
    """Load the dialogues of a split in the source's order, at most `max_<split>_samples` of them.

    Raises:
        UserError: no such source, split or column, an empty split, or a row without text.
    """
    limit = _limit(config, split)
    if config.streaming:
        return group_rows(list(_until(iterate_split(config, split), config.dialogue_column, limit)), config)
    file = Path(config.dataset_name).expanduser()
    if file.is_file():
        rows = read_rows(file)
        check_rows(rows, _columns(config), config.dataset_name)
        rows = _slice(rows, config, split)
    else:
        rows = list(_rows(config, split))
        check_rows(rows, _columns(config), f"{config.dataset_name} [{split}]")
    return group_rows(rows, config)[:limit]


def iterate_split(config: DataConfig, split: Split) -> Iterator[Row]:
    """Yield the checked rows of a split; at most `max_train_samples` rows of the training split.

    Raises:
        UserError: as `load_split`, when the faulty row is reached.
    """
    file = Path(config.dataset_name).expanduser()
    if file.is_file():
        rows = check_each(iterate_rows(file), _columns(config), config.dataset_name)
        rows = filter(lambda row: _home(row[config.dialogue_column]) == split, rows)
    else:
        rows = check_each(_rows(config, split), _columns(config), f"{config.dataset_name} [{split}]")
    first = next(rows, None)
    if first is None:
        raise UserError(f"data.dataset_name={config.dataset_name!r}: no rows belong to the split {split}")
    yield from islice(chain([first], rows), config.max_train_samples if split == "train" else None)


def is_on_hub(config: DataConfig) -> bool:
    """Return whether the data is a repository on the Hub."""
    return config.dataset_name != EMBEDDED and not Path(config.dataset_name).expanduser().exists()


def _until(rows: Iterator[Row], column: str, limit: int | None) -> Iterator[Row]:
    """Yield the rows of the first `limit` dialogues, reading one row further at most."""
    seen: set[str] = set()
    for row in rows:
        seen.add(row[column])
        if limit is not None and len(seen) > limit:
            return
        yield row


def _limit(config: DataConfig, split: Split) -> int | None:
    return {
        "train": config.max_train_samples,
        "validation": config.max_eval_samples,
        "test": config.max_test_samples,
    }[split]


def _columns(config: DataConfig) -> dict[str, str]:
    return {"data.dialogue_column": config.dialogue_column, "data.summary_column": config.summary_column}


def read_file(file: Path, config: DataConfig) -> list[Example]:
    """Read the dialogues of one file, one per row, without references.

    Raises:
        UserError: no such file or column, or a row without text.
    """
    if file.suffix.lower() == ".txt" and file.is_file():
        rows = [{config.dialogue_column: read_utf8(file).strip()}]
    else:
        rows = read_rows(file)
    check_rows(rows, {"--dialogue-column": config.dialogue_column}, str(file))
    return dialogues_of(rows, config)


def _rows(config: DataConfig, split: Split) -> Iterator[Row]:
    if config.dataset_name == EMBEDDED:
        return islice(_read_sample(split), _limit(config, split))
    path = Path(config.dataset_name).expanduser()
    if path.is_dir():
        return iterate_rows(_split_file(path, split))
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


def _split_file(folder: Path, split: Split) -> Path:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in READERS)
    chosen = [f for f in files if f.stem == split]
    if len(chosen) != 1:
        raise UserError(
            f"data.dataset_name={str(folder)!r} must hold one {split} file "
            f"({', '.join(split + suffix for suffix in READERS)}); it holds {[f.name for f in files]}"
        )
    return chosen[0]


def _home(dialogue: str) -> Split:
    """Return the split of a dialogue in a file without splits, by its hash: 80 % train, 10 % each other."""
    digest = sha256(dialogue.encode()).digest()[0] % 10
    return "test" if digest == 9 else "validation" if digest == 8 else "train"


def _slice(rows: list[Row], config: DataConfig, split: Split) -> list[Row]:
    chosen = [row for row in rows if _home(row[config.dialogue_column]) == split]
    logger.info("%s [%s]: %s of %s rows", config.dataset_name, split, f"{len(chosen):,}", f"{len(rows):,}")
    if not chosen:
        raise UserError(
            f"data.dataset_name={config.dataset_name!r} is one file, split 80/10/10 by a hash of the "
            f"dialogue, and none of its {len(rows)} rows belongs to {split}; give more rows, or a folder "
            f"with a file for each of {', '.join(SPLITS)}"
        )
    return chosen
