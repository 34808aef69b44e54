"""FLAN-T5's shapes with random weights: for speed and memory, never for quality."""

from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "xl": {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "xxl": {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
}
"""d_model, d_ff, layers of the encoder and of the decoder, and heads, as in the checkpoints' configs."""
COMMON: dict[str, Any] = {
    "vocab_size": 32128,
    "d_kv": 64,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,  # T5 reads this as "do not scale the decoder's output", as v1.1 does not
}


def random_flan_t5(shape: str | dict[str, Any], seed: int = 0) -> Any:
    """A FLAN-T5 of a shape, its head untied as the checkpoints' are (T5 built from a config ties it).

    Args:
        shape: a key of `SHAPES`, or the fields of another shape.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    config = T5Config(**COMMON, **(SHAPES[shape] if isinstance(shape, str) else shape))
    model = T5ForConditionalGeneration(config)
    head = torch.empty_like(model.shared.weight).normal_(std=config.d_model**-0.5)
    model.lm_head.weight = torch.nn.Parameter(head)
    model.config.tie_word_embeddings = False
    return model.eval()
