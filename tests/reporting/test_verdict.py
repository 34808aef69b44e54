"""The verdict of a report in words: what differs significantly, and from what."""

from typing import Any

import pytest
from support.records import make_comparison

from lora_hf.reporting.tables import with_interval
from lora_hf.reporting.verdict import difference_words, verdict
from lora_hf.run_records import PairedRecord
from lora_hf.scores import METRICS, Score

ROUGE1 = METRICS["rouge"][0]
TER = METRICS["ter"][0]


def paired(difference: float, low: float, high: float, p: float, n: int = 40) -> PairedRecord:
    return {"metric": "rouge1", "difference": difference, "interval": [low, high], "p_value": p, "n": n}


@pytest.mark.parametrize(
    ("score", "test", "tests", "expected"),
    [
        (
            ROUGE1,
            paired(0.006, -0.028, 0.039, 0.71),
            1,
            "LoRA vs full: +0.006 ROUGE-1, 95 % CI -0.028 to +0.039, p = 0.71: no significant difference",
        ),
        (
            ROUGE1,
            paired(-0.05, -0.07, -0.03, 1 / 10_001),
            1,
            "LoRA vs full: -0.050 ROUGE-1, 95 % CI -0.070 to -0.030, p = 0.0001: LoRA is significantly worse",
        ),
        (
            TER,
            paired(-5, -7, -3, 0.02),
            1,
            "LoRA vs full: -5.0 TER, 95 % CI -7.0 to -3.0, p = 0.02: LoRA is significantly better",
        ),
        (
            ROUGE1,
            paired(0.05, 0.01, 0.07, 0.02),
            4,
            "LoRA vs full: +0.050 ROUGE-1, 95 % CI +0.010 to +0.070, p = 0.02: no significant difference",
        ),
        (
            ROUGE1,
            paired(0.1, 0.01, 0.2, 0.25, 3),
            1,
            "LoRA vs full: +0.100 ROUGE-1, 95 % CI +0.010 to +0.200, p = 0.25: 3 examples are too few to "
            "find a significant difference",
        ),
    ],
    ids=["none", "worse", "lower is better", "one of four tests", "three examples"],
)
def test_a_difference_is_given_with_its_interval_and_in_words(
    score: Score, test: PairedRecord, tests: int, expected: str
) -> None:
    assert difference_words("LoRA", "full", test, score, tests) == expected


def test_an_interval_stands_beside_its_value() -> None:
    assert with_interval(ROUGE1, 0.7756, [0.7441, 0.8067]) == "0.776 [0.744, 0.807]"
    assert with_interval(TER, 50.26, [40, 60]) == "50.3 [40.0, 60.0]"


def test_a_comparison_gives_no_share_of_a_gain_that_does_not_differ() -> None:
    compared: Any = make_comparison()
    assert verdict(compared) == [
        "LoRA vs full: -0.050 ROUGE-1, 95 % CI -0.070 to -0.030, p = 0.00012: LoRA is significantly worse",
        "LoRA trains 1.40% of the weights and reaches 75% of full fine-tuning's gain over the base",
    ]
    compared["paired_test"]["p_value"] = 0.4
    assert verdict(compared)[1] == "LoRA trains 1.40% of the weights"
    compared["against_base"] = {
        "full": paired(0.2, 0.1, 0.3, 0.0001),
        "lora": paired(0.15, 0.1, 0.2, 0.0001),
    }
    assert verdict(compared)[1].startswith("LoRA vs base: +0.150 ROUGE-1, 95 % CI +0.100 to +0.200, p = ")
    assert len([line for line in verdict(compared) if "vs base" in line]) == 2


def test_a_comparison_says_that_both_lose_to_the_best_trivial_output() -> None:
    compared: Any = make_comparison()
    for score, loses in ((0.39, False), (0.4, False), (0.41, True)):  # full has 0.4, LoRA 0.35
        compared["trivial"]["first three lines"] = dict.fromkeys(compared["trivial"]["first line"], score)
        line = f"The best trivial summary (first three lines) scores {score:.3f}, better than LoRA and full"
        assert (verdict(compared)[1] == line) is loses
        assert (len(verdict(compared)) == 3) is loses


def test_a_comparison_says_what_each_keeps_of_the_base() -> None:
    compared: Any = make_comparison()
    compared["retention"] = {"place": {"base": {"kept": 1}, "lora": {"kept": 0.98}, "full": {"kept": 0.9}}}
    assert verdict(compared)[-1] == (
        "On 1 task that was not trained, LoRA keeps 98% of the base's score, full fine-tuning 90%"
    )


def test_a_single_run_stands_beside_the_best_trivial_output() -> None:
    compared: Any = make_comparison()
    compared["arms"] = {"lora": compared["arms"]["lora"]}
    del compared["gains"], compared["paired_test"]
    assert verdict(compared) == [
        "LoRA: ROUGE-1 0.350 [0.320, 0.370] on 1,500 test dialogues",
        "The best trivial summary (first line) scores 0.150",
        "LoRA trains 1.40% of the weights",
    ]
    compared["trivial"]["first line"] = dict.fromkeys(compared["trivial"]["first line"], 0.4)
    assert verdict(compared)[1] == "The best trivial summary (first line) scores 0.400, better than LoRA"


def test_methods_are_grouped_by_what_differs_from_lora() -> None:
    arms: Any = make_comparison()
    arms["variants"] = arms["arms"] | {"dora": arms["arms"]["lora"] | {"rouge1": 0.36}}
    arms["intervals"]["dora"] = {"rouge1": [0.33, 0.38]}
    study = {key: arms[key] for key in ("variants", "intervals")} | {
        "order": ["base", "lora", "full", "dora"],
        "against_lora": {
            "base": paired(-0.15, -0.2, -0.1, 0.0001),
            "full": paired(0.05, 0.01, 0.09, 0.03),  # not significant as one of three tests
            "dora": paired(0.01, -0.01, 0.03, 0.4),
        },
    }
    lines = verdict(study)  # type: ignore[arg-type]
    assert lines[:2] == [
        "Significantly worse than lora: base; no significant difference from lora: full, dora",
        "Highest ROUGE-1: full, 0.400 [0.370, 0.420]; lora has 0.350 [0.320, 0.370]",
    ]
    assert lines[2] == "3 tests against lora, paired by dialogue, each at p < 0.05 / 3 (Bonferroni)"


def test_a_sweep_says_what_is_enough() -> None:
    arms: Any = make_comparison()
    study: Any = {"variants": arms["arms"], "intervals": arms["intervals"], "axis": "lora.r"}
    study["variants"] = {
        "base": arms["arms"]["base"],
        "r-4": arms["arms"]["lora"],
        "r-8": arms["arms"]["full"],
    }
    study["intervals"] |= {"r-4": study["intervals"]["lora"], "r-8": study["intervals"]["full"]}
    study |= {"order": list(study["variants"]), "best": "r-8", "cheapest": "r-4"}
    study["series"] = {"": {"runs": ["r-4", "r-8"], "values": [4, 8], "plateau": 4, "best": 8}}
    assert verdict(study) == [
        "Highest ROUGE-1: r-8, 0.400 [0.370, 0.420]; base has 0.200 [0.180, 0.230]",
        "No value of lora.r above 4 is significantly better",
        "r-4 is within the interval of r-8 and trains 1.4% of its weights",
    ]
    study["cheapest"], study["series"][""]["plateau"] = "r-8", 8
    assert verdict(study)[1:] == [
        "Each value of lora.r before 8 is significantly worse than a larger one",
        "No run that trains fewer weights is within its interval",
    ]
