"""A deeper model of the same weights: blocks of a stack are repeated, and adapters distinguish the copies.

Depth up-scaling of SOLAR (Kim et al., arXiv:2312.15166) without its second set of weights, as PEFT's
`layer_replication`, for encoders, decoders and models with both. Stacks are found by structure.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import nn

from lora_hf.adapters.config import Spans
from lora_hf.adapters.model_state import model_state, refuse_offloaded, update_state
from lora_hf.adapters.wrappers import get_submodule, named_modules, set_submodule, unwrapped
from lora_hf.errors import UserError, did_you_mean, first_line
from lora_hf.families import family_of

SIDES = ("encoder", "decoder")
BY_LAYER = ("layer_types", "mlp_layer_types", "attention_window")
"""Fields of configs with one value for each block, such as full or sliding attention."""


class LayerStack(NamedTuple):
    """Blocks that a hidden state passes one after another; `side` is `encoder` or `decoder`."""

    path: str
    side: str
    blocks: nn.ModuleList


def name_before_replication(model: nn.Module, name: str) -> str:
    """Return the checkpoint's name of a layer: that of its source for the copy of a block."""
    stacks = find_stacks(model)
    for stack, spans in model_state(model).replication.items():
        head = stacks[stack].path + "."
        if name.startswith(head):
            place, _, rest = name.removeprefix(head).partition(".")
            order = [i for start, end in spans for i in range(start, end)]
            return f"{head}{order[int(place)]}.{rest}"
    return name


def find_stacks(model: nn.Module) -> dict[str, LayerStack]:
    """Return the outermost lists of blocks of one type, by side, or by path where a side has several.

    Those beside the language model, such as a tower for images, have their path.
    """
    lists = [(path, m) for path, m in named_modules(model) if isinstance(m, nn.ModuleList) and path]
    outer = [(path, m) for path, m in lists if not any(path.startswith(other + ".") for other, _ in lists)]
    found = [
        LayerStack(path, _side(path, m), m) for path, m in outer if len({type(block) for block in m}) == 1
    ]
    beside = set(family_of(model).beside)
    of_text = [stack for stack in found if beside.isdisjoint(stack.path.split("."))]
    sides = Counter(stack.side for stack in of_text)
    return {s.side if s in of_text and sides[s.side] == 1 else s.path: s for s in found}


def _side(path: str, blocks: nn.ModuleList) -> str:
    """Return the side by name; else `decoder` if attention is causal or, where unknown, has a cache."""
    named = next((part for part in path.split(".") if part in SIDES), None)
    causal = any(getattr(m, "is_causal", hasattr(m, "layer_idx")) for m in blocks.modules())
    return named or ("decoder" if causal else "encoder")


Model = TypeVar("Model", bound=nn.Module)
Written = Mapping[str, Sequence[Sequence[int]]] | Sequence[Sequence[int]]


def replicate_layers(model: Model, spec: Written, is_saved: bool = False) -> Model:
    """Rebuild stacks from spans of their own blocks, in place, and return the model.

    Copies of a block are modules of their own with the same Parameters and buffers: each copy has its own
    adapters, and memory grows only by those. Layer names of adapters and `layers_to_transform` count the new
    blocks. A model that already has these spans is left unchanged.

    Args:
        model: without adapters; its state records the spans by stack.
        spec: `{"encoder": [[0, 4], [2, 6]]}` makes 8 encoder blocks, 0 1 2 3 2 3 4 5; `decoder` likewise. A
            bare list where the model has one stack.
        is_saved: the spans are those of a saved adapter, which may be used without merging it, so whether a
            config can describe them is not checked.

    Raises:
        UserError: a stack or a span that the model does not have, a bare list where it has several
            stacks, adapters or int8 layers in it, or another replication; or a model that could not be
            loaded after merging, because no config of its family describes the layers in this order.
    """
    stacks = find_stacks(model)
    spans = _by_stack(model, spec, stacks)
    done = model_state(model).replication
    if done == spans:
        return model
    if done:
        _refuse(spec, f"the model is replicated already, by {_shown(done)}; load it again")
    if any(hasattr(module, "base_layer") for module in model.modules()):
        _refuse(spec, "the model has adapters; replicate its layers first, then inject")
    if any(hasattr(parameter, "SCB") for parameter in model.parameters()):  # forward empties such a Parameter
        _refuse(
            spec,
            "int8 layers move their weight at use and cannot share it; load the model in 4 bits or dense",
        )
    refuse_offloaded(model)
    for name in spans:
        _check_spans(spec, name, spans[name], len(stacks[name].blocks))
    _check_cache(model, spec, {name: len(stack.blocks) for name, stack in stacks.items()}, spans)
    if not is_saved:
        _check_config(model, spec, spans)
    _rebuild_stacks(model, stacks, spans)
    update_state(model, replication=spans)
    return model


