"""Read back what a run has written: its results and its predictions."""

import json
from pathlib import Path
from typing import Any

from lora_hf.errors import NOT_JSON, UserError, first_line
from lora_hf.files import read_object
from lora_hf.run_files import PREDICTIONS

MOST_RECORD = 2**30
"""Bytes: of the log of a long training."""


def read_record(file: Path) -> dict[str, Any] | None:
    """A JSON object from a file that a run has written, or None where there is no such file.

    Raises:
        UserError: it is none any more.
    """
    return read_object(file, MOST_RECORD) if file.is_file() else None


def read_predictions(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's predictions.jsonl: id, dialogue, references, prediction.

    Raises:
        UserError: it is not what a run writes.
        FileNotFoundError: there is no such file.
    """
    file = directory / PREDICTIONS
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        if not all(
            isinstance(row["prediction"], str) and isinstance(row["references"], list) for row in rows
        ):
            raise ValueError("prediction is no text, or references are no list")
    except (*NOT_JSON, KeyError, TypeError) as error:
        raise UserError(f"{file} is not what a run writes: {first_line(error)}") from error
    return rows


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below a folder; 0 where there is none."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
