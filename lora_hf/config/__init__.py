"""The configuration of a run: the fields of the YAML, its reader, and the messages for mistakes in it."""

from lora_hf.config.baselines import BottleneckSection, PromptTuningSection
from lora_hf.config.model import Dtype, ModelConfig
from lora_hf.config.schema import (
    METHOD_CHOICES,
    ArmOverride,
    DataConfig,
    GenerationConfig,
    LoraSection,
    Method,
    RunConfig,
)

__all__ = [
    "METHOD_CHOICES",
    "ArmOverride",
    "BottleneckSection",
    "DataConfig",
    "Dtype",
    "GenerationConfig",
    "LoraSection",
    "Method",
    "ModelConfig",
    "PromptTuningSection",
    "RunConfig",
]