def unshare_layers(model: Model) -> Model:
    """Give every copy Parameters and buffers of its own, in place: a plain model of the new depth.

    `save_pretrained` and plain Transformers can use it once its adapters, which stay, have been merged.
    A model that is not replicated is left unchanged.

    Raises:
        RuntimeError: adapters are merged: unmerging would restore the shared weights.
    """
    if any(getattr(module, "merged", ()) for module in model.modules()):
        raise RuntimeError("adapters are merged into the model; call unmerge_adapters first")
    stacks = find_stacks(model)
    for name in model_state(model).replication:
        seen: set[int] = set()
        for block in stacks[name].blocks:
            values = {id(value) for *_, value in _slots(block)}
            _replace(block, values & seen)
            seen |= values
    update_state(model, replication={})
    return model


def _by_stack(model: nn.Module, spec: Written, stacks: dict[str, LayerStack]) -> dict[str, Spans]:
    """Return the spec by stack name, as tuples."""
    have = ", ".join(f"{name} ({len(stack.blocks)} layers)" for name, stack in stacks.items())
    if not stacks:
        _refuse(spec, f"{type(model).__name__} has no stack of equal layers; leave the field out")
    if not isinstance(spec, Mapping):
        if len(stacks) > 1:
            _refuse(
                spec, f"the model has the stacks {have}; name the one meant, {{{next(iter(stacks))}: ...}}"
            )
        spec = {name: spec for name in stacks}
    by_path = {stack.path: name for name, stack in stacks.items()}
    for name in spec:
        if name not in stacks and name not in by_path:
            inside = [f" Did you mean {path!r}?" for path in stacks if str(name) in path.split(".")]
            hint = "" if name in SIDES else did_you_mean(str(name), stacks)
            _refuse(spec, f"the model has no stack {name!r}, it has {have}.{next(iter(inside), hint)}")
    try:
        return {by_path.get(name, name): tuple((a, b) for a, b in spec[name]) for name in spec}
    except (TypeError, ValueError):
        _refuse(spec, f"write a list of pairs [start, end) for a stack; the model has {have}")


def _check_spans(spec: Written, name: str, spans: Spans, depth: int) -> None:
    remedy = f"the {name} has {depth} layers; write spans [start, end) with 0 <= start < end <= {depth}"
    if not spans:
        _refuse(spec, f"no span for the {name}; {remedy}")
    for start, end in spans:
        if {type(start), type(end)} != {int} or not 0 <= start < end <= depth:
            _refuse(spec, f"[{start}, {end}] is not a span of layers; {remedy}")


def _computes_depth(config: Any) -> bool:
    """Return whether a config computes `num_hidden_layers`, so that it cannot say another depth."""
    return isinstance(getattr(type(config), "num_hidden_layers", None), property)


