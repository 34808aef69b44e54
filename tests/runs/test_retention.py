"""What a model keeps of its base: outputs before and after training, scores, tables, page and card."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from support.records import write_run

import lora_hf
from lora_hf.config.load import load_config
from lora_hf.config.task import EMBEDDED_TASKS
from lora_hf.data.sources import unpacked
from lora_hf.data.splits import load_split
from lora_hf.doctor import CONFIG
from lora_hf.doctor import runs as checks
from lora_hf.doctor.check import Check, examine
from lora_hf.errors import UserError
from lora_hf.evaluation.metrics import ScoreValues
from lora_hf.evaluation.significance import ratio_interval
from lora_hf.experiments.report import report
from lora_hf.files import read_object, write_json, write_text
from lora_hf.models.load import load_tokenizer
from lora_hf.reporting.card_text import _kept
from lora_hf.reporting.comparison_table import comparison_lines
from lora_hf.run_records import Comparison, read_retention

OWN = {
    "source": "request",
    "target": "answer",
    "source_column": "q",
    "target_column": "a",
    "metrics": ["squad"],
}
SMALL = {
    "training": {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.05}
    | {"save_strategy": "no"},
    "data": {"max_train_samples": 4, "max_eval_samples": 2, "max_test_samples": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with one task of the package and one of a file, of which one half is left."""
    folder = tmp_path_factory.mktemp("retention")
    (folder / "mine").mkdir()
    rows = [{"q": 'Who says "Hi"\n\nAnna: Hi\nTom: Yes\n\nName: ', "a": "Anna"}] * 2
    write_text(folder / "mine" / "test.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    retention = {
        "place": {"task": OWN | {"source_column": "request", "target_column": "answer"},
                   "data": {"dataset_name": "embedded/place", "max_test_samples": 4}},
        "mine": {"task": OWN, "data": {"dataset_name": str(folder / "mine")}},
    }  # fmt: skip
    return SMALL | {"retention": retention, "output_dir": str(folder / "run")}


@pytest.fixture(scope="module")
def run(config: dict[str, Any]) -> Path:
    lora_hf.train(config)
    return Path(config["output_dir"])


def test_a_run_scores_its_base_and_its_model_on_further_tasks(run: Path, config: dict[str, Any]) -> None:
    result, rows = read_object(run / "results.json"), read_retention(run)
    assert {*result["retention"]} == {"place", "mine"} and "retention.jsonl" in result["sha256"]
    assert [row["task"] for row in rows] == ["place"] * 4 + ["mine"]  # equal requests are one example
    record = result["retention"]["place"]
    assert record["base"] > 50 and record["n"] == 4 and record["metric"] == "exact_match"
    assert record["kept"] == pytest.approx(record["value"] / record["base"])
    low, high = record["kept_interval"]
    assert low <= record["kept"] <= high and 0 < record["p_value"] <= 1
    plain = lora_hf.train({**config, "retention": {}, "output_dir": f"{run}-plain"})
    assert (plain["train_loss"], plain["rouge1"]) == (result["train_loss"], result["rouge1"])
    assert "retention" not in plain
    assert lora_hf.train(config)["retention"] == result["retention"]  # finished: nothing is repeated


def test_verify_scores_the_outputs_again(run: Path) -> None:
    registry = {"record": Check(checks.record, ""), "scores": Check(checks.scores, "")}
    found = list(examine(registry, {"run": run}))
    assert {finding.state for finding in found} == {"ok"} and "tasks that were not trained" in str(found)
    results = read_object(run / "results.json")
    results["retention"]["place"]["value"] += 1
    copy = run.with_name("copy")
    for name in ("predictions.jsonl", "retention.jsonl"):
        write_text(copy / name, (run / name).read_text())
    write_json(copy / "results.json", results)
    assert "fault" in {finding.state for finding in examine(registry, {"run": copy})}


def test_the_doctor_reads_the_tasks_as_the_run_does(config: dict[str, Any]) -> None:
    fields = load_config(config)
    known = {"fields": fields, "tokenizer": load_tokenizer(fields.model)}
    found = list(examine({"retention": CONFIG["retention"]}, known))
    assert [finding.title for finding in found] == [
        "place: 4 request texts, by exact match", "mine: 1 request, by exact match"
    ]  # fmt: skip


