"""The mathematics of adapters: torch, safetensors and regex only.

Names are imported at first use, so that reading a YAML, which needs only `config`, does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_hf.adapters.active import adapter_rows as adapter_rows
    from lora_hf.adapters.active import disable_adapters as disable_adapters
    from lora_hf.adapters.active import set_adapter as set_adapter
    from lora_hf.adapters.combine import combine_adapters as combine_adapters
    from lora_hf.adapters.combine import spectra as spectra
    from lora_hf.adapters.config import LoraConfig as LoraConfig
    from lora_hf.adapters.inject import delete_adapter as delete_adapter
    from lora_hf.adapters.inject import inject_adapters as inject_adapters
    from lora_hf.adapters.layer import LoraLayer as LoraLayer
    from lora_hf.adapters.layer_replication import replicate_layers as replicate_layers
    from lora_hf.adapters.layer_replication import unshare_layers as unshare_layers
    from lora_hf.adapters.load import load_adapter as load_adapter
    from lora_hf.adapters.merge import merge_adapters as merge_adapters
    from lora_hf.adapters.merge import merge_and_unload as merge_and_unload
    from lora_hf.adapters.merge import merge_errors as merge_errors
    from lora_hf.adapters.merge import unmerge_adapters as unmerge_adapters
    from lora_hf.adapters.model_state import count_parameters as count_parameters
    from lora_hf.adapters.save import save_adapter as save_adapter

_MODULES = {
    "active": ("adapter_rows", "disable_adapters", "set_adapter"),
    "combine": ("combine_adapters", "spectra"),
    "config": ("LoraConfig",),
    "inject": ("delete_adapter", "inject_adapters"),
    "layer": ("LoraLayer",),
    "layer_replication": ("replicate_layers", "unshare_layers"),
    "load": ("load_adapter",),
    "merge": ("merge_adapters", "merge_and_unload", "merge_errors", "unmerge_adapters"),
    "model_state": ("count_parameters",),
    "save": ("save_adapter",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"lora_hf.adapters.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lora_hf.adapters' has no attribute {name!r}")
