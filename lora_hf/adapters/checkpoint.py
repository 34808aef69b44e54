"""Adapters on disk: PEFT's files, so that either project reads the other's, and a manifest of ours.

`adapter_config.json` and `adapter_model.safetensors` are PEFT's. `lora_hf.json` says on which checkpoint
the adapter was trained, which PEFT's files do not. Equal adapters give equal bytes. Loading is strict: a
missing, unexpected or mis-shaped tensor is one error that names both sides, and nothing is changed by it.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_hf.adapters.carried import adapter_configs, lora_layers
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.inject import inject_adapters
from lora_hf.adapters.layer import LoraLayer, check_adapter_name
from lora_hf.adapters.peft_format import CONFIG_NAME, WEIGHTS_NAME, peft_config, read_peft_config
from lora_hf.adapters.targets import find_targets
from lora_hf.errors import UserError
from lora_hf.files import file_sha256, write_json

MANIFEST_NAME = "lora_hf.json"
PREFIX = "base_model.model."
logger = logging.getLogger(__name__)


def adapter_state(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """An adapter's tensors under PEFT's names: lora_A (r, in) and lora_B (out, r), float32, on the CPU."""
    state = {}
    for path, layer in lora_layers(model).items():
        if adapter_name in layer.adapters:
            for part, tensor in layer.adapters[adapter_name].named_parameters():
                state[f"{PREFIX}{path}.{part}.weight"] = tensor.detach().cpu().contiguous()
    return state


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
    partial = folder / (WEIGHTS_NAME + ".partial")
    save_file(adapter_state(model, adapter_name), partial, metadata={"format": "pt"})
    os.replace(partial, folder / WEIGHTS_NAME)
    base_model = getattr(model, "name_or_path", None) or None
    is_seq2seq = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    task_type = "SEQ_2_SEQ_LM" if is_seq2seq else None
    write_json(folder / CONFIG_NAME, peft_config(configs[adapter_name], base_model, task_type))
    manifest = {
        "base_fingerprint": getattr(model, "base_fingerprint", None),
        "base_model_name_or_path": base_model,
        "base_model_revision": getattr(getattr(model, "config", None), "_commit_hash", None),
        "weights_sha256": file_sha256(folder / WEIGHTS_NAME),
    }
    write_json(folder / MANIFEST_NAME, (extra or {}) | manifest)
    return folder


def load_adapter(
    model: nn.Module, directory: str | Path, adapter_name: str = "default", trainable: bool = False
) -> nn.Module:
    """Inject the adapter that a folder describes, make it the active one, and return the model.

    Args:
        model: the base the adapter was trained on, without an adapter of this name.
        directory: a folder that `save_adapter` or PEFT wrote.
        adapter_name: the name it gets here.
        trainable: whether its weights get gradients.

    Raises:
        UserError: no such files, a pickle, another base, tensors that do not fit, or PEFT fields that are
            not implemented; the model is then as it was.
    """
    folder = Path(directory)
    check_adapter_name(adapter_name)
    config, _ = read_peft_config(folder)
    check_base(model, folder)
    tensors = read_weights(folder)
    check_tensors(tensors, expected_shapes(model, config), folder)
    with torch.random.fork_rng(devices=[]):  # the start drawn here is overwritten: leave the seed alone
        inject_adapters(model, config, adapter_name)
    put_adapter_state(model, tensors, adapter_name)
    for layer in lora_layers(model).values():
        layer.adapters.requires_grad_(trainable)
    return model


def put_adapter_state(model: nn.Module, tensors: dict[str, Tensor], adapter_name: str = "default") -> None:
    """Copy tensors under PEFT's names into an injected adapter; strict, as `load_adapter`."""
    shapes = {key: tuple(tensor.shape) for key, tensor in adapter_state(model, adapter_name).items()}
    check_tensors(tensors, shapes, adapter_name)
    with torch.no_grad():
        for path, layer in lora_layers(model).items():
            if adapter_name in layer.adapters:
                for part, parameter in layer.adapters[adapter_name].named_parameters():
                    parameter.copy_(tensors[f"{PREFIX}{path}.{part}.weight"])


def expected_shapes(model: nn.Module, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that an adapter of this config has on this model: PEFT's key -> shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, module in find_targets(model, config).items():
        base = module.base if isinstance(module, LoraLayer) else LoraLayer(module).base
        shapes[f"{PREFIX}{path}.lora_A.weight"] = (config.r, base.in_features)
        shapes[f"{PREFIX}{path}.lora_B.weight"] = (base.out_features, config.r)
    return shapes


def check_tensors(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]], source: Any) -> None:
    """Compare names and shapes, and say everything that differs at once.

    Raises:
        UserError: missing, unexpected or mis-shaped tensors.
    """
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    wrong = [
        f"{key} is {found[key]} here and {expected[key]} in the model"
        for key in sorted(found.keys() & expected.keys())
        if found[key] != expected[key]
    ]
    parts = [
        _listing("missing", sorted(expected.keys() - found.keys())),
        _listing("unexpected", sorted(found.keys() - expected.keys())),
        _listing("of another shape", wrong),
    ]
    if any(parts):
        raise UserError(f"the adapter {source} does not fit the model: {'; '.join(p for p in parts if p)}")


def _listing(title: str, names: list[str], most: int = 4) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {title}: {', '.join(names[:most])}{more}"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder; a pickle is refused, and a changed file is noticed.

    Raises:
        UserError: no safetensors file, one that cannot be read, or one the manifest's hash does not fit.
    """
    file = folder / WEIGHTS_NAME
    if not file.is_file():
        pickle = (folder / "adapter_model.bin").exists()
        why = "only a pickle, which can run code when it is read; convert it with PEFT" if pickle else "none"
        raise UserError(f"{folder} has no {WEIGHTS_NAME} ({why})")
    recorded = read_manifest(folder).get("weights_sha256")
    if recorded and recorded != file_sha256(file):
        raise UserError(f"{file} is not the file that was saved: its hash is not the one in {MANIFEST_NAME}")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Our manifest beside PEFT's files, or nothing where PEFT wrote them."""
    file = folder / MANIFEST_NAME
    if not file.is_file():
        return {}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable as JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{file} does not hold a JSON object")
    return manifest


def check_base(model: nn.Module, folder: Path) -> None:
    """Refuse an adapter that was trained on another checkpoint than the model's.

    Raises:
        UserError: both fingerprints are known and differ.
    """
    manifest = read_manifest(folder)
    trained_on, here = manifest.get("base_fingerprint"), getattr(model, "base_fingerprint", None)
    if not trained_on or not here:
        logger.info("%s: the base it was trained on is not recorded; names and shapes are checked", folder)
    elif trained_on != here:
        raise UserError(
            f"the adapter {folder} was trained on {manifest.get('base_model_name_or_path')} (fingerprint "
            f"{trained_on}); this base is {getattr(model, 'name_or_path', '?')} (fingerprint {here})"
        )
