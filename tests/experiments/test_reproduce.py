"""`reproduce`: the shipped comparison beside the published figures, and what was changed in it."""

import json

import pytest
from support.inputs import FEW

from lora_hf import cli
from lora_hf.errors import UserError
from lora_hf.experiments.report import report
from lora_hf.experiments.reproduce import PUBLISHED, reproduce
from lora_hf.reporting.comparison_table import comparison_lines, comparison_notes, published_note

EMBEDDED = ["model.model_name_or_path=embedded", "model.revision=null", "data.dataset_name=embedded"]


@pytest.mark.slow
def test_the_report_stands_beside_the_published_figures_and_says_what_was_changed(
    tmp_path, capsys, runs_in_this_process, no_figures
):
    words = ["reproduce", *EMBEDDED, *FEW, "training.max_steps=1", "training.eval_strategy='no'"]
    words += [
        "training.save_strategy='no'",
        "training.load_best_model_at_end=false",
        f"output_dir={tmp_path}",
    ]
    assert cli.run(words, debug=False) == 0
    printed = capsys.readouterr().out
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert comparison["command"].startswith("lora-hf reproduce model.model_name_or_path=embedded")
    lines, notes = comparison_lines(comparison), comparison_notes(comparison)
    assert lines[1] == ["published ROUGE-1", "0.2334", "0.4216", "0.4081"]
    rouge1 = [comparison["arms"][method]["rouge1"] for method in PUBLISHED]
    assert lines[2][0] == "ROUGE-1"
    gaps = [f"{ours - theirs:+.4f}" for ours, theirs in zip(rouge1, PUBLISHED.values(), strict=True)]
    for gap, label in zip(gaps, ("base", "full", "LoRA"), strict=True):
        assert f"{label} {gap}" in notes[0]
    for said in (
        "Not a repetition: model.model_name_or_path: 'google/flan-t5-base' -> 'embedded'",
        "training.max_steps: (not set) -> 1",
        "fewer steps cannot be expected to reach the published figures; random weights cannot reach them",
    ):
        assert said in notes[0]
        assert said.replace("'", "&#39;").replace(">", "&gt;") in (tmp_path / "comparison.html").read_text()
        assert said in (tmp_path / "comparison.md").read_text()
    assert "0.2334" in printed and "Not a repetition" in printed
    page = (tmp_path / "comparison.html").read_bytes()
    report(tmp_path)  # written again, from the folder alone
    assert (tmp_path / "comparison.html").read_bytes() == page


def test_an_unchanged_repetition_has_no_excuse():
    arms = {name: {"rouge1": value} for name, value in PUBLISHED.items()}
    note = published_note({"arms": arms, "published": {"rouge1": PUBLISHED, "changes": []}})
    assert note.endswith("base +0.0000, full +0.0000, LoRA +0.0000.")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ([], "model.model_name_or_path='google/flan-t5-base' at model.revision='7bcac"),
        (EMBEDDED[:2], "data.dataset_name='knkarthick/dialogsum' .test. did not load: HF_HUB_OFFLINE is set"),
    ],
)
def test_what_is_out_of_reach_is_one_error_before_any_run(overrides, text, runs_in_this_process, tmp_path):
    with pytest.raises(UserError, match=text):
        reproduce([*overrides, f"output_dir={tmp_path / 'none'}"])
    assert runs_in_this_process == [] and not (tmp_path / "none").exists()
