"""Choose the active adapters of a model: permanently, for a block of code, or for each row of a batch."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.mixed_batch import KeptStacks, MixedBatch
from lora_hf.adapters.model_state import (
    adapter_configs,
    lora_layers,
    modules_of,
    refuse_merged,
    saved_modules,
    warn_of_embeddings,
)
from lora_hf.adapters.modules_to_save import SavedModule
from lora_hf.adapters.row_probe import probe_rows
from lora_hf.adapters.wrappers import unwrapped
from lora_hf.errors import UserError

Carrier = LoraLayer | SavedModule
Names = str | Sequence[str] | Mapping[str, float]


def set_adapter(model: nn.Module, names: Names) -> None:
    """Activate these adapters, and make them the only trainable ones.

    Args:
        model: carries them.
        names: one, several, or a mapping of names to the factors of their updates.

    Raises:
        UserError: the model has no adapter of one of the names, or they cannot be active together.
        RuntimeError: adapters are merged into the weights.
    """
    chosen = _weights(model, names)
    refuse_merged(model)
    layers, whole = lora_layers(model).values(), saved_modules(model).values()
    for held in (layers, whole):
        for carrier in held:
            carrier.check_together(chosen)
    for layer in layers:
        layer.activate(chosen)
        for name, method in layer.adapters.items():
            method.set_trainable(name in chosen)  # type: ignore[operator]
    for module in whole:
        module.activate(chosen)
        for name, own in module.copies.items():
            own.requires_grad_(name in chosen)


def _weights(model: nn.Module, names: Names) -> dict[str, float]:
    if isinstance(names, Mapping):
        weights = dict(names)
    elif not isinstance(names, Iterable):
        raise UserError(
            f"names={names!r} is neither the name of an adapter, nor a list of names, nor a dict of names to "
            "weights"
        )
    else:
        weights = dict.fromkeys((names,) if isinstance(names, str) else names, 1.0)
    for name, weight in weights.items():
        if name not in adapter_configs(model):
            raise UserError(f"no adapter {name!r} in the model; it has {sorted(adapter_configs(model))}")
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise UserError(f"the weight of adapter {name!r} is {weight!r}; give a finite number")
    return weights


def carriers_of(model: nn.Module) -> list[Carrier]:
    """Return the modules of a model that hold adapters: its adapted layers and those of `modules_to_save`."""
    return [*lora_layers(model).values(), *saved_modules(model).values()]


def adapters_in_use(carriers: Iterable[Carrier]) -> set[str]:
    """Return the names of the adapters that take part in what these modules compute, unmerged."""
    used: set[str] = set()
    for carrier in carriers:
        if not carrier.enabled:
            continue
        if isinstance(carrier, SavedModule):
            used |= {carrier.active} - {None}  # type: ignore[arg-type]
        elif not carrier.merged:
            used |= {name for name, weight in carrier.active.items() if weight}
    return used


def check_trainable(model: nn.Module) -> None:
    """Refuse a training that would change nothing that the model computes.

    Raises:
        UserError: every weight is frozen, or those that train belong to adapters that are merged, disabled,
            not active, or active with the weight 0.
    """
    layers, names = lora_layers(model).values(), sorted(adapter_configs(model))
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    own = {name: {id(p) for m in modules_of(model, name).values() for p in m.parameters()} for name in names}
    used = adapters_in_use(carriers_of(model))
    of_adapters = set().union(*own.values()) & trained
    without_effect = set().union(*(own[name] for name in names if name not in used)) & trained
    is_idle = bool(of_adapters) or (bool(names) and not trained)
    if is_idle and (merged := next((list(layer.merged) for layer in layers if layer.merged), None)):
        raise UserError(f"adapters {merged} are merged and cannot train; call unmerge_adapters(model) first")
    if is_idle and any(not layer.enabled for layer in layers):
        raise UserError(f"adapters {names} are disabled and cannot train; leave disable_adapters first")
    if trained - without_effect:
        return
    if names:
        state = "not active" if trained else "frozen"
        if trained and (without_weight := sorted({name for layer in layers for name in layer.active})):
            names, state = without_weight, "active with the weight 0"
        raise UserError(
            f"nothing would train: adapters {names} are {state}; call set_adapter(model, {names[0]!r}), "
            "or load with load_adapter(..., trainable=True)"
        )
    raise UserError(
        "nothing would train: all parameters of the model are frozen; add an adapter with inject_adapters, "
        "or set requires_grad"
    )


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Within the block the model computes as its base does, even if adapters are merged into it.

    Embeddings that an adapter's file has put in the place of the base's stay, with a warning.
    """
    warn_of_embeddings(model)
    with adapters_off(model):
        yield


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within the block no adapter counts: `disable_adapters` without its warning."""
    layers = list(lora_layers(model).values())
    saved = list(saved_modules(model).values())
    state = [(layer, layer.merged, layer.enabled) for layer in layers]
    state_saved = [(module, module.enabled) for module in saved]
    try:
        for layer in layers:
            layer.unmerge()
            layer.enable(False)
        for module in saved:
            module.enabled = False
        yield
    finally:
        for layer, merged, was_enabled in state:
            layer.enable(was_enabled)
            layer.merge(merged)
        for module, was_enabled in state_saved:
            module.enabled = was_enabled


@contextmanager
def adapter_rows(
    model: nn.Module,
    names: Sequence[str | None],
    frozen: bool = False,
    stacks: KeptStacks | None = None,
) -> Iterator[None]:
    """Within the block each row of a batch uses its own adapter, also in `generate` with beams.

    Args:
        model: carries the adapters.
        names: one per row; None selects the base. In a batch of several times as many rows each name counts
            for that many rows in turn, which is the order of beam search.
        frozen: no adapter's weights change within the block; without gradients, many adapters are then about
            as fast as one.
        stacks: what earlier blocks have stacked of frozen adapters, and later ones use.

    Raises:
        UserError: the model has no adapter of one of the names, or one that needs its own base weight, or
            one on a table of positions, which is the same for all rows; or a layer's first dimension is not
            the batch (`row_probe`).
        RuntimeError: adapters are merged into the weights.
    """
    if saved_modules(model):
        raise UserError(
            "adapters with modules_to_save replace whole layers and cannot be mixed within a batch; "
            "use set_adapter, one adapter at a time"
        )
    if not names:
        raise UserError("adapter_rows: names is empty; give one name per row of the batch, None for the base")
    _refuse_tables(model)
    layers = list(lora_layers(model).values())
    was_active = [layer.active for layer in layers]
    chosen = _weights(model, sorted({name for name in names if name is not None}))  # the order of stacks
    refuse_merged(model)
    for layer in layers:
        layer.check_together(chosen)
    batch, stack = MixedBatch(names, frozen, stacks.of(names) if stacks else None), ExitStack()
    try:
        if len(set(names)) > 1:
            probe_rows(unwrapped(model), stack)
        for layer in layers:
            layer.activate(chosen)
            layer.mixed_batch = batch
        yield
    finally:
        stack.close()
        for layer, active in zip(layers, was_active, strict=True):
            layer.mixed_batch = None
            layer.activate(active)


@contextmanager
def shrinking_batch(model: nn.Module) -> Iterator[Callable[[list[int]], None]]:
    """Yield a function that takes the indices of the rows still in the batch.

    `adapter_rows` then gives each of them its own adapter. The indices count the rows at the beginning of the
    block; after the block the batch is whole again.
    """
    batch = next((layer.mixed_batch for layer in lora_layers(model).values()), None)
    names = batch.names if batch else ()

    def keep(kept: list[int]) -> None:
        if batch:
            batch.names = tuple(names[i] for i in kept)

    try:
        yield keep
    finally:
        if batch:
            batch.names = names


def _refuse_tables(model: Any) -> None:
    """Refuse adapters on embeddings of positions, whose input has no batch dimension."""
    tokens = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    tokens = getattr(tokens, "base_layer", tokens)
    for name, layer in lora_layers(model).items():
        base = layer.base_layer
        if isinstance(base, nn.Embedding) and (tokens is None or base.weight is not tokens.weight):
            raise UserError(
                f"an adapter on {name} applies to the whole batch and cannot be chosen by row; "
                "train without it, or use set_adapter"
            )
