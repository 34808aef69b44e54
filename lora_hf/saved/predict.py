"""Summarize the dialogues of a file with a saved adapter."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_hf.config import DataConfig
from lora_hf.data.splits import read_file
from lora_hf.saved.find_adapter import base_config, find_adapter
from lora_hf.saved.inference import InferenceModel


def predict(
    file: Path,
    adapter: str,
    base: str | None,
    dialogue_column: str,
    generation: Mapping[str, Any] | None = None,
) -> list[dict[str, str]]:
    """Summarize each dialogue of a file, with the prompt and the settings that the adapter was scored with.

    Args:
        file: csv, tsv, jsonl, json, parquet or arrow, or a .txt that holds one dialogue.
        adapter: a folder, or USER/NAME[@REVISION] on the Hub.
        base: the base model, or None for the one the adapter names.
        dialogue_column: the column that holds the dialogues.
        generation: fields of `generation` that replace the adapter's.

    Returns:
        Rows of `id`, `dialogue`, `prediction`, in the file's order.
    """
    examples = read_file(file, DataConfig(dialogue_column=dialogue_column))
    saved = find_adapter(adapter)
    model = InferenceModel(base_config(saved, base))
    model.add_adapter(saved)
    predictions = model.generate([example.dialogue for example in examples], **(generation or {}))
    return [
        {"id": example.id, "dialogue": example.dialogue, "prediction": prediction}
        for example, prediction in zip(examples, predictions, strict=True)
    ]


def as_lines(rows: list[dict[str, str]]) -> str:
    """Return the rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
