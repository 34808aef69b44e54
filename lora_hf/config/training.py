"""Checks `training:` against the fields of `Seq2SeqTrainingArguments`: names, types, bounds, all together.

Names and types come from the dataclass itself, so a newer Transformers brings its own. What it accepts in
silence and fails on later (a batch size of 0), or what has its place elsewhere (`output_dir`), is below.
"""

import dataclasses
import re
import typing
import warnings
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lora_hf.config.mistakes import KeyPath, Mistake, dotted, near_choice, shown, unknown_key, wrong_value
from lora_hf.config.schema import Flag, Integer, Number
from lora_hf.layout import ROUGE_NAMES

# What has a field of its own here would otherwise be said twice, and only one of the two would be heard.
ELSEWHERE = {
    "output_dir": "belongs at the top level: output_dir",
    "seed": "belongs at the top level: seed (or seeds)",
    "generation_max_length": "belongs to generation: max_new_tokens",
    "generation_num_beams": "belongs to generation: num_beams",
    "generation_config": "belongs to the section generation",
    "resume_from_checkpoint": "is not needed: the same command again goes on with an interrupted run",
    "hub_token": "would be copied into the run directory: run `hf auth login`, or set HF_TOKEN",
    "hub_strategy": "is not needed: the finished run is pushed, once",
    "hub_always_push": "is not needed: the finished run is pushed, once",
}
FP16 = (
    "overflows in T5 (its feed-forward output passes 65504, and the loss becomes NaN); "
    "use bf16: true on a GPU that has it, or float32"
)
LEFT_OFF = {
    "fp16": FP16,
    "fp16_full_eval": FP16,
    "batch_eval_metrics": "has no use here: ROUGE is taken of all summaries at once",
}
LARGEST = 2**63 - 1
"""Of an integer, whatever it is for."""
# Inclusive bounds of what Transformers does not check when it is given.
BOUNDS: dict[str, tuple[float, float]] = {
    "per_device_train_batch_size": (1, 2**31),
    "per_device_eval_batch_size": (1, 2**31),
    "gradient_accumulation_steps": (1, 2**31),
    "eval_accumulation_steps": (1, 2**31),
    "data_seed": (0, 2**32 - 1),  # as the seed
    "save_total_limit": (1, float("inf")),
    "num_train_epochs": (0, float("inf")),
    "max_steps": (-1, float("inf")),
    "learning_rate": (0, float("inf")),
    "weight_decay": (0, float("inf")),
    "max_grad_norm": (0, float("inf")),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, float("inf")),
    "label_smoothing_factor": (0, 1),
    "dataloader_num_workers": (0, 1024),  # each is a process
    "logging_steps": (0, float("inf")),
    "eval_steps": (0, float("inf")),
    "save_steps": (0, float("inf")),
    "warmup_steps": (0, float("inf")),
}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", "lite")
BEST = ("loss", *ROUGE_NAMES, "words")
"""What an evaluation during training gives."""
# They set environment variables, process groups or global flags when given, or depend on this machine.
_NOT_TRIED = """deepspeed fsdp fsdp_config accelerator_config parallelism_config tf32 use_cpu
torch_compile torch_compile_backend torch_compile_mode""".split()
_NOUNS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    list: "a list",
    NoneType: "null",
}
_TYPES: dict[Any, Any] = {int: Integer, float: Number, bool: Flag}


@cache
def training_fields() -> dict[str, Any]:
    """The settable fields of `Seq2SeqTrainingArguments` with their annotations."""
    from transformers import Seq2SeqTrainingArguments  # here: it takes seconds

    hints = typing.get_type_hints(Seq2SeqTrainingArguments)
    return {
        field.name: hints[field.name] for field in dataclasses.fields(Seq2SeqTrainingArguments) if field.init
    }


