"""The Python API with speech and vision models: training, evaluations that generate, files, PEFT, merging."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from support.models import randomize
from support.other_models import OTHERS, Other
from support.tiny_trainer import arguments, losses
from torch import Tensor
from transformers import BitsAndBytesConfig, default_data_collator

from lora_hf import (
    LoraConfig,
    LoraTrainer,
    UserError,
    inject_adapters,
    load_adapter,
    merge_adapters,
    merge_and_unload,
    save_adapter,
    unmerge_adapters,
)
from lora_hf.adapters.default_targets import stacks
from lora_hf.adapters.model_state import lora_layers

NEW_TOKENS = 6
FAST = ("Whisper",)
MARKS = {name: () if name in FAST else (pytest.mark.slow,) for name in OTHERS}
each = pytest.mark.parametrize(
    "other", [pytest.param(other, id=name, marks=MARKS[name]) for name, other in OTHERS.items()]
)


def adapted(other: Other) -> Any:
    """The model with a random adapter on the default targets."""
    model = inject_adapters(other.model(), LoraConfig(r=2, lora_alpha=3))
    randomize(model)
    return model.eval()


def logits(model: Any, other: Other) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(**other.batch()).logits
    return result


def written(model: Any, other: Other, **options: Any) -> Tensor:
    """Tokens that plain `generate` writes."""
    with torch.no_grad():
        tokens: Tensor = model.generate(
            **{other.inputs: other.batch()[other.inputs]}, max_new_tokens=NEW_TOKENS, **options
        )
    return tokens


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@each
def test_a_saved_adapter_gives_the_same_logits_here_and_in_peft_and_generates_the_same(
    other: Other, tmp_path: Path
) -> None:
    model, base = adapted(other), other.model()
    assert all(any(name.startswith(stack) for name in lora_layers(model)) for stack in stacks(model).values())
    expected = logits(model, other)
    assert (expected - logits(base, other)).abs().max() > 1e-2
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(other.model(), tmp_path / "adapter"), other), expected)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")
    same(logits(theirs, other), expected)
    assert torch.equal(written(theirs, other), written(model, other))


@pytest.mark.slow
@each
def test_an_adapter_that_peft_made_gives_the_same_logits_here(other: Other, tmp_path: Path) -> None:
    ends = sorted({name.rpartition(".")[2] for name in lora_layers(adapted(other))})
    settings = PeftConfig(r=2, lora_alpha=3, target_modules=ends, init_lora_weights=False)
    theirs = get_peft_model(other.model(), settings)
    theirs.save_pretrained(tmp_path)
    same(logits(load_adapter(other.model(), tmp_path), other), logits(theirs, other))


@pytest.mark.slow
@each
def test_merging_changes_the_logits_by_rounding_and_unmerging_restores_every_bit(other: Other) -> None:
    model = adapted(other)
    expected = logits(model, other)
    merge_adapters(model)
    same(logits(model, other), expected)
    unmerge_adapters(model)
    assert torch.equal(logits(model, other), expected)
    plain = merge_and_unload(model)
    assert not lora_layers(plain)
    same(logits(plain, other), expected)


@each
def test_training_lowers_the_loss_and_an_evaluation_generates_what_generate_writes(
    other: Other, tmp_path: Path
) -> None:
    seen = []
    rows = other.rows()
    model = inject_adapters(other.model(), LoraConfig(r=4, lora_alpha=8))
    model.generation_config.max_new_tokens = NEW_TOKENS
    trainer = LoraTrainer(
        model,
        arguments(tmp_path, max_steps=6, learning_rate=0.05, predict_with_generate=True),
        train_dataset=rows,
        eval_dataset=rows[:3],
        data_collator=default_data_collator,
        compute_metrics=lambda found: seen.append(found.predictions) or {"n": len(found.predictions)},
    )
    trainer.train()
    first, *_, last = losses(trainer)
    assert last < 0.9 * first
    for beams in (1, 2):
        metrics = trainer.evaluate(num_beams=beams)
        expected = written(model, other, num_beams=beams)
        assert metrics["eval_n"] == 3 and torch.tensor(metrics["eval_loss"]).isfinite()
        found = torch.from_numpy(seen.pop())[:, : expected.shape[1]]
        assert torch.equal(found, expected)


def test_batches_of_similar_length_need_a_length_where_rows_are_not_tokens(tmp_path: Path) -> None:
    other = OTHERS["Whisper"]
    model = inject_adapters(other.model(), LoraConfig(r=2))
    args = arguments(tmp_path, train_sampling_strategy="group_by_length", per_device_train_batch_size=2)
    rows = other.rows()
    with pytest.raises(UserError, match=r"add a column 'length' .*train_sampling_strategy='random'"):
        LoraTrainer(model, args, train_dataset=rows)._get_train_sampler()
    long = [row | {"length": 100 if i % 2 else 1} for i, row in enumerate(rows)]
    sampler = LoraTrainer(model, args, train_dataset=long)._get_train_sampler()
    order = list(sampler)
    pairs = [order[:2], order[2:4], order[4:]]
    assert sorted(order) == [*range(6)] and sum(a % 2 != b % 2 for a, b in pairs) == 1


@pytest.mark.slow
@each
def test_a_resumed_training_ends_with_the_bits_of_one_that_was_not_interrupted(
    other: Other, tmp_path: Path
) -> None:
    def trained(resume: Path | None) -> list[Tensor]:
        model = inject_adapters(other.model(), LoraConfig(r=2, lora_alpha=3, lora_dropout=0.1))
        args = arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
        trainer = LoraTrainer(model, args, train_dataset=other.rows(), data_collator=default_data_collator)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return [weight.detach() for weight in model.parameters() if weight.requires_grad]

    torch.manual_seed(3)
    whole = trained(None)
    torch.manual_seed(3)
    resumed = trained(tmp_path / "checkpoint-2")
    assert all(torch.equal(*pair) for pair in zip(resumed, whole, strict=True))


@pytest.mark.slow
@each
def test_adapters_train_on_a_base_that_transformers_loads_in_4_bits(other: Other, tmp_path: Path) -> None:
    other.model().save_pretrained(tmp_path)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = type(other.model()).from_pretrained(tmp_path, quantization_config=four_bits, device_map="cpu")
    model = inject_adapters(base, LoraConfig(r=2, lora_alpha=3))
    assert any(layer.base.is_quantized for layer in lora_layers(model).values())
    model.train()(**other.batch()).loss.backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert trained and all(weight.grad is not None for weight in trained)
