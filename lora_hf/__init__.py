"""Fine-tune encoder-decoder models with LoRA and the Hugging Face Trainer, and compare the arms in ROUGE.

Names are imported at first use, so that `lora-hf --help` and a YAML's check cost nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_hf.adapters import LoraConfig as LoraConfig
    from lora_hf.adapters import LoraLayer as LoraLayer
    from lora_hf.adapters import adapter_rows as adapter_rows
    from lora_hf.adapters import combine_adapters as combine_adapters
    from lora_hf.adapters import count_parameters as count_parameters
    from lora_hf.adapters import delete_adapter as delete_adapter
    from lora_hf.adapters import disable_adapters as disable_adapters
    from lora_hf.adapters import inject_adapters as inject_adapters
    from lora_hf.adapters import load_adapter as load_adapter
    from lora_hf.adapters import merge_adapters as merge_adapters
    from lora_hf.adapters import merge_and_unload as merge_and_unload
    from lora_hf.adapters import merge_errors as merge_errors
    from lora_hf.adapters import replicate_layers as replicate_layers
    from lora_hf.adapters import save_adapter as save_adapter
    from lora_hf.adapters import set_adapter as set_adapter
    from lora_hf.adapters import spectra as spectra
    from lora_hf.adapters import unmerge_adapters as unmerge_adapters
    from lora_hf.adapters import unshare_layers as unshare_layers
    from lora_hf.errors import UserError as UserError
    from lora_hf.saved.inference import load as load
    from lora_hf.training import LoraTrainer as LoraTrainer

__version__ = "0.1.0"

_ADAPTERS = """LoraConfig LoraLayer adapter_rows combine_adapters count_parameters delete_adapter
disable_adapters inject_adapters load_adapter merge_adapters merge_and_unload merge_errors replicate_layers
save_adapter set_adapter spectra unmerge_adapters unshare_layers""".split()
_HOMES = dict.fromkeys(_ADAPTERS, "lora_hf.adapters") | {
    "UserError": "lora_hf.errors",
    "LoraTrainer": "lora_hf.training",
    "load": "lora_hf.saved.inference",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lora_hf' has no attribute {name!r}")
