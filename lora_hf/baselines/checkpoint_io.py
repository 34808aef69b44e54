"""New weights beside a frozen base, on disk: the tensors, and a manifest that says what and on which base.

The files' names and their checks are the adapters' own (`adapter_model.safetensors`, `lora_hf.json`); there
is no `adapter_config.json`, for PEFT knows none of this. Equal weights give equal bytes; loading is strict.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends.bnb import keep_differentiable
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME, check_tensors, write_weights
from lora_hf.adapters.load import check_base
from lora_hf.adapters.model_state import adapter_configs
from lora_hf.adapters.peft_format import WEIGHTS_NAME
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.errors import UserError
from lora_hf.files import file_sha256, write_json


class Extra(nn.Module):
    """A module of new weights; everything else in the model is the frozen base."""


def claim(model: nn.Module, method: str, settings: dict[str, Any]) -> None:
    """Freeze the base and write on the model whose new weights it is about to get.

    Raises:
        UserError: it has new weights already, or adapters: layers that one has wrapped are not the other's.
    """
    if adapters := sorted(adapter_configs(model)):
        raise UserError(f"method={method}: the model has the adapters {adapters} already; load the base anew")
    if (held := extras_method(model)) is not None:
        raise UserError(f"the model has the weights of method {held!r} already; load the base anew")
    model.requires_grad_(False)
    keep_differentiable(model)
    model.lora_hf_extras = {"method": method, "settings": settings}  # type: ignore[assignment]


def extras_method(model: nn.Module) -> str | None:
    """The method whose new weights a model carries, or None."""
    held: Any = getattr(model, "lora_hf_extras", None)
    return held["method"] if held else None


def new_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights below the model's `Extra` modules, by their dotted names."""
    extras = [(path, module) for path, module in model.named_modules() if isinstance(module, Extra)]
    return {f"{path}.{name}": p for path, module in extras for name, p in module.named_parameters()}


def save_extras(model: nn.Module, directory: str | Path, extra: dict[str, Any] | None = None) -> Path:
    """Write the new weights (float32) and their manifest.

    Args:
        model: a model that carries them.
        directory: where to.
        extra: what else its users need, such as the prompt of the run; kept in the manifest.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in new_weights(model).items()}
    write_weights(tensors, folder / WEIGHTS_NAME)
    manifest = model.lora_hf_extras | {  # type: ignore[operator]
        "base_fingerprint": getattr(model, "base_fingerprint", None),
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "base_model_revision": getattr(getattr(model, "config", None), "_commit_hash", None),
        "weights_sha256": file_sha256(folder / WEIGHTS_NAME),
    }
    write_json(folder / MANIFEST_NAME, (extra or {}) | manifest)
    return folder


def load_extras(
    model: nn.Module, directory: str | Path | SavedAdapter, put_in: Callable[..., None]
) -> nn.Module:
    """Put in what a folder describes, frozen, and return the model.

    Args:
        model: the base it was trained on.
        directory: a folder that `save_extras` wrote.
        put_in: the function that makes the modules, from the model and the settings.

    Raises:
        UserError: no such files, another base, settings that are none, or tensors that do not fit (then the
            base is to be loaded anew).
    """
    saved = SavedAdapter.at(directory)
    folder = saved.folder
    check_base(model, saved)
    tensors = saved.read_weights()
    try:
        with torch.random.fork_rng(devices=[]):  # the start drawn here is overwritten: leave the seed alone
            put_in(model, **saved.manifest["settings"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / MANIFEST_NAME} does not say how its weights are put in: {error}"
        ) from None
    put_weights(model, tensors, folder)
    for weight in new_weights(model).values():
        weight.requires_grad_(False)
    return model


def put_weights(model: nn.Module, tensors: dict[str, Tensor], source: Any) -> None:
    """Copy tensors into the model's new weights.

    Raises:
        UserError: missing, unexpected or mis-shaped tensors, all named; the model is then as it was.
    """
    weights = new_weights(model)
    check_tensors(tensors, {name: tuple(p.shape) for name, p in weights.items()}, source)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[name])
