"""Read adapters, strictly: whatever does not fit is one error that names both sides and changes nothing."""

import json
import logging
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_hf.adapters.checkpoint_io import (
    Shapes,
    check_shapes,
    check_tensors,
    read_tensors,
)
from lora_hf.adapters.config import LoraConfig, name_matches
from lora_hf.adapters.embeddings import (
    WHOLE,
    check_rows,
    embedding_keys,
    embedding_layers,
    embedding_tensors,
    put_embeddings,
)
from lora_hf.adapters.functional import lora_scaling
from lora_hf.adapters.initialize import LayerInit, initialize_layer, requantized_base, zero_init
from lora_hf.adapters.inject import base_weights_of, inject_adapters
from lora_hf.adapters.layer import LoraLayer, check_adapter_name
from lora_hf.adapters.layer_replication import replicate_layers
from lora_hf.adapters.methods import ADAPTER_METHODS
from lora_hf.adapters.model_state import (
    BaseWeights,
    model_state,
    refuse_offloaded,
    refuse_peft_modules,
    saved_modules,
)
from lora_hf.adapters.module_names import block_index, identity, layers_in_stacks, own_modules
from lora_hf.adapters.peft_format import CHANGES_BASE, CONFIG_NAME, PREFIX, SHARED_PREFIX
from lora_hf.adapters.rollback import rolled_back_on_error
from lora_hf.adapters.save import (
    INITIALIZATION_NAME,
    adapted,
    adapter_state,
    codes_sha256,
    written_config,
)
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.adapters.targets import find_saved, find_targets
from lora_hf.adapters.wrappers import plain_keys, refuse_synchronized, unwrapped
from lora_hf.errors import UserError, few

_BESIDE = re.compile(r"\.(original_module|modules_to_save)\.")
_PART = re.compile(r"\.(?=lora_|vera_lambda_)")  # before the names of a layer's tensors
SCALING_FIELDS = ("lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora")
logger = logging.getLogger(__name__)


def load_adapter(
    model: nn.Module,
    directory: str | Path | SavedAdapter,
    adapter_name: str = "default",
    trainable: bool = False,
    base_weights: BaseWeights | None = None,
) -> nn.Module:
    """Inject the adapter of a folder, activate it, and return the model.

    Args:
        model: the base the adapter was trained on, without an adapter of this name.
        directory: a folder that `save_adapter` or PEFT wrote, or the adapter found there.
        adapter_name: the name it gets here.
        trainable: give its weights gradients.
        base_weights: layer name -> weight before quantization, needed if the base was quantized again for
            the adapter; None takes those that `load_model` has recorded.

    Raises:
        UserError: no such files, a pickle, another base, tensors that do not fit, or PEFT fields that are
            not implemented; the model is then unchanged.
    """
    whole, model = model, unwrapped(model)
    saved = SavedAdapter.at(directory)
    check_adapter_name(adapter_name)
    if trainable:
        refuse_synchronized(whole)
    folder, config = saved.folder, saved.config
    refuse_peft_modules(model)
    refuse_offloaded(model)
    check_base(model, saved)
    below = [file.parent.name for file in folder.glob(f"*/{CONFIG_NAME}")]
    if others := [name for name in below if not name.startswith("checkpoint-")]:
        logger.warning(
            "%s holds further adapters, which are not loaded: %s. To load one, give its folder, such as %s",
            folder,
            few(others),
            folder / min(others),
        )
    with rolled_back_on_error(model):
        if model_state(model).replication and not config.layer_replication:
            raise UserError(
                f"the adapter {folder} was trained on the layers of the base, which another adapter has "
                "replicated: load it on a base of its own"
            )
        if config.layer_replication:
            replicate_layers(model, config.layer_replication, is_saved=True)
        config = _config_of_file(model, saved)
        tensors = saved.read_weights(lambda shapes: _check_fit(model, config, shapes, saved))
        tensors = {name: tensors[key] for key, name in _own_keys(model, tensors, saved).items()}
        if not saved.manifest:
            config, tensors = _without_uncalled(model, config, tensors, folder)
        expected = expected_shapes(model, config).keys()
        beside = embedding_keys(model, tensors.keys() - expected)
        copies = {f"{PREFIX}{name}{WHOLE}" for name in embedding_layers(model)} <= expected
        if model_state(model).has_own_embeddings and not beside and not copies:
            raise UserError(
                f"the adapter {folder} was trained on the embeddings of the base, which those of another "
                "adapter have replaced: load it on a base of its own"
            )
        put_embeddings(model, {key: tensors.pop(key) for key in beside}, folder)
        check_formats(model, saved, config)
        initialize = _SavedInit(folder, config, base_weights_of(model, base_weights))
        with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten: keep the random state
            inject_adapters(model, config, adapter_name, initialize=initialize)
        _put(model, tensors, adapter_name)
    _compare_codes(model, adapter_name, saved)
    for _, _, method in adapted(model, adapter_name):
        method.set_trainable(trainable)
    for module in saved_modules(model).values():
        if adapter_name in module.copies:
            module.copies[adapter_name].requires_grad_(trainable)
    return whole


