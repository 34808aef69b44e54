"""The trainer's fast paths: the same steps and summaries, and a reason where they are not taken."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import MODELS, TOKENS, make_t5, randomize
from support.selection import slow_except
from support.tiny_trainer import Rows, adapted, all_losses, arguments, losses, make_trainer, tokenizer
from transformers import (
    DataCollatorForSeq2Seq,
    GenerationConfig,
)

from lora_hf import LoraConfig, inject_adapters
from lora_hf.evaluation.generate import generate_summaries


@pytest.mark.parametrize(
    ("bf16", "smoothing", "checkpointing"),  # every pair of values
    slow_except(
        [(False, 0.1, True)],
        [(False, 0.0, False), (False, 0.1, True), (True, 0.0, True), (True, 0.1, False)],
        versions=[(True, 0.0, True)],
    ),
)
def test_the_fast_paths_take_the_same_steps(
    bf16: bool, smoothing: float, checkpointing: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    for fast_paths in (False, True):
        args = arguments(
            tmp_path,
            max_steps=8,
            bf16=bf16,
            label_smoothing_factor=smoothing,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
            gradient_accumulation_steps=2,
            eval_strategy="steps",
            eval_steps=4,
        )
        trainer = make_trainer(adapted(), args, eval_dataset=Rows(6, seed=9), fast_paths=fast_paths)
        trainer.train()
        runs.append(all_losses(trainer))
    torch.testing.assert_close(*runs, rtol=0, atol=2e-2 if bf16 else 1e-4)
    assert len(runs[0]) == 10 and not trainer.has_fast_loss


@pytest.mark.parametrize("use_dora", slow_except([True], [False, True], versions=True))
def test_float32_weights_under_bfloat16_autocast_with_adapter_dropout(use_dora: bool, tmp_path: Path) -> None:
    trained = []
    for fast_paths in (False, True):
        config = LoraConfig(r=4, lora_dropout=0.1, use_dora=use_dora, target_modules="all-linear")
        model = inject_adapters(make_t5(), config)
        trainer = make_trainer(model, arguments(tmp_path, max_steps=4, bf16=True), fast_paths=fast_paths)
        trainer.train()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        trained.append(losses(trainer))
    assert trained[0] == pytest.approx(trained[1], abs=0.1)  # the masks are others


def test_a_collator_with_decoder_inputs_is_supported(tmp_path: Path) -> None:
    runs = []
    for gives_model in (False, True):
        model = adapted()
        trainer = make_trainer(model, arguments(tmp_path, max_steps=4))
        if gives_model:
            trainer.data_collator = DataCollatorForSeq2Seq(tokenizer(), model=model)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == runs[1]


def test_beam_search_set_in_the_generation_config_is_used(tmp_path: Path) -> None:
    outputs = []
    for fast_paths in (False, True):
        model = adapted()
        randomize(model)
        trainer = make_trainer(model, arguments(tmp_path, predict_with_generate=True), fast_paths=fast_paths)
        searched = GenerationConfig(
            num_beams=3, max_length=12, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0
        )
        outputs.append(trainer.predict(Rows(9, seed=9), generation_config=searched).predictions)
    assert np.array_equal(*outputs) and len(outputs[0]) == 9


def test_a_model_without_fast_paths_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = adapted(make=MODELS["bart"][0], targets=("q_proj",))
    with caplog.at_level("DEBUG", "lora_hf"):
        make_trainer(model, arguments(tmp_path, max_steps=1), fast_paths=True).train()
    assert "fast path is off: they are written for t5, mt5, umt5, and this is bart" in caplog.text


@pytest.mark.parametrize("beams", slow_except([2], [1, 2], versions=True))
def test_the_validation_s_summaries_are_the_same_by_the_fast_paths(beams: int, tmp_path: Path) -> None:
    outputs = []
    for fast_paths in (False, True):
        args = arguments(
            tmp_path, predict_with_generate=True, generation_max_length=12, generation_num_beams=beams
        )
        model = adapted()
        randomize(model)
        trainer = make_trainer(model, args, fast_paths=fast_paths)
        calls: list[int] = []
        model.decoder.register_forward_pre_hook(
            lambda m, a, kw, calls=calls: calls.append(
                "PackedLinear" in {type(x).__name__ for x in m.modules()}
            ),
            with_kwargs=True,
        )
        output = trainer.predict(Rows(9, seed=9))
        assert set(calls) == {fast_paths}
        outputs.append((output.predictions, output.metrics["test_loss"]))
    assert np.array_equal(outputs[0][0], outputs[1][0])
    assert len(np.unique(outputs[0][0])) > 5
    assert outputs[0][1] == pytest.approx(outputs[1][1], abs=1e-5)


def smoothed(model: Any) -> dict[str, Any]:
    return {"label_smoothing_factor": 0.1}


def head_trained(model: Any) -> dict[str, Any]:
    inject_adapters(model, LoraConfig(r=2, target_modules=("k",), modules_to_save=("lm_head",)), "head")
    return {}


def other_activation(model: Any) -> dict[str, Any]:
    for module in model.modules():
        if hasattr(module, "act"):
            module.act = torch.nn.SiLU()
    return {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (smoothed, "memory-saving loss is off: label smoothing needs all logits"),
        (head_trained, "memory-saving loss is off: the output head is trainable"),
        (other_activation, "4 feed-forward layers take the reference path: their activation is not gelu_new"),
    ],
)
def test_the_log_says_what_takes_the_reference_path(
    change: Any, expected: str, tmp_path: Path, caplog: Any
) -> None:
    model = adapted()
    args = arguments(tmp_path, max_steps=1, **change(model))
    with caplog.at_level("DEBUG", "lora_hf"):
        make_trainer(model, args).train()
    assert expected in caplog.text


def test_rows_stay_in_the_batch_under_a_custom_logits_processor(caplog: Any) -> None:
    def any_token(row: int, ids: Any) -> list[int]:
        return list(range(TOKENS))

    with caplog.at_level("DEBUG", "lora_hf"):
        generate_summaries(make_t5(), tokenizer(), [[5, 6]], 3, prefix_allowed_tokens_fn=any_token)
    assert "finished rows stay in their batch" in caplog.text
