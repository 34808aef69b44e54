"""PEFT's adapter_config.json, read and written: the border where its names become ours.

Fields that only say where a file came from are passed over. Every other field we do not implement must
be at a value that means "nothing", or the file is refused: an adapter that needs it would load and
be silently wrong.
"""

import logging
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.methods import Lora
from lora_hf.adapters.methods.dora import Dora
from lora_hf.adapters.methods.qalora import QALora, group_size_of
from lora_hf.errors import UserError
from lora_hf.files import read_object

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

PROVENANCE = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("peft_version", "runtime_config", "megatron_core", "loftq_config", "fan_in_fan_out"),
    *("eva_config", "corda_config"),  # how a start was computed; `init_lora_weights` says what it left behind
}
NOTHING: tuple[Any, ...] = (None, False, "none", {}, [])
NEUTRAL_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""PEFT's starts after which the file is plain LoRA on the untouched weight."""
TAKEN_OVER = ("pissa", "olora")
"""Those that change the weight, as PEFT saves them unless it is asked to convert."""
CLASSIFICATION = ("SEQ_CLS", "TOKEN_CLS")
HEADS = ("classifier", "score")
"""What PEFT adds to `modules_to_save` of every such adapter, though a model has one of them or neither."""
logger = logging.getLogger(__name__)


def peft_config(
    config: LoraConfig, base_model: str | None, task_type: str | None, targets: list[str] | str
) -> dict[str, Any]:
    """What PEFT's `LoraConfig.from_pretrained` reads: lists sorted, so that equal runs give equal bytes."""
    fields = asdict(config)
    del fields["loftq_iter"]
    fields["qalora_group_size"] = config.qalora_group_size or 16  # PEFT's default, where it has no meaning
    for name in ("modules_to_save", "exclude_modules"):
        value = fields[name]
        fields[name] = (value if isinstance(value, str) else sorted(value)) or None
    return fields | {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "lora_alpha": _whole(config.lora_alpha),
        "alpha_pattern": {key: _whole(value) for key, value in config.alpha_pattern.items()},
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "bias": "none",
        "fan_in_fan_out": False,
    }


def doubled(config: LoraConfig) -> LoraConfig:
    """The config of the same adapters as plain LoRA of rank 2r at the same scale: alpha grows too."""
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
    """The adapter's config, and the whole of its JSON.

    Raises:
        UserError: no file, not JSON, not a LoRA adapter, or fields we do not implement.
    """
    file = directory / CONFIG_NAME
    raw = _read_json(file)
    if raw.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type={raw.get('peft_type')!r}; only LORA adapters are known")
    ours = asdict(LoraConfig()).keys()
    foreign = {k: v for k, v in raw.items() if k not in ours and k not in PROVENANCE and v not in NOTHING}
    start = raw.get("init_lora_weights", True)
    if start not in NEUTRAL_STARTS and not str(start).startswith((*TAKEN_OVER, "loftq")):
        foreign["init_lora_weights"] = start
    if foreign:
        fields = ", ".join(f"{key}={value!r}" for key, value in sorted(foreign.items()))
        raise UserError(f"{file} asks for what is not implemented here: {fields}")
    known = {key: value for key, value in raw.items() if key in ours and value is not None}
    if not raw.get("use_qalora"):
        known.pop("qalora_group_size", None)
    if start in NEUTRAL_STARTS:
        known["init_lora_weights"] = True
    if raw.get("task_type") in CLASSIFICATION and isinstance(raw.get("modules_to_save"), list):
        known["modules_to_save"] = _without_absent_heads(directory, known["modules_to_save"])
    try:
        return LoraConfig(**known), raw
    except (TypeError, UserError) as error:
        raise UserError(f"{file}: {error}") from None


def _without_absent_heads(directory: Path, names: list[str]) -> list[str]:
    """What the adapter does bring: PEFT writes the tensors of those heads that its model had."""
    try:
        with safe_open(directory / WEIGHTS_NAME, framework="pt") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError):
        return names  # reading the tensors will say what is wrong
    absent = [name for name in names if name in HEADS and not any(f".{name}." in key for key in keys)]
    if absent:
        logger.info("%s: PEFT added modules_to_save=%s by itself; the file has none", directory, absent)
    return [name for name in names if name not in absent]


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except FileNotFoundError:
        raise UserError(f"{file.parent} is no adapter folder: it has no {file.name}") from None


MAGNITUDE = "lora_magnitude_vector"


def peft_tensors(method: Lora, base: Backend) -> dict[str, Tensor]:
    """The adapter of one layer: PEFT's name below the layer -> float32 tensor on the CPU."""
    A, B = method.lora_A.detach(), method.lora_B.detach()
    if method.taken_over is not None:
        start_A, start_B = method.taken_over
        A, B = torch.cat([A, start_A]), torch.cat([B, -start_B], dim=1)
    if isinstance(method, QALora):
        A = A * (method.group_size / A.shape[1])
    tensors = {base.peft_names["lora_A"]: A, base.peft_names["lora_B"]: B}
    if isinstance(method, Dora):
        tensors[MAGNITUDE] = method.lora_magnitude_vector.detach()
    shapes = _shapes(base, A.shape[0], A.shape[1], isinstance(method, Dora))
    return {name: t.reshape(shapes[name]).cpu().contiguous() for name, t in tensors.items()}


def put_peft_tensors(method: Lora, base: Backend, tensors: dict[str, Tensor]) -> None:
    """The inverse: fill an adapter, its taken-over start too, from tensors of the right shapes."""
    A = tensors[base.peft_names["lora_A"]].flatten(1)
    B = tensors[base.peft_names["lora_B"]].flatten(1)
    if isinstance(method, QALora):
        A = A * (A.shape[1] / method.group_size)
    with torch.no_grad():
        r = method.lora_A.shape[0]
        if (
            method.taken_over is not None and A.shape[0] == 2 * r
        ):  # PEFT's own, unconverted, has no second half
            for factor, half in zip(method.taken_over, (A[r:], -B[:, r:]), strict=True):
                factor.copy_(half)
            A, B = A[:r], B[:, :r]
        method.lora_A.copy_(A)
        method.lora_B.copy_(B)
        if isinstance(method, Dora):
            method.lora_magnitude_vector.copy_(tensors[MAGNITUDE].flatten())


def peft_shapes(config: LoraConfig, base: Backend) -> dict[str, tuple[int, ...]]:
    """What a file must hold for a layer with these settings."""
    columns = base.in_features // group_size_of(config, base) if config.use_qalora else base.in_features
    return _shapes(base, config.r, columns, config.use_dora)


def _shapes(base: Backend, r: int, columns: int, has_magnitude: bool) -> dict[str, tuple[int, ...]]:
    kernel = base.kernel if columns == base.in_features else (columns,)
    ones = (1,) * (len(kernel) - 1)
    shapes = {
        base.peft_names["lora_A"]: (r, *kernel),
        base.peft_names["lora_B"]: (base.out_features, r, *ones),
    }
    if has_magnitude:
        shapes[MAGNITUDE] = (1, base.out_features, *ones) if ones else (base.out_features,)
    return shapes
