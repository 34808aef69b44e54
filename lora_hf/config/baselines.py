"""The sections of the baselines: `bottleneck:` and `prompt_tuning:`."""

from typing import Annotated, Literal

from pydantic import Field

from lora_hf.config.types import Count, Section

Activation = Literal["gelu", "relu", "silu", "tanh"]
PromptStart = Literal["vocab", "random"]


class BottleneckSection(Section):
    """Adapter layers after every attention and feed-forward (Houlsby et al., arXiv:1902.00751)."""

    bottleneck_dim: Annotated[Count, Field(le=2**16)] = 64
    """Width m between the two projections. An adapter has 2 m d + m + d weights; the authors use 64."""
    non_linearity: Activation = "gelu"
    """Activation between the two projections. The authors' code uses gelu."""


class PromptTuningSection(Section):
    """Learned embeddings before the encoder's input (Lester et al., arXiv:2104.08691)."""

    num_virtual_tokens: Annotated[Count, Field(le=2**12)] = 20
    """Number of prompt embeddings, which lengthen the encoder's input. The paper gains little above 20."""
    init: PromptStart = "vocab"
    """Initialization: embeddings of random tokens among the first 5,000, or uniform in ±0.5."""
