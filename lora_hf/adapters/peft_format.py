"""PEFT's adapter_config.json, read and written: the border where its names become ours.

Fields that only say where a file came from are passed over. Every other field we do not implement must
be at a value that means "nothing", or the file is refused: an adapter that needs it would load and
be silently wrong.
"""

import json
from pathlib import Path
from typing import Any

from lora_hf.adapters.config import LoraConfig
from lora_hf.errors import UserError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

OURS = ("r", "lora_alpha", "lora_dropout", "target_modules", "init_lora_weights")
PROVENANCE = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("peft_version", "runtime_config", "megatron_core", "qalora_group_size", "loftq_config"),
}
NOTHING: tuple[Any, ...] = (None, False, "none", {}, [])
PLAIN_STARTS = (True, "gaussian")  # starts that leave the frozen weight as it is


def peft_config(config: LoraConfig, base_model: str | None, task_type: str | None) -> dict[str, Any]:
    """What PEFT's `LoraConfig.from_pretrained` reads: lists sorted, so that equal runs give equal bytes."""
    targets = config.target_modules
    whole_alpha = float(config.lora_alpha).is_integer()
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": int(config.lora_alpha) if whole_alpha else config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "init_lora_weights": config.init_lora_weights,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "layers_to_transform": None,
        "layer_replication": None,
    }


def read_peft_config(directory: Path) -> tuple[LoraConfig, dict[str, Any]]:
    """The adapter's config, and the whole of its JSON.

    Raises:
        UserError: no file, not JSON, not a LoRA adapter, or fields we do not implement.
    """
    file = directory / CONFIG_NAME
    raw = _read_json(file)
    if raw.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type={raw.get('peft_type')!r}; only LORA adapters are known")
    foreign = {k: v for k, v in raw.items() if k not in OURS and k not in PROVENANCE and v not in NOTHING}
    if raw.get("init_lora_weights", True) not in PLAIN_STARTS:
        foreign["init_lora_weights"] = raw["init_lora_weights"]
    if foreign:
        fields = ", ".join(f"{key}={value!r}" for key, value in sorted(foreign.items()))
        raise UserError(f"{file} asks for what is not implemented here: {fields}")
    try:
        return LoraConfig(**{key: raw[key] for key in OURS if key in raw}), raw
    except (TypeError, UserError) as error:
        raise UserError(f"{file}: {error}") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file.parent} is no adapter folder: it has no {file.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file} does not hold a JSON object")
    return raw
