"""Where dialogues come from: the package's generator, local files, or the Hub."""

import logging
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from lora_hf.config import DataConfig
from lora_hf.data.examples import Example, check_rows, dialogues_of, group_rows
from lora_hf.data.rows import READERS, read_rows, read_utf8
from lora_hf.errors import UserError, first_line
from lora_hf.hub.fetch import check_dataset

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
EMBEDDED = "embedded"
EMBEDDED_ROWS: dict[Split, int] = {"train": 10_000, "validation": 500, "test": 500}
logger = logging.getLogger(__name__)


def load_split(config: DataConfig, split: Split) -> list[Example]:
    """The dialogues of a split, in the order of the source, at most `max_<split>_samples` of them.

    Raises:
        UserError: no such source, split or column, an empty split, or a row without text.
    """
    limits = {
        "train": config.max_train_samples,
        "validation": config.max_eval_samples,
        "test": config.max_test_samples,
    }
    columns = {"data.dialogue_column": config.dialogue_column, "data.summary_column": config.summary_column}
    file = Path(config.dataset_name).expanduser()
    if file.is_file():
        rows = read_rows(file)
        check_rows(rows, columns, config.dataset_name)
        rows = _slice(rows, config, split)
    else:
        rows = _rows(config, split, limits[split])
        check_rows(rows, columns, f"{config.dataset_name} [{split}]")
    return group_rows(rows, config)[: limits[split]]


def read_file(file: Path, config: DataConfig) -> list[Example]:
    """The dialogues of one file, a row each, references not needed: what `predict` reads.

    Raises:
        UserError: no such file or column, or a row without text.
    """
    if file.suffix.lower() == ".txt" and file.is_file():
        rows = [{config.dialogue_column: read_utf8(file).strip()}]
    else:
        rows = read_rows(file)
    check_rows(rows, {"--dialogue-column": config.dialogue_column}, str(file))
    return dialogues_of(rows, config)


def _rows(config: DataConfig, split: Split, limit: int | None) -> list[dict[str, Any]]:
    if config.dataset_name == EMBEDDED:
        from lora_hf.data.generator import generate

        return list(generate(split, limit or EMBEDDED_ROWS[split]))
    path = Path(config.dataset_name).expanduser()
    if path.is_dir():
        return read_rows(_split_file(path, split))
    is_path = path.is_absolute() or config.dataset_name.startswith((".", "~"))
    if is_path or path.suffix.lower() in READERS or len(path.parts) > 2:
        raise UserError(f"data.dataset_name={config.dataset_name!r}: no such file or folder")
    return _read_hub(config, split)


def _split_file(folder: Path, split: Split) -> Path:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in READERS)
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
        digest = sha256(row[config.dialogue_column].encode()).digest()[0] % 10
        return "test" if digest == 9 else "validation" if digest == 8 else "train"

    chosen = [row for row in rows if home(row) == split]
    logger.info("%s [%s]: %s of %s rows", config.dataset_name, split, f"{len(chosen):,}", f"{len(rows):,}")
    if not chosen:
        raise UserError(
            f"data.dataset_name={config.dataset_name!r} is one file, split 80/10/10 by a hash of the "
            f"dialogue, and none of its {len(rows)} rows falls to {split}; give more rows, or a folder "
            f"with a file for each of {', '.join(SPLITS)}"
        )
    return chosen


def _read_hub(config: DataConfig, split: Split) -> list[dict[str, Any]]:
    from datasets import load_dataset

    name, revision = config.dataset_name, config.dataset_revision
    what = f"data.dataset_name={name!r} [{split}] did not load"
    remedy = f" (give a folder or a file, a dataset on the Hub that can be reached, or {EMBEDDED!r})"
    check_dataset(name, revision, what, remedy)
    try:
        dataset: Any = load_dataset(name, config.dataset_config, split=split, revision=revision)
    except Exception as error:  # datasets raises a dozen kinds; all mean that this name gave no data
        raise UserError(f"{what}: {first_line(error)}{remedy}") from error
    return list(dataset)
