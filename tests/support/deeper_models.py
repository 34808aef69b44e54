"""Models of many kinds, and the deeper models with which their replication is compared."""

import re

import torch
from support.built_once import built_once
from support.families import make_family
from support.models import T5_SHAPE, TOKENS, untie_head
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
BART = (("attention_heads", 2), ("ffn_dim", 48))
CAUSAL = {**SMALL, "vocab_size": TOKENS, "num_key_value_heads": 1, "max_position_embeddings": 64}


@built_once
def build(kind: str, encoder: int, decoder: int) -> nn.Module:
    """Return a model whose outputs depend on the order of its blocks; with one stack, one number counts."""
    torch.manual_seed(0)
    t5 = {**T5_SHAPE, "num_layers": encoder, "num_decoder_layers": decoder}
    bart = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in BART}
    bart |= {"encoder_layers": encoder, "decoder_layers": decoder}
    bart |= {"vocab_size": TOKENS, "d_model": 32, "max_position_embeddings": 64}
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"][:decoder]
    model = {
        "t5": lambda: T5ForConditionalGeneration(T5Config(**t5)),
        "mt5": lambda: MT5ForConditionalGeneration(MT5Config(**t5)),
        "umt5": lambda: UMT5ForConditionalGeneration(UMT5Config(**t5)),
        "bart": lambda: BartForConditionalGeneration(BartConfig(**bart)),
        "prophetnet": lambda: make_family(
            "ProphetNet", num_encoder_layers=encoder, num_decoder_layers=decoder
        ),
        "bert": lambda: BertForSequenceClassification(
            BertConfig(**SMALL, vocab_size=TOKENS, num_hidden_layers=encoder)
        ),
        "vit": lambda: ViTForImageClassification(
            ViTConfig(**SMALL, num_hidden_layers=encoder, image_size=8, patch_size=4)
        ),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**CAUSAL, num_hidden_layers=decoder)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=TOKENS, n_embd=32, n_layer=decoder, n_head=2, n_positions=64)
        ),
        "qwen2": lambda: Qwen2ForCausalLM(
            Qwen2Config(
                **CAUSAL,
                num_hidden_layers=decoder,
                use_sliding_window=True,
                sliding_window=3,
                layer_types=kinds,
            )
        ),
    }[kind]()
    if kind == "t5":
        untie_head(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


STACKS = {
    "t5": ("encoder.block.", "decoder.block."),
    "mt5": ("encoder.block.", "decoder.block."),
    "umt5": ("encoder.block.", "decoder.block."),
    "bart": ("model.encoder.layers.", "model.decoder.layers."),
    "prophetnet": ("prophetnet.encoder.layers.", "prophetnet.decoder.layers."),
    "bert": ("bert.encoder.layer.", None),
    "vit": ("vit.layers.", None),
    "llama": (None, "model.layers."),
    "gpt2": (None, "transformer.h."),
    "qwen2": (None, "model.layers."),
}
OVERLAP = [[0, 2], [1, 3]]  # blocks 0 1 1 2
CASES = [
    ("t5", {"encoder": OVERLAP}),
    ("t5", {"decoder": OVERLAP}),
    ("t5", {"encoder": [[1, 3]], "decoder": [[1, 3], [0, 2]]}),  # starts elsewhere, comes to 0 later
    ("t5", {"encoder": [[0, 1], [0, 1]], "decoder": [[2, 3]]}),
    ("mt5", {"encoder": [[1, 3], [0, 3]], "decoder": OVERLAP}),
    ("umt5", {"encoder": [[1, 3]], "decoder": [[1, 3], [0, 3]]}),
    ("bart", {"encoder": OVERLAP}),
    ("bart", {"encoder": [[2, 3]], "decoder": [[0, 3], [0, 3]]}),
    ("prophetnet", {"encoder": OVERLAP}),
    ("prophetnet", {"encoder": [[0, 3], [2, 3]], "decoder": OVERLAP}),
    ("bert", OVERLAP),
    ("vit", {"encoder": OVERLAP}),
    ("llama", OVERLAP),
    ("gpt2", {"decoder": [[0, 3], [2, 3]]}),
    ("qwen2", [[0, 2], [0, 2]]),
]
GENERATING = [case for case in CASES if case[0] not in ("bert", "vit")]


def orders(kind: str, spec: dict | list) -> dict[str, list[int]]:
    """Return the indices of the original blocks in their new order, by side."""
    if isinstance(spec, list):
        spec = {"encoder" if STACKS[kind][0] else "decoder": spec}
    spans = {side: spec.get(side, [[0, 3]]) for side in ("encoder", "decoder")}
    return {side: [i for start, end in pairs for i in range(start, end)] for side, pairs in spans.items()}


def deeper(kind: str, spec: dict | list) -> nn.Module:
    """Return the reference: a model built with the new numbers of layers and filled block by block."""
    order = orders(kind, spec)
    state = build(kind, 3, 3).state_dict()
    filled = {}
    model = build(kind, len(order["encoder"]), len(order["decoder"]))
    for key in model.state_dict():
        source = key
        for prefix, side in zip(STACKS[kind], ("encoder", "decoder"), strict=True):
            if prefix and key.startswith(prefix) and not (kind != "umt5" and "attention_bias" in key):
                place = int(re.match(r"\d+", key[len(prefix) :])[0])
                source = key.replace(f"{prefix}{place}.", f"{prefix}{order[side][place]}.", 1)
        filled[key] = state[source]
    model.load_state_dict(filled)
    return model


def inputs(kind: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    return batch if STACKS[kind][0] and STACKS[kind][1] else {k: batch[k] for k in ("input_ids",)}


@torch.no_grad()
def logits(model: nn.Module, kind: str, batch: dict) -> torch.Tensor:
    return model(**inputs(kind, batch)).logits


def bytes_held(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
