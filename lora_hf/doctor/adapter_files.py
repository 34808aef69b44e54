"""Checks of an adapter's files, without its base."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lora_hf.adapters.checkpoint_io import read_tensors
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.methods import ADAPTER_METHODS
from lora_hf.adapters.peft_format import PREFIX
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import ModelConfig
from lora_hf.doctor.base import stored
from lora_hf.doctor.check import Finding, Findings, fault, ok
from lora_hf.errors import UserError, counted, few
from lora_hf.reporting.tables import bytes_cell
from lora_hf.saved.find_adapter import base_config
from lora_hf.training.registry import saved_method


def weights(adapter: SavedAdapter) -> Findings:
    """Check that the weights are readable safetensors; return the tensors."""
    file = adapter.weights_file
    tensors = read_tensors(file)
    if not tensors:
        raise UserError(f"{file} holds no tensors")
    yield ok(f"{counted(len(tensors), 'tensor')}, {bytes_cell(file.stat().st_size)}")
    return tensors


def settings(adapter: SavedAdapter) -> Findings:
    """Check that the settings are supported; return LoRA's config, or None for a baseline."""
    method = saved_method(adapter)
    if method != "lora":
        yield ok(method)
        return None
    config = adapter.config
    has_alpha = "lora_alpha" in ADAPTER_METHODS[config.method].peft_fields
    alpha = f", lora_alpha={config.lora_alpha:g}" if has_alpha else ""
    yield ok(f"{config.method}, r={config.r}{alpha} on {names_of(config)}")
    return config


def names_of(config: LoraConfig) -> str:
    """Return the targets as written."""
    targets = config.target_modules
    return targets if isinstance(targets, str) else ", ".join(targets)


def numbers(weights: Mapping[str, Tensor]) -> Findings:
    """Check that all weights are finite, and that no matrix is zero."""
    integers = [name for name, tensor in weights.items() if not tensor.is_floating_point()]
    if integers:
        raise UserError(f"{names(integers)} {kinds(weights, integers)}, not floating-point numbers")
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise UserError(f"{len(broken)} of {len(weights)} tensors hold NaN or infinity: {names(broken)}")
    yield judge_zeros([n for n, t in weights.items() if t.dim() > 1 and not t.any()], len(weights))


def kinds(weights: Mapping[str, Tensor], names: list[str]) -> str:
    """Return the data types of tensors, such as `are torch.int8`."""
    return "are " + " and ".join(sorted({str(weights[name].dtype) for name in names}))


def judge_zeros(zero: list[str], n: int) -> Finding:
    """Return the finding on all-zero matrices. B starts at zero, and any step with a gradient changes it."""
    if not zero:
        return ok(f"all finite, none of {n} tensors zero")
    remedy = "train it: no gradient has reached them. Check that their layers are used, and the learning rate"
    return fault(f"{len(zero)} of {n} tensors are zero and do nothing: {names(zero)}", remedy)


def names(tensors: list[str]) -> str:
    """Return a few tensor names, without PEFT's common prefix."""
    return few(name.removeprefix(PREFIX) for name in tensors)


def storage(adapter: SavedAdapter, settings: Any, base_name: str | None) -> Findings:
    """Check that the adapter names its base and storage format; return the section `model` that loads it."""
    config: ModelConfig = base_config(adapter, base_name)
    yield ok(f"{config.model_name_or_path}, {stored([config.storage])}")
    return config
