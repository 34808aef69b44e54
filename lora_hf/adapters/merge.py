"""Fold adapters into the weights, and take them out again; and how far that moves the logits.

On a quantized base there are three things to fold into, each with its own error, and nobody but the user
knows which one is wanted: `checkpoint`, the weights before quantization (nearest to full precision, but
not what the adapter was trained on); `dequantized`, the stored weights as floats (the trained model to
rounding, at four times the bytes); `requantized`, the store's own format (small, and rounded once more).
Updates that are constant within the groups of an affine store need no choice: they move its zero points.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import Backend, backend_for, is_supported
from lora_hf.adapters.inject import Model, Originals, originals_of
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.layer_replication import replication, unshare_layers
from lora_hf.adapters.model_state import (
    adapter_configs,
    lora_layers,
    replace_modules,
    saved_modules,
)
from lora_hf.errors import UserError

TO_DENSE = ("checkpoint", "dequantized")
CHOICES = (*TO_DENSE, "requantized")


def merge_adapters(model: nn.Module, onto: str | None = None) -> None:
    """Fold the active adapters into the weights, which makes the forward as fast as the plain model's.

    Args:
        model: carries them.
        onto: `requantized` says yes to the rounding of a quantized base; not needed on a dense one.

    Raises:
        UserError: a quantized base and no choice, replicated layers, whose weights are shared, or no active
            adapter.
        RuntimeError: adapters are merged already, or disabled.
    """
    if replication(model):
        raise UserError(
            "the model's layers are replicated and share their weights: merging in place would give each "
            "copy its own and all of their memory; use merge_and_unload, or unshare_layers first"
        )
    _refuse_nothing(model)
    if any(not layer.enabled for layer in lora_layers(model).values()):
        raise RuntimeError("adapters are disabled at the moment; leave disable_adapters first")
    if onto not in (None, "requantized"):
        raise UserError(
            f"onto={onto!r} changes the layers' kind, which merge_and_unload does; here: 'requantized'"
        )
    if onto is None and (lossy := _lossy(model)):
        raise UserError(_choice_needed(lossy, "'requantized'"))
    for layer in lora_layers(model).values():
        layer.merge(layer.active)


def unmerge_adapters(model: nn.Module) -> None:
    """Put every unmerged weight back, bit for bit."""
    for layer in lora_layers(model).values():
        layer.unmerge()


@contextmanager
def merged_where_exact(model: nn.Module) -> Iterator[None]:
    """Inside the block the active adapters of dense layers are folded in; the weights come back exactly.

    Quantized and replicated layers stay as they are, as do those whose adapters are merged, disabled or
    chosen by rows.
    """
    layers = [] if replication(model) else list(lora_layers(model).values())
    free = [layer for layer in layers if layer.enabled and not layer.merged and layer.rows is None]
    dense = [layer for layer in free if not layer.base.is_quantized]
    try:
        for layer in dense:
            layer.merge(layer.active)
        yield
    finally:
        for layer in dense:
            layer.unmerge()


def merge_and_unload(model: Model, onto: str | None = None, originals: Originals | None = None) -> Model:
    """Fold the active adapters in for good and take all wrappers off; returns the plain Transformers model.

    Args:
        model: carries them.
        onto: on a quantized base `checkpoint`, `dequantized` or `requantized`; the first two make every
            quantized layer of the model dense.
        originals: gives the checkpoint's weights; None takes `model.original_weights`.

    Raises:
        UserError: a quantized base and no choice, one that this adapter cannot be merged onto, or no active
            adapter.
    """
    _refuse_nothing(model)
    check_choice(model, onto, originals)
    if onto in TO_DENSE:  # what was merged in place has been rounded
        unmerge_adapters(model)
    plain = merged_modules(model, onto, originals)
    for module in saved_modules(model).values():
        plain[id(module)] = module.plain
    replace_modules(model, plain)
    adapter_configs(model).clear()
    if replication(model):
        unshare_layers(model)
    if onto in TO_DENSE:
        _forget_quantization(model)
    return model


def _refuse_nothing(model: nn.Module) -> None:
    """Raise where merging would do nothing, or drop what is not active."""
    copies = any(module.active for module in saved_modules(model).values())
    if not copies and not any(layer.methods(layer.active) for layer in lora_layers(model).values()):
        known = sorted(adapter_configs(model))
        raise UserError(f"no adapter is active to be merged; the model has {known}: choose by set_adapter")


def _lossy(model: nn.Module) -> list[str]:
    """Adapted layers whose store would round the merged weight."""
    return [
        name
        for name, layer in lora_layers(model).items()
        if layer.base.is_quantized and not layer.folds_exactly(layer.active) and layer.methods(layer.active)
    ]


def _choice_needed(layers: list[str], choices: str) -> str:
    return (
        f"{len(layers)} adapted layers are quantized, such as {layers[0]}: merging is a choice of what to "
        f"fold into; give onto={choices} (merge_errors measures each)"
    )


def check_choice(model: nn.Module, onto: str | None, originals: Originals | None) -> None:
    if onto not in (None, *CHOICES):
        raise UserError(f"onto={onto!r} is none of {list(CHOICES)}")
    if onto is None and (lossy := _lossy(model)):
        raise UserError(_choice_needed(lossy, " or ".join(map(repr, CHOICES))))
    if onto == "checkpoint":
        starts = {config.init_lora_weights for config in adapter_configs(model).values()}
        if "loftq" in starts:
            raise UserError(
                "onto='checkpoint': a LoftQ adapter makes up for the errors of its quantized base"
            )
        if not originals_of(model, originals):
            raise UserError("onto='checkpoint' needs the weights before quantization: give originals=")


def merged_modules(model: nn.Module, onto: str | None, originals: Originals | None) -> dict[int, nn.Module]:
    """id of each wrapper, and of each quantized layer that becomes dense, -> the plain layer in its place."""
    to_dense = onto in TO_DENSE
    source = originals_of(model, originals) if onto == "checkpoint" else None
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point() and not p.requires_grad), None)
    plain: dict[int, nn.Module] = {}
    for name, layer in lora_layers(model).items():
        if to_dense and layer.base.is_quantized:
            plain[id(layer)] = _dense(
                layer.base, _merged_weight(layer, source(name) if source else None), dtype
            )
        else:
            if not layer.merged:
                layer.merge(layer.active)
            plain[id(layer)] = layer.base_layer
    if to_dense:
        for name, module in model.named_modules():
            if is_supported(module) and backend_for(module).is_quantized and not name.endswith(".base_layer"):
                base = backend_for(module)
                plain[id(module)] = _dense(
                    base, source(name) if source else base.dequantize(torch.float32), dtype
                )
    return plain


def _merged_weight(layer: LoraLayer, original: Tensor | None) -> Tensor:
    methods = layer.methods(layer.active)
    if original is None:
        return layer.merged_weight(methods)
    W = original.to(layer.base.device, torch.float32)
    for _, method in methods:  # the base that was stored for a start is the checkpoint's without it
        if method.is_restored and method.start_A is not None and method.start_B is not None:
            W = W - method.scaling * (method.start_B @ method.start_A)
    return W + sum(weight * method.delta(W) for weight, method in methods)


def _dense(base: Backend, weight: Tensor, dtype: torch.dtype | None) -> nn.Linear:
    bias = base.layer.bias
    layer = nn.Linear(base.in_features, base.out_features, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.to(base.device, dtype), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    return layer


def _forget_quantization(model: Any) -> None:
    """What Transformers notes on a quantized model, and would refuse to save or move it for."""
    for name in ("hf_quantizer", "quantization_method", "original_weights"):
        if hasattr(model, name):
            delattr(model, name)
    for name in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if getattr(model, name, False):
            setattr(model, name, False)
    if hasattr(getattr(model, "config", None), "quantization_config"):
        del model.config.quantization_config
