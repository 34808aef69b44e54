"""ROUGE: laws, parity with `rouge_score` as its authors run it, hand-computed numbers."""

import os
import subprocess
import sys
from statistics import fmean

import pytest
from rouge_score.rouge_scorer import RougeScorer

from lora_hf.evaluation.rouge import (
    ROUGE_NAMES,
    group_scores,
    rouge_per_pair,
    score_dialogues,
)
from lora_hf.evaluation.words import ENGLISH, RougeTokenizer

EN = RougeTokenizer(ENGLISH)
TEXTS = [
    "#Person1# asks Mr. Smith about the running shoes. He has none left.",
    "Mr. Smith runs out of shoes. #Person1# is disappointed and leaves at 5 p.m. on Monday.",
    "Tom!",
    "",
    "one line\nanother line. And a sentence",
]
PAIRS = [(prediction, reference) for prediction in TEXTS for reference in TEXTS]


def test_scores_equal_those_of_rouge_score_on_text_with_a_sentence_a_line():
    ours = rouge_per_pair([p for p, _ in PAIRS], [r for _, r in PAIRS])
    theirs = RougeScorer(list(ROUGE_NAMES), use_stemmer=True)
    for index, (prediction, reference) in enumerate(PAIRS):
        expected = theirs.score(EN.split_sentences(reference), EN.split_sentences(prediction))
        for name in ROUGE_NAMES:
            assert ours[name][index] == expected[name].fmeasure


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_splitting_sentences_touches_only_rouge_lsum(name):
    theirs = RougeScorer([name], use_stemmer=True)
    ours = rouge_per_pair([p for p, _ in PAIRS], [r for _, r in PAIRS])[name]
    assert ours == [theirs.score(reference, prediction)[name].fmeasure for prediction, reference in PAIRS]


@pytest.mark.parametrize("name", ROUGE_NAMES)
def test_a_text_scores_one_against_itself_and_every_score_is_symmetric_between_zero_and_one(name):
    def score(prediction, reference):
        return rouge_per_pair([prediction], [reference])[name][0]

    for text in TEXTS:
        words = len(text.split())
        assert score(text, text) == (1.0 if words > 1 or (words and name != "rouge2") else 0.0)
    for prediction, reference in PAIRS:
        assert 0 <= score(prediction, reference) <= 1
        if name != "rougeLsum":  # the union of longest common subsequences goes by reference sentence
            assert score(prediction, reference) == pytest.approx(score(reference, prediction))


def test_hand_computed_scores():
    # prediction: cat sat | dog ran (4 words); reference: dog ran far | cat sat (5); stems change nothing.
    scores = rouge_per_pair(["Cat sat. Dog ran."], ["Dog ran far. Cat sat."])
    assert scores["rouge1"] == [pytest.approx(2 * 4 / (4 + 5))]  # all four words
    assert scores["rouge2"] == [pytest.approx(2 * 2 / (3 + 4))]  # "cat sat" and "dog ran", not "sat dog"
    assert scores["rougeL"] == [pytest.approx(2 * 2 / (4 + 5))]  # in order only one of the two
    assert scores["rougeLsum"] == [pytest.approx(2 * 4 / (4 + 5))]  # sentence by sentence both


def test_the_stemmer_is_on():
    assert rouge_per_pair(["he was running"], ["he was runs"])["rouge1"] == [1.0]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Mr. Smith went home. He slept.", ["Mr. Smith went home.", "He slept."]),
        ("#Person1# asks Mrs. Lee. #Person2#'s late.", ["#Person1# asks Mrs. Lee.", "#Person2#'s late."]),
        ("They meet at 5 p.m. on Monday.", ["They meet at 5 p.m. on Monday."]),
        ("They meet at 5 p.m. He pays.", ["They meet at 5 p.m.", "He pays."]),
        ("J. Smith pays 3.50 in the U.S. market.", ["J. Smith pays 3.50 in the U.S. market."]),
        ("Ann met Dr. Who vs. St. John.", ["Ann met Dr. Who vs. St. John."]),
        ('Wait... what? Yes! "No." And so on', ["Wait... what?", "Yes!", '"No."', "And so on"]),
        ("first line\nsecond line. Third", ["first line", "second line.", "Third"]),
        ("  ", []),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text, sentences):
    assert EN.split_sentences(text).split("\n") == (sentences or [""])


@pytest.mark.parametrize(
    "text", [*TEXTS, "." * 5000, "a" * 20000, "the cat. " * 500, '"' * 5000, "\u2028 x. \x00 Y"]
)
def test_splitting_changes_white_space_only_and_is_idempotent(text):
    once = EN.split_sentences(text)
    assert "".join(once.split()) == "".join(text.split())
    assert EN.split_sentences(once) == once