def _compare_codes(model: nn.Module, adapter_name: str, saved: SavedAdapter) -> None:
    """Warn if the adapted layers were quantized to other integers than those the adapter was trained on."""
    trained_on = saved.manifest.get("base_codes_sha256")
    if trained_on and trained_on != codes_sha256(model, adapter_name):
        logger.warning(
            "%s was trained on a base that was quantized to other values than this one, in another format, "
            "by another version or on another device: it can write other texts; `lora-hf verify RUN` shows "
            "how many",
            saved.folder,
        )


def _check_fit(model: nn.Module, config: LoraConfig, shapes: Shapes, saved: SavedAdapter) -> None:
    """Compare the names and shapes of a file with those that the model needs; errors as `load_adapter`."""
    shapes = {name: shapes[key] for key, name in _own_keys(model, shapes, saved).items()}
    _refuse_copies_by_place(model, config, shapes, saved.folder)
    expected = expected_shapes(model, config)
    beside = embedding_keys(model, shapes.keys() - expected.keys())
    for key, weight in beside.items():
        check_rows(shapes[key], key, weight, saved.folder)
    unexpected = shapes.keys() - expected.keys() - beside.keys()
    biases = sorted(key.removeprefix(PREFIX) for key in unexpected if key.endswith(".bias"))
    if biases and saved.peft_config.get("bias", "none") != "none":
        raise UserError(
            f"{saved.folder}: bias={saved.peft_config['bias']!r} is not implemented, and the file holds the "
            f"trained biases {few(biases)}"
        )
    try:
        check_shapes(shapes, expected | {key: shapes[key] for key in beside}, saved.folder)
    except UserError as error:
        try:  # an entry that matches nothing is likely the reason
            find_targets(model, config)
            find_saved(model, config)
        except UserError as reason:
            raise UserError(f"{error}. {reason}", reason.field) from None
        if config.layers_to_transform is None:
            raise
        raise UserError(
            f"{error}. layers_to_transform={list(config.layers_to_transform)} are the first numbers in names "
            "of layers; PEFT before 0.20 counted the last ones, and the file fits neither"
        ) from None


def _own_keys(model: nn.Module, keys: Iterable[str], saved: SavedAdapter) -> dict[str, str]:
    """Return `plain_keys`, without what PEFT adds where it saves embeddings beside `modules_to_save`.

    It then writes the wrapper of such a layer too: the original, and the trained copy for the second time.
    Adapters of `_uncalled` embeddings are left out as well.
    """
    plain = plain_keys(model, keys)
    names = set(plain.values())
    uncalled, originals = _uncalled(model, saved, names), _originals(model, saved, names)
    copies = {
        f"{PREFIX}{layer}{part}.weight" for layer in originals.values() for part in ("", ".modules_to_save")
    }
    return {
        key: f"{PREFIX}{originals[name]}.weight" if name in originals else name
        for key, name in plain.items()
        if name not in copies
        and not (_BESIDE.search(name) and name not in originals and _BESIDE.sub(".", name) in names)
        and _layer_of(name) not in uncalled
    }


def _originals(model: nn.Module, saved: SavedAdapter, keys: Collection[str]) -> dict[str, str]:
    """Return the keys of embeddings that PEFT's model calls beside an uncalled copy, each with its layer.

    PEFT puts the copy at T5's `shared`, and the stacks keep the original, such as one with added rows.
    """
    if saved.manifest:
        return {}
    held = {f"{PREFIX}{name}.original_module.weight": name for name in layers_in_stacks(model)}
    return {key: name for key, name in held.items() if key in keys}


def _uncalled(model: nn.Module, saved: SavedAdapter, keys: Collection[str]) -> set[str]:
    """Return the embeddings with an adapter in PEFT's file at a place that the model never calls.

    T5 calls `shared` in its stacks, under other names. In PEFT such an adapter changes no output.
    """
    if saved.manifest:
        return set()
    return {_layer_of(key) for key in keys if _PART.search(key)}.intersection(layers_in_stacks(model))


def _layer_of(key: str) -> str:
    """Return the layer of an adapter's tensor; other keys without PEFT's prefix."""
    return _PART.split(key.removeprefix(PREFIX))[0]


