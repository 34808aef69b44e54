"""The study of methods: its plan and commands, a small one end to end, reuse and refusal."""

import json
import sys

import pytest
from support.inputs import SMALL_COMPARISON

from lora_hf import cli
from lora_hf.config import RunConfig
from lora_hf.config.load import load_config
from lora_hf.errors import UserError
from lora_hf.experiments import compare as comparing
from lora_hf.experiments import runner
from lora_hf.models.storage import base as storage_base
from lora_hf.run_files import RESULTS

VARIANTS = """
variants:
  base: {method: base}
  lora: {}
  tiny: {lora: {r: 1, target_modules: [q]}, loraplus_lr_ratio: 4}
  houlsby: {method: bottleneck, bottleneck: {bottleneck_dim: 3}, training: {learning_rate: 5e-3}}
  prompt: {method: prompt_tuning, prompt_tuning: {num_virtual_tokens: 2}}
"""


@pytest.fixture
def config_file(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(f"{SMALL_COMPARISON}{VARIANTS}output_dir: {tmp_path / 'run'}\n")
    return file


@pytest.mark.parametrize(
    "overrides", [[], ["seeds=[3, 1]", "lora.r=5", "arms.lora.training={warmup_steps: 1}"]]
)
def test_a_variant_s_command_gives_the_run_that_was_planned(config_file, overrides):
    arms = comparing.plan_methods(load_config(config_file, overrides, is_study=True))
    assert len(arms) == (9 if overrides else 5)  # base once, the others once a seed
    for arm in arms:
        command = runner.run_command(config_file, overrides, arm)
        assert command[:6] == [sys.executable, "-m", "lora_hf", "train", "--config", str(config_file)]
        run = load_config(config_file, command[6:])
        assert run.for_run(run.method, run.seed, run.output_dir) == arm.config
        assert arm.config.lora.r == (1 if arm.variant == "tiny" else 5 if overrides else 16)


def test_a_study_has_its_references(config_file):
    with pytest.raises(UserError, match=r"variants=\['lora'\] lacks 'base'"):
        comparing.plan_methods(RunConfig.model_validate({"variants": {"lora": {}}}))


def test_fields_become_words_that_read_back():
    changes = {"lora": {"r": 4, "rank_pattern": {"a.b": 2}}, "model": {}, "method": "lora", "seed": None}
    assert runner.words(changes) == ["lora.r=4", 'lora.rank_pattern={"a.b": 2}', 'method="lora"', "seed=null"]


@pytest.mark.slow
def test_a_study_is_run_reused_and_refused_variant_by_variant(config_file, runs_in_this_process, capsys):
    root = config_file.parent / "run"
    assert cli.run(["methods", "--config", str(config_file)], debug=False) == 0
    assert "houlsby" in capsys.readouterr().out
    made = json.loads((root / "methods.json").read_text())
    assert made["order"] == ["base", "lora", "tiny", "houlsby", "prompt"]
    weights = {name: record["trainable_parameters"] for name, record in made["variants"].items()}
    # d_model = inner width = 128; 6 attentions; 10 sublayers
    assert weights == {
        "base": 0,
        "lora": 6 * 2 * 16 * (128 + 128),
        "tiny": 6 * 1 * (128 + 128),
        "houlsby": 10 * (2 * 3 * 128 + 3 + 128),
        "prompt": 2 * 128,
    }
    assert made["variants"]["houlsby"]["learning_rate"] == 5e-3
    for name, record in made["variants"].items():
        assert record == json.loads((root / name / RESULTS).read_text())
    assert made["eval_ratio"]["base"] == 1 and set(made["against_lora"]) == set(made["order"]) - {"lora"}
    assert (root / "methods.png").read_bytes()[:4] == b"\x89PNG"
    assert "| prompt |" in (root / "methods.md").read_text()

    before = {p: p.stat().st_mtime_ns for p in root.rglob(RESULTS)}
    assert comparing.compare_methods(config_file) == made
    with pytest.raises(UserError, match=r"run/houlsby' holds .*bottleneck.bottleneck_dim: 3 -> 4"):
        comparing.compare_methods(config_file, ["variants.houlsby.bottleneck.bottleneck_dim=4"])
    assert {p: p.stat().st_mtime_ns for p in root.rglob(RESULTS)} == before and len(before) == 5


def test_a_missing_package_stops_a_study_before_its_first_run(config_file, runs_in_this_process, monkeypatch):
    monkeypatch.setattr(storage_base, "reveal", lambda name: False)
    with pytest.raises(UserError, match=r"quant_method='hqq' needs the package hqq.*pip install"):
        comparing.compare_methods(
            config_file, ["variants.tiny.model.load_in_4bit=true", "variants.tiny.model.quant_method=hqq"]
        )
    assert not runs_in_this_process
