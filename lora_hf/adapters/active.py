"""Choose which adapters a model goes through: for good, for a block of code, or row by row."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.mixed_batch import Rows
from lora_hf.adapters.model_state import adapter_configs, lora_layers, refuse_merged, saved_modules
from lora_hf.adapters.modules_to_save import SavedModule
from lora_hf.errors import UserError

Names = str | Sequence[str] | Mapping[str, float]


def set_adapter(model: nn.Module, names: Names) -> None:
    """Make these adapters the active ones, and the only ones that train.

    Args:
        model: carries them.
        names: one, several, or a mapping of names to the weights their updates are multiplied by.

    Raises:
        UserError: the model has no adapter of one of the names, or they cannot be active together.
        RuntimeError: adapters are merged into the weights at the moment.
    """
    chosen = _weights(model, names)
    refuse_merged(model)
    layers = lora_layers(model).values()
    carriers: list[LoraLayer | SavedModule] = [*layers, *saved_modules(model).values()]
    for carrier in carriers:
        carrier.check_together(chosen)
    for layer in layers:
        layer.activate(chosen)
        for name, method in layer.adapters.items():
            method.requires_grad_(name in chosen)
    for module in saved_modules(model).values():
        module.activate(chosen)
        for name, own in module.copies.items():
            own.requires_grad_(name in chosen)


def _weights(model: nn.Module, names: Names) -> dict[str, float]:
    if isinstance(names, Mapping):
        weights = dict(names)
    else:
        weights = dict.fromkeys((names,) if isinstance(names, str) else names, 1.0)
    for name, weight in weights.items():
        if name not in adapter_configs(model):
            raise UserError(f"no adapter {name!r} in the model; it has {sorted(adapter_configs(model))}")
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise UserError(f"the weight of adapter {name!r} is {weight!r}; give a finite number")
    return weights


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is its untouched base, merged adapters included."""
    layers = list(lora_layers(model).values())
    saved = list(saved_modules(model).values())
    state = [(layer, layer.merged, layer.enabled) for layer in layers]
    state_saved = [(module, module.enabled) for module in saved]
    for layer in layers:
        layer.unmerge()
        layer.enable(False)
    for module in saved:
        module.enabled = False
    try:
        yield
    finally:
        for layer, merged, was_enabled in state:
            layer.enable(was_enabled)
            layer.merge(merged)
        for module, was_enabled in state_saved:
            module.enabled = was_enabled


@contextmanager
def adapter_rows(model: nn.Module, names: Sequence[str | None], frozen: bool = False) -> Iterator[None]:
    """Inside the block each row of a batch goes through its own adapter, in `generate` with beams too.

    Args:
        model: carries the adapters.
        names: one a row; None leaves the row to the base. A batch of several times as many rows takes each
            name for as many rows in turn, as beam search orders them.
        frozen: no adapter's weights change inside the block: without gradients, many are then about as fast
            as one.

    Raises:
        UserError: the model has no adapter of one of the names, one that needs the base stored for it, or
            one on a table of positions, which is the same for all rows.
        RuntimeError: adapters are merged into the weights at the moment.
    """
    if saved_modules(model):
        raise UserError(
            "adapters with modules_to_save replace whole layers, and cannot be mixed within a batch"
        )
    if not names:
        raise UserError("adapter_rows: names is empty; give one a row of the batch, None for the base")
    _refuse_tables(model)
    layers = list(lora_layers(model).values())
    was_active = [layer.active for layer in layers]
    chosen = _weights(model, [name for name in dict.fromkeys(names) if name is not None])
    refuse_merged(model)
    for layer in layers:
        layer.check_together(chosen)
    rows = Rows(names, frozen)
    for layer in layers:
        layer.activate(chosen)
        layer.rows = rows
    try:
        yield
    finally:
        for layer, active in zip(layers, was_active, strict=True):
            layer.rows = None
            layer.activate(active)


@contextmanager
def leaving_rows(model: nn.Module) -> Iterator[Callable[[list[int]], None]]:
    """Yields what is told which rows are in the batch, where `adapter_rows` chose an adapter for each.

    Rows are counted as the batch was when the block began, and after it all are back.
    """
    rows = next((layer.rows for layer in lora_layers(model).values()), None)
    names = rows.names if rows else ()

    def keep(kept: list[int]) -> None:
        if rows:
            rows.names = tuple(names[i] for i in kept)

    try:
        yield keep
    finally:
        if rows:
            rows.names = names


def _refuse_tables(model: Any) -> None:
    """Embeddings other than the tokens' are looked up by position: their input has no rows of a batch."""
    tokens = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    tokens = getattr(tokens, "base_layer", tokens)
    for name, layer in lora_layers(model).items():
        base = layer.base_layer
        if isinstance(base, nn.Embedding) and (tokens is None or base.weight is not tokens.weight):
            raise UserError(
                f"an adapter on {name} is one for the whole batch: it cannot be mixed by rows; "
                "train without it, or use set_adapter"
            )
