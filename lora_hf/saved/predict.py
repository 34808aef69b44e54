"""Summarize the dialogues of a file with a saved adapter, or with a whole model."""

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, cast, get_args

from lora_hf.config import DataConfig
from lora_hf.config.load import OF_THE_MODEL
from lora_hf.data.input_file import read_file
from lora_hf.data.parts import check_long
from lora_hf.errors import UserError, few
from lora_hf.saved.find_adapter import base_config, columns_of, find_adapter
from lora_hf.saved.inference import load_source
from lora_hf.saved.source import Source

logger = logging.getLogger(__name__)
END = "\r\n\0"
"""Written at the end of a row: where Python quotes its characters, a lone carriage return is quoted too."""
PREDICTION = "prediction"
"""The column of what the model writes."""
Format = Literal["jsonl", "csv", "text"]
FORMATS: tuple[Format, ...] = get_args(Format)
BY_ENDING: dict[str, Format] = {".csv": "csv", ".txt": "text"}
BY_ENDING |= dict.fromkeys(("", ".jsonl", ".ndjson", ".json"), "jsonl")
"""The format of an output file by its ending."""


def predict(
    file: str | Path,
    model: str | Source,
    base: str | None = None,
    data: DataConfig | None = None,
    generation: Mapping[str, Any] | None = None,
    is_lines: bool = False,
    long: str = "cut",
    quantization: str | None = None,
    engine: str | None = None,
    keeps_columns: bool = False,
) -> list[dict[str, Any]]:
    """Summarize each dialogue of a file, with the prompt and the settings that the model was scored with.

    Args:
        file: csv, tsv, jsonl, json, parquet or arrow, or the address of such a file; a .txt that holds one
            dialogue; or `-` for standard input.
        model: an adapter: a folder, or USER/NAME[@REVISION] on the Hub; or what `find_source` found.
        base: the base model of an adapter, or None for the one it names.
        data: how the file is read: its columns, encoding and delimiter. Columns that it does not set are
            those of the training, if the file has them. Also the prompt and the languages, where the model
            records none.
        generation: fields of `generation` that replace the model's own.
        is_lines: whether a text has one dialogue per line.
        long: what is done with dialogues that are too long: `cut` or `split`, as `InferenceModel.generate`.
        quantization: of the model's linear layers, as `lora_hf.load` has it.
        engine: as `lora_hf.load` has it.
        keeps_columns: whether the returned rows have the columns of the file, in the place of `id` and
            `dialogue`.

    Returns:
        Rows of `id`, `dialogue`, `prediction`, or the file's columns and `prediction`.

    Raises:
        UserError: a mistake in the file, the model or `generation`, lengths beyond the model's positions, or
            a column `prediction` that would be replaced.
    """
    data, long = data or DataConfig(), check_long(long, "--long")
    if isinstance(model, str):
        saved = find_adapter(model)
        examples = read_file(file, data, is_lines, columns_of(saved))
        model = Source(model, base_config(saved, base), saved)
    else:
        examples = read_file(file, data, is_lines, model.columns)
    if keeps_columns and any(PREDICTION in example.row for example in examples):
        raise UserError(
            f"--keep-columns: {file} has a column {PREDICTION!r} already, which would be replaced: rename it"
        )
    if not keeps_columns:
        _say_what_is_left_out(str(file), examples[0].others)
    model = replace(model, form=data.model_dump(include={*OF_THE_MODEL}, exclude_unset=True))
    settings = model.settings_with("generate", generation or {})
    loaded = load_source(model, settings, quantization, engine)
    predictions = loaded.generate([example.dialogue for example in examples], long=long, **(generation or {}))
    return [
        (example.row if keeps_columns else {"id": example.id, "dialogue": example.dialogue})
        | {PREDICTION: prediction}
        for example, prediction in zip(examples, predictions, strict=True)
    ]


def _say_what_is_left_out(file: str, others: Sequence[str]) -> None:
    if others:
        are = "column is" if len(others) == 1 else "columns are"
        logger.info("%s: %s not written: %s (--keep-columns writes all)", file, are, few(others))


def format_of(output: Path | None, given: str | None) -> Format:
    """Return the format of the output: the given one, or else by the file's ending.

    Raises:
        UserError: an unknown format or ending.
    """
    if given is not None:
        if given not in FORMATS:
            raise UserError(f"--format {given} is not one of {', '.join(FORMATS)}")
        return cast(Format, given)
    ending = output.suffix.lower() if output else ""
    if ending not in BY_ENDING:
        known = ", ".join(filter(None, BY_ENDING))
        raise UserError(f"--output {output}: cannot write {ending!r}; give a file with {known}, or --format")
    return BY_ENDING[ending]


def rendered(rows: list[dict[str, Any]], form: Format = "jsonl") -> str:
    """Return the rows as JSON lines, as csv with a header, or as one prediction per line.

    A cell of csv that is a list or an object is written as JSON. What JSON lacks, such as a date of a parquet
    file, is written as text.
    """
    if form == "jsonl":
        return "".join(json.dumps(_of_json(row), ensure_ascii=False, default=str) + "\n" for row in rows)
    if form == "text":  # the n-th line belongs to the n-th dialogue, whatever breaks a model writes
        return "".join(f"{' '.join(row[PREDICTION].split())}\n" for row in rows)
    columns = list(dict.fromkeys(name for row in rows for name in row if name != PREDICTION))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, [*columns, PREDICTION], lineterminator=END)
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue().replace(END, "\n")


def _of_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without the numbers that JSON lacks: null in the place of NaN and infinity."""
    return {key: None if isinstance(v, float) and not isfinite(v) else v for key, v in row.items()}


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value