def check_training(
    training: Mapping[Any, Any], path: KeyPath = ("training",)
) -> tuple[dict[str, Any], list[Mistake]]:
    """The section with numbers as numbers, and every key and value in it that is wrong."""
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
    """The value in its field's type; the error's text follows `key=value`."""
    if key in ELSEWHERE:
        raise ValueError(ELSEWHERE[key])
    value = _convert(value, key)
    if key in LEFT_OFF and value:
        raise ValueError(LEFT_OFF[key])
    if key == "predict_with_generate" and not value:
        raise ValueError("is always true here: an evaluation takes ROUGE of written summaries")
    if key == "torch_compile_mode" and value is not None and value not in COMPILE_MODES:
        raise ValueError(f"is not one of {', '.join(COMPILE_MODES)}")
    if key == "torch_compile_backend" and value is not None and str(value) not in compile_backends():
        raise ValueError(f"is not one of {', '.join(compile_backends())}")
    if key == "metric_for_best_model" and str(value or "loss").removeprefix("eval_") not in BEST:
        raise ValueError(f"is not one of {', '.join(BEST)}, which an evaluation gives")
    if key == "accelerator_config" and isinstance(value, str) and not Path(value).is_file():
        raise ValueError("is no file; write its fields as a mapping, or the path of a JSON file")
    most = LARGEST if isinstance(value, int) else float("inf")
    low, high = BOUNDS.get(key, (-most, most))
    if isinstance(value, (int, float)) and not low <= value <= high:
        raise ValueError(f"must be at least {low:g}" if value < low else f"must be at most {high:g}")
    return value


def asks_to_compile(training: Mapping[str, Any]) -> bool:
    """Whether these fields have torch compile; a backend or a mode alone does, as in Transformers."""
    asked = any(training.get(f"torch_compile{end}") for end in ("", "_backend", "_mode"))
    return asked and str(training.get("torch_compile_backend")).lower() != "no"


def compile_backends() -> list[str]:
    """The names that accelerate takes; it asks for them when the model is loaded."""
    from accelerate.utils import DynamoBackend

    return [backend.value.lower() for backend in DynamoBackend]


def choices_of(key: str) -> list[str]:
    """The values that a field of closed choices takes; none where it is open."""
    from transformers import Seq2SeqTrainingArguments

    members = typing.get_args(training_fields()[key])
    enums = [m for m in members if isinstance(m, type) and issubclass(m, Enum)]
    metadata = next(f.metadata for f in dataclasses.fields(Seq2SeqTrainingArguments) if f.name == key)
    return [str(member.value) for enum in enums for member in enum] or list(metadata.get("choices", ()))


def plain_types(key: str) -> list[Any]:
    """The types that a YAML can say of those that a field takes; none for a class of Transformers' own."""
    annotation = training_fields()[key]
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    return [member for member in members if _plain(member) in _NOUNS]


def _convert(value: Any, key: str) -> Any:
    if choices := choices_of(key):
        if value not in choices:
            few = len(choices) <= 16
            listed = ", ".join(choices) if few else f"{len(choices)} names, such as {choices[0]}"
            raise ValueError(f"is not one of {listed}{near_choice(value, choices)}")
        return value
    known = plain_types(key)
    for member in known:
        checked = TypeAdapter(read_as(member), config=ConfigDict(strict=True))
        try:
            converted = checked.validate_python(value)
        except ValidationError:
            continue
        return value if converted == value else converted  # 25 steps stay 25, not 25.0
    if not known:  # a class of Transformers or accelerate's own: its construction will tell
        return value
    raise ValueError(f"is not {' or '.join(dict.fromkeys(_NOUNS[_plain(member)] for member in known))}")


def read_as(member: Any) -> Any:
    """A type with what is forgiven in a config: `5e-4` as text, yes and no, a list of choices as texts."""
    inner = typing.get_args(member)
    if _plain(member) is list and inner and isinstance(inner[0], type) and issubclass(inner[0], Enum):
        return list[Literal[tuple(str(choice.value) for choice in inner[0])]]  # type: ignore[misc]
    return _TYPES.get(member, member)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, UnionType)


def _plain(annotation: Any) -> Any:
    """`list` of `list[str]`."""
    return typing.get_origin(annotation) or annotation


def check_together(training: Mapping[str, Any], path: KeyPath = ("training",)) -> list[Mistake]:
    """What Transformers itself says of the settings together; no device is touched and nothing is written."""
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
