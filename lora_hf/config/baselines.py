"""The sections of the methods that LoRA is compared with: `bottleneck:` and `prompt_tuning:`."""

from typing import Annotated, Literal

from pydantic import Field

from lora_hf.config.types import Count, Section

Activation = Literal["gelu", "relu", "silu", "tanh"]
PromptStart = Literal["vocab", "random"]


class BottleneckSection(Section):
    """Adapter layers after every attention and feed-forward (Houlsby et al., arXiv:1902.00751)."""

    bottleneck_dim: Annotated[Count, Field(le=2**16)] = 64
    """Width m between the two projections: an adapter learns 2 m d + m + d numbers. 64: the authors' code."""
    non_linearity: Activation = "gelu"
    """Between the two projections; gelu: the authors' code."""


class PromptTuningSection(Section):
    """Learned embeddings before the encoder's input (Lester et al., arXiv:2104.08691)."""

    num_virtual_tokens: Annotated[Count, Field(le=2**12)] = 20
    """Length of the prompt, with which the encoder's input grows; above 20 the paper gains little."""
    init: PromptStart = "vocab"
    """Where it starts: embeddings drawn from the vocabulary's first 5000 tokens, or uniform in ±0.5."""
