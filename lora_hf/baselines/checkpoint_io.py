"""Save and load the weights of a baseline: the tensors, and a manifest with the method and the base.

File names and checks are those of adapters (`adapter_model.safetensors`, `lora_hf.json`); there is no
`adapter_config.json`, because PEFT does not have these methods. Equal weights give equal bytes; loading is
strict.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends.bitsandbytes import keep_differentiable
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME, check_tensors, write_weights
from lora_hf.adapters.load import check_base
from lora_hf.adapters.model_state import (
    BaselineState,
    adapter_configs,
    model_state,
    refuse_peft_modules,
    update_state,
)
from lora_hf.adapters.peft_format import WEIGHTS_NAME
from lora_hf.adapters.save_pretrained import guard_save_pretrained
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.adapters.wrappers import NotPlain, named_modules
from lora_hf.errors import UserError
from lora_hf.files import file_sha256, write_json


class Extra(NotPlain):
    """A module of new weights; everything else in the model is the frozen base."""


def record_baseline(model: nn.Module, method: str, settings: dict[str, Any]) -> None:
    """Freeze the base and record the method whose weights the model is about to get.

    Raises:
        UserError: the model already has the weights of a baseline or adapters, which wrap the same layers.
    """
    if adapters := sorted(adapter_configs(model)):
        raise UserError(
            f"method={method}: the model already has the adapters {adapters}; load the base again"
        )
    if (held := extras_method(model)) is not None:
        raise UserError(f"the model already has the weights of method {held!r}; load the base again")
    refuse_peft_modules(model)
    model.requires_grad_(False)
    keep_differentiable(model)
    update_state(model, baseline=BaselineState(method, settings))
    guard_save_pretrained(model)


def extras_method(model: nn.Module) -> str | None:
    """Return the baseline method whose weights a model has, or None."""
    baseline = model_state(model).baseline
    return baseline.method if baseline else None


def new_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights below the model's `Extra` modules, by their dotted names."""
    extras = [(path, module) for path, module in named_modules(model) if isinstance(module, Extra)]
    return {f"{path}.{name}": p for path, module in extras for name, p in module.named_parameters()}


def save_extras(model: nn.Module, directory: str | Path, extra: dict[str, Any] | None = None) -> Path:
    """Write the new weights (float32) and their manifest.

    Args:
        model: has the weights of a baseline.
        directory: target folder.
        extra: further entries of the manifest, such as the prompt of the run.
    """
    folder = Path(directory).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in new_weights(model).items()}
    write_weights(tensors, folder / WEIGHTS_NAME)
    state = model_state(model)
    assert state.baseline is not None
    manifest = asdict(state.baseline) | {
        "base_fingerprint": state.base_fingerprint,
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "base_model_revision": getattr(getattr(model, "config", None), "_commit_hash", None),
        "weights_sha256": file_sha256(folder / WEIGHTS_NAME),
    }
    if state.base_settings:
        manifest["base_settings"] = state.base_settings
    write_json(folder / MANIFEST_NAME, (extra or {}) | manifest)
    return folder


def load_extras(
    model: nn.Module, directory: str | Path | SavedAdapter, put_in: Callable[..., None]
) -> nn.Module:
    """Add the frozen weights of a folder, and return the model.

    Args:
        model: the base it was trained on.
        directory: a folder that `save_extras` wrote.
        put_in: creates the modules, from the model and the settings.

    Raises:
        UserError: no such files, another base, invalid settings, or tensors that do not fit (the base must
            then be loaded again).
    """
    saved = SavedAdapter.at(directory)
    folder = saved.folder
    check_base(model, saved)
    tensors = saved.read_weights()
    try:
        with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten: keep the random state
            put_in(model, **saved.manifest["settings"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / MANIFEST_NAME} lacks the settings of its method: {error}; save or download it again"
        ) from None
    put_weights(model, tensors, folder)
    for weight in new_weights(model).values():
        weight.requires_grad_(False)
    return model


def put_weights(model: nn.Module, tensors: dict[str, Tensor], source: Any) -> None:
    """Copy tensors into the model's new weights.

    Raises:
        UserError: missing, unexpected or mis-shaped tensors, all named; the model is then unchanged.
    """
    weights = new_weights(model)
    try:
        check_tensors(tensors, {name: tuple(p.shape) for name, p in weights.items()}, source)
    except UserError as error:
        moved = [sorted(name.rpartition(".")[2] for name in names) for names in (tensors, weights)]
        if tensors.keys() == weights.keys() or moved[0] != moved[1]:
            raise
        raise UserError(
            f"{error}. An earlier version of lora_hf added the layers at other places in this model: train "
            f"again with method: {extras_method(model)}"
        ) from None
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[name])
