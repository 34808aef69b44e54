"""A small random model of each encoder-decoder family, built from its config."""

import logging
from copy import deepcopy
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import torch
import transformers
from support.built_once import built_once
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
    "SwitchTransformers": T5_SHAPE
    | {"num_experts": 2, "expert_capacity": 64, "num_decoder_layers": 2}
    | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
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
_GEMMA_STACK = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "sliding_window": 16,
    "query_pre_attn_scalar": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_SEAMLESS = {
    key.replace("d_model", "hidden_size"): value for key, value in BART_SHAPE.items() if key != "pad_token_id"
}
_EXPERTS = {"num_experts": 2, "expert_capacity": 64}
_BERT = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_GPT2 = {"vocab_size": TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
EVERY: dict[str, dict[str, Any]] = FAMILIES | {
    "Marian unshared": BART_SHAPE | {"share_encoder_decoder_embeddings": False, "decoder_start_token_id": 1},
    "Mvp": BART_SHAPE,
    "PLBart": BART_SHAPE,
    "PegasusX": BART_SHAPE | {"num_global_tokens": 4, "block_size": 16},
    "BlenderbotSmall": BART_SHAPE,
    "FSMT": {k: v for k, v in BART_SHAPE.items() if k != "vocab_size"}
    | {"src_vocab_size": TOKENS, "tgt_vocab_size": TOKENS + 8},
    "NllbMoe": BART_SHAPE | _EXPERTS | {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "T5Gemma": {"encoder": _GEMMA_STACK, "decoder": _GEMMA_STACK, "vocab_size": TOKENS},
    "T5Gemma2": {
        "encoder": {
            "text_config": _GEMMA_STACK | {"layer_types": ["sliding_attention", "full_attention"]},
            "vision_config": _VISION,
            "boi_token_index": TOKENS - 3,
            "eoi_token_index": TOKENS - 2,
            "image_token_index": TOKENS - 1,
            "mm_tokens_per_image": 4,
        },
        "decoder": _GEMMA_STACK | {"layer_types": ["sliding_attention", "full_attention"]},
        "image_token_index": TOKENS - 1,
        "eoi_token_index": TOKENS - 2,
    },
    "SeamlessM4T": _SEAMLESS,
    "SeamlessM4Tv2": _SEAMLESS,
    "BertBert": {"encoder": _BERT | {"model_type": "bert"}, "decoder": _BERT | {"model_type": "bert"}},
    "BertGpt2": {"encoder": _BERT | {"model_type": "bert"}, "decoder": _GPT2 | {"model_type": "gpt2"}},
}
"""Every text family of Transformers' list of sequence-to-sequence models."""
CLASSES = {
    "Marian": ("MarianConfig", "MarianMTModel"),
    "Marian unshared": ("MarianConfig", "MarianMTModel"),
    "SeamlessM4T": ("SeamlessM4TConfig", "SeamlessM4TForTextToText"),
    "SeamlessM4Tv2": ("SeamlessM4Tv2Config", "SeamlessM4Tv2ForTextToText"),
    "BertBert": ("EncoderDecoderConfig", "EncoderDecoderModel"),
    "BertGpt2": ("EncoderDecoderConfig", "EncoderDecoderModel"),
}


def family_settings(family: str, **fields: Any) -> Any:
    """Return the config of a key of `EVERY`."""
    config_class, _ = CLASSES.get(family, (f"{family}Config", ""))
    settings = getattr(transformers, config_class)(**deepcopy(EVERY[family] | fields))
    if config_class == "EncoderDecoderConfig":
        settings.decoder.is_decoder = settings.decoder.add_cross_attention = True
        settings.decoder_start_token_id, settings.pad_token_id, settings.eos_token_id = 2, 0, 3
    return settings


SIX = ("T5", "Bart", "M2M100", "T5Gemma", "UMT5", "SwitchTransformers")
"""Families in `make test`: one for each difference (scale, positions, layout, ties, experts)."""


@built_once
def make_family(family: str, **fields: Any) -> Any:
    """Build a model of a key of `EVERY`, its head tied to the embeddings where the family ties it."""
    torch.manual_seed(0)
    settings = family_settings(family, **fields)
    _, head_class = CLASSES.get(family, ("", f"{family}ForConditionalGeneration"))
    return getattr(transformers, head_class)(settings).eval()


def read_folder(folder: Path) -> tuple[Any, bool]:
    """Return the model of a folder as Transformers reads it, and whether it warned about tied weights."""
    handler, logger = BufferingHandler(1000), logging.getLogger("transformers.modeling_utils")
    logger.addHandler(handler)
    try:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    finally:
        logger.removeHandler(handler)
    return model, any("tied weights mapping" in record.getMessage() for record in handler.buffer)


def is_encoder_decoder(model_type: str) -> bool:
    """Return whether a type of Transformers' list is one; older versions make no pair without its parts."""
    try:
        return bool(getattr(transformers.AutoConfig.for_model(model_type), "is_encoder_decoder", False))
    except ValueError:
        return model_type == "encoder-decoder"
