"""Default targets (`auto`): the query and value projections of every stack, whatever a family calls them.

They come from the table of families; in a family without a row, from the names of the layers. The result is
a list of names that PEFT reads in the same way.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lora_hf.adapters.backends import is_linear, is_supported
from lora_hf.adapters.config import AUTO, LoraConfig
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.module_names import called, layer_ends, own_modules
from lora_hf.adapters.wrappers import unwrapped
from lora_hf.errors import UserError
from lora_hf.families import family_of

QUERIES = frozenset("q q_proj query query_proj q_lin q_attn to_q wq".split())
VALUES = frozenset("v v_proj value value_proj v_lin to_v wv".split())
FUSED = frozenset("c_attn qkv qkv_proj query_key_value Wqkv W_pack".split())
"""Projections that compute queries, keys and values together."""
TEXT_INPUTS = (None, "input_ids", "inputs_embeds", "decoder_input_ids")
"""Values of Transformers' `main_input_name` that come from text."""


def end_of(name: str) -> str:
    """Return the last part of a layer's name."""
    return name.rpartition(".")[2]


def default_ends(model: Any, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Return the ends of the names of the default targets; empty if the model has none.

    Args:
        model: any module.
        modules: its modules by name, without what adapters have added.
    """
    usable = _usable(model, modules)
    ends = {end_of(name) for name in usable}
    in_table = tuple(end for end in family_of(unwrapped(model)).targets if end in ends)
    return in_table or tuple(sorted({end_of(name) for name in _projections(usable)}))


def default_targets(model: Any, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Return the default targets: ends of names, or whole names where an end also means other layers.

    Args:
        model: any module.
        modules: its modules by name, without what adapters have added.

    Returns:
        Names in the order of the table; empty if the model has no such layers.
    """
    ends, usable = default_ends(model, modules), _usable(model, modules)
    if not family_of(unwrapped(model)).targets:
        usable = _projections(usable)
    wanted = [name for name in usable if end_of(name) in ends]
    meant = [name for name in modules if end_of(name) in ends]
    return ends if wanted == meant else tuple(wanted)


def beside(model: Any, modules: Mapping[str, nn.Module]) -> Callable[[str], str | None]:
    """Return a function from a layer's name to the module around it that text does not reach, or None.

    Such modules are a vision tower or a speech encoder, as the table of families names them, and what says
    itself that its input is not text.
    """
    of_text = reads_text(model)
    others = [n for n, m in modules.items() if of_text and not reads_text(m)]
    return _inside(family_of(unwrapped(model)).beside, others)


def not_language(model: Any, modules: Mapping[str, nn.Module]) -> Callable[[str], str | None]:
    """Return `beside`, extended by the routers of experts: what `auto` and all-linear leave out."""
    routers = [name for name, module in modules.items() if type(module).__name__.endswith("Router")]
    aside, routes = beside(model, modules), _inside(family_of(unwrapped(model)).routers, routers)
    return lambda name: aside(name) or routes(name)


def _inside(parts: Iterable[str], roots: Iterable[str]) -> Callable[[str], str | None]:
    """Return a function from a name to the part in it, or the root that it begins with, or None."""
    parts, roots = set(parts), list(roots)

    def root_of(name: str) -> str | None:
        named = next((part for part in name.split(".") if part in parts), None)
        return named or next((root for root in roots if name == root or name.startswith(f"{root}.")), None)

    return root_of


def stacks(model: Any) -> dict[str, str]:
    """Return the prefixes of the names in the encoder and the decoder; empty for other models.

    A module around a Transformers model may have its config, and still does not say which parts they are.
    """
    model = unwrapped(model)
    is_whole = hasattr(model, "get_encoder") and hasattr(model, "get_decoder")
    if not is_whole or not getattr(model.config, "is_encoder_decoder", False):
        return {}
    parts = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    names = {id(module): name for name, module in model.named_modules()}
    return {stack: f"{names[id(part)]}." for stack, part in parts.items() if id(part) in names}


def with_names(model: nn.Module, config: LoraConfig) -> LoraConfig:
    """Return a configuration with the names that `target_modules: auto` stands for on this model.

    Raises:
        UserError: the model has no query and value projections under names that are known.
    """
    if config.target_modules != AUTO:
        return config
    modules = dict(own_modules(model))
    found = default_targets(model, modules)
    if not found:
        raise UserError(
            f"target_modules={AUTO!r} found no query and value projections in {called(model)}; name layers: "
            f"its layers end in {layer_ends(n for n, m in modules.items() if _fits(m))}",
            "target_modules",
        )
    return replace(config, target_modules=found)


def doubts(model: nn.Module, config: LoraConfig, found: Iterable[str]) -> list[str]:
    """Return doubts about targets that exist: a stack without adapters, or a tower that text does not reach.

    Args:
        model: any module.
        config: of the adapter. Targets that say `encoder` or `decoder` choose a stack on purpose.
        found: names of the layers that get an adapter, as `find_targets` returns them.
    """
    modules, names, said = dict(own_modules(model)), list(found), []
    targets = config.target_modules
    entries = [targets] if isinstance(targets, str) else targets
    parts = stacks(model)
    if not any(stack in entry for stack in ("encoder", "decoder") for entry in entries):
        empty = [stack for stack, prefix in parts.items() if not any(n.startswith(prefix) for n in names)]
        if names and len(empty) == 1:
            default = ", ".join(default_ends(model, modules))
            said.append(
                f"no layer of the {empty[0]} gets an adapter; target_modules: {AUTO} is {default}, in both "
                "stacks"
            )
    aside = beside(model, modules)
    idle = [root for name in names if (root := aside(name))]
    if idle:
        said.append(
            f"{len(idle)} of {len(names)} adapters are in {', '.join(sorted({*idle}))}, which text does "
            f"not reach: they will not be trained; target_modules: {AUTO} leaves them out"
        )
    return said


def reads_text(module: Any) -> bool:
    """Return whether a module's input is text: not sound or images, as far as it says so itself."""
    return getattr(unwrapped(module), "main_input_name", None) in TEXT_INPUTS


def _usable(model: Any, modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the layers of the language model that can take an adapter."""
    aside = not_language(model, modules)
    return [name for name, module in modules.items() if _fits(module) and not aside(name)]


def _fits(module: nn.Module) -> bool:
    return isinstance(module, LoraLayer) or is_supported(module)


def _projections(names: Iterable[str]) -> list[str]:
    """Return the query, value and fused projections of what looks like an attention, by its children."""
    children: dict[str, set[str]] = {}
    names = list(names)
    for name in names:
        parent, _, end = name.rpartition(".")
        children.setdefault(parent, set()).add(end)
    attentions = {
        parent for parent, ends in children.items() if ends & FUSED or (ends & QUERIES and ends & VALUES)
    }
    ours = QUERIES | VALUES | FUSED
    return [name for name in names if name.rpartition(".")[0] in attentions and end_of(name) in ours]


def output_head(model: Any) -> nn.Module | None:
    """Return the layer that gives the logits, or None for a model without one."""
    head = unwrapped(model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None)
    if isinstance(head, nn.Embedding):  # FSMT's is a table; its head is the last layer
        for _, module in reversed(list(own_modules(model))):
            layer = bare(module)
            if is_linear(layer) and getattr(layer, "out_features", 0) == head.num_embeddings:
                return module
    return head


def bare(module: nn.Module) -> nn.Module:
    """Return the layer below an adapter, or the module itself."""
    return module.base_layer if isinstance(module, LoraLayer) else module
