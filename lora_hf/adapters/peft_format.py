"""PEFT's adapter_config.json, read and written: the border between its names and ours.

Fields that only say where a file came from are ignored. Every other field that is not implemented here must
have a value that means "unused", or the file is refused: an adapter that needs it would load and compute
something else.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.methods import ADAPTER_METHODS
from lora_hf.adapters.wrappers import without_segments
from lora_hf.errors import UserError
from lora_hf.files import read_object

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

PROVENANCE = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("peft_version", "runtime_config", "megatron_core", "loftq_config", "fan_in_fan_out", "init_weights"),
    *("eva_config", "corda_config"),  # how an initialization was computed; `init_lora_weights` names it
}
UNUSED: tuple[Any, ...] = (None, False, "none", {}, [])
PLAIN_INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal")
"""PEFT's initializations after which the file is plain LoRA on the original weight."""
CHANGES_BASE = ("pissa", "olora")
"""Those that change the weight, as PEFT saves them unless it is asked to convert."""
CLASSIFICATION = ("SEQ_CLS", "TOKEN_CLS")
HEADS = ("classifier", "score")
"""Modules that PEFT adds to `modules_to_save` of every such adapter; a model has at most one of them."""
PEFT_GROUP_SIZE = 16
"""PEFT's default of `qalora_group_size`, written where the field has no effect."""
logger = logging.getLogger(__name__)


def peft_config(
    config: LoraConfig,
    base_model: str | None,
    base_revision: str | None,
    task_type: str | None,
    targets: list[str] | str,
) -> dict[str, Any]:
    """Return the fields that PEFT reads; lists are sorted, so that equal runs give equal bytes."""
    method = ADAPTER_METHODS[config.method]
    fields = {name: getattr(config, ours) for name, ours in method.peft_fields.items()}
    if "qalora_group_size" in fields:
        fields["qalora_group_size"] = config.qalora_group_size or PEFT_GROUP_SIZE
    for name in {"modules_to_save", "exclude_modules"} & fields.keys():
        value = fields[name]
        fields[name] = (value if isinstance(value, str) else sorted(value)) or None
    if "lora_alpha" in fields:
        fields["lora_alpha"] = _whole(config.lora_alpha)
        fields["alpha_pattern"] = {key: _whole(value) for key, value in config.alpha_pattern.items()}
    return {
        **fields,
        **method.peft_constants,
        "peft_type": method.peft_type,
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        **({"revision": base_revision} if base_revision else {}),
        "inference_mode": True,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
    }


def doubled(config: LoraConfig) -> LoraConfig:
    """Return the configuration of the same adapters as plain LoRA of rank 2r at the same scale."""
    factor = math.sqrt(2) if config.use_rslora else 2
    return replace(
        config,
        r=2 * config.r,
        lora_alpha=factor * config.lora_alpha,
        rank_pattern={key: 2 * r for key, r in config.rank_pattern.items()},
        alpha_pattern={key: factor * alpha for key, alpha in config.alpha_pattern.items()},
        init_lora_weights=True,
    )


def read_peft_config(directory: Path) -> tuple[LoraConfig, dict[str, Any]]:
    """Return the adapter's configuration, and all of its JSON.

    Raises:
        UserError: no file, not JSON, an unknown kind of adapter, or fields that are not implemented.
    """
    file = directory / CONFIG_NAME
    try:
        raw = read_object(file)
    except FileNotFoundError:
        raise UserError(f"{directory} is not an adapter folder: it has no {CONFIG_NAME}") from None
    kinds = sorted({method.peft_type for method in ADAPTER_METHODS.values()})
    if raw.get("peft_type") not in kinds:
        raise UserError(f"{file}: peft_type={raw.get('peft_type')!r} must be one of {kinds}")
    method = method_of(raw)
    names = ADAPTER_METHODS[method].peft_fields
    foreign = {k: v for k, v in raw.items() if k not in names and k not in PROVENANCE and v not in UNUSED}
    start = raw.get("init_lora_weights", True)
    if start not in PLAIN_INITIALIZATIONS and not str(start).startswith((*CHANGES_BASE, "loftq")):
        foreign["init_lora_weights"] = start
    if foreign:
        fields = ", ".join(f"{key}={value!r}" for key, value in sorted(foreign.items()))
        raise UserError(f"{file}: these fields are not implemented: {fields}")
    known = {names[name]: _plain(value) for name, value in raw.items() if name in names and value is not None}
    if not raw.get("use_qalora"):
        known.pop("qalora_group_size", None)
    if start in PLAIN_INITIALIZATIONS:
        known["init_lora_weights"] = True
    if raw.get("task_type") in CLASSIFICATION and isinstance(raw.get("modules_to_save"), list):
        known["modules_to_save"] = _without_absent_heads(directory, known["modules_to_save"])
    if method != "lora":
        known[f"use_{method}"] = True
    try:
        return LoraConfig(**known), raw
    except (TypeError, UserError) as error:
        raise UserError(f"{file}: {error}") from None


def _plain(value: Any) -> Any:
    """Return a field's value with the layer names in it as those of an unwrapped model."""
    if isinstance(value, list):
        return [without_segments(name) for name in value]
    if isinstance(value, dict):
        return {without_segments(name): part for name, part in value.items()}
    return without_segments(value)


def method_of(peft_config: Mapping[str, Any]) -> str:
    """Return the key in `ADAPTER_METHODS` of a PEFT configuration: by its type, then by its flags."""
    kind = peft_config.get("peft_type", "LORA")
    keys = [key for key, method in ADAPTER_METHODS.items() if method.peft_type == kind]
    return next((key for key in keys if peft_config.get(f"use_{key}") is True), keys[0])


def _without_absent_heads(directory: Path, names: list[str]) -> list[str]:
    """Leave out the heads without tensors in the file: PEFT writes those that its model had."""
    try:
        with safe_open(directory / WEIGHTS_NAME, framework="pt") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError):
        return names  # reading the tensors will report the error
    absent = [name for name in names if name in HEADS and not any(f".{name}." in key for key in keys)]
    if absent:
        logger.info("%s: PEFT added modules_to_save=%s by itself; the file has none", directory, absent)
    return [name for name in names if name not in absent]


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
