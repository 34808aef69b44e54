"""Adapters to disk: PEFT's files, so that either project reads the other's, and a manifest of ours.

`adapter_config.json` and `adapter_model.safetensors` are PEFT's. `lora_hf.json` says on which checkpoint
the adapter was trained, which PEFT's files do not. Equal adapters give equal bytes.

An adapter that was started on a quantized base stored for it (PiSSA, OLoRA, LoftQ of several rounds) also has
`lora_hf_start.safetensors`: the factors that were taken from the checkpoint before it was quantized, from
which that base is made again.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME, write_weights
from lora_hf.adapters.config import ALL_LINEAR, LoraConfig
from lora_hf.adapters.methods import Lora
from lora_hf.adapters.methods.qalora import QALora
from lora_hf.adapters.model_state import adapter_configs, lora_layers, modules_of, saved_modules
from lora_hf.adapters.peft_format import CONFIG_NAME, WEIGHTS_NAME, doubled, peft_config, peft_tensors
from lora_hf.adapters.targets import find_targets
from lora_hf.errors import UserError
from lora_hf.files import file_sha256, write_json

logger = logging.getLogger(__name__)
START_NAME = "lora_hf_start.safetensors"
PREFIX = "base_model.model."


def adapter_state(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """An adapter's tensors under PEFT's names, float32, on the CPU; with them the `modules_to_save`."""
    state = {
        f"{PREFIX}{path}.{part}": tensor
        for path, base, method in adapted(model, adapter_name)
        for part, tensor in peft_tensors(method, base).items()
    }
    for path, module in saved_modules(model).items():
        if adapter_name in module.copies:
            for part, tensor in module.copies[adapter_name].state_dict().items():
                state[f"{PREFIX}{path}.{part}"] = tensor.detach().cpu().contiguous()
    return state


def adapted(model: nn.Module, adapter_name: str) -> list[tuple[str, Backend, Lora]]:
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
    """Write an adapter; one not named `default` goes to a subfolder of its name, as PEFT does.

    Args:
        model: a model that carries it.
        directory: where to.
        adapter_name: which one.
        extra: what else its users need, such as the prompt it was trained with; kept in the manifest.

    Returns:
        The folder that holds the files.

    Raises:
        UserError: the model has no adapter of that name.
    """
    configs = adapter_configs(model)
    if adapter_name not in configs:
        raise UserError(f"no adapter {adapter_name!r} to save; the model has {sorted(configs)}")
    folder = Path(directory) if adapter_name == "default" else Path(directory) / adapter_name
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(adapter_state(model, adapter_name), folder / WEIGHTS_NAME)
    if start := start_state(model, adapter_name):
        write_weights(start, folder / START_NAME)
    base_model = getattr(model, "name_or_path", None) or None
    is_seq2seq = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    task_type = "SEQ_2_SEQ_LM" if is_seq2seq else None
    config = configs[adapter_name]
    targets = target_names(model, adapter_name)
    written = written_config(model, adapter_name)
    write_json(folder / CONFIG_NAME, peft_config(written, base_model, task_type, targets))
    manifest = {
        "base_fingerprint": getattr(model, "base_fingerprint", None),
        "base_model_name_or_path": base_model,
        "base_model_revision": getattr(getattr(model, "config", None), "_commit_hash", None),
        "weights_sha256": file_sha256(folder / WEIGHTS_NAME),
    }
    if config.init_lora_weights == "loftq" or start:
        manifest["base_formats"] = base_formats(model, adapter_name)
    write_json(folder / MANIFEST_NAME, (extra or {}) | manifest)
    _warn_of_places(model, adapter_name)
    return folder


def _warn_of_places(model: nn.Module, adapter_name: str) -> None:
    """T5's `shared` is also each stack's `embed_tokens`; PEFT adapts one of the three."""
    everything = list(model.named_modules(remove_duplicate=False))
    for path in modules_of(model, adapter_name):
        layer = model.get_submodule(path)
        if len(places := [name for name, module in everything if module is layer]) > 1:
            logger.warning(
                "%s is one layer at %s; PEFT reads the file, and adapts the first alone", path, places
            )


def start_state(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """The factors that the base was stored without, where it was stored anew for this adapter."""
    return {
        f"{PREFIX}{path}.{part}": getattr(method, part).cpu().contiguous()
        for path, _, method in adapted(model, adapter_name)
        if method.is_restored
        for part in ("start_A", "start_B")
    }


def base_formats(model: nn.Module, adapter_name: str) -> list[str]:
    """How the adapted layers are stored."""
    return sorted({base.format for _, base, _ in adapted(model, adapter_name)})


def written_config(model: nn.Module, adapter_name: str) -> LoraConfig:
    """The config of what `adapter_state` holds: starts that were taken over are written as rank 2r."""
    config = _with_group_size(model, adapter_name)
    methods = {path: method for path, _, method in adapted(model, adapter_name)}
    taken_over = {path for path, method in methods.items() if method.taken_over is not None}
    needs_its_store = any(method.is_restored for method in methods.values())
    if taken_over and needs_its_store:  # quantized layers, stored anew, and dense ones beside them
        return _by_layer(config, taken_over, methods)
    if taken_over:
        return doubled(config)
    if needs_its_store or config.init_lora_weights == "loftq":
        return config  # it fits only a base that is stored as it was
    return replace(config, init_lora_weights=True)  # the start is over


def _with_group_size(model: nn.Module, adapter_name: str) -> LoraConfig:
    """The config with QA-LoRA's groups as they are, where they were taken from the store."""
    config = adapter_configs(model)[adapter_name]
    sizes = {m.group_size for _, _, m in adapted(model, adapter_name) if isinstance(m, QALora)}
    return replace(config, qalora_group_size=sizes.pop()) if len(sizes) == 1 else config


def _by_layer(config: LoraConfig, taken_over: set[str], paths: Iterable[str]) -> LoraConfig:
    """The rank and alpha of each layer under its full name, of rank 2r where a start was taken over."""
    own = {path: (doubled(config) if path in taken_over else config).at(path) for path in paths}
    return replace(
        config,
        rank_pattern={re.escape(path): one.r for path, one in own.items()},
        alpha_pattern={re.escape(path): one.lora_alpha for path, one in own.items()},
    )


def target_names(model: nn.Module, adapter_name: str) -> list[str] | str:
    """The targets as PEFT reads them: `all-linear` has another meaning there, and becomes names."""
    config = adapter_configs(model)[adapter_name]
    if config.target_modules != ALL_LINEAR:
        targets = config.target_modules
        return targets if isinstance(targets, str) else list(targets)
    paths = [path for path, _, _ in adapted(model, adapter_name)]
    ends = tuple(sorted({path.rsplit(".", 1)[-1] for path in paths}))
    try:
        found = find_targets(model, replace(config, target_modules=ends))
    except UserError:
        return paths
    return list(ends) if set(found) == set(paths) else paths
