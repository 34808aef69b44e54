"""Methods, each of which adds an update to a frozen layer: one file and one line for each."""

from lora_hf.adapters.methods.base import Method
from lora_hf.adapters.methods.dora import Dora
from lora_hf.adapters.methods.lora import Lora
from lora_hf.adapters.methods.lora_fa import LoraFA
from lora_hf.adapters.methods.qalora import QALora
from lora_hf.adapters.methods.vera import Vera

ADAPTER_METHODS: dict[str, type[Method]] = {
    "lora": Lora,
    "dora": Dora,
    "qalora": QALora,
    "lora_fa": LoraFA,
    "vera": Vera,
}

__all__ = ["ADAPTER_METHODS", "Method"]
