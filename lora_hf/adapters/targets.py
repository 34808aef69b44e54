"""Find the layers that an adapter is put on: targets are names, so that a new architecture needs no code.

An entry that matches nothing is an error with the nearest names: otherwise a typo beside a right name would
silently train fewer layers.
"""

import re
import time
from collections.abc import Iterable

from torch import nn

from lora_hf.adapters.backends import is_linear, is_supported, type_name
from lora_hf.adapters.backends.bitsandbytes import quantized_dtype
from lora_hf.adapters.backends.quantized import QuantizedLinear
from lora_hf.adapters.computed_weights import refuse_computed_weight
from lora_hf.adapters.config import ALL_LINEAR, AUTO, LoraConfig, name_matches, pattern_matches
from lora_hf.adapters.default_targets import (
    QUERIES,
    VALUES,
    bare,
    default_ends,
    not_language,
    output_head,
    with_names,
)
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.methods import ADAPTER_METHODS
from lora_hf.adapters.module_names import WRAPPERS, block_index, called, identity, layer_ends, own_modules
from lora_hf.adapters.modules_to_save import SavedModule
from lora_hf.adapters.weight_readers import refuse_weight_reader
from lora_hf.adapters.wrappers import named_modules
from lora_hf.errors import UserError, did_you_mean

Owner = tuple[str, type[nn.Module]]
Owners = dict[int, list[Owner]]
UNTIE = "give the output head its own weight (model.untie_head: true, or lora_hf.untie_head(model))"


def find_targets(model: nn.Module, config: LoraConfig, strict: bool = True) -> dict[str, nn.Module]:
    """Return the layers that get an adapter, by the first of their names.

    Args:
        model: any module.
        config: its targets, exclusions and patterns.
        strict: every entry of the configuration must match. False for a saved adapter, whose tensors are all
            compared: PEFT's users write one list for several architectures.

    Raises:
        UserError: an entry of the configuration matches nothing, or a layer that cannot take this adapter.
    """
    config = with_names(model, config)
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in own_modules(model):
        names.setdefault(identity(module), []).append(name)
        modules.setdefault(identity(module), module)
    everything = [name for own in names.values() for name in own]
    check_patterns(config, everything)
    found = {
        own[0]: modules[key] for key, own in names.items() if _is_target(model, config, own, modules[key])
    }
    if config.target_modules == ALL_LINEAR:
        aside = not_language(model, dict(own_modules(model)))
        found = {name: module for name, module in found.items() if not aside(name)}
    if strict or not (found or config.modules_to_save):
        _check_all_used(model, config, everything, list(found))
    owners = _owners(model)
    for name, module in found.items():
        _check_carries(owners, config, name, module)
        if not isinstance(module, LoraLayer):
            refuse_weight_reader(model, name)
        base = (module if isinstance(module, LoraLayer) else LoraLayer(module)).base
        settings, most = config.at(name), base.in_features + base.out_features
        if strict and settings.r > most:  # the largest in any file: the doubled rank of a full decomposition
            raise UserError(
                f"r={settings.r}: layer {name} has {most} inputs and outputs together; use at most that", "r"
            )
        try:
            ADAPTER_METHODS[config.method].check(config, base)
        except UserError as error:
            raise UserError(f"{error} (layer {name})", error.field) from None
    return found


def find_saved(model: nn.Module, config: LoraConfig, strict: bool = True) -> dict[str, nn.Module]:
    """Return the layers of `modules_to_save`, by the first of their names; `strict` as in `find_targets`.

    Raises:
        UserError: an entry matches nothing, a layer is quantized, or its weight is also another layer's.
    """
    found: dict[str, nn.Module] = {}
    first: dict[int, tuple[str, nn.Module]] = {}
    unused = set(config.modules_to_save)
    for name, module in own_modules(model):
        own_name, first_module = first.setdefault(identity(module), (name, module))
        matched = name_matches(config.modules_to_save, name)
        unused.difference_update(matched)
        if matched and own_name not in found:
            found[own_name] = first_module
            _check_copyable(model, own_name, first_module)
    if unused and strict:
        raise _no_match(model, "modules_to_save", sorted(unused), _with_weights(model))
    return found


def _is_target(model: nn.Module, config: LoraConfig, names: list[str], module: nn.Module) -> bool:
    targets, exclude = config.target_modules, config.exclude_modules
    if targets == ALL_LINEAR:
        wanted = is_linear(bare(module)) and module is not output_head(model) and not _is_saved(config, names)
    else:
        wanted = any(name_matches(targets, name) for name in names)
    excluded = any(name_matches(exclude, name) for name in names)
    return wanted and not excluded and _in_chosen_block(config, names[0])


def _is_saved(config: LoraConfig, names: list[str]) -> bool:
    """Return whether `modules_to_save` copies the layer, or one that contains it."""
    return any(
        name_matches(config.modules_to_save, name[:end])
        for name in names
        for end in [*(match.start() for match in re.finditer(r"\.", name)), len(name)]
    )


def _in_chosen_block(config: LoraConfig, name: str) -> bool:
    return config.layers_to_transform is None or block_index(name) in config.layers_to_transform


def _check_all_used(model: nn.Module, config: LoraConfig, everything: list[str], found: list[str]) -> None:
    """Raise for the first field with an entry that matches nothing."""
    for field in ("target_modules", "exclude_modules"):
        entries = getattr(config, field)
        if entries != ALL_LINEAR:
            asked = {entries} if isinstance(entries, str) else set(entries)
            used = {entry for name in everything for entry in name_matches(entries, name)}
            if unused := sorted(asked - used):
                raise _no_match(model, field, unused, _layers(model), is_expression=isinstance(entries, str))
    for field in ("rank_pattern", "alpha_pattern"):
        if unused := [k for k in getattr(config, field) if not any(pattern_matches(k, n) for n in found)]:
            raise _no_match(model, field, unused, found, "targeted layer")
    if config.layers_to_transform is not None:
        there = sorted({index for name in everything if (index := block_index(name)) is not None})
        if missing := sorted(set(config.layers_to_transform) - set(there)):
            raise UserError(
                f"layers_to_transform: the model has no blocks {missing}; it has {there}",
                "layers_to_transform",
            )
    if not found and not config.modules_to_save:
        raise UserError(
            "exclude_modules and layers_to_transform leave no layer of target_modules", "exclude_modules"
        )


def _check_carries(owners: Owners, config: LoraConfig, name: str, module: nn.Module) -> None:
    if isinstance(module, SavedModule) and not _is_saved(config, [name]):
        raise UserError(
            f"target_modules: {name} is copied by another adapter's modules_to_save "
            f"({', '.join(module.copies)}): put this adapter on a base of its own",
            "target_modules",
        )
    if _is_saved(config, [name]):
        raise UserError(
            f"target_modules: {name} is also in modules_to_save; remove it from one of them", "target_modules"
        )
    if isinstance(module, LoraLayer):
        return
    refuse_computed_weight("target_modules", name, module)
    if not is_supported(module):
        raise UserError(
            f"target_modules={config.target_modules!r} matched {name}, of type {type_name(module)}, which "
            "cannot take an adapter; name linear, convolution or embedding layers that are dense or "
            "quantized by bitsandbytes or lora_hf",
            "target_modules",
        )
    weights = [p for name, p in module.named_parameters(recurse=False) if name != "bias"]
    if other := _tied_to(owners, module, weights):  # an adapter leaves the bias as it is
        raise UserError(
            f"target_modules: the weight of {name} is also that of {other[0]}, which would not see "
            f"the adapter; {_untie(module, other)}leave it out",
            "target_modules",
        )


def _check_copyable(model: nn.Module, name: str, module: nn.Module) -> None:
    refuse_computed_weight("modules_to_save", name, module)
    if any(not p.is_floating_point() or quantized_dtype(p) for p in module.parameters()):
        kinds = (part.whole_copies for part in module.modules() if isinstance(part, QuantizedLinear))
        raise UserError(
            f"modules_to_save: {name} is quantized, which a whole copy of it cannot be; "
            f"{next(kinds, QuantizedLinear.whole_copies)}",
            "modules_to_save",
        )
    if other := _tied_outside(_owners(model), name, module):
        place = other[0]
        is_inside = name.startswith(f"{place}.")
        remedy = f"name {place} in its place" if is_inside else f"{_untie(module, other)}leave it out"
        raise UserError(
            f"modules_to_save: the weight of {name} is also that of {place}, which would keep "
            f"the old one; {remedy}",
            "modules_to_save",
        )


