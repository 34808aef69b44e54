"""Check `training:`: each field by its schema, then all of them together, at last by Transformers."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lora_hf.config.problems import KeyPath, Mistake, dotted, near_choice, shown, unknown_key, wrong_value
from lora_hf.config.training_fields import DROPPED, ELSEWHERE, FIXED, LARGEST, FieldSchema, training_fields
from lora_hf.config.types import Flag, Integer, Number
from lora_hf.errors import NOT_JSON, first_line
from lora_hf.run_files import ROUGE_NAMES

JSON_FILES = ("accelerator_config", "deepspeed", "fsdp_config")
"""Fields that are a mapping, its JSON text, or the path of a JSON file."""
JSON_TEXTS = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs")
"""Fields that are a mapping or its JSON text."""
NO_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules that Transformers makes without `warmup_steps`."""
NO_SCHEDULE_FIELDS = ("constant", "constant_with_warmup")
"""Schedules that Transformers makes without `lr_scheduler_kwargs`."""
BEST = ("loss", *ROUGE_NAMES, "words")
"""Metrics of an evaluation during training."""
# Fields that set environment variables, process groups or global flags, or depend on this machine.
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
    """Check each field by itself.

    Returns:
        The section with its values in their fields' types, and every mistake in it.
    """
    values: dict[str, Any] = {}
    mistakes: list[Mistake] = []
    for key, value in training.items():
        try:
            values[key] = _check(key, value)
        except KeyError:
            if key in DROPPED:
                phrase = f"is no longer a field of Transformers: {DROPPED[key]}"
                mistakes.append(wrong_value((*path, key), value, phrase))
            else:
                mistakes.append(unknown_key((*path, key), value))
        except ValueError as error:
            mistakes.append(wrong_value((*path, key), value, str(error)))
    return values, mistakes


def _check(key: str, value: Any) -> Any:
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
    if key == "metric_for_best_model" and str(value or "loss").removeprefix("eval_") not in BEST:
        raise ValueError(f"is not one of {', '.join(BEST)}, which an evaluation gives")
    if key in (*JSON_FILES, *JSON_TEXTS) and isinstance(value, str):
        _check_json(value, may_be_file=key in JSON_FILES)
    if key == "optim_args" and value:
        _check_optim_args(value)
    most = LARGEST if isinstance(value, int) else float("inf")
    low, high = schema.get("minimum", -most), schema.get("maximum", most)
    if isinstance(value, (int, float)) and not low <= value <= high:
        raise ValueError(f"must be at least {low:g}" if value < low else f"must be at most {high:g}")
    return value


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


def check_together(training: Mapping[str, Any], path: KeyPath = ("training",)) -> list[Mistake]:
    """Return the mistakes in fields that depend on each other.

    Transformers checks most of them: this imports it, uses no device and writes nothing.
    """
    from transformers import Seq2SeqTrainingArguments

    class Trial(Seq2SeqTrainingArguments):
        device = None  # type: ignore[assignment]  # setting it up would start process groups

    settings = {key: value for key, value in training.items() if key not in _NOT_TRIED}
    if pairs := [wrong_value((*path, key), training[key], text) for key, text in _pair_mistakes(training)]:
        return pairs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself will warn
            args = Trial(output_dir="unused", use_cpu=True, **settings)
            _try_schedule(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if "lr_end" in str(error):
            remedy = "raise training.learning_rate, or lower lr_end in training.lr_scheduler_kwargs"
            return [
                wrong_value((*path, "lr_scheduler_type"), "polynomial", f"has no slope: {error}; {remedy}")
            ]
        return [_refusal(str(error), training, path)]
    if args.save_strategy == "best" and args.metric_for_best_model is None:
        text = "needs training.metric_for_best_model, such as loss or rouge1"
        return [wrong_value((*path, "save_strategy"), "best", text)]
    return []


def _pair_mistakes(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each field that another one leaves without effect, or makes fail late, and what it needs."""
    get = training.get
    schedule = get("lr_scheduler_type")
    metric = str(get("metric_for_best_model") or "loss").removeprefix("eval_")
    if get("dataloader_multiprocessing_context") and not get("dataloader_num_workers"):
        yield "dataloader_multiprocessing_context", "needs training.dataloader_num_workers above 0"
    if get("save_strategy") == "best" and get("eval_strategy", "no") == "no":
        yield "save_strategy", "needs training.eval_strategy: evaluations decide which checkpoint is the best"
    if get("prediction_loss_only") and metric != "loss":
        yield "prediction_loss_only", f"leaves out training.metric_for_best_model={metric!r}; set it to false"
    if get("max_steps") == 0:  # Transformers reads it as -1
        yield "max_steps", "must be a number of steps, or -1 to train for num_train_epochs"
    if get("num_train_epochs") == 0 and get("max_steps", -1) < 1:
        yield "num_train_epochs", "trains nothing: set it above 0, or use method: base"
    if get("warmup_steps") and schedule in NO_WARMUP:
        remedy = "; use constant_with_warmup" if schedule == "constant" else "; remove it"
        yield "warmup_steps", f"has no effect with training.lr_scheduler_type={schedule!r}{remedy}"
    if get("lr_scheduler_kwargs") and schedule in NO_SCHEDULE_FIELDS:
        yield "lr_scheduler_kwargs", f"has no effect with training.lr_scheduler_type={schedule!r}; remove it"


def _try_schedule(args: Any) -> None:
    """Create the learning-rate schedule: some need `lr_scheduler_kwargs`, and each accepts only its own.

    One is bound by the rate: the polynomial schedule ends at 1e-7 unless `lr_end` is given.
    """
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    kwargs = {"scheduler_specific_kwargs": args.lr_scheduler_kwargs} if args.lr_scheduler_kwargs else {}
    get_scheduler(args.lr_scheduler_type, optimizer, 1, 1000, **kwargs)


def _refusal(message: str, training: Mapping[str, Any], path: KeyPath) -> Mistake:
    """Return Transformers' message as a mistake at the first key that it names.

    The message becomes one line, with options and enums as a YAML writes them.
    """
    message = re.sub(r"\b\w+Strategy\.([A-Z]+)", lambda match: match[1].lower(), " ".join(message.split()))
    message = re.sub(r"--(?=\w)", "", message)
    named = [key for key in training if re.search(rf"\b{key}\b", message)]
    if not named:
        return Mistake(path, f"{dotted(path)}: {message}")
    return Mistake((*path, named[0]), f"{dotted((*path, named[0]))}={shown(training[named[0]])}: {message}")
