"""The figures of a comparison, against numbers computed by hand."""

import numpy as np
import pytest

from lora_hf.config.task import Task
from lora_hf.evaluation.metrics import ScoreValues, Scoring
from lora_hf.evaluation.predictions import measure_rows
from lora_hf.evaluation.rouge import ROUGE_NAMES
from lora_hf.experiments.summary import (
    gains,
    mean_result,
    mean_scores,
    samples,
    summarize,
    trivial_scores,
)
from lora_hf.reporting.comparison_table import comparison_lines, comparison_notes


def row(number, prediction, *references, dialogue="Tom: we meet at ten\nAnna: yes\nTom: good\nAnna: bye"):
    return {"id": str(number), "dialogue": dialogue, "references": list(references), "prediction": prediction}


BASE = [row(0, "x", "tom meets anna"), row(1, "he goes", "he goes home now")]
FULL = [row(0, "tom meets anna", "tom meets anna"), row(1, "he goes home now", "he goes home now")]
LORA = [row(0, "tom meets anna", "tom meets anna"), row(1, "he goes", "he goes home now")]
ROWS = {"base": [BASE], "full": [FULL], "lora": [LORA]}


def summary_of(kind, records):
    rows = {name: ROWS[name] for name in records}
    return summarize(kind, records, rows, {name: scores_of(*runs) for name, runs in rows.items()})


def scores_of(*runs):
    return mean_scores([measure_rows(rows, Scoring()) for rows in runs])


def record(method, seed=42, **fields):
    figures = {name: 0.5 for name in ROUGE_NAMES} | {f"{name}_interval": [0.4, 0.6] for name in ROUGE_NAMES}
    rest = {"mean_words": 9.0, "train_seconds": 1.0, "eval_seconds": 2.0, "peak_memory_mib": 500.0}
    return {"method": method, "seed": seed, "log": [1]} | figures | rest | fields


def test_gains_and_the_share_of_fulls_gain_by_hand():
    # ROUGE-1 by dialogue: base 0 and 2 * 1 * 0.5 / 1.5 = 2/3; full 1 and 1; LoRA 1 and 2/3
    summary = summary_of("comparison", {method: [record(method)] for method in ROWS})
    assert summary["gains"] == {
        "full": pytest.approx(1 - 1 / 3),
        "lora": pytest.approx(5 / 6 - 1 / 3),
        "lora_share_of_full": pytest.approx(0.75),
    }
    keys = {"arms", "trivial", "gains", "intervals", "paired_test", "against_base", "samples"}
    assert set(summary) == keys
    differences = {name: test["difference"] for name, test in summary["against_base"].items()}
    assert differences == {"full": pytest.approx(1 - 1 / 3), "lora": pytest.approx(5 / 6 - 1 / 3)}
    assert list(summary["arms"]) == ["base", "full", "lora"]


def test_intervals_hold_their_means_and_the_paired_test_is_lora_minus_full():
    summary = summary_of("comparison", {method: [record(method)] for method in ROWS})
    for method, mean in (("base", 1 / 3), ("full", 1.0), ("lora", 5 / 6)):
        low, high = summary["intervals"][method]["rouge1"]
        assert low <= mean + 1e-12 and mean - 1e-12 <= high
    test = summary["paired_test"]
    assert (test["metric"], test["n"]) == ("rouge1", 2)
    assert test["difference"] == pytest.approx(-1 / 6)
    assert test["interval"] == pytest.approx([-1 / 3, 0])
    assert test["p_value"] == pytest.approx(1, abs=0.01)  # one dialogue differs: its sign is all there is


def test_no_share_is_given_if_full_fine_tuning_gained_nothing():
    flat = {"rouge1": ScoreValues(np.array([0.5, 0.5]))}
    better = {"rouge1": ScoreValues(np.array([0.6, 0.8]))}
    assert gains({"base": flat, "full": flat, "lora": better}, Scoring().main) == {
        "full": 0,
        "lora": pytest.approx(0.2),
        "lora_share_of_full": None,
    }


def test_a_dialogues_score_is_the_mean_over_its_references_and_then_over_the_seeds():
    two = [row(0, "a b", "a b", "a c")]  # 1 and 1/2
    other = [row(0, "a c", "a b", "a c")]
    third = [row(0, "x", "a b", "a c")]
    assert scores_of(two)["rouge1"].by_example() == [pytest.approx(0.75)]
    assert scores_of(two, other, third)["rouge1"].by_example() == [pytest.approx(0.5)]


def test_one_run_is_its_own_record():
    one = record("lora")
    assert mean_result([one]) is one


