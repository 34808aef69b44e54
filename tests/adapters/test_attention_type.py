"""An encoder that changes its own attention at a short batch has no memory of it."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import make_family
from support.models import randomize
from torch import Tensor
from transformers import BigBirdConfig, BigBirdModel, Seq2SeqTrainingArguments

from lora_hf import LoraConfig, LoraTrainer, inject_adapters
from lora_hf.config import ModelConfig
from lora_hf.models.load import load_model

SPARSE: dict[str, Any] = {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1}
SHORT, LONG = torch.arange(5, 12)[None], torch.arange(5, 37)[None]  # up to 14 tokens are short


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, decoder_input_ids=SHORT).logits


def test_a_short_batch_changes_nothing_for_later_ones(tmp_path: Path) -> None:
    make_family("BigBirdPegasus", **SPARSE).save_pretrained(tmp_path)
    model = load_model(ModelConfig(model_name_or_path=str(tmp_path)), torch.device("cpu"))
    before, state = logits(model, LONG), torch.get_rng_state()
    short = logits(model, SHORT)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.get_encoder().attention_type == "original_full"  # what a backward recomputes goes by it
    assert torch.equal(logits(model, LONG), before) and torch.equal(logits(model, SHORT), short)
    assert torch.equal(logits(deepcopy(model), LONG), before)
    model.get_encoder().set_attention_type("original_full")  # asked for by the user: it stays
    full = logits(model, LONG)
    assert not full.equal(before) and torch.equal(logits(model, LONG), full)


def test_adapters_on_a_model_that_has_seen_a_short_batch() -> None:
    model = make_family("BigBirdPegasus", **SPARSE)
    fresh = inject_adapters(deepcopy(model), LoraConfig(r=2, lora_alpha=8))
    randomize(fresh)
    logits(model, SHORT)
    adapted = inject_adapters(model, LoraConfig(r=2, lora_alpha=8))
    adapted.load_state_dict(fresh.state_dict())
    long = logits(fresh, LONG)
    assert torch.equal(logits(adapted, LONG), long)
    assert torch.equal(logits(adapted, SHORT), logits(fresh, SHORT))
    assert torch.equal(logits(adapted, LONG), long)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_takes_the_same_steps_after_a_short_batch(tmp_path: Path, checkpointing: bool) -> None:
    """Also where the backward computes the layers again."""

    def losses(*seen: Tensor) -> list[Tensor]:
        model = make_family("BigBirdPegasus", **SPARSE, dropout=0.1)
        trainer = LoraTrainer(model, Seq2SeqTrainingArguments(str(tmp_path), report_to=[], use_cpu=True))
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        for ids in seen:
            trainer.compute_loss(model, {"input_ids": ids, "labels": SHORT}).backward()
            model.zero_grad()
        torch.manual_seed(3)
        for ids in (SHORT, LONG):
            trainer.compute_loss(model, {"input_ids": ids, "labels": SHORT}).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    assert all(map(torch.equal, losses(SHORT), losses(LONG)))


def test_any_encoder_that_has_an_attention_type_keeps_it() -> None:
    config = BigBirdConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        **SPARSE,
    )
    model = inject_adapters(
        BigBirdModel(config).eval(), LoraConfig(r=2, lora_alpha=8, target_modules=["query"])
    )
    with torch.no_grad():
        before = model(LONG)[0]
        model(SHORT)
        assert torch.equal(model(LONG)[0], before)
