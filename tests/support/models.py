"""Models built from configs, small enough to train in a test, with the structure of the real ones."""

from pathlib import Path

import torch
from support.built_once import built_once
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from lora_hf.adapters.backends.bitsandbytes import keep_differentiable
from lora_hf.adapters.model_state import update_state
from lora_hf.config import ModelConfig

TOKENS = 96


T5_SHAPE = {
    "vocab_size": TOKENS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 3,  # heads * d_kv = 24 != d_model, as in FLAN-T5-small: in_features != out_features
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}


def untie_head(model: torch.nn.Module) -> None:
    """Untie lm_head, as in FLAN-T5's checkpoints; a T5 built from a config ties it."""
    torch.manual_seed(7)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.3)
    model.config.tie_word_embeddings = False


@built_once
def make_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**T5_SHAPE))
    untie_head(model)
    return model.eval()


@built_once
def make_shallow_t5() -> T5ForConditionalGeneration:
    """Return a T5 with one block in each stack, where nothing passes from block to block."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**T5_SHAPE | {"num_layers": 1}))
    untie_head(model)
    return model.eval()


@built_once
def make_mt5() -> MT5ForConditionalGeneration:
    torch.manual_seed(0)
    return MT5ForConditionalGeneration(MT5Config(**T5_SHAPE)).eval()


@built_once
def make_umt5() -> UMT5ForConditionalGeneration:
    torch.manual_seed(0)
    return UMT5ForConditionalGeneration(UMT5Config(**T5_SHAPE)).eval()


@built_once
def make_bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    shape = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 48))
    }
    config = BartConfig(vocab_size=TOKENS, d_model=32, max_position_embeddings=64, dropout=0.0, **shape)
    return BartForConditionalGeneration(config).eval()


MODELS = {
    "t5": (make_t5, ("q", "v")),
    "mt5": (make_mt5, ("q", "v")),
    "bart": (make_bart, ("q_proj", "v_proj")),
}


def randomize(model: torch.nn.Module, seed: int = 1) -> None:
    """Give the adapters random weights; B is initialized to zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


CPU = torch.device("cpu")


def saved(folder: Path, kind: str = "t5") -> ModelConfig:
    MODELS[kind][0]().save_pretrained(folder)
    return ModelConfig(model_name_or_path=str(folder))


def gradients_of(model: nn.Module, batch: dict) -> torch.Tensor:
    model.zero_grad()
    model.train()(**batch).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def nf4_t5(blocksize: int = 64) -> nn.Module:
    """Return make_t5 with every q and v in 4 bits; its state has the weights before quantization."""
    import bitsandbytes as bnb

    model = make_t5()
    weights = {}
    for name, module in list(model.named_modules()):
        if name.endswith((".q", ".v")):
            weights[name] = module.weight.detach().clone()
            layer = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4")
            layer.weight = bnb.nn.Params4bit(
                weights[name], requires_grad=False, quant_type="nf4", blocksize=blocksize
            )
            model.set_submodule(name, layer.to("cpu"))
    keep_differentiable(model)
    update_state(model, base_weights=weights.__getitem__)
    return model.eval()


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits
