"""What a run is made of: the fields of the YAML, how it is read, and what is said of every mistake in it."""

from lora_hf.config.baselines import BottleneckSection, PromptTuningSection
from lora_hf.config.model import Dtype, ModelConfig
from lora_hf.config.schema import (
    METHODS,
    ArmOverride,
    DataConfig,
    GenerationConfig,
    LoraSection,
    Method,
    RunConfig,
)

__all__ = [
    "METHODS",
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
