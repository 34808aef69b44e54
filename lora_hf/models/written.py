"""Check of a model folder that was just written: Transformers alone reads the model in memory from it.

A weight that a family ties in a way of its own, or a field of config.json that changes the arithmetic, is
lost without an error when it is saved: the folder then gives other logits than those that were scored.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM

from lora_hf.adapters.backends.bitsandbytes import keep_differentiable
from lora_hf.adapters.merge import evaluating
from lora_hf.distributed import is_sharded, world_size
from lora_hf.errors import WrittenModelDiffers
from lora_hf.files import PARTIAL, remove
from lora_hf.models.checkpoint import checkpoint_files
from lora_hf.models.load import quiet

logger = logging.getLogger(__name__)
CHECKED_BYTES = 2 * 10**9
"""Weights below this size are always checked: their second copy needs as much memory."""
SOURCE, TARGET = range(5, 13), range(6, 10)
"""Token ids of the input and of the decoder's input."""
LARGEST = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Allowed difference of the logits by dtype, as a share of their size."""
LARGEST_ROUNDED = 0.02
"""The same for 16-bit and quantized weights, whose kernels may round differently."""


def check_written(model: Any, folder: Path, always: bool = False) -> float | None:
    """Read a model folder with plain Transformers, and compare a few tokens' logits with those of `model`.

    Args:
        model: the model that was saved, without adapters.
        folder: the folder, complete.
        always: check folders of `CHECKED_BYTES` and more too.

    Returns:
        |logits of the folder - logits of the model| / |logits of the model|; None if they were not compared:
        the folder is large, or several processes share the model.

    Raises:
        WrittenModelDiffers: they differ, or the folder cannot be read. It is renamed: nothing takes it for a
            finished model.
    """
    size = sum(file.stat().st_size for file in checkpoint_files(folder))
    is_shared = world_size() > 1 or is_sharded(model)  # a forward pass would wait for the other processes
    if is_shared or (size >= CHECKED_BYTES and not always):
        why = "several processes share the model" if is_shared else f"it has {size / 1e9:.1f} GB"
        logger.info("the written model was not read again and compared with the one in memory: %s", why)
        return None
    expected = _logits(model)
    try:
        found = _read_logits(folder, model.device)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise WrittenModelDiffers(f"Transformers cannot read it: {error}", _put_aside(folder)) from error
    same_shape = found.shape == expected.shape
    size_of = expected.norm().clamp_min(1e-30)
    difference = float((found - expected).norm() / size_of) if same_shape else torch.inf
    is_rounded = getattr(model, "hf_quantizer", None) is not None
    allowed = LARGEST_ROUNDED if is_rounded else LARGEST.get(model.dtype, LARGEST_ROUNDED)
    if not difference <= allowed:  # NaN too
        raise WrittenModelDiffers(
            f"Transformers reads another model from it: logits of a sample differ by {difference:.1e} "
            f"of their size (allowed: {allowed:.0e})",
            _put_aside(folder),
        )
    return difference


def _read_logits(folder: Path, device: torch.device) -> torch.Tensor:
    """Read the folder onto the model's device, or onto the CPU if there is not enough memory."""
    for place in (device, torch.device("cpu")):
        try:
            with quiet():
                read = AutoModelForSeq2SeqLM.from_pretrained(
                    folder, device_map={"": place}, use_safetensors=True, trust_remote_code=False
                )
            keep_differentiable(read)  # computes like the model; and small layers cannot be repacked
            return _logits(read)
        except torch.OutOfMemoryError:
            if place.type == "cpu":
                raise
    raise AssertionError("the loop returns or raises")


def _logits(model: Any) -> torch.Tensor:
    """Return logits (1, 4, tokens) of fixed inputs in float32 on the CPU."""
    source, target = (torch.tensor([[*ids]], device=model.device) for ids in (SOURCE, TARGET))
    with evaluating(model), torch.no_grad():
        outputs = model(
            input_ids=source,
            attention_mask=torch.ones_like(source),
            decoder_input_ids=target,
            use_cache=False,
        )
    logits: torch.Tensor = outputs.logits
    return logits.float().cpu()


def _put_aside(folder: Path) -> Path:
    """Rename a folder, which may have the temporary name of an unfinished one, and return its new place."""
    aside = folder.with_name(f"{folder.name.removeprefix(PARTIAL)}.differs")
    remove(aside)
    os.replace(folder, aside)
    return aside
