"""Write adapters: PEFT's files, so that either project reads the other's, and a manifest of our own.

`adapter_config.json` and `adapter_model.safetensors` are PEFT's. `lora_hf.json` says on which checkpoint
the adapter was trained, which PEFT's files do not say. Equal adapters give equal bytes.

An adapter whose base was quantized again for it (PiSSA, OLoRA, LoftQ of several rounds) also has
`lora_hf_start.safetensors`: the factors that were taken out of the checkpoint before it was quantized, from
which that base is made again.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.base_revision import base_revision
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME, write_weights
from lora_hf.adapters.config import ALL_LINEAR, LoraConfig, name_matches
from lora_hf.adapters.default_targets import reads_text
from lora_hf.adapters.embeddings import embedding_tensors
from lora_hf.adapters.methods import ADAPTER_METHODS, Method
from lora_hf.adapters.model_state import (
    adapter_configs,
    lora_layers,
    model_state,
    modules_of,
    refuse_offloaded,
    saved_modules,
)
from lora_hf.adapters.module_names import layers_in_stacks, own_modules
from lora_hf.adapters.peft_format import (
    CONFIG_NAME,
    PREFIX,
    SHARED_PREFIX,
    WEIGHTS_NAME,
    doubled,
    peft_config,
)
from lora_hf.adapters.targets import find_targets
from lora_hf.adapters.wrappers import get_submodule, named_modules, unwrapped
from lora_hf.errors import UserError
from lora_hf.files import file_sha256, write_json

logger = logging.getLogger(__name__)
INITIALIZATION_NAME = "lora_hf_start.safetensors"
FACTORS = {"start_A": "offset_A", "start_B": "offset_B"}
"""Names in `INITIALIZATION_NAME` -> attributes of a method."""


def adapter_state(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """Return an adapter's tensors, layers and embeddings under PEFT's names, float32, on the CPU."""
    model = unwrapped(model)
    state: dict[str, Tensor] = {}
    config = adapter_configs(model)[adapter_name]
    for path, base, method in adapted(model, adapter_name):
        state |= {f"{PREFIX}{path}.{part}": tensor for part, tensor in method.to_peft(base).items()}
        if method.saves_shared(config):
            state |= {f"{SHARED_PREFIX}{name}": method.get_parameter(name) for name in method.shared_names}
    for path, module in saved_modules(model).items():
        if adapter_name in module.copies:
            for part, tensor in module.copies[adapter_name].state_dict().items():
                state[f"{PREFIX}{path}.{part}"] = tensor
    state |= embedding_tensors(model)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def adapted(model: nn.Module, adapter_name: str) -> list[tuple[str, Backend, Method]]:
    """Return the name, backend and method of each layer that an adapter is on."""
    return [
        (path, layer.base, method)
        for path, layer in lora_layers(model).items()
        for _, method in layer.methods({adapter_name: 1.0})
    ]


def save_adapter(
    model: nn.Module,
    directory: str | Path,
    adapter_name: str = "default",
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write an adapter; one not named `default` goes to a subfolder of its name, as with PEFT.

    Args:
        model: carries the adapter.
        directory: target folder.
        adapter_name: which adapter.
        extra: further entries of the manifest, such as the prompt the adapter was trained with.

    Returns:
        The folder that holds the files.

    Raises:
        UserError: the model has no adapter of that name.
    """
    model = unwrapped(model)
    configs = adapter_configs(model)
    if adapter_name not in configs:
        raise UserError(f"no adapter {adapter_name!r} to save; the model has {sorted(configs)}")
    refuse_offloaded(model)
    folder = Path(directory).expanduser()
    if adapter_name != "default":
        folder /= adapter_name
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(adapter_state(model, adapter_name), folder / WEIGHTS_NAME)
    if initial := initial_factors(model, adapter_name):
        write_weights(initial, folder / INITIALIZATION_NAME)
    state = model_state(model)
    base_model = None if state.is_changed else getattr(model, "name_or_path", None) or None
    is_seq2seq = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    # PEFT's wrapper for this type passes `input_ids`, which a model of sound or images does not take, and
    # needs a model that generates, which `T5Model` and a classifier are not.
    writes = is_seq2seq and hasattr(model, "prepare_inputs_for_generation")
    task_type = "SEQ_2_SEQ_LM" if writes and reads_text(model) else None
    config = configs[adapter_name]
    targets = target_names(model, adapter_name)
    written = replace(written_config(model, adapter_name), layers_to_transform=None)
    written = replace(written, modules_to_save=saved_names(model, adapter_name))
    revision = None if state.is_changed else base_revision(model)
    write_json(folder / CONFIG_NAME, peft_config(written, base_model, revision, task_type, targets))
    manifest = {
        "base_fingerprint": None if state.is_changed else state.base_fingerprint,
        "base_model_name_or_path": base_model,
        "base_model_revision": revision,
        "weights_sha256": file_sha256(folder / WEIGHTS_NAME),
    }
    if state.is_changed:
        manifest["base_before_change"] = state.base_fingerprint
    elif state.base_settings:
        manifest["base_settings"] = state.base_settings
    if trained_in_stacks(model, adapter_name):
        manifest["modules_to_save"] = list(config.modules_to_save)
    if config.init_lora_weights == "loftq" or initial:
        manifest["base_formats"] = base_formats(model, adapter_name)
    if codes := codes_sha256(model, adapter_name):
        manifest["base_codes_sha256"] = codes
    write_json(folder / MANIFEST_NAME, (extra or {}) | manifest)
    _warn_of_places(model, adapter_name)
    weights = [layer.active.get(adapter_name, 1.0) for layer in lora_layers(model).values()]
    if (weight := next(iter(weights), 1.0)) != 1:
        logger.warning(
            "adapter %r is active with the weight %g, which is not saved: after loading, call set_adapter "
            "with it again, or save the result of combine_adapters",
            *(adapter_name, weight),
        )
    return folder


