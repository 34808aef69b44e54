"""Merge adapters into the weights, unmerge them, and measure the error of merging.

A quantized base offers three targets, each with its own error, and only the user knows which one is wanted:
`checkpoint`, the weights before quantization (nearest to full precision, but not those that the adapter was
trained on); `dequantized`, the quantized weights as floats (the trained model up to rounding, at four times
the bytes); `requantized`, the same storage format (small, and rounded once more). Updates that are constant
within the groups of an affine format need no choice: they move its zero points.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import Backend, backend_for, is_supported, is_transposed
from lora_hf.adapters.backends.bitsandbytes import keep_savable, quantized_dtype
from lora_hf.adapters.computed_weights import refuse_computed_weight
from lora_hf.adapters.inject import Model, base_weights_of
from lora_hf.adapters.kept import KeptWeights
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.layer_replication import unshare_layers
from lora_hf.adapters.model_state import (
    BaseWeights,
    adapter_configs,
    lora_layers,
    model_state,
    refuse_merged,
    refuse_offloaded,
    replace_modules,
    saved_modules,
    update_state,
)
from lora_hf.adapters.save_pretrained import guard_save_pretrained
from lora_hf.adapters.wrappers import named_modules
from lora_hf.errors import UserError

TO_DENSE = ("checkpoint", "dequantized")
CHOICES = (*TO_DENSE, "requantized")


def merge_adapters(model: nn.Module, onto: str | None = None) -> None:
    """Merge the active adapters into the weights, which makes the forward pass as fast as the base's.

    Args:
        model: carries them.
        onto: `requantized` accepts the rounding of a quantized base; not needed on a dense one.

    Raises:
        UserError: a quantized base and no choice, replicated layers, whose weights are shared, or no active
            adapter.
        RuntimeError: adapters are merged already, or disabled.
    """
    if model_state(model).replication:
        raise UserError(
            "the model's layers are replicated and share their weights: merging in place would give each "
            "copy its own and all of their memory; use merge_and_unload, or unshare_layers first"
        )
    _check_mergeable(model)
    if any(not layer.enabled for layer in lora_layers(model).values()):
        raise RuntimeError("adapters are disabled; leave disable_adapters first")
    if onto not in (None, "requantized"):
        raise UserError(
            f"onto={onto!r} makes the layers dense; call merge_and_unload for that, or give 'requantized'"
        )
    if onto is None and (lossy := _lossy(model)):
        raise UserError(_choice_needed(lossy, "'requantized'"))
    _refuse_computed(model)
    for layer in lora_layers(model).values():
        layer.merge(layer.active)


def _refuse_computed(model: nn.Module) -> None:
    """Refuse layers whose weight has been pruned or parametrized since they got adapters."""
    for name, layer in lora_layers(model).items():
        refuse_computed_weight("merging", f"{name}.base_layer", layer.base_layer)


def unmerge_adapters(model: nn.Module) -> None:
    """Put every unmerged weight back, bit for bit."""
    for layer in lora_layers(model).values():
        layer.unmerge()


@contextmanager
def merged_where_exact(model: nn.Module, kept: KeptWeights | None = None) -> Iterator[None]:
    """Merge the active adapters of dense layers for the block; the weights are restored exactly.

    Quantized and replicated layers are left out, as are those whose adapters are merged, disabled or chosen
    by row.

    Args:
        model: carries the adapters.
        kept: merged weights of earlier blocks.
    """
    dense = _merged_exactly(model)
    try:
        for layer in dense:
            layer.merge(layer.active, kept)
        yield
    finally:
        for layer in dense:
            layer.unmerge()


def merging_bytes(model: nn.Module, kept: KeptWeights | None = None) -> int:
    """Return the bytes that `merged_where_exact` takes: of the merged weights beside the original ones."""
    layers = [layer for layer in _merged_exactly(model) if kept is None or layer.merged_key not in kept]
    return sum(layer.base.nbytes for layer in layers)


def _merged_exactly(model: nn.Module) -> list[LoraLayer]:
    layers = [] if model_state(model).replication else list(lora_layers(model).values())
    free = [layer for layer in layers if layer.enabled and not layer.merged and layer.mixed_batch is None]
    plain = [layer for layer in free if _has_own_weight(layer.base.layer)]
    return [layer for layer in plain if not layer.base.is_quantized and layer.methods(layer.active)]


def _has_own_weight(layer: nn.Module) -> bool:
    """Return whether a layer computes what its weight says: not if pruned, parametrized or with hooks."""
    is_plain = isinstance(layer._parameters.get("weight"), nn.Parameter)
    return is_plain and not layer._forward_hooks and not layer._forward_pre_hooks


def merge_and_unload(model: Model, onto: str | None = None, base_weights: BaseWeights | None = None) -> Model:
    """Merge the active adapters permanently, remove all wrappers, and return the plain Transformers model.

    Args:
        model: carries them.
        onto: on a quantized base `checkpoint`, `dequantized` or `requantized`; the first two make every
            quantized layer of the model dense.
        base_weights: layer name -> weight before quantization; None takes those that `load_model` recorded.

    Raises:
        UserError: a quantized base and no choice, one that this adapter cannot be merged onto, or no active
            adapter.
    """
    _check_mergeable(model)
    _check_choice(model, onto, base_weights)
    if onto in TO_DENSE:  # a merge in place has rounded the weights
        unmerge_adapters(model)
    plain = _merged_modules(model, onto, base_weights)
    for module in saved_modules(model).values():
        plain[id(module)] = module.plain
    replace_modules(model, plain)
    # The weights before quantization do not hold what is merged now; embeddings are the model's own.
    update_state(model, adapters={}, is_changed=True, base_weights=None, has_own_embeddings=False)
    if model_state(model).replication:
        unshare_layers(model)
    if onto in TO_DENSE:
        _forget_quantization(model)
    keep_savable(model)
    guard_save_pretrained(model)
    return model


def _check_mergeable(model: nn.Module) -> None:
    """Raise if weights are offloaded, or if no adapter is active: merging would only drop the others."""
    refuse_offloaded(model)
    _refuse_computed(model)
    known = sorted(adapter_configs(model))
    copies = any(module.active for module in saved_modules(model).values())
    if not copies and not any(layer.methods(layer.active) for layer in lora_layers(model).values()):
        raise UserError(f"no adapter is active; the model has {known}: choose one by set_adapter")


def _lossy(model: nn.Module) -> list[str]:
    """Return the adapted layers whose storage format would round the merged weight."""
    return [
        name
        for name, layer in lora_layers(model).items()
        if layer.base.is_quantized and not layer.folds_exactly(layer.active) and layer.methods(layer.active)
    ]


def _choice_needed(layers: list[str], choices: str) -> str:
    return (
        f"{len(layers)} adapted layers are quantized, such as {layers[0]}: choose what to merge into; "
        f"give onto={choices} (merge_errors measures each)"
    )


def _check_choice(model: nn.Module, onto: str | None, base_weights: BaseWeights | None) -> None:
    if onto not in (None, *CHOICES):
        raise UserError(f"onto={onto!r} must be one of {list(CHOICES)}")
    if onto is None and (lossy := _lossy(model)):
        raise UserError(_choice_needed(lossy, " or ".join(map(repr, CHOICES))))
    if onto == "checkpoint":
        starts = {config.init_lora_weights for config in adapter_configs(model).values()}
        if "loftq" in starts:
            raise UserError(
                "onto='checkpoint': a LoftQ adapter compensates for the errors of its quantized base; "
                "choose 'dequantized' or 'requantized'"
            )
        if not base_weights_of(model, base_weights):
            raise UserError("onto='checkpoint' needs the weights before quantization: give base_weights=")


def _merged_modules(
    model: nn.Module, onto: str | None, base_weights: BaseWeights | None
) -> dict[int, nn.Module]:
    """Return `id` -> plain layer, for each wrapper and each quantized layer that becomes dense."""
    to_dense = onto in TO_DENSE
    source = base_weights_of(model, base_weights) if onto == "checkpoint" else None
    frozen = (p for p in model.parameters() if not p.requires_grad and quantized_dtype(p) is None)
    dtype = next((p.dtype for p in frozen if p.is_floating_point()), None)
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
        for name, module in named_modules(model):
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
    for _, method in methods:  # a base that was quantized again lacks the initial product
        W = W - method.removed_from_base(W)
    return W + sum(weight * method.delta(W) for weight, method in methods)


def _dense(base: Backend, weight: Tensor, dtype: torch.dtype | None) -> nn.Module:
    """Return a dense layer of the class that a quantized one had, so that its tensors have their shapes."""
    bias: Any = base.layer.bias
    layer: Any
    if is_transposed(base.layer):
        with torch.device("meta"):
            layer = base.layer.source_cls(base.out_features, base.in_features)
        weight = weight.T.contiguous()
    else:
        layer = nn.Linear(base.in_features, base.out_features, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.to(base.device, dtype), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    plain: nn.Module = layer
    return plain


def _forget_quantization(model: Any) -> None:
    """Remove what marks a model as quantized, for which Transformers would refuse to save or move it."""
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    for name in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if getattr(model, name, False):
            setattr(model, name, False)
    if hasattr(getattr(model, "config", None), "quantization_config"):
        del model.config.quantization_config


def merge_errors(
    model: nn.Module, batch: Mapping[str, Tensor], base_weights: BaseWeights | None = None
) -> dict[str, float]:
    """Measure how far each way of merging moves the logits, relative to the size of the unmerged ones.

    Args:
        model: with adapters, unmerged; it is left unchanged. It runs in evaluation mode.
        batch: arguments of its forward.
        base_weights: layer name -> weight before quantization; None takes those that `load_model` recorded.

    Returns:
        Way -> relative error (Frobenius): `merged` on a dense base, else the possible choices.

    Raises:
        RuntimeError: adapters are merged already.
    """
    refuse_merged(model)
    refuse_offloaded(model)
    choices: list[str | None] = list(CHOICES) if _is_quantized(model) else [None]
    with torch.no_grad(), evaluating(model):
        unmerged = model(**batch).logits.float()
        errors = {}
        for onto in choices:
            try:
                _check_choice(model, onto, base_weights)
            except UserError:
                continue
            with _merged(model, onto, base_weights):
                difference = model(**batch).logits.float() - unmerged
            errors[onto or "merged"] = (difference.norm() / unmerged.norm()).item()
    return errors


def _is_quantized(model: nn.Module) -> bool:
    return any(is_supported(m) and backend_for(m).is_quantized for m in model.modules())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off inside the block: its noise would count as a difference of weights."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _merged(model: nn.Module, onto: str | None, base_weights: BaseWeights | None) -> Iterator[None]:
    if onto in (None, "requantized"):
        try:
            for layer in lora_layers(model).values():
                layer.merge(layer.active)
            yield
        finally:
            unmerge_adapters(model)
        return
    before = {id(module): module for module in model.modules()}
    plain: dict[int, nn.Module] = {}
    try:
        plain = _merged_modules(model, onto, base_weights)
        replace_modules(model, plain)
        yield
    finally:
        replace_modules(model, {id(new): before[key] for key, new in plain.items()})
        unmerge_adapters(model)  # the dense layers'