def test_a_card_shows_what_the_model_keeps(run: Path) -> None:
    table = _kept(read_object(run / "results.json"))  # type: ignore[arg-type]
    assert table.splitlines()[0] == "|  | base | this model | kept, with its 95 % interval | p |"
    assert "| place, exact match | " in table and _kept({}) == ""


@pytest.mark.parametrize("name", EMBEDDED_TASKS)
def test_the_embedded_tasks_stand_ready(name: str) -> None:
    config = load_config({"retention": "embedded"})
    assert config.model_dump(mode="json")["retention"] == "embedded"
    section = config.retention[name]
    examples = load_split(unpacked(section.data), "test")
    assert len(examples) == 100 and all(len(example.references) == 1 for example in examples)


@pytest.mark.parametrize(
    ("retention", "words"),
    [
        ("embeded", "retention='embeded' is neither embedded nor a mapping"),
        ({"a b": {}}, "'a b'; names consist of"),
        ({"a": {"tusk": 1}}, "unknown key 'retention.a.tusk'"),
        ({"a": {"task": "translatoin"}}, "retention.a.task='translatoin' is not one of"),
        ({"a": {"task": OWN, "data": {"dataset_name": "embedded/x"}}},
         "retention.a: data.dataset_name='embedded/x' is not one of embedded/place"),
        ({"a": {"task": OWN, "data": {"dataset_name": "./nowhere"}}}, "retention.a: .*nowhere"),
    ],
)  # fmt: skip
def test_a_wrong_task_is_one_error_before_a_model_is_loaded(
    retention: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_hf.runs.run.load_model", None)
    with pytest.raises(UserError, match=words):
        lora_hf.train(SMALL | {"retention": retention, "output_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


def test_a_comparison_shows_what_each_variant_keeps(tmp_path: Path, no_figures: None) -> None:
    right = {"base": 4, "full": 1, "lora": 3}
    for method, n in right.items():
        write_run(tmp_path, method)
        made = ["yes"] * n + ["no"] * (4 - n)
        rows = [{"task": "who_said", "id": str(i), "source": "?", "references": ["yes"], "prediction": text,
                 "base": "yes"} for i, text in enumerate(made)]  # fmt: skip
        write_text(tmp_path / method / "retention.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        result = read_object(tmp_path / method / "results.json")
        write_json(
            tmp_path / method / "results.json", result | {"retention_tasks": {"who_said": {"task": OWN}}}
        )
    files = report(tmp_path)
    comparison = read_object(files[0])
    kept = comparison["retention"]["who_said"]
    assert [kept[method]["kept"] for method in right] == [1, 0.25, 0.75]
    assert comparison["retention_test"]["who_said"]["difference"] == 50
    markdown, page = (file.read_text(encoding="utf-8") for file in files[1:3])
    for text in (markdown, page):
        assert "keeps of who said" in text and "exact match 100.00" in text
        assert "[25%, 100%]" in text and "LoRA − full on them, paired by example: who said +50.00" in text
    study = comparison | {"variants": comparison.pop("arms"), "order": [*right], "series": {}}
    lines = comparison_lines(cast(Comparison, study))
    assert [line[-1] for line in lines] == ["keeps", "100%", "25%", "75%"]
    assert "On 1 tasks" not in page and "LoRA keeps 75% of the base" in page


def test_the_interval_of_a_share_is_that_of_paired_resamples() -> None:
    rng = np.random.default_rng(1)
    base = rng.uniform(0.4, 1.0, 300)
    ours = 0.5 * base + rng.normal(0, 0.02, 300)
    low, high = ratio_interval(ours, base)
    drawn = [rng.integers(0, 300, 300) for _ in range(4000)]
    expected = np.quantile([ours[i].sum() / base[i].sum() for i in drawn], [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(expected), abs=5e-4)
    counts = np.column_stack([ours, np.ones(300)]), np.column_stack([base, np.ones(300)])
    assert ratio_interval(*counts, lambda sums: sums[..., 0] / sums[..., 1]) == pytest.approx((low, high))
    assert ScoreValues(np.zeros(3)).share_of(ScoreValues(np.zeros(3))) is None
    share = ScoreValues(np.full(3, 2.0)).share_of(ScoreValues(np.ones(3)), higher_is_better=False)
    assert share == (0.5, [0.5, 0.5])
