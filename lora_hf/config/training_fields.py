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
    "local_rank": "is set by torchrun and accelerate launch",
    "parallelism_config": "is not supported: use deepspeed or fsdp, started by torchrun",
}
AT_ONCE = "ROUGE is computed over all summaries at once"
FIXED: dict[str, tuple[Any, str]] = {
    "fp16_full_eval": (
        False,
        "overflows in T5 (its feed-forward output passes 65504); evaluations are computed in the dtype in "
        "which the trained model is loaded again",
    ),
    "batch_eval_metrics": (False, f"has no use here: {AT_ONCE}"),
    "eval_do_concat_batches": (True, f"must be true: {AT_ONCE}"),
    "predict_with_generate": (True, "must be true: evaluations score generated summaries with ROUGE"),
    "average_tokens_across_devices": (
        True,
        "must be true: the loss is the mean over the label tokens of a step in all processes",
    ),
    "dataloader_in_order": (True, "must be true: a run with batches in another order could not be repeated"),
    "ignore_data_skip": (False, "would train a resumed run on some rows twice and on others never"),
    "do_train": (True, "must be true: a run trains, unless it has method: base"),
    "do_eval": (True, "would have no effect: evaluations follow eval_strategy, and 'no' turns them off"),
    "do_predict": (True, "must be true: a run ends by scoring the test split"),
    "neftune_noise_alpha": (
        None,
        "would have no effect: Transformers adds the noise to a module that no encoder-decoder model calls",
    ),
    "use_liger_kernel": (
        False,
        "would have no effect: Liger has no kernels for encoder-decoder models; fast_paths: true is for them",
    ),
    "liger_kernel_config": (None, "would have no effect: Liger has no kernels for encoder-decoder models"),
    "bf16_full_eval": (
        False,
        "would have no effect: evaluations during training have its dtype; use model.dtype: bfloat16",
    ),
    "include_for_metrics": ([], "would have no effect: ROUGE needs the summaries and references alone"),
    "eval_use_gather_object": (False, "would have no effect: summaries are gathered as token ids"),
    "label_names": (None, "would have no effect: the labels of encoder-decoder models are `labels`"),
    "length_column_name": ("length", "would have no effect: lengths are the numbers of tokens"),
    "sortish_sampler": (
        False,
        "has no effect in Transformers; use train_sampling_strategy: group_by_length",
    ),
    "enable_jit_checkpoint": (False, "is not needed: SIGTERM and Ctrl-C save a checkpoint"),
}
"""Fields with one possible value, and why another one is refused."""
RUN_DEFAULTS: dict[str, Any] = {"save_strategy": "epoch", "logging_steps": 50}
"""Defaults of a run that differ from Transformers' and that other fields are checked against."""
ONLY_SPEED = "changes speed or memory alone"
ONLY_LOG = "changes what is logged, and where to"
ONLY_FILES = "changes which files are kept or pushed"
ONLY_PROCESSES = "changes how several processes exchange gradients"
NO_EFFECT: dict[str, str] = {
    **dict.fromkeys(
        "activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing "
        "gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_cache "
        "torch_empty_cache_steps auto_find_batch_size eval_accumulation_steps "
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
        "dataloader_prefetch_factor dataloader_multiprocessing_context tf32 use_cpu full_determinism".split(),
        ONLY_SPEED,
    ),
    **dict.fromkeys(
        "logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter "
        "include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project "
        "trackio_space_id trackio_bucket_id trackio_static_space_id skip_memory_metrics debug".split(),
        ONLY_LOG,
    ),
    **dict.fromkeys(
        "save_only_model save_on_each_node save_total_limit push_to_hub hub_private_repo hub_model_id "
        "hub_revision".split(),
        ONLY_FILES,
    ),
    **dict.fromkeys(
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend "
        "ddp_timeout fsdp fsdp_config".split(),
        ONLY_PROCESSES,
    ),
    "deepspeed": "shares the states among processes; a file with an optimizer of its own changes the results",
    "restore_callback_states_from_checkpoint": "is for a resumed run: early stopping counts on, or from zero",
    "remove_unused_columns": "is for datasets with other columns, which are not passed to the Trainer",
}
"""Fields without effect on an uninterrupted run's results, beyond rounding, and what they change instead."""
_NO_DEVICE_CHOICE = "remove it: the device is chosen by PyTorch, or use use_cpu: true"
_NO_BACKEND = "remove it: bf16: true needs no backend"
DROPPED: dict[str, str] = {
    "adafactor": "use optim: adafactor",
    "dispatch_batches": "remove it: each process reads its own batches",
    "fp16_backend": _NO_BACKEND,
    "fp16_opt_level": _NO_BACKEND,
    "fsdp_min_num_params": "use fsdp_config: {min_num_params: ...}",
    "fsdp_transformer_layer_cls_to_wrap": "use fsdp_config: {transformer_layer_cls_to_wrap: [...]}",
    "half_precision_backend": _NO_BACKEND,
    "include_inputs_for_metrics": "remove it: ROUGE needs the summaries and references alone",
    "include_tokens_per_second": "use include_num_input_tokens_seen: true",
    "jit_mode_eval": "remove it, or use torch_compile: true",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "mp_parameters": "remove it: it was for SageMaker",
    "past_index": "remove it: encoder-decoder models do not use it",
    "per_gpu_eval_batch_size": "use per_device_eval_batch_size",
    "per_gpu_train_batch_size": "use per_device_train_batch_size",
    "push_to_hub_model_id": "use hub_model_id",
    "push_to_hub_organization": "use hub_model_id: ORGANIZATION/NAME",
    "push_to_hub_token": "run `hf auth login`, or set HF_TOKEN",
    "ray_scope": "remove it: searches are in the section sweep",
    "save_safetensors": "remove it: weights are always saved as safetensors",
    "sharded_ddp": "use deepspeed or fsdp",
    "split_batches": "set per_device_train_batch_size to the rows that each process takes",
    "torchdynamo": "use torch_compile_backend",
    "tpu_metrics_debug": "use debug: tpu_metrics_debug",
    "tpu_num_cores": "remove it",
    "use_ipex": _NO_DEVICE_CHOICE,
    "use_legacy_prediction_loop": "remove it",
    "use_mps_device": _NO_DEVICE_CHOICE,
    "xpu_backend": "use ddp_backend",
}
"""Fields of Transformers 4.20 to 5.16 that later releases have dropped, and what to do instead. Renamed ones
are in `problems.OTHER_NAMES`."""
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
    "dataloader_prefetch_factor": (1, 1024),
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


@cache
def _version(name: str) -> str:  # each reading parses a package's metadata
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
    if name == "fsdp":  # its annotation does not have `true`, which Transformers recommends
        members = (*members, bool)
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