def _refuse_copies_by_place(model: nn.Module, config: LoraConfig, shapes: Shapes, folder: Path) -> None:
    """Refuse a file with a copy or an adapter for each place of one layer, such as T5's `embed_tokens`.

    Raises:
        UserError: PEFT trained them apart, and the model has one weight for all places.
    """
    places: dict[int, list[str]] = {}
    for name, module in own_modules(model):
        places.setdefault(identity(module), []).append(name)
    for first, *others in places.values():
        for name in others:
            keys = [key for key in shapes if key.startswith(f"{PREFIX}{name}.")]
            is_copy = bool(name_matches(config.modules_to_save, name))
            if any(is_copy or _PART.search(key) for key in keys):
                field = "modules_to_save" if is_copy else "target_modules"
                raise UserError(
                    f"{folder}: {field} names {name}, which is one layer with {first} in this model. PEFT "
                    "trains a part of its own for each place, which one weight cannot hold: train again with "
                    f"lora_hf and {field}: [{first}]",
                    field,
                )


def _without_uncalled(
    model: nn.Module, config: LoraConfig, tensors: dict[str, Tensor], folder: Path
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Leave out copies of embeddings that PEFT has at a place which the model never calls, such as `shared`.

    In PEFT they neither train nor change an output.
    """
    keys = {name: f"{PREFIX}{name}.weight" for name in layers_in_stacks(model)}
    unused = [n for n, key in keys.items() if key in tensors and name_matches(config.modules_to_save, n)]
    _warn_of_copies(unused, folder)
    left = {key: tensor for key, tensor in tensors.items() if key not in {keys[name] for name in unused}}
    return replace(config, modules_to_save=_without_entries(config.modules_to_save, unused)), left


def _warn_of_copies(names: Iterable[str], folder: Path) -> None:
    for name in names:
        logger.warning(
            "%s: its copy of %s is left out: PEFT has it beside the model's embeddings, without effect",
            *(folder, name),
        )


def _without_entries(entries: tuple[str, ...], names: Collection[str]) -> tuple[str, ...]:
    """Return the entries of `modules_to_save` that name none of these layers."""
    return tuple(entry for entry in entries if not any(name_matches((entry,), name) for name in names))


def _config_of_file(model: nn.Module, saved: SavedAdapter) -> LoraConfig:
    """Return the configuration of a saved adapter; of two ways to read it, the one that fits the file.

    Layers that `target_modules` matches are left out if PEFT gave them no adapter, or one without effect:
    those that it copied as a whole, and embeddings that the model does not call at that place.
    """
    config, keys = saved.config, plain_keys(model, saved.shapes).values()
    names = [name for name, _ in own_modules(model)]
    if config.modules_to_save:  # PEFT reads `layer_norm` as the end of `final_layer_norm` too
        more = [
            name
            for name in names
            if not name_matches(config.modules_to_save, name)
            and any(name.endswith(entry) for entry in config.modules_to_save)
            and any(key.startswith(f"{PREFIX}{name}.") for key in keys)
        ]
        config = replace(config, modules_to_save=(*config.modules_to_save, *more))
    if originals := {*_originals(model, saved, keys).values()}:
        _warn_of_copies(originals, saved.folder)
        config = replace(config, modules_to_save=_without_entries(config.modules_to_save, originals))
    adapted_in_file = {_layer_of(key) for key in keys if _PART.search(key)}
    copied = {
        name
        for name in names
        if name_matches(config.modules_to_save, name)
        and name_matches(config.target_modules, name)
        and name not in adapted_in_file
    }
    if uncalled := _uncalled(model, saved, keys):
        logger.warning(
            "%s: its adapter of %s is left out: PEFT has it where the model does not call the embeddings, "
            "without effect",
            *(saved.folder, few(sorted(uncalled))),
        )
    if copied | uncalled:
        config = _excluding(config, copied | uncalled)
    if config.layers_to_transform is not None:
        in_file = {_layer_of(key) for key in keys if _PART.search(key)}
        every = find_targets(model, replace(config, layers_to_transform=None), strict=False)
        chosen = config.layers_to_transform
        whole = set(config.target_modules).intersection(every)  # full names are targets in any block
        by_block = {name for name in every if block_index(name) in chosen}
        by_last = {name for name in every if block_index(name, last=True) in chosen}
        if in_file == by_last | whole != by_block | whole:
            logger.info(
                "%s: layers_to_transform=%s is read as PEFT before 0.20 did, by the last number of a name",
                *(saved.folder, list(chosen)),
            )
        if in_file in (by_last | whole, by_block | whole) and in_file != by_block:
            config = replace(config, target_modules=tuple(sorted(in_file)), layers_to_transform=None)
    return config


def _excluding(config: LoraConfig, names: Collection[str]) -> LoraConfig:
    """Return the configuration without layers of these full names."""
    old = config.exclude_modules
    if isinstance(old, str):
        return replace(config, exclude_modules="|".join([f"(?:{old})", *map(re.escape, sorted(names))]))
    return replace(config, exclude_modules=(*old, *sorted(names)))


class _SavedInit:
    """The initialization of an adapter that is being loaded: zeros, and what was taken out of the base."""

    def __init__(self, folder: Path, config: LoraConfig, base_weights: BaseWeights | None) -> None:
        file = folder / INITIALIZATION_NAME
        self.factors = read_tensors(file) if file.is_file() else {}
        self.base_weights = base_weights
        init = str(config.init_lora_weights)
        self.is_unconverted = not self.factors and init.startswith(CHANGES_BASE)
        if "niter" in init and self.is_unconverted:
            raise UserError(
                f"{folder}: init_lora_weights={init!r} is a randomized initialization, which cannot be "
                "repeated, and the file lacks what it took out of the base; save it by PEFT's "
                "save_pretrained(..., path_initial_model_for_weight_conversion=<initial adapter's folder>)"
            )
        if self.is_unconverted:
            logger.info("%s: PEFT's unconverted %s: the initialization is computed again", folder, init)

    def __call__(self, name: str, config: LoraConfig, layer: LoraLayer) -> LayerInit:
        base, key = layer.base, f"{PREFIX}{name}."
        init = zero_init(config, base)
        if init.factors is None:
            return init
        if self.is_unconverted:
            W = base.dequantize(torch.float32) if base.is_quantized else None
            drawn = initialize_layer(config, base, W)
            assert drawn.factors is not None
            return drawn._replace(factors=init.factors._replace(subtracted=drawn.factors.subtracted))
        if f"{key}start_A" not in self.factors:
            return init
        subtracted = self.factors[f"{key}start_A"], self.factors[f"{key}start_B"]
        if base.is_quantized and self.base_weights is None:
            raise UserError(
                "the adapter's base is made from the weights before quantization, which this model does not "
                "hold: load the checkpoint before quantization with lora_hf's load_model and load_in_4bit or "
                "load_in_8bit"
            )
        original = self.base_weights(name) if self.base_weights and base.is_quantized else None
        weight = requantized_base(config, base, subtracted, original)
        return LayerInit(init.factors._replace(subtracted=subtracted), weight)


def put_adapter_state(
    model: nn.Module,
    tensors: dict[str, Tensor],
    adapter_name: str = "default",
    saved_as: LoraConfig | None = None,
) -> None:
    """Copy tensors under PEFT's names into an injected adapter; strict, as `load_adapter`.

    Base offsets are restored too: they are the second half of each factor.

    Args:
        model: carries the adapter.
        tensors: PEFT's key -> tensor.
        adapter_name: which adapter.
        saved_as: the configuration in the tensors' folder; the model must have its scales.

    Raises:
        UserError: names, shapes or scales differ; nothing is then changed.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in adapter_state(model, adapter_name).items()}
    check_tensors(tensors, shapes, adapter_name)
    if saved_as is not None:
        _check_scales(unwrapped(model), adapter_name, saved_as)
    put_embeddings(model, {key: tensors[key] for key in embedding_tensors(model)})
    _put(model, tensors, adapter_name)


