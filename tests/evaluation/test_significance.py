"""Intervals and the paired test: laws, exact enumeration, textbook limits, the published comparison."""

import csv
from itertools import product

import numpy as np
import pytest
from support.inputs import shared_data

from lora_hf.evaluation import significance
from lora_hf.evaluation.significance import bootstrap_interval, paired_test

FILE = "dialogue-summary-training-results.csv"

VALUES = np.random.default_rng(7).beta(2, 3, size=200).tolist()
OTHER = np.random.default_rng(8).beta(2, 3, size=200).tolist()


def test_the_interval_holds_the_mean_and_widens_with_confidence():
    low, high = bootstrap_interval(VALUES)
    wide_low, wide_high = bootstrap_interval(VALUES, confidence=0.99)
    assert wide_low < low < np.mean(VALUES) < high < wide_high


def test_the_interval_is_the_normal_one_where_there_are_many_values():
    error = 1.959964 * np.std(VALUES) / np.sqrt(len(VALUES))
    low, high = bootstrap_interval(VALUES, resamples=40_000)
    assert low == pytest.approx(np.mean(VALUES) - error, abs=0.05 * error)
    assert high == pytest.approx(np.mean(VALUES) + error, abs=0.05 * error)


@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.0), (1.0, -0.3), (0.5, 10.0)])
def test_the_interval_moves_with_its_values(scale, shift):
    low, high = bootstrap_interval(VALUES)
    moved = bootstrap_interval([scale * value + shift for value in VALUES])
    assert moved == pytest.approx((scale * low + shift, scale * high + shift))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(400):
        low, high = bootstrap_interval(rng.random(50), resamples=500, seed=trial)
        hits += low <= 0.5 <= high
    assert 0.90 < hits / 400 < 0.98  # 95 %, give or take four standard errors and the bootstrap's own bias


def test_results_depend_on_the_seed_and_not_on_the_chunk_size(monkeypatch):
    interval, test = bootstrap_interval(VALUES, seed=1), paired_test(VALUES, OTHER, seed=1)
    assert bootstrap_interval(VALUES, seed=1) == interval
    assert bootstrap_interval(VALUES, seed=2) != interval
    monkeypatch.setattr(significance, "_DRAWS_AT_ONCE", 777)
    assert bootstrap_interval(VALUES, seed=1) == interval
    assert paired_test(VALUES, OTHER, seed=1) == test


def test_one_dialogue_gives_a_point_and_no_evidence():
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    test = paired_test([0.75], [0.5])
    assert (test.difference, test.interval, test.p_value, test.n) == (0.25, (0.25, 0.25), 1.0, 1)


def test_identical_systems_do_not_differ():
    test = paired_test(VALUES, list(VALUES))
    assert (test.difference, test.interval, test.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_exchanging_the_systems_flips_the_sign_only():
    ab, ba = paired_test(VALUES, OTHER), paired_test(OTHER, VALUES)
    assert ba.difference == -ab.difference
    assert ba.p_value == ab.p_value
    assert ba.interval == pytest.approx((-ab.interval[1], -ab.interval[0]), abs=2e-3)


def test_p_is_that_of_all_sign_patterns():
    delta = np.array([0.3, 0.1, -0.05, 0.2, 0.15, -0.1, 0.25, 0.05, 0.4, -0.2])
    means = np.array([np.mean(delta * signs) for signs in product((-1, 1), repeat=len(delta))])
    exact = np.mean(np.abs(means) >= abs(delta.mean()) - 1e-12)
    p = paired_test(delta, np.zeros(10), resamples=50_000).p_value
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 50_000))


def test_p_is_uniform_where_nothing_differs_and_small_where_all_does():
    rng = np.random.default_rng(0)
    ps = [paired_test(rng.random(30), rng.random(30), resamples=200).p_value for _ in range(400)]
    assert np.mean(np.array(ps) <= 0.05) < 0.09
    assert 0.44 < np.mean(ps) < 0.56
    assert paired_test(np.full(30, 0.6), np.full(30, 0.5), resamples=999).p_value == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap_interval([]), "one value per example"),
        (lambda: bootstrap_interval([[0.1], [0.2]]), r"shape is \(2, 1\)"),
        (lambda: bootstrap_interval([0.1, float("nan")]), r"values\[1\] is not a finite number"),
        (lambda: bootstrap_interval([0.1], confidence=95), "confidence=95"),
        (lambda: bootstrap_interval([0.1], resamples=0), "resamples=0"),
        (lambda: paired_test([], []), "a must hold one value per example"),
        (lambda: paired_test([0.1], [0.1, 0.2]), "a has 1 values, b has 2"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.slow
def test_published_full_fine_tuning_is_significantly_better_than_lora():
    from lora_hf.evaluation.rouge import score_dialogues

    with (shared_data("flan_t5_predictions") / FILE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    references = [
        [row["human_baseline_summaries"] for row in rows[i : i + 3]] for i in range(0, len(rows), 3)
    ]
    full, lora = (
        score_dialogues([row[f"{model}_model_summaries"] for row in rows[::3]], references).mean["rouge1"]
        for model in ("instruct", "peft")
    )
    test = paired_test(full, lora)
    assert test.n == 500
    assert test.difference == pytest.approx(0.0133, abs=5e-5)
    assert test.interval == pytest.approx((0.006, 0.020), abs=1e-3)
    assert test.p_value < 0.005