def test_mean_and_best_over_references_agree_with_rouge_score():
    references = [TEXTS[1:2], TEXTS[:3], TEXTS]
    scores = score_dialogues([TEXTS[0]] * 3, references)
    theirs = RougeScorer(list(ROUGE_NAMES), use_stemmer=True)
    for name in ROUGE_NAMES:
        for index, texts in enumerate(references):
            rows = rouge_per_pair([TEXTS[0]] * len(texts), texts)[name]
            split = [EN.split_sentences(text) for text in texts]
            assert scores.mean[name][index] == pytest.approx(fmean(rows))
            best = theirs.score_multi(split, EN.split_sentences(TEXTS[0]))[name].fmeasure
            assert scores.best[name][index] == pytest.approx(best)


def test_with_one_reference_mean_best_and_pairs_are_the_same():
    scores = score_dialogues(TEXTS, [[text] for text in reversed(TEXTS)])
    assert scores.mean == scores.best == rouge_per_pair(TEXTS, TEXTS[::-1])


def test_groups_need_not_be_neighbours():
    scores = group_scores({"rouge1": [0.0, 0.5, 1.0]}, [[0, 2], [1]])
    assert scores.mean == {"rouge1": [0.5, 0.5]}
    assert scores.best == {"rouge1": [1.0, 0.5]}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: rouge_per_pair(["a"], []), ValueError, "1 predictions, but 0 references"),
        (
            lambda: rouge_per_pair(["a", None], ["a", "b"]),
            TypeError,
            r"predictions\[1\]=None is not a string",
        ),
        (lambda: score_dialogues(["a"], []), ValueError, "1 predictions, but references for 0"),
        (lambda: score_dialogues("a", [["a"]]), TypeError, "predictions is a string"),
        (lambda: score_dialogues(["a"], [[3]]), TypeError, r"references\[0\]=3 is not a string"),
        (lambda: score_dialogues(["a"], ["abc"]), TypeError, r"references\[0\] is a string"),
        (lambda: score_dialogues(["a", "b"], [["a"], []]), ValueError, r"references\[1\] is empty"),
    ],
)
def test_mistakes_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


class TestMetric:
    """`Rouge`, the `evaluate.Metric`."""

    @pytest.fixture
    def metric(self):
        from lora_hf.evaluation.hf_evaluate import Rouge

        return Rouge(cache_dir=os.devnull + "/cannot/be/made")

    def test_the_metric_equals_the_functions_and_accepts_strings_and_lists(self, metric):
        result = metric.compute(predictions=TEXTS[:2], references=[TEXTS[1], [TEXTS[0], TEXTS[2]]])
        scores = score_dialogues(TEXTS[:2], [[TEXTS[1]], [TEXTS[0], TEXTS[2]]])
        assert result == {name: pytest.approx(fmean(scores.mean[name])) for name in ROUGE_NAMES} | {
            f"{name}_best": pytest.approx(fmean(scores.best[name])) for name in ROUGE_NAMES
        }

    def test_there_is_no_best_score_if_every_row_has_one_reference(self, metric):
        assert tuple(metric.compute(predictions=["a b"], references=["a b"])) == ROUGE_NAMES

    def test_rows_can_be_added_one_by_one_or_in_batches_and_it_can_be_used_again(self, metric):
        whole = metric.compute(predictions=TEXTS[:3], references=TEXTS[1:4])
        metric.add(prediction=TEXTS[0], reference=TEXTS[1])
        metric.add_batch(predictions=TEXTS[1:3], references=[[TEXTS[2]], TEXTS[3]])
        assert metric.compute() == whole

    @pytest.mark.parametrize(
        ("predictions", "references"), [([], []), (["a"], [[]]), (["a"], ["a", "b"]), ([1], ["a"])]
    )
    def test_the_metric_refuses_invalid_rows(self, metric, predictions, references):
        with pytest.raises(ValueError):
            metric.compute(predictions=predictions, references=references)

    def test_the_metric_leaves_nothing_in_the_cache_by_default(self, tmp_path):
        from lora_hf.evaluation.hf_evaluate import Rouge

        Rouge(cache_dir=str(tmp_path / "a")).compute(predictions=["a"], references=["a"])
        assert not (tmp_path / "a").exists()
        on_disk = Rouge(cache_dir=str(tmp_path / "b"), keep_in_memory=False)
        assert on_disk.compute(predictions=["a"], references=["a"])["rouge1"] == 1.0
        assert (tmp_path / "b").exists()

    @pytest.mark.slow
    def test_the_metric_works_offline_without_a_writable_cache(self):
        code = (
            "import socket, sys; socket.socket.connect = None;"
            "sys.modules |= dict.fromkeys(('hqq', 'peft', 'sklearn'));"  # as if not installed: seconds
            "import lora_hf.evaluation.score_file; print('evaluate' in sys.modules);"
            "from lora_hf.evaluation.hf_evaluate import Rouge;"
            "print(Rouge().compute(predictions=['a b'], references=[['a b', 'c']])['rouge1'])"
        )
        nowhere = {
            "HF_HOME": os.devnull + "/hf",
            "HF_HUB_OFFLINE": "1",
            "HOME": os.devnull,
            "NLTK_DATA": os.devnull,
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | nowhere,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.returncode) == ("False\n0.5\n", 0), done.stderr
