"""The fields of `training:`, which are those of `Seq2SeqTrainingArguments`, each as a JSON schema.

Importing Transformers takes seconds, and a mistake in a config should be reported at once. So the fields are
read from `configs/schema.json` where it was written for the installed versions, and else from the library.
"""

import dataclasses
import json
import math
import typing
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal

from pydantic import TypeAdapter

from lora_hf.config.types import Flag, Forgiving, Integer, Number

FieldSchema = dict[str, Any]
SCHEMA_FILE = Path(__file__).parents[1] / "configs" / "schema.json"
LIBRARIES = ("transformers", "accelerate")
"""Their versions determine the fields and choices."""
# Fields that are set elsewhere in the config; here they would be a second, competing value.
ELSEWHERE = {
    "output_dir": "belongs at the top level: output_dir",
    "seed": "belongs at the top level: seed (or seeds)",
    "generation_max_length": "belongs to generation: max_new_tokens",
    "generation_num_beams": "belongs to generation: num_beams",
    "generation_config": "belongs to the section generation",
    "resume_from_checkpoint": "is not needed: rerun the command to resume an interrupted run",
    "hub_token": "would be copied into the run directory: run `hf auth login`, or set HF_TOKEN",
    "hub_strategy": "is not needed: the finished run is pushed, once",
    "hub_always_push": "is not needed: the finished run is pushed, once",
}
FP16 = (
    "overflows in T5 (its feed-forward output passes 65504, and the loss becomes NaN); "
    "use bf16: true on a GPU that has it, or float32"
)
FIXED: dict[str, tuple[bool, str]] = {
    "fp16": (False, FP16),
    "fp16_full_eval": (False, FP16),
    "batch_eval_metrics": (False, "has no use here: ROUGE is computed over all summaries at once"),
    "predict_with_generate": (True, "is always true here: evaluations score generated summaries with ROUGE"),
}
"""Fields with one possible value, and why."""
LARGEST = 2**63 - 1
"""Largest integer of any field."""
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
_TYPES: dict[Any, Any] = {int: Integer, float: Number, bool: Flag}
_PLAIN = (int, float, bool, str, dict, list, NoneType)


def training_fields() -> dict[str, FieldSchema]:
    """Return the fields that a config may set under `training:`, with the JSON schema of each."""
    section = _shipped_section()
    return section["properties"] if section["$comment"] == library_versions() else installed_fields()


def library_versions() -> str:
    """Return the versions that the fields belong to, as the schema states them."""
    return "fields of " + ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


@cache
def _shipped_section() -> dict[str, Any]:
    section: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["$defs"]["Training"]
    return section


@cache
def installed_fields() -> dict[str, FieldSchema]:
    """Return the same fields from the installed `Seq2SeqTrainingArguments`; this imports Transformers."""
    from transformers import Seq2SeqTrainingArguments

    hints = typing.get_type_hints(Seq2SeqTrainingArguments)
    fields = {field.name: field for field in dataclasses.fields(Seq2SeqTrainingArguments) if field.init}
    return {
        name: _field_schema(name, hints[name], field.metadata)
        for name, field in fields.items()
        if name not in ELSEWHERE
    }


def _field_schema(name: str, annotation: Any, metadata: typing.Mapping[str, Any]) -> FieldSchema:
    """Return the schema of one field; that of a type which no YAML can write accepts anything."""
    help_text = " ".join(str(metadata.get("help") or "").split()).split(". ")[0].removesuffix(".")
    described = {"description": help_text} if help_text else {}
    if name in FIXED:
        return {"const": FIXED[name][0]} | described
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    if choices := _choices(name, members) or list(metadata.get("choices", ())):
        return {"enum": choices} | described
    low, high = BOUNDS.get(name, (-math.inf, math.inf))
    bounds = {"minimum": low, "maximum": high}
    kinds = [
        TypeAdapter(_read_as(member)).json_schema(schema_generator=Forgiving)
        for member in members
        if _origin(member) in _PLAIN
    ]
    finite = {key: bound for key, bound in bounds.items() if math.isfinite(bound)}
    return ({"anyOf": kinds} if kinds else {}) | finite | described


def _choices(name: str, members: typing.Sequence[Any]) -> list[Any]:
    if name == "torch_compile_mode":
        return [*COMPILE_MODES, None]
    if name == "torch_compile_backend":  # accelerate checks it only when the model is prepared
        from accelerate.utils import DynamoBackend

        return [*(backend.value.lower() for backend in DynamoBackend), None]
    enums = [member for member in members if isinstance(member, type) and issubclass(member, Enum)]
    return [str(choice.value) for enum in enums for choice in enum]


def _read_as(member: Any) -> Any:
    """Return a type with what a config forgives: `5e-4` as text, yes and no, a list of choices as text."""
    inner = typing.get_args(member)
    if _origin(member) is list and inner and isinstance(inner[0], type) and issubclass(inner[0], Enum):
        return list[Literal[tuple(str(choice.value) for choice in inner[0])]]  # type: ignore[misc]
    return _TYPES.get(member, member)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, UnionType)


def _origin(annotation: Any) -> Any:
    """Return `list` for `list[str]`, and a plain type itself."""
    return typing.get_origin(annotation) or annotation
