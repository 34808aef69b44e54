"""Training: the Trainer's subclass, its arguments, its orderly stop, and the stage that uses them."""

from lora_hf.training.trainer import LoraTrainer

__all__ = ["LoraTrainer"]
