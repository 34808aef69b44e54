"""The training stage of a run."""

import logging
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.inputs import FEW

import lora_hf
from lora_hf.config.load import load_config
from lora_hf.runs import run as runs
from lora_hf.training import train as training


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        ("lora", "training.bf16=true"),
        pytest.param("full", "training.bf16=true", marks=pytest.mark.slow),
        pytest.param("full", "model.dtype=bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_model_trained_in_bfloat16_is_scored_in_the_precision_in_which_it_is_loaded_again(
    method: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    score, fit = runs.score, training._run_trainer

    def trained(trainer: Any, *args: Any) -> Any:
        output = fit(trainer, *args)
        tensors = [x for state in trainer.optimizer.state.values() for x in state.values() if x.dim()]
        seen["states"] = [weakref.ref(tensor) for tensor in tensors]
        return output

    def inspected(run: Any) -> Any:
        ids = torch.arange(3, 20)[None]
        with torch.no_grad():
            seen["kept"] = [state for state in seen["states"] if state() is not None]
            seen["forward"] = run.model.forward.__func__
            seen["logits"] = run.model(input_ids=ids, decoder_input_ids=ids[:, :6]).logits
        return score(run)

    monkeypatch.setattr(runs, "score", inspected)
    monkeypatch.setattr(training, "_run_trainer", trained)
    options = [*FEW, precision, "training.max_steps=2", f"method={method}"]
    lora_hf.train(load_config({"output_dir": str(tmp_path / "run")}, options))
    saved = lora_hf.load(tmp_path / "run").model
    assert seen["forward"] is type(saved).forward
    assert seen["states"] and not seen["kept"]  # the optimizer is gone before the scoring begins
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        again = saved(input_ids=ids, decoder_input_ids=ids[:, :6]).logits
    torch.testing.assert_close(seen["logits"], again, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("scores", "rises", "limit", "expected"),
    [
        ([0.30, 0.31, 0.33], True, {}, "more epochs may help (training.num_train_epochs=6"),
        ([0.30, 0.31, 0.33], True, {"max_steps": 30}, "more steps may help (training.max_steps=60"),
        ([2.0, 1.5, 1.4], False, {}, "more epochs may help (training.num_train_epochs=6"),
        ([0.30, 0.31, 0.313], True, {}, None),  # hardly better
        ([0.30, 0.33, 0.31], True, {}, None),  # another one was the best
        ([0.33], True, {}, None),
        ([0.0, 0.0, 0.0], True, {}, None),
        ([0.30, 0.31, 0.33], True, {"load_best_model_at_end": False}, None),
    ],
)
def test_more_training_is_advised_if_the_last_evaluation_was_clearly_the_best(
    scores: list[float], rises: bool, limit: dict[str, Any], expected: str | None
) -> None:
    best = (max if rises else min)(scores)
    steps = [30 * (1 + n) // len(scores) for n in range(len(scores))]
    history = [{"step": 5, "loss": 1.0}]
    history += [{"step": step, "eval_x": score} for step, score in zip(steps, scores, strict=True)]
    state: Any = SimpleNamespace(
        best_metric=best, best_global_step=steps[scores.index(best)], max_steps=30, log_history=history
    )
    fields = {"num_train_epochs": 3.0, "max_steps": -1, "load_best_model_at_end": True}
    args: Any = SimpleNamespace(metric_for_best_model="x", greater_is_better=rises, **(fields | limit))
    advice = training.longer_training(state, args)
    ending = ", in a new output_dir)"
    assert advice == (f"the last evaluation was the best: {expected}{ending}" if expected else None)


def test_the_advice_to_train_longer_follows_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lora_hf"), "propagate", True)
    caplog.set_level("INFO")
    monkeypatch.setattr(training, "CLEAR_GAIN", 0.0)
    each = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    fields = each | {"max_steps": 2, "learning_rate": 1e-2, "load_best_model_at_end": True}
    options = [*FEW, *(f"training.{name}={value}" for name, value in fields.items())]
    record = lora_hf.train(load_config({"output_dir": str(tmp_path / "run")}, options))
    first, second = (entry["eval_loss"] for entry in record["log"] if "eval_loss" in entry)
    assert second < first and "more steps may help (training.max_steps=4, in a new output_dir)" in caplog.text
