"""The training stage of a run."""

import weakref
from pathlib import Path
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
