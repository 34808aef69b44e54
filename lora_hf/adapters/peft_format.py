"""PEFT's adapter_config.json, read and written: the border between its names and ours.

Fields that only say where a file came from are ignored. Every other field that is not implemented here must
have a value that means "unused", or the file is refused: an adapter that needs it would load and compute
something else.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.methods import ADAPTER_METHODS
from lora_hf.adapters.wrappers import without_segments
from lora_hf.errors import UserError
from lora_hf.files import read_object

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

PREFIX = "base_model.model."
SHARED_PREFIX = "base_model."
"""Before the name of a tensor that all layers share."""

PROVENANCE = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("peft_version", "runtime_config", "megatron_core", "loftq_config", "fan_in_fan_out", "init_weights"),
    *("eva_config", "corda_config"),  # how an initialization was computed; `init_lora_weights` names it
    *("ensure_weight_tying", "bias"),  # the tensors of the file say what was trained
}
UNUSED: tuple[Any, ...] = (None, False, "none", {}, [], "")
BLOCKS = ("layers_to_transform", "layers_pattern")
"""Fields that choose blocks; an empty list of them chooses all."""
ALWAYS = ("r", "lora_alpha", "lora_dropout")
"""Fields that are written even at their default, which is another one in PEFT's VeRA."""
PLAIN_INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal")
"""PEFT's initializations after which the file is plain LoRA on the original weight."""
CHANGES_BASE = ("pissa", "olora")
"""Those that change the weight, as PEFT saves them unless it is asked to convert."""


def peft_config(
    config: LoraConfig,
    base_model: str | None,
    base_revision: str | None,
    task_type: str | None,
    targets: list[str] | str,
) -> dict[str, Any]:
    """Return the fields that PEFT reads; lists are sorted, so that equal runs give equal bytes.

    Defaults are left out, because each version of PEFT refuses or warns of fields that it does not know.
    """
    method, plain = ADAPTER_METHODS[config.method], LoraConfig()
    fields = {
        name: getattr(config, ours)
        for name, ours in method.peft_fields.items()
        if ours in ALWAYS or getattr(config, ours) != getattr(plain, ours)
    }
    for name in {"modules_to_save", "exclude_modules"} & fields.keys():
        value = fields[name]
        fields[name] = value if isinstance(value, str) else sorted(value)
    if "lora_alpha" in fields:
        fields["lora_alpha"] = _whole(config.lora_alpha)
    if config.alpha_pattern:
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
    fields = {k: v for k, v in raw.items() if k not in BLOCKS or raw.get("layers_to_transform") != []}
    foreign = {k: v for k, v in fields.items() if k not in names and k not in PROVENANCE and v not in UNUSED}
    if pattern := _chosen_blocks(raw):
        foreign.pop("layers_pattern")
    init = raw.get("init_lora_weights", True)
    if init not in PLAIN_INITIALIZATIONS and not str(init).startswith((*CHANGES_BASE, "loftq")):
        foreign["init_lora_weights"] = init
    if foreign:
        listed = ", ".join(f"{key}={value!r}" for key, value in sorted(foreign.items()))
        raise UserError(f"{file}: these fields are not implemented: {listed}")
    known = {names[k]: _plain(v) for k, v in fields.items() if k in names and v is not None}
    if pattern:
        del known["layers_to_transform"]
        known["target_modules"] = pattern
    if not raw.get("use_qalora"):
        known.pop("qalora_group_size", None)
    if init in PLAIN_INITIALIZATIONS:
        known["init_lora_weights"] = True
    if method != "lora":
        known[f"use_{method}"] = True
    try:
        return LoraConfig(**known), raw
    except (TypeError, UserError) as error:
        raise UserError(f"{file}: {error}") from None


def _chosen_blocks(raw: Mapping[str, Any]) -> str | None:
    """Return `target_modules` as one expression, where `layers_pattern` says which numbers count blocks.

    As in PEFT, an entry that is a layer's whole name is a target in any block.
    """
    targets, indices, patterns = (
        raw.get(f"{n}") for n in ("target_modules", "layers_to_transform", "layers_pattern")
    )
    indices = [indices] if isinstance(indices, int) else indices
    patterns = [patterns] if isinstance(patterns, str) and patterns else patterns
    if not (patterns and indices and isinstance(patterns, list) and isinstance(targets, list)):
        return None
    numbers, lists = "|".join(map(str, indices)), "|".join(map(str, patterns))
    names = "|".join(re.escape(str(without_segments(name))) for name in targets)
    return rf"(?:.*?\.)?(?:{lists})\.(?:{numbers})\.(?:.*\.)?(?:{names})|(?:{names})"


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


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
