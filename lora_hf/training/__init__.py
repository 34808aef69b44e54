"""Training: the Trainer's subclass, its arguments, resuming, and the training stage of a run."""

from lora_hf.training.trainer import LoraTrainer

__all__ = ["LoraTrainer"]
