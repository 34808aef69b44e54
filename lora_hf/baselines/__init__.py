"""Baselines of LoRA: other small sets of trained weights in a frozen base. Torch and safetensors only."""

from lora_hf.baselines.bottleneck import add_bottlenecks
from lora_hf.baselines.checkpoint_io import load_extras, save_extras
from lora_hf.baselines.prompt_tuning import add_prompt

__all__ = ["add_bottlenecks", "add_prompt", "load_extras", "save_extras"]
