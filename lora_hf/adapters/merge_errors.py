"""How far each way of merging moves a model's logits: measured on a sample, before one is chosen."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import backend_for, is_supported
from lora_hf.adapters.inject import Originals
from lora_hf.adapters.merge import CHOICES, check_choice, merged_modules, unmerge_adapters
from lora_hf.adapters.model_state import lora_layers, refuse_merged, replace_modules
from lora_hf.errors import UserError


def merge_errors(
    model: nn.Module, batch: Mapping[str, Tensor], originals: Originals | None = None
) -> dict[str, float]:
    """How far each way of merging moves the logits on a sample, as a share of the unmerged ones' size.

    Args:
        model: with adapters, unmerged; it is left as it was. It runs in evaluation mode.
        batch: what its forward takes.
        originals: gives the checkpoint's weights; None takes `model.original_weights`.

    Returns:
        Way -> relative error (Frobenius): `merged` on a dense base, else the choices that are possible.

    Raises:
        RuntimeError: adapters are merged already.
    """
    refuse_merged(model)
    choices: list[str | None] = list(CHOICES) if _is_quantized(model) else [None]
    with torch.no_grad(), _evaluating(model):
        unmerged = model(**batch).logits.float()
        errors = {}
        for onto in choices:
            try:
                check_choice(model, onto, originals)
            except UserError:
                continue
            with _merged_for_a_while(model, onto, originals):
                difference = model(**batch).logits.float() - unmerged
            errors[onto or "merged"] = (difference.norm() / unmerged.norm()).item()
    return errors


def _is_quantized(model: nn.Module) -> bool:
    return any(is_supported(m) and backend_for(m).is_quantized for m in model.modules())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, whose noise would be told as merging's."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _merged_for_a_while(model: nn.Module, onto: str | None, originals: Originals | None) -> Iterator[None]:
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
        plain = merged_modules(model, onto, originals)
        replace_modules(model, plain)
        yield
    finally:
        replace_modules(model, {id(new): before[key] for key, new in plain.items()})
        unmerge_adapters(model)  # the dense layers'