def _owners(model: nn.Module) -> Owners:
    """Return `id` of each Parameter -> names and types of the modules that hold it."""
    owners: Owners = {}
    for name, module in named_modules(model):
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((name, type(module)))
    return owners


def _tied_to(owners: Owners, module: nn.Module, parameters: Iterable[nn.Parameter]) -> Owner | None:
    """Return a layer of another type with one of a module's Parameters: the head of an embedding."""
    holders = [holder for p in parameters for holder in owners[id(p)]]
    return next((holder for holder in holders if holder[1] is not type(module)), None)


def _untie(module: nn.Module, other: Owner) -> str:
    """Return the remedy for a tie of the output head; Seamless' is one between tables of embeddings."""
    are_tables = isinstance(module, nn.Embedding) and issubclass(other[1], nn.Embedding)
    return "" if are_tables else f"{UNTIE}, or "


def _tied_outside(owners: Owners, name: str, module: nn.Module) -> Owner | None:
    """Return a layer of another type outside of a module that holds a Parameter of anything inside it."""
    for parameter in module.parameters():
        holders = owners[id(parameter)]
        inside = [holder for holder in holders if f"{holder[0]}.".startswith(f"{name}.")]
        kinds = {kind for _, kind in inside}
        if other := next((held for held in holders if held not in inside and held[1] not in kinds), None):
            return other
    return None


def _layers(model: nn.Module) -> list[str]:
    return [n for n, m in own_modules(model) if isinstance(m, LoraLayer) or is_supported(m)]


def _with_weights(model: nn.Module) -> list[str]:
    """Return the modules with Parameters of their own: no containers and no activations."""
    return [n for n, m in own_modules(model) if isinstance(m, WRAPPERS) or list(m.parameters(recurse=False))]


def _no_match(
    model: nn.Module,
    field: str,
    unused: list[str],
    names: Iterable[str],
    what: str = "layer",
    is_expression: bool = False,
) -> UserError:
    ends, hint = layer_ends(names), ""
    near = did_you_mean(unused[0], ends)
    if field == "target_modules" and (default := default_ends(model, dict(own_modules(model)))):
        hint = f" The default of this model, target_modules: {AUTO}, is {', '.join(default)}."
        if set(unused) <= QUERIES | VALUES:  # as another family spells them: the default says these
            near = ""
    if is_expression and unused[0] in ends:
        near = (
            f" A text is a regular expression for whole names: write a list, [{unused[0]}], for their ends."
        )
    return UserError(
        f"{field}: {unused} matched no {what} of {called(model)}; its layers end in {ends}.{hint}{near}",
        field,
    )


SECONDS = 5.0
"""Seconds for all expressions of a configuration on all names of a model; FLAN-T5-xxl's take milliseconds."""


def check_patterns(config: LoraConfig, names: Iterable[str]) -> None:
    """Match every expression of a configuration against every name once, within `SECONDS`.

    Raises:
        UserError: an expression takes longer.
    """
    fields = {"target_modules": config.target_modules, "exclude_modules": config.exclude_modules}
    written = {name: pattern for name, pattern in fields.items() if isinstance(pattern, str)}
    written |= {f"rank_pattern[{key!r}]": key for key in config.rank_pattern}
    written |= {f"alpha_pattern[{key!r}]": key for key in config.alpha_pattern}
    deadline, names = time.monotonic() + SECONDS, list(names)
    for place, pattern in written.items():
        try:
            for name in names:
                pattern_matches(pattern, name, timeout=max(deadline - time.monotonic(), 1e-3))
        except TimeoutError:
            raise UserError(
                f"{place}: matching {pattern!r} against the model's layers takes more than {SECONDS:g} s; "
                "write it without repeats within repeats, or list the names",
                place,
            ) from None