def _warn_of_places(model: nn.Module, adapter_name: str) -> None:
    """Warn about a layer with several names, such as T5's `shared`, of which PEFT adapts the first alone."""
    everything, read = list(named_modules(model, remove_duplicate=False)), layers_in_stacks(model)
    for path in modules_of(model, adapter_name).keys() - trained_in_stacks(model, adapter_name):
        layer = get_submodule(model, path)
        if len(places := [name for name, module in everything if module is layer]) > 1:
            effect = ", which the model never calls: it has no effect there" if path in read else ""
            logger.warning(
                "%s is one layer with the names %s; PEFT adapts only the first%s", path, places, effect
            )


def trained_in_stacks(model: nn.Module, adapter_name: str) -> set[str]:
    """Return the copies of embeddings that PEFT's `modules_to_save` would put where no model calls them.

    PEFT reads them as weights of the base, at all places of the embedding, if that field does not name them;
    the manifest names them in its place.
    """
    copied = {path for path, module in saved_modules(model).items() if adapter_name in module.copies}
    return copied & layers_in_stacks(model).keys()


def initial_factors(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """Return the factors that were taken out of the base where it was quantized again for this adapter."""
    return {
        f"{PREFIX}{path}.{part}": getattr(method, attribute).cpu().contiguous()
        for path, _, method in adapted(model, adapter_name)
        if method.has_requantized_base
        for part, attribute in FACTORS.items()
    }


def base_formats(model: nn.Module, adapter_name: str) -> list[str]:
    """Return the storage formats of the adapted layers."""
    return sorted({base.format for _, base, _ in adapted(model, adapter_name)})


def codes_sha256(model: nn.Module, adapter_name: str) -> str | None:
    """Return the SHA-256 of the integers that store the adapted layers' weights; None without any."""
    digest, has_codes = sha256(), False
    for _, base, _ in adapted(model, adapter_name):
        codes = base.codes
        if codes is not None and not hasattr(codes, "full_tensor"):  # a sharded one is not here whole
            digest.update(codes.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            has_codes = True
    return digest.hexdigest() if has_codes else None


def written_config(model: nn.Module, adapter_name: str) -> LoraConfig:
    """Return the configuration that describes `adapter_state`: base offsets are written as rank 2r."""
    config = adapter_configs(model)[adapter_name]
    methods = {path: method for path, _, method in adapted(model, adapter_name)}
    resolved = [method.resolved(config) for method in methods.values()]
    if resolved and all(one == resolved[0] for one in resolved):
        config = resolved[0]
    with_offset = {path for path, method in methods.items() if method.base_offset is not None}
    needs_own_base = any(method.has_requantized_base for method in methods.values())
    if with_offset and needs_own_base:  # requantized layers, and dense ones beside them
        return _by_layer(config, with_offset, methods)
    if with_offset:
        return doubled(config)
    if needs_own_base or config.init_lora_weights == "loftq":
        return config  # it fits only the base that it was initialized on
    return replace(config, init_lora_weights=True)  # nothing of the initialization is needed any more


def _by_layer(config: LoraConfig, with_offset: set[str], paths: Iterable[str]) -> LoraConfig:
    """Write out the rank and alpha of each layer, rank 2r where it has a base offset."""
    own = {path: (doubled(config) if path in with_offset else config).at(path) for path in paths}
    return replace(
        config,
        rank_pattern={re.escape(path): one.r for path, one in own.items()},
        alpha_pattern={re.escape(path): one.lora_alpha for path, one in own.items()},
    )


def saved_names(model: nn.Module, adapter_name: str) -> tuple[str, ...]:
    """Return `modules_to_save` for PEFT, whose entries also match a part of a word: full names if needed.

    `trained_in_stacks` are left out.
    """
    entries = adapter_configs(model)[adapter_name].modules_to_save
    found = [path for path, module in saved_modules(model).items() if adapter_name in module.copies]
    if beside := trained_in_stacks(model, adapter_name):
        return tuple(path for path in found if path not in beside)
    read = [name for name, _ in own_modules(model) if any(name.endswith(entry) for entry in entries)]
    return entries if set(read) <= {n for n in read if name_matches(entries, n)} else tuple(found)


def target_names(model: nn.Module, adapter_name: str) -> list[str] | str:
    """Return the targets as PEFT reads them: its `all-linear` has another meaning and becomes names."""
    config = adapter_configs(model)[adapter_name]
    paths = [path for path, _, _ in adapted(model, adapter_name)]
    if config.layers_to_transform is not None:  # counted in another way by PEFT before 0.20
        return paths
    if config.exclude_modules and "exclude_modules" not in ADAPTER_METHODS[config.method].peft_fields:
        return paths
    if config.target_modules != ALL_LINEAR:
        targets = config.target_modules
        return targets if isinstance(targets, str) else list(targets)
    ends = tuple(sorted({path.rsplit(".", 1)[-1] for path in paths}))
    try:
        found = find_targets(model, replace(config, target_modules=ends))
    except UserError:
        return paths
    return list(ends) if set(found) == set(paths) else paths
