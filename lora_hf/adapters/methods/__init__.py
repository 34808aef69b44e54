"""What an adapter adds to a frozen layer: one class a method."""

from lora_hf.adapters.methods.lora import Lora

METHODS: dict[str, type[Lora]] = {"lora": Lora}

__all__ = ["METHODS", "Lora"]
