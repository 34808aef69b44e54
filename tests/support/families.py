"""A small random model of each encoder-decoder family, built from its config."""

from typing import Any

import torch
import transformers
from support.models import T5_SHAPE, TOKENS

BART_SHAPE = {
    "vocab_size": TOKENS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "T5": T5_SHAPE,
    "Bart": BART_SHAPE,
    "MT5": T5_SHAPE,
    "UMT5": T5_SHAPE,
    "LongT5": T5_SHAPE,
    "SwitchTransformers": T5_SHAPE | {"num_experts": 2, "expert_capacity": 64},
    "MBart": BART_SHAPE,
    "Pegasus": BART_SHAPE,
    "Blenderbot": BART_SHAPE,
    "M2M100": BART_SHAPE,
    "BigBirdPegasus": BART_SHAPE | {"attention_type": "original_full"},
    "Marian": BART_SHAPE | {"decoder_start_token_id": 1},
    "LED": BART_SHAPE
    | {"attention_window": 16, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
    "ProphetNet": {
        "vocab_size": TOKENS,
        "hidden_size": 32,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "num_encoder_attention_heads": 2,
        "num_decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
    },
}
HEAD_CLASSES = {"Marian": "MarianMTModel"}


def make_family(family: str, **fields: Any) -> Any:
    """Build a model of a key of `FAMILIES`, its head tied to the embeddings where the family ties it."""
    torch.manual_seed(0)
    settings = getattr(transformers, f"{family}Config")(**(FAMILIES[family] | fields))
    head_class = HEAD_CLASSES.get(family, f"{family}ForConditionalGeneration")
    return getattr(transformers, head_class)(settings).eval()