def _check_cache(model: nn.Module, spec: Written, depths: dict[str, int], spans: dict[str, Spans]) -> None:
    """Refuse a decoder that is deeper than its cache: ProphetNet's always has the encoder's depth."""
    config = getattr(model, "config", None)
    new = depths | {name: sum(end - start for start, end in pairs) for name, pairs in spans.items()}
    encoder, decoder = new.get("encoder", 0), new.get("decoder", 0)
    if _computes_depth(config) and decoder > encoder:
        _refuse(
            spec,
            f"Transformers sizes the decoder's cache of {type(model).__name__} by the encoder's depth: the "
            f"decoder would have {decoder} layers, and may have {encoder}. Replicate the encoder as well",
        )


def _check_config(model: nn.Module, spec: Written, spans: dict[str, Spans]) -> None:
    """Refuse what the family's config cannot describe, such as Switch's experts in other blocks than it says.

    A merged model is read from its config, which places some layers by a block's index. The model is built
    twice without memory: once with its blocks replicated, once from the config that would be saved.
    """
    plain: Any = unwrapped(model)
    build = getattr(type(plain), "_from_config", None)  # which models of Transformers have
    if build is None:
        return
    with torch.device("meta"):
        try:
            ours: Any = build(copy.deepcopy(plain.config))
        except Exception:  # a part of a model, or a class of the user's own, that no config alone describes
            return
        _rebuild_stacks(ours, find_stacks(ours), spans)
        try:
            saved = build(type(ours.config).from_dict(ours.config.to_dict()))
        except (ValueError, IndexError, KeyError) as error:
            _refuse(spec, _inexpressible(plain, first_line(error)))
    for of in (_shapes, _settings):
        expected, found = of(ours), of(saved)
        names = [name for name in [*expected, *found] if expected.get(name) != found.get(name)]
        if names:
            _refuse(spec, _inexpressible(plain, f"{names[0]} would differ"))


def _inexpressible(model: nn.Module, difference: str) -> str:
    return (
        f"the merged model would be another one: {type(model).__name__} decides by a layer's position what "
        f"it is, and no config.json describes the layers in this order ({difference}). Choose spans in which "
        "unlike layers alternate as before, such as the whole stack twice, or replicate another stack"
    )


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _settings(model: nn.Module) -> dict[str, Any]:
    """Return the numbers, flags and words that the modules of a model keep as attributes."""
    return {
        f"{path}.{key}": value
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_") and isinstance(value, int | float | str)
    }


def _rebuild_stacks(model: nn.Module, stacks: dict[str, LayerStack], spans: dict[str, Spans]) -> None:
    for name in spans:
        _rebuild(model, stacks[name], [i for start, end in spans[name] for i in range(start, end)])
    _size_decoder_cache(model)


def _rebuild(model: nn.Module, stack: LayerStack, order: list[int]) -> None:
    old, used = [unwrapped(block) for block in stack.blocks], set[int]()
    new = []
    for i in order:
        new.append(_copy_structure(old[i]) if i in used else old[i])
        used.add(i)
    _move_position_bias(old, new)
    for place, block in enumerate(new):
        for module in block.modules():
            for index in ("layer_idx", "layer_id"):  # a block's place in the cache
                if isinstance(getattr(module, index, None), int):
                    setattr(module, index, place)
            if getattr(module, "seed", None) == order[place]:  # BigBird's random attention, also by place
                module.seed = place  # type: ignore[assignment]
    set_submodule(model, stack.path, nn.ModuleList(new).train(stack.blocks.training))
    _write_depth(model, stack, order)


def _copy_structure(block: nn.Module) -> nn.Module:
    """Return new modules around the same tensors, 4-bit scales and configs."""
    shared: list[Any] = [*block.parameters(), *block.buffers()]
    shared += [getattr(x, "quant_state", None) for x in [*shared, *block.modules()]]
    shared += [getattr(module, "config", None) for module in block.modules()]
    return copy.deepcopy(block, {id(value): value for value in shared})


