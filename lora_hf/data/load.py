"""Where dialogues come from: the package's generator, local files, or the Hub."""

import logging
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from lora_hf.config import DataConfig
from lora_hf.data.examples import Example, group_rows
from lora_hf.data.rows import READERS, read_rows
from lora_hf.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
EMBEDDED = "embedded"
EMBEDDED_ROWS: dict[Split, int] = {"train": 10_000, "validation": 500, "test": 500}
logger = logging.getLogger(__name__)


def load_split(config: DataConfig, split: Split, with_references: bool = True) -> list[Example]:
    """The dialogues of a split, in the order of the source, at most `max_<split>_samples` of them.

    Raises:
        UserError: no such source, split or column, an empty split, or a row without text.
    """
    limits = {
        "train": config.max_train_samples,
        "validation": config.max_eval_samples,
        "test": config.max_test_samples,
    }
    rows = _rows(config, split, limits[split])
    examples = group_rows(rows, config, f"{config.dataset_name} [{split}]", with_references)
    return examples[: limits[split]]


def read_file(file: Path, config: DataConfig) -> list[Example]:
    """The dialogues of one file, references not needed: what `predict` reads.

    Raises:
        UserError: as `load_split`.
    """
    return group_rows(read_rows(file), config, str(file), with_references=False)


def _rows(config: DataConfig, split: Split, limit: int | None) -> list[dict[str, Any]]:
    if config.dataset_name == EMBEDDED:
        from lora_hf.data.generator import generate

        return list(generate(split, limit or EMBEDDED_ROWS[split]))
    path = Path(config.dataset_name).expanduser()
    if path.is_dir():
        return read_rows(_split_file(path, split))
    if path.is_file():
        return _slice(read_rows(path), config, split)
    if path.suffix in READERS or path.is_absolute() or config.dataset_name.startswith((".", "~")):
        raise UserError(f"data.dataset_name={config.dataset_name!r}: no such file or folder")
    return _read_hub(config, split)


def _split_file(folder: Path, split: Split) -> Path:
    files = sorted(f for f in folder.iterdir() if f.suffix in READERS)
    chosen = [f for f in files if f.stem == split]
    if len(chosen) != 1:
        raise UserError(
            f"data.dataset_name={str(folder)!r} must hold one {split} file "
            f"({', '.join(split + suffix for suffix in READERS)}); it holds {[f.name for f in files]}"
        )
    return chosen[0]


def _slice(rows: list[dict[str, Any]], config: DataConfig, split: Split) -> list[dict[str, Any]]:
    """A file without splits: a hash of each dialogue sends 80 % to train, 10 % to each other split."""

    def home(row: dict[str, Any]) -> Split:
        digest = sha256(str(row.get(config.dialogue_column)).encode()).digest()[0] % 10
        return "test" if digest == 9 else "validation" if digest == 8 else "train"

    logger.info("%s is one file: split 80/10/10 by a hash of the dialogue", config.dataset_name)
    return [row for row in rows if home(row) == split]


def _read_hub(config: DataConfig, split: Split) -> list[dict[str, Any]]:
    from datasets import load_dataset

    try:
        dataset: Any = load_dataset(
            config.dataset_name, config.dataset_config, split=split, revision=config.dataset_revision
        )
    except Exception as error:  # datasets raises a dozen kinds; all mean that this name gave no data
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"data.dataset_name={config.dataset_name!r} [{split}] did not load: {first} (give a folder or a "
            f"file, a dataset on the Hub that can be reached, or {EMBEDDED!r})"
        ) from error
    return list(dataset)