def _check_scales(model: nn.Module, adapter_name: str, saved_as: LoraConfig) -> None:
    """Compare the scale of each layer's update with that of a file; other fields may lead to the same one."""
    here = written_config(model, adapter_name)
    for path, _, method in adapted(model, adapter_name):
        own = saved_as.at(path)
        scale = lora_scaling(own.r, own.lora_alpha, own.use_rslora)
        if "lora_alpha" not in method.peft_fields.values() or math.isclose(scale, method.scaling):
            continue
        pairs = {name: (getattr(saved_as, name), getattr(here, name)) for name in SCALING_FIELDS}
        other = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        raise UserError(
            f"adapter {adapter_name!r} was saved with "
            f"{', '.join(f'{name}={there!r}' for name, (there, _) in other.items())}, and the model has "
            f"{', '.join(f'{name}={now!r}' for name, (_, now) in other.items())}: the update of {path} was "
            f"scaled by {scale:g} and would be by {method.scaling:g}; inject the adapter with the saved "
            "settings, or train from the beginning",
            next(iter(other), None),
        )


def _put(model: nn.Module, tensors: dict[str, Tensor], adapter_name: str) -> None:
    for path, base, method in adapted(model, adapter_name):
        key = f"{PREFIX}{path}."
        own = {name.removeprefix(key): tensor for name, tensor in tensors.items() if name.startswith(key)}
        method.from_peft(own, base)
        for name in method.shared_names:
            if (tensor := tensors.pop(SHARED_PREFIX + name, None)) is not None:  # once for all layers
                method.get_parameter(name).data.copy_(tensor)
    for path, module in saved_modules(model).items():
        if adapter_name in module.copies:
            key, names = f"{PREFIX}{path}.", module.copies[adapter_name].state_dict()
            module.copies[adapter_name].load_state_dict({part: tensors[key + part] for part in names})


