"""Messages of `lora-hf train` and `lora_hf.train` before a run starts."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_hf import terminal
from lora_hf.errors import NotFinite
from lora_hf.experiments import compare
from lora_hf.run_files import DIVERGED
from lora_hf.runs import start
from lora_hf.runs.run import _divergence_noted


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"seeds": [7, 8]}, "seeds=[7, 8] is not used: this is one run, of method lora and seed 42"),
        ({"variants": {"r4": {"lora.r": 4}}}, "variants=['r4'] is not used"),
        ({"sweep": {"space": {"lora.r": [2, 4]}}}, "sweep.space=['lora.r'] is not used"),
        ({"arms": {"full": {"training": {"learning_rate": 1e-4}}}}, None),  # shared with `compare`
    ],
)
def test_listed_runs_that_train_does_not_make_are_logged(
    fields: dict[str, Any], named: str | None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(start, "finished_result", lambda config: {"rouge1": 0.5})
    start.run_config({"seed": 42, "output_dir": "none"} | fields)
    lines = [record.getMessage() for record in caplog.records if "is not used" in record.getMessage()]
    assert len(lines) == (named is not None)
    monkeypatch.setenv(terminal.PART, "1")
    caplog.clear()
    start.run_config({"seed": 42, "output_dir": "none"} | fields)
    assert "is not used" not in caplog.text
    assert named is None or lines[0].startswith(named)


def test_an_experiment_names_only_typed_fields_that_none_of_its_runs_reads(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """`compare lora.r=8` used to warn in the runs of the base and of full fine-tuning."""
    monkeypatch.setattr(start, "finished_result", lambda config: {"rouge1": 0.5})
    monkeypatch.setattr(compare, "run_all", lambda *given: given[2])
    monkeypatch.setattr(compare, "write_report", lambda *_: {})
    typed = ["lora.r=7", "prompt_tuning.num_virtual_tokens=7"]
    compare.compare("quickstart", typed)
    assert [text for text in caplog.messages if "no effect" in text] == [
        "prompt_tuning.num_virtual_tokens=7: no effect here, because method is base or lora or full"
    ]
    caplog.clear()
    monkeypatch.setenv(terminal.PART, "1")
    start.run_config({"output_dir": "none"}, [*typed, "method=full"])
    assert "no effect" not in caplog.text


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["method=full", "lora.r=7", "lora={lora_alpha: 3}"], "lora.r=7, lora={lora_alpha: 3}: no effect"),
        (["prompt_tuning.num_virtual_tokens=7"], "prompt_tuning.num_virtual_tokens=7: no effect"),
        (["lora.r=7", "training.max_steps=3"], None),
        (["method=bottleneck", "bottleneck.bottleneck_dim=4"], None),
    ],
)
def test_a_typed_field_that_the_method_does_not_read_is_said(
    overrides: list[str], named: str | None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(start, "finished_result", lambda config: {"rouge1": 0.5})
    start.run_config({"output_dir": "none"}, overrides)
    lines = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert len(lines) == (named is not None)
    assert named is None or lines[0].startswith(named)


def test_a_model_that_writes_nan_after_its_training_has_diverged(tmp_path: Path) -> None:
    """As a loss of NaN during the training; a search then continues."""
    run: Any = SimpleNamespace(directory=tmp_path, config=SimpleNamespace(method="lora"))
    with pytest.raises(NotFinite), _divergence_noted(run):
        raise NotFinite("the model's scores of the next token are NaN")
    assert json.loads((tmp_path / DIVERGED).read_text()) == {
        "error": "the model's scores of the next token are NaN"
    }
    with _divergence_noted(run):
        pass
    assert not (tmp_path / DIVERGED).exists()
    run.config.method = "base"
    with pytest.raises(NotFinite), _divergence_noted(run):
        raise NotFinite("damaged")
    assert not (tmp_path / DIVERGED).exists()
