"""Compiling without being asked for it: which runs do, and the few lengths that compiled blocks see.

Compiling pays where the device waits for the host to start kernels, and where a run is long enough to earn
back the time that compiling takes. Both are decided here, once, before a run's arguments are made.
"""

import logging
import math
from collections.abc import Mapping, Sized
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_hf.config import RunConfig
from lora_hf.distributed import world_size
from lora_hf.errors import counted

CAPABILITY = (8, 0)
"""Compute capability of a GPU from which blocks are compiled: that of bfloat16, in which runs train there."""
LEAST_STEPS = 2_000
"""Steps of a run from which its blocks are compiled. Four graphs, each with its backward pass, take minutes;
a step of a base model takes about a tenth of a second. (No GPU was at hand to measure either.)"""
SOURCES, TARGETS = 32, 16
"""Lengths of sources and targets are padded to multiples of these where blocks are compiled."""
PADDED_ON = ("cuda",)
"""Devices on which each new length costs something: CUDA graphs are recorded once per length."""
DECIDING = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
"""Fields of `training` of which any decides instead of the rule."""
SOURCE_NAMES, TARGET_NAMES = ("input_ids", "attention_mask"), ("labels", "decoder_input_ids")
logger = logging.getLogger(__name__)


def compiles_by_default(config: RunConfig, rows: Sized, device: torch.device) -> bool:
    """Return whether a run's blocks are compiled although its config does not say so, and log why or why not.

    Args:
        config: the run's. Any of its fields `DECIDING` is followed instead of this rule.
        rows: the training split; one that is streamed from the Hub has no length.
        device: of the model; on a CPU nothing is decided and nothing is logged.
    """
    if device.type != "cuda" or any(name in config.training for name in DECIDING):
        return False
    steps = steps_of(config.training, rows)
    reason = why_uncompiled(config, steps, torch.cuda.get_device_capability(device))
    if reason is None and not _has_triton():
        reason = "Triton, which compiles for GPUs, is not installed or does not support this one"
    if reason is not None:
        logger.debug("torch_compile: blocks are not compiled: %s", reason)
        return False
    text = "torch_compile: blocks are compiled, which takes the first steps minutes and pays in a "
    logger.info(text + "run of %s steps; training.torch_compile: false turns it off", f"{steps:,}")
    return True


def why_uncompiled(config: RunConfig, steps: int | None, capability: tuple[int, int]) -> str | None:
    """Return why the rule does not compile a run of so many steps on a GPU that has Triton, or None.

    Args:
        config: the run's; none of `DECIDING` is among its fields.
        steps: their number, or None if it is unknown when the run starts.
        capability: compute capability of the GPU.
    """
    training = config.training
    if capability < CAPABILITY:
        return "this GPU's compute capability is {}.{}, below {}.{}".format(*capability, *CAPABILITY)
    if steps is None or steps < LEAST_STEPS:
        known = "of unknown length" if steps is None else f"of {counted(steps, 'step')}"
        return f"a run {known} is not known to earn back what compiling takes ({LEAST_STEPS:,} steps do)"
    if not config.fast_paths:
        return "fast_paths is false"
    if world_size() > 1 or training.get("deepspeed") or training.get("fsdp"):
        return "several processes were not tried"
    if any(training.get(f"{kind}_checkpointing") for kind in ("gradient", "activation")):
        return "recomputed activations break the graph of a block"
    if config.model.is_quantized:
        return "quantized weights were not tried"
    if training.get("fp16"):
        return "only the fast path keeps float16 from overflowing"
    return None


def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(has_triton())


def steps_of(training: Mapping[str, Any], rows: Sized) -> int | None:
    """Return the number of steps of a run, or None if it depends on how many rows a stream has."""
    if (given := int(training.get("max_steps", -1))) > 0:
        return given
    try:
        n = len(rows)
    except TypeError:
        return None
    batch = int(training.get("per_device_train_batch_size", 8)) * world_size()
    in_epoch = math.ceil(math.ceil(n / batch) / int(training.get("gradient_accumulation_steps", 1)))
    return math.ceil(float(training.get("num_train_epochs", 3)) * in_epoch)


def padded_to_buckets(
    inputs: dict[str, Any], pad_token_id: int, positions: tuple[int | None, int | None] = (None, None)
) -> dict[str, Any]:
    """Return a batch whose lengths are multiples of `SOURCES` and `TARGETS`; padding is masked, without loss.

    Args:
        inputs: a batch of token ids: (batch, length) each. A batch with anything else is returned unchanged.
        pad_token_id: the model's.
        positions: the largest lengths of encoder and decoder (`lora_hf.models.positions.positions_of`).
    """
    names = {name for name, value in inputs.items() if value is not None}
    if not {"input_ids", "labels"} <= names <= {*SOURCE_NAMES, *TARGET_NAMES}:
        return inputs
    ids: Tensor = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    padded = {**inputs, "attention_mask": torch.ones_like(ids) if mask is None else mask}
    values = dict.fromkeys(names, pad_token_id) | {"attention_mask": 0, "labels": -100}
    for name in {*names, "attention_mask"}:
        is_source, length = name in SOURCE_NAMES, padded[name].shape[1]
        bucket, most = (SOURCES, positions[0]) if is_source else (TARGETS, positions[1])
        more = padded_length(length, bucket, most) - length
        padded[name] = F.pad(padded[name], (0, more), value=values[name])
    return padded


def padded_length(length: int, bucket: int, most: int | None = None) -> int:
    """Return the next multiple of a bucket, at most the model's positions; a longer length is returned."""
    return max(length, min(-(-length // bucket) * bucket, most or length + bucket))