def expected_shapes(model: nn.Module, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Return the tensors that an adapter of this configuration has on this model: PEFT's key -> shape."""
    method = ADAPTER_METHODS[config.method]
    bases = {
        path: (module if isinstance(module, LoraLayer) else LoraLayer(module)).base
        for path, module in find_targets(model, config, strict=False).items()
    }
    shared = method.shared_shapes(config, bases.values()) if method.saves_shared(config) else {}
    shapes = {f"{SHARED_PREFIX}{name}": shape for name, shape in shared.items()}
    for path, base in bases.items():
        for part, shape in method.peft_shapes(config.at(path), base).items():
            shapes[f"{PREFIX}{path}.{part}"] = shape
    for path, module in find_saved(model, config, strict=False).items():
        if found := next((part for part in module.modules() if isinstance(part, LoraLayer)), None):
            raise UserError(
                f"modules_to_save: {path} has an adapter on it already ({', '.join(found.adapters)}), and a "
                "copy of it has no place there: load the adapter with the copy on a base of its own"
            )
        for part, tensor in getattr(module, "original", module).state_dict().items():
            shapes[f"{PREFIX}{path}.{part}"] = tuple(tensor.shape)
    return shapes


def check_formats(model: nn.Module, saved: SavedAdapter, config: LoraConfig) -> None:
    """Refuse an adapter that compensates for the errors of another storage format than the model's.

    Raises:
        UserError: it does, or it is PEFT's LoftQ, whose base cannot be made again from the file.
    """
    folder, manifest = saved.folder, saved.manifest
    if config.init_lora_weights == "loftq" and not manifest:
        raise UserError(
            f"{folder}: PEFT's LoftQ adapters fit only the quantized backbone that was saved with them; load "
            "that as the base and set init_lora_weights to true in the file"
        )
    needed = manifest.get("base_formats")
    if needed is None:
        return
    layers = find_targets(model, config, strict=False).values()
    here = sorted({(m if isinstance(m, LoraLayer) else LoraLayer(m)).base.format for m in layers})
    if here != needed:
        fields = manifest.get("base_store")
        raise UserError(
            f"the adapter {folder} was initialized on weights stored as {needed} and compensates for their "
            f"errors; this base is stored as {here}: load it in that format"
            + (f", with `model: {json.dumps(fields)}`" if fields else "")
        )


def check_base(model: nn.Module, saved: SavedAdapter) -> None:
    """Refuse an adapter that was trained on another checkpoint than the model's.

    Raises:
        UserError: both fingerprints are known and differ, or the adapter's base was changed before it.
    """
    folder, manifest, state = saved.folder, saved.manifest, model_state(model)
    trained_on, here = manifest.get("base_fingerprint"), state.base_fingerprint
    if here and here == manifest.get("base_before_change") and not state.is_changed:
        raise UserError(
            f"the adapter {folder} was trained on {model.name_or_path} after its weights had been trained, "
            "or an adapter merged into them: give the folder to which that model was saved"
        )
    if trained_on and trained_on == here and state.is_changed:
        logger.warning(
            "the adapter %s was trained on the base, and the model's weights were changed since: they were "
            "trained, or hold a merged adapter, to which this one is added",
            folder,
        )
    elif not trained_on or not here:
        logger.info("%s: the base it was trained on is not recorded; names and shapes are checked", folder)
    elif trained_on != here:
        raise UserError(
            f"the adapter {folder} was trained on {manifest.get('base_model_name_or_path')} (fingerprint "
            f"{trained_on}); this base is {getattr(model, 'name_or_path', '?')} (fingerprint {here})"
        )
    settings, now = manifest.get("base_settings"), model_state(model).base_settings
    if settings and now and settings != now:
        logger.warning(
            "%s: the config or the tokenizer of %s has changed since the adapter was trained, so that it may "
            "write other texts; use the files that it was trained with",
            *(folder, getattr(model, "name_or_path", "?")),
        )
