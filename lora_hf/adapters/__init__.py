"""The mathematics of adapters: torch and safetensors only."""

from lora_hf.adapters.active import adapter_rows, disable_adapters, set_adapter
from lora_hf.adapters.combine import combine_adapters, spectra
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.inject import delete_adapter, inject_adapters
from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.layer_replication import replicate_layers, unshare_layers
from lora_hf.adapters.load import load_adapter
from lora_hf.adapters.merge import merge_adapters, merge_and_unload, unmerge_adapters
from lora_hf.adapters.merge_errors import merge_errors
from lora_hf.adapters.model_state import count_parameters
from lora_hf.adapters.save import save_adapter

__all__ = [
    "LoraConfig",
    "LoraLayer",
    "adapter_rows",
    "combine_adapters",
    "count_parameters",
    "delete_adapter",
    "disable_adapters",
    "inject_adapters",
    "load_adapter",
    "merge_adapters",
    "merge_and_unload",
    "merge_errors",
    "replicate_layers",
    "save_adapter",
    "set_adapter",
    "spectra",
    "unmerge_adapters",
    "unshare_layers",
]