def test_several_seeds_give_means_and_the_spread_over_seeds():
    runs = [
        record("lora", seed, rouge1=score, rouge1_best=score + 0.1, train_seconds=seconds)
        for seed, score, seconds in ((1, 0.2, 10.0), (2, 0.4, 20.0), (3, 0.6, 60.0))
    ]
    mean = mean_result(runs)
    assert mean["rouge1"] == pytest.approx(0.4)
    assert mean["rouge1_best"] == pytest.approx(0.5)
    assert mean["train_seconds"] == pytest.approx(30)
    assert mean["spread"]["rouge1"] == pytest.approx(0.2)  # sample deviation of 0.2, 0.4, 0.6
    assert mean["seeds"] == [1, 2, 3] and mean["runs"] == runs
    assert "rouge1_interval" not in mean and "log" not in mean  # one run's, and so not the mean's


def test_trivial_summaries_are_the_dialogues_first_lines():
    rows = [row(0, "", "tom we meet at ten")]
    assert trivial_scores(rows)["first line"]["rouge1"] == pytest.approx(1)
    assert trivial_scores(rows)["first three lines"]["rouge1"] == pytest.approx(
        2 * 5 / (9 + 5)
    )  # 9 words, 5 of them right


def test_a_book_in_one_line_has_trivial_scores_too() -> None:
    """Of 60,000 words and a summary of 450, ROUGE-L would need too long."""
    book = row(0, "", "it is so " * 150, dialogue="word and " * 30_000)
    assert trivial_scores([book])["first line"]["rougeL"] == 0


def test_samples_put_the_arms_side_by_side():
    first, second = samples({name: runs[0] for name, runs in ROWS.items()})
    assert {key: first[key] for key in ("id", "reference", "base", "full", "lora")} == {
        "id": "0",
        "reference": "tom meets anna",
        "base": "x",
        "full": "tom meets anna",
        "lora": "tom meets anna",
    }
    assert second["dialogue"].startswith("Tom: we meet")


def test_variants_are_compared_with_lora_in_score_and_with_the_base_in_time():
    records = {
        name: [record(name, eval_seconds=s)] for name, s in (("lora", 3.0), ("base", 2.0), ("full", 1.0))
    }
    summary = summary_of("methods", records)
    assert summary["order"] == ["lora", "base", "full"]
    assert summary["eval_ratio"] == {"lora": 1.5, "base": 1.0, "full": 0.5}
    against = summary["against_lora"]
    assert set(against) == {"base", "full"}
    assert against["full"]["difference"] == pytest.approx(1 / 6)
    assert against["base"]["difference"] == pytest.approx(1 / 3 - 5 / 6)
    low, high = summary["intervals"]["base"]["rouge1"]
    assert low <= 1 / 3 <= high


def test_a_lower_score_is_better_where_the_metric_says_so_and_words_are_the_tasks(tmp_path):
    file = tmp_path / "length.py"
    file.write_text(
        "label, higher_is_better = 'length', False\ndef per_example(p, r): return [len(x) for x in p]"
    )
    task = Task(source="ticket", target="reply", metrics=(str(file),), trivial="most frequent")
    scoring = Scoring(task)
    lengths = {"base": 9, "lora": 5, "full": 1}
    runs = {name: [[row(i, "x" * n, "yy" if i else "y") for i in range(12)]] for name, n in lengths.items()}
    scores = {name: mean_scores([measure_rows(of[0], scoring)]) for name, of in runs.items()}
    records = {
        name: [
            record(name, task=task.written(), length=float(n), n_examples=12, trainable_parameters=n, log=[])
        ]
        for name, n in lengths.items()
    }
    summary = summarize("comparison", records, runs, scores, scoring=scoring)
    assert summary["gains"] == {"full": 8, "lora": 4, "lora_share_of_full": 0.5}
    assert summary["trivial"] == {"most frequent reply": {"length": 2}}
    assert summary["paired_test"]["metric"] == "length" and summary["paired_test"]["difference"] == 4
    points = {name: {"r": n} for name, n in lengths.items()}
    swept = summarize("sweep", records, runs, scores, points, scoring)
    assert swept["best"] == swept["cheapest"] == "full"
    assert swept["series"][""]["plateau"] == swept["series"][""]["best"] == 1
    lines = comparison_lines(swept)
    assert lines[0][1] == "length (lower is better) [95 %]" and lines[1][1] == "9.000 [9.000, 9.000]"
    about = {"base_model": "tiny", "dtype": "float32", "device": "cpu"}
    variants = {name: of[0] | about for name, of in records.items()}
    notes = " ".join(comparison_notes(swept | {"variants": variants}))
    assert "length paired by ticket" in notes and "12 test ticket texts" in notes
    assert "dialogue" not in notes and "ROUGE" not in notes
