"""FLAN-T5 models with random weights, to measure speed and memory."""

from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

SIZES: dict[str, dict[str, Any]] = {
    "small": {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "xl": {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "xxl": {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
}
"""Size -> the fields of its config.json that differ between sizes."""
COMMON: dict[str, Any] = {
    "vocab_size": 32128,
    "d_kv": 64,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,  # T5 reads this as "do not scale the decoder's output", as v1.1 does not
}
"""The fields that all sizes share."""


def random_flan_t5(size: str | dict[str, Any], seed: int = 0) -> Any:
    """Create a FLAN-T5 with random weights and an untied output head.

    FLAN-T5's checkpoints have an untied head; Transformers ties that of a T5 built from a config.

    Args:
        size: a key of `SIZES`, or the fields of another size.
        seed: random seed of the weights.
    """
    torch.manual_seed(seed)
    config = T5Config(**COMMON, **(SIZES[size] if isinstance(size, str) else size))
    model = T5ForConditionalGeneration(config)
    head = torch.empty_like(model.shared.weight).normal_(std=config.d_model**-0.5)
    model.lm_head.weight = torch.nn.Parameter(head)
    model.config.tie_word_embeddings = False
    return model.eval()
