"""The mathematics of adapters: torch and safetensors only."""

from lora_hf.adapters.checkpoint import load_adapter, save_adapter
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.inject import (
    count_parameters,
    delete_adapter,
    disable_adapters,
    inject_adapters,
    merge_adapters,
    merge_and_unload,
    set_adapter,
    unmerge_adapters,
)
from lora_hf.adapters.layer import LoraLayer

__all__ = [
    "LoraConfig",
    "LoraLayer",
    "count_parameters",
    "delete_adapter",
    "disable_adapters",
    "inject_adapters",
    "load_adapter",
    "merge_adapters",
    "merge_and_unload",
    "save_adapter",
    "set_adapter",
    "unmerge_adapters",
]