def _move_position_bias(old: list[nn.Module], new: list[nn.Module]) -> None:
    """Give T5's position bias to the new first block alone, which passes it to all others."""
    owners = [name for name, m in old[0].named_modules() if getattr(m, "has_relative_attention_bias", False)]
    if any(getattr(m, "has_relative_attention_bias", False) for block in old[1:] for m in block.modules()):
        return  # UMT5: each block has its own
    for name in owners:
        tables = {
            key: table
            for key, table in old[0].get_submodule(name).named_children()
            if key.endswith("relative_attention_bias")
        }
        for place, attention in enumerate(block.get_submodule(name) for block in new):
            attention.has_relative_attention_bias = place == 0  # type: ignore[assignment]
            for key, table in tables.items():
                if place == 0:
                    setattr(attention, key, table)
                elif hasattr(attention, key):
                    delattr(attention, key)


def _write_depth(model: nn.Module, stack: LayerStack, order: list[int]) -> None:
    """Write the new depth to every config that has the old one: T5's stacks hold copies of the model's."""
    root: Any = getattr(model, "config", None)
    own = getattr(get_submodule(model, stack.path.rpartition(".")[0]), "config", root)
    configs: list[Any] = [m.config for m in model.modules() if hasattr(m, "config")]
    written = [(c, f"{stack.side}_layers") for c in configs] + [
        (c, f"num_{stack.side}_layers") for c in configs
    ]
    for config in [root] if own is root else [root, own]:
        # in a config of both sides, num_hidden_layers is the encoder's
        both = config is root and getattr(config, "is_encoder_decoder", False)
        if stack.side == "encoder" or not both:
            written.append((config, "num_hidden_layers"))
            for kinds in BY_LAYER:
                if len(getattr(config, kinds, None) or ()) == len(stack.blocks):
                    setattr(config, kinds, [getattr(config, kinds)[i] for i in order])
    for config, key in written:
        if hasattr(config, key):
            with suppress(NotImplementedError):  # a name that is computed, as ProphetNet's is
                setattr(config, key, len(order))


def _size_decoder_cache(model: nn.Module) -> None:
    """Let `generate` see the decoder's depth where it would use the encoder's.

    Transformers 5.23 sizes the cache by `get_text_config(decoder=True)`, which does not know T5's name for
    the decoder's depth: generation fails with an IndexError if the decoder is deeper. The name that it
    knows is saved with the config, and so applies to an exported model too.
    """
    config: Any = getattr(model, "config", None)
    decoder = find_stacks(model).get("decoder")
    if decoder is None or not getattr(config, "is_encoder_decoder", False) or _computes_depth(config):
        return
    if getattr(config.get_text_config(decoder=True), "num_hidden_layers", None) != len(decoder.blocks):
        config.decoder_layers = len(decoder.blocks)


def _slots(block: nn.Module) -> Iterator[tuple[nn.Module, dict[str, Any], str, Any]]:
    for module in block.modules():
        for slots in (module._parameters, module._buffers):
            for key, value in slots.items():
                if value is not None:
                    yield module, slots, key, value


def _replace(block: nn.Module, shared: set[int]) -> None:
    """Replace shared values by clones; values tied within the block stay tied."""
    own: dict[int, Any] = {}
    for module, slots, key, value in list(_slots(block)):
        if id(value) not in shared:
            continue
        if id(value) not in own:
            own[id(value)] = copy.deepcopy(value)
        clone = slots[key] = own[id(value)]
        if hasattr(module, "quant_state") and hasattr(clone, "quant_state"):  # bitsandbytes holds both ends
            clone.module, module.quant_state = module, clone.quant_state


def _refuse(spec: Written, reason: str) -> NoReturn:
    raise UserError(f"layer_replication={_shown(spec)}: {reason}", "layer_replication")


def _shown(spec: Any) -> str:
    """Return the spec as a user writes it, with lists instead of tuples."""
    if isinstance(spec, Mapping):
        return "{" + ", ".join(f"{name}: {_shown(spans)}" for name, spans in spec.items()) + "}"
    return "[" + ", ".join(map(_shown, spec)) + "]" if isinstance(spec, list | tuple) else repr(spec)
