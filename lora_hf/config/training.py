"""Check `training:` field by field; `config.together` checks what only several fields can say."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lora_hf.config.problems import KeyPath, Mistake, near_choice, unknown_key, wrong_value
from lora_hf.config.task import SUMMARIZATION
from lora_hf.config.training_fields import DROPPED, ELSEWHERE, FIXED, LARGEST, FieldSchema, training_fields
from lora_hf.config.types import Flag, Integer, Number
from lora_hf.errors import NOT_JSON, first_line
from lora_hf.scores import METRICS

JSON_FILES = ("accelerator_config", "deepspeed", "fsdp_config")
"""Fields that are a mapping, its JSON text, or the path of a JSON file."""
JSON_TEXTS = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs")
"""Fields that are a mapping or its JSON text."""
TOKENS_SEEN = ("no", "all", "non_padding")
"""Texts of `include_num_input_tokens_seen`; Transformers counts nothing sensible with any other."""
BELOW_ONE = {
    "adam_beta1": "at 1 the average never changes",
    "adam_beta2": "at 1 the average never changes",
    "label_smoothing_factor": "at 1 the references have no weight",
}
"""Fields with values from 0 on that may not reach 1, and why."""
_KINDS: dict[str, tuple[Any, str]] = {
    "integer": (Integer, "an integer"),
    "number": (Number, "a number"),
    "boolean": (Flag, "true or false"),
    "string": (str, "text"),
    "object": (dict, "a mapping"),
    "array": (list, "a list"),
    "null": (NoneType, "null"),
}
"""Types of a JSON schema: how a value is read, and what the type is called."""


def higher_is_better(metric: str) -> bool | None:
    """Return whether a higher value of an evaluation's metric is better; None if neither direction is.

    Args:
        metric: a score, `loss` or `words`, with or without the Trainer's prefix `eval_`.
    """
    name = metric.removeprefix("eval_")
    directions = {score.name: score.higher_is_better for scores in METRICS.values() for score in scores}
    return False if name == "loss" else directions.get(name)


def check_training(
    training: Mapping[Any, Any],
    path: KeyPath = ("training",),
    scores: Sequence[str] = SUMMARIZATION.score_names,
) -> tuple[dict[str, Any], list[Mistake]]:
    """Check each field by itself.

    Args:
        training: the section.
        path: its place in the config.
        scores: names of the task's scores.

    Returns:
        The section with its values in their fields' types, and every mistake in it.
    """
    values: dict[str, Any] = {}
    mistakes: list[Mistake] = []
    for key, value in training.items():
        try:
            values[key] = _check(key, value, scores)
        except KeyError:
            if key in DROPPED:
                phrase = f"is no longer a field of Transformers: {DROPPED[key]}"
                mistakes.append(wrong_value((*path, key), value, phrase))
            else:
                mistakes.append(unknown_key((*path, key), value))
        except ValueError as error:
            mistakes.append(wrong_value((*path, key), value, str(error)))
    return values, mistakes


def _check(key: str, value: Any, scores: Sequence[str]) -> Any:
    """Return the value in its field's type.

    Raises:
        KeyError: no such field.
        ValueError: a wrong value; its text follows `key=value` in the message.
    """
    if key in ELSEWHERE:
        raise ValueError(ELSEWHERE[key])
    schema = training_fields()[key]
    if key in FIXED:
        only, reason = FIXED[key]
        value = _convert(value, {"anyOf": [{"type": "boolean"}]}) if isinstance(only, bool) else value
        if value != only:
            raise ValueError(reason)
        return value
    value = _convert(value, schema)
    if key == "include_num_input_tokens_seen" and isinstance(value, str) and value not in TOKENS_SEEN:
        raise ValueError(f"is not true, false or one of {', '.join(TOKENS_SEEN)}")
    if key == "deepspeed" and value is not None and not value:
        raise ValueError("is empty: give a mapping of DeepSpeed's fields or the path of a JSON file, or null")
    if key == "report_to" and isinstance(value, list) and len(value) > 1 and {*value} & {"none", "all"}:
        raise ValueError("names none or all beside other trackers: write it alone, or remove it")
    if key == "metric_for_best_model":
        given = ("loss", *scores, "words")
        if str(value or "loss").removeprefix("eval_") not in given:
            raise ValueError(f"is not one of {', '.join(given)}, which an evaluation gives")
    if key in (*JSON_FILES, *JSON_TEXTS) and isinstance(value, str):
        _check_json(value, may_be_file=key in JSON_FILES)
    if key == "optim_args" and value:
        _check_optim_args(value)
    most = LARGEST if isinstance(value, int) else float("inf")
    if key in BELOW_ONE and value >= 1:
        raise ValueError(f"must be below 1: {BELOW_ONE[key]}")
    low, high = schema.get("minimum", -most), schema.get("maximum", most)
    if isinstance(value, (int, float)) and not low <= value <= high:
        raise ValueError(f"must be at least {low:g}" if value < low else f"must be at most {high:g}")
    return float(value) if key in BELOW_ONE else value  # PyTorch refuses a beta of 0 beside one of 0.9


def _check_json(value: str, may_be_file: bool) -> None:
    """Check the text of a mapping, or the file that holds one."""
    is_text = value.strip().startswith("{")
    expected = "a mapping of fields, or the path of an existing JSON file" if may_be_file else "a mapping"
    if not is_text and not (may_be_file and Path(value).is_file()):
        raise ValueError(f"must be {expected}")
    try:
        held = json.loads(value if is_text else Path(value).read_text(encoding="utf-8"))
    except (OSError, *NOT_JSON) as error:
        raise ValueError(f"does not hold JSON ({first_line(error)}); it must be {expected}") from None
    if not isinstance(held, dict):
        raise ValueError(f"does not hold a JSON object; it must be {expected}")


def _check_optim_args(value: str) -> None:
    """Check the form of `optim_args`, which Transformers splits at each comma."""
    for part in value.split(","):
        key, equals, setting = part.partition("=")
        if not (key.strip() and equals and setting.strip()) or "=" in setting:
            raise ValueError(
                f"must be key=value, separated by commas, such as momentum=0.9, nesterov=true; "
                f"{part.strip()!r} is not (Adam's betas are adam_beta1 and adam_beta2)"
            )


def asks_to_compile(training: Mapping[str, Any]) -> bool:
    """Return whether the fields turn on `torch.compile`; as in Transformers, a backend or a mode does too."""
    asked = any(training.get(f"torch_compile{end}") for end in ("", "_backend", "_mode"))
    return asked and str(training.get("torch_compile_backend")).lower() != "no"


def _convert(value: Any, schema: FieldSchema) -> Any:
    if "enum" in schema:
        if value in schema["enum"]:
            return value
        choices = [choice for choice in schema["enum"] if choice is not None]
        few = len(choices) <= 16
        listed = ", ".join(choices) if few else f"{len(choices)} names, such as {choices[0]}"
        raise ValueError(f"is not one of {listed}{near_choice(value, choices)}")
    kinds = schema.get("anyOf", [])
    for kind in kinds:
        checked = TypeAdapter(_read_as(kind), config=ConfigDict(strict=True))
        try:
            converted = checked.validate_python(value)
        except ValidationError:
            continue
        if isinstance(value, float) and isinstance(converted, int):  # 1e2 of an integer
            return converted
        return value if converted == value else converted  # 25 steps stay 25, not 25.0
    if not kinds:  # a class of Transformers or accelerate: its construction will check the value
        return value
    raise ValueError(f"is not {' or '.join(dict.fromkeys(_KINDS[_type(kind)][1] for kind in kinds))}")


def _type(kind: FieldSchema) -> str:
    """Return the type of one alternative; if it has several forms, the first is the plain one."""
    name: str = kind["type"] if "type" in kind else _type(kind["anyOf"][0])
    return name


def _read_as(kind: FieldSchema) -> Any:
    """Return the Python type of one alternative of a field's schema."""
    if "enum" in kind:
        return Literal[tuple(kind["enum"])]
    if items := kind.get("items"):
        return list[_read_as(items)]  # type: ignore[misc]
    if isinstance(values := kind.get("additionalProperties"), dict):
        return dict[str, _read_as(values)]  # type: ignore[misc]
    return _KINDS[_type(kind)][0]
