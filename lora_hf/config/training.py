"""Check `training:`: names, types and bounds by the fields' schemas, then all together by Transformers."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lora_hf.config.problems import KeyPath, Mistake, dotted, near_choice, shown, unknown_key, wrong_value
from lora_hf.config.training_fields import ELSEWHERE, FIXED, LARGEST, FieldSchema, training_fields
from lora_hf.config.types import Flag, Integer, Number
from lora_hf.run_files import ROUGE_NAMES

BEST = ("loss", *ROUGE_NAMES, "words")
"""Metrics of an evaluation during training."""
# They set environment variables, process groups or global flags when given, or depend on this machine.
_NOT_TRIED = """deepspeed fsdp fsdp_config accelerator_config parallelism_config tf32 use_cpu
torch_compile torch_compile_backend torch_compile_mode""".split()
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


def check_training(
    training: Mapping[Any, Any], path: KeyPath = ("training",)
) -> tuple[dict[str, Any], list[Mistake]]:
    """Return the section with its values in their fields' types, and every mistake in it."""
    values: dict[str, Any] = {}
    mistakes: list[Mistake] = []
    for key, value in training.items():
        try:
            values[key] = _check(key, value)
        except KeyError:
            mistakes.append(unknown_key((*path, key), value))
        except ValueError as error:
            mistakes.append(wrong_value((*path, key), value, str(error)))
    return values, mistakes


def _check(key: str, value: Any) -> Any:
    """Return the value in its field's type; the text of a ValueError follows `key=value`."""
    if key in ELSEWHERE:
        raise ValueError(ELSEWHERE[key])
    schema = training_fields()[key]
    value = _convert(value, {"anyOf": [{"type": "boolean"}]} if key in FIXED else schema)
    if key in FIXED and value != FIXED[key][0]:
        raise ValueError(FIXED[key][1])
    if key == "metric_for_best_model" and str(value or "loss").removeprefix("eval_") not in BEST:
        raise ValueError(f"is not one of {', '.join(BEST)}, which an evaluation gives")
    if key == "accelerator_config" and isinstance(value, str) and not Path(value).is_file():
        raise ValueError("must be a mapping of fields, or the path of an existing JSON file")
    most = LARGEST if isinstance(value, int) else float("inf")
    low, high = schema.get("minimum", -most), schema.get("maximum", most)
    if isinstance(value, (int, float)) and not low <= value <= high:
        raise ValueError(f"must be at least {low:g}" if value < low else f"must be at most {high:g}")
    return value


def asks_to_compile(training: Mapping[str, Any]) -> bool:
    """Whether these fields have torch compile; a backend or a mode alone does, as in Transformers."""
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
        return value if converted == value else converted  # 25 steps stay 25, not 25.0
    if not kinds:  # a class of Transformers or accelerate's own: its construction will tell
        return value
    raise ValueError(f"is not {' or '.join(dict.fromkeys(_KINDS[_type(kind)][1] for kind in kinds))}")


def _type(kind: FieldSchema) -> str:
    """Return the type of one alternative, whose first member is the type without what is forgiven."""
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


def check_together(training: Mapping[str, Any], path: KeyPath = ("training",)) -> list[Mistake]:
    """Return what Transformers itself refuses in the settings taken together.

    It imports Transformers, touches no device and writes nothing.
    """
    from transformers import Seq2SeqTrainingArguments

    class Trial(Seq2SeqTrainingArguments):
        device = None  # type: ignore[assignment]  # setting it up would start process groups

    settings = {key: value for key, value in training.items() if key not in _NOT_TRIED}
    start = "dataloader_multiprocessing_context"
    if training.get(start) and not training.get("dataloader_num_workers"):
        return [wrong_value((*path, start), training[start], "needs training.dataloader_num_workers above 0")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself will warn
            _try_schedule(Trial(output_dir="unused", use_cpu=True, **settings))
    except (ValueError, TypeError, OSError, ImportError) as error:
        return [_refusal(str(error), training, path)]
    return []


def _try_schedule(args: Any) -> None:
    """Make the schedule of the learning rate: some need `lr_scheduler_kwargs`, and know only their own."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    kwargs = {"scheduler_specific_kwargs": args.lr_scheduler_kwargs} if args.lr_scheduler_kwargs else {}
    get_scheduler(args.lr_scheduler_type, optimizer, 1, 1000, **kwargs)


def _refusal(message: str, training: Mapping[str, Any], path: KeyPath) -> Mistake:
    """Transformers' words (on one line, options and enums as a YAML has them), at the first key they name."""
    message = re.sub(r"\b\w+Strategy\.([A-Z]+)", lambda match: match[1].lower(), " ".join(message.split()))
    message = re.sub(r"--(?=\w)", "", message)
    named = [key for key in training if re.search(rf"\b{key}\b", message)]
    if not named:
        return Mistake(path, f"{dotted(path)}: {message}")
    return Mistake((*path, named[0]), f"{dotted((*path, named[0]))}={shown(training[named[0]])}: {message}")
