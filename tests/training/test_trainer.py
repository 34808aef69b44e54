"""LoraTrainer: the same losses as PEFT with Seq2SeqTrainer, right at any accumulation."""

import os
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from support.models import MODELS
from support.tiny_trainer import (
    OursInOrder,
    PeftInOrder,
    Rows,
    adapted,
    arguments,
    losses,
    make_trainer,
    tokenizer,
)
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
)
from transformers.trainer_callback import TrainerCallback

from lora_hf import save_adapter


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("fast_paths", [False, True])
def test_fifty_steps_follow_peft_with_seq2seq_trainer(kind: str, fast_paths: bool, tmp_path: Path) -> None:
    make, targets = MODELS[kind]
    ours = adapted(make=make, targets=targets)
    save_adapter(ours, tmp_path / "start")
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "start", is_trainable=True)
    runs = []
    for model, trainer_kind, more in (
        (ours, OursInOrder, {"fast_paths": fast_paths}),
        (theirs, PeftInOrder, {}),
    ):
        args = arguments(tmp_path / "out", max_steps=50, learning_rate=2e-2)
        trainer = make_trainer(model, args, trainer_kind, **more)
        trainer.train()
        runs.append(losses(trainer))
    assert len(runs[0]) == 50 and all(
        p.abs().max() > 0.05 for n, p in ours.named_parameters() if "lora_B" in n
    )
    torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulating_four_batches_equals_one_batch_of_their_size(
    kind: str, smoothing: float, tmp_path: Path
) -> None:
    make, targets = MODELS[kind]
    runs, weights = [], []
    for size, accumulation in ((16, 1), (4, 4)):
        model = adapted(make=make, targets=targets)
        args = arguments(
            tmp_path,
            max_steps=6,
            per_device_train_batch_size=size,
            label_smoothing_factor=smoothing,
            gradient_accumulation_steps=accumulation,
        )
        trainer = make_trainer(model, args, OursInOrder)
        trainer.train()
        runs.append(losses(trainer))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=0, atol=1e-4)
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=2e-4)


def test_the_evaluation_loss_is_the_mean_over_all_label_tokens(tmp_path: Path) -> None:
    model, rows = adapted(), Rows(7, seed=4)
    trainer = make_trainer(model, arguments(tmp_path, per_device_eval_batch_size=7), eval_dataset=rows)
    collated = DataCollatorForSeq2Seq(tokenizer())([rows[i] for i in range(7)])
    with torch.no_grad():
        logits = model.eval()(**collated).logits
    expected = nn.functional.cross_entropy(
        logits.flatten(0, 1), collated["labels"].flatten(), ignore_index=-100
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_gradient_checkpointing_trains_a_frozen_base_with_the_same_losses(tmp_path: Path) -> None:
    runs = []
    for checkpointing in (False, True):
        args = arguments(tmp_path, gradient_checkpointing=checkpointing)
        trainer = make_trainer(adapted(), args, OursInOrder)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0][-1] < runs[0][0]
    torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=0, atol=1e-5)


def test_generation_and_rouge_run_at_each_evaluation(tmp_path: Path, caplog: Any) -> None:
    from lora_hf.evaluation.evaluate import ValidationRouge

    args = arguments(
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        predict_with_generate=True,
        generation_max_length=9,
    )
    trainer = make_trainer(
        adapted(), args, eval_dataset=Rows(6), compute_metrics=ValidationRouge(tokenizer())
    )
    with caplog.at_level("INFO", logger="lora_hf"):
        trainer.train()
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2 and all(0 <= entry["eval_rouge1"] <= 1 for entry in evaluated)
    assert sum("reference: " in message for message in caplog.messages) == 4


def test_trackers_named_by_report_to_get_the_losses(tmp_path: Path) -> None:
    received: list[dict] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            received.append(logs)

    make_trainer(adapted(), arguments(tmp_path, max_steps=3), callbacks=[Tracker()]).train()
    assert sum("loss" in logs for logs in received) == 3


def test_no_optimizer_state_is_kept_for_frozen_weights(tmp_path: Path) -> None:
    trainer = make_trainer(adapted(), arguments(tmp_path, max_steps=1))
    trainer.train()
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(held) == 24 and all(p.requires_grad for p in held)
    assert os.listdir(tmp_path) == []
