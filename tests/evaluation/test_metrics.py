"""The metrics of the registry: parity with independent references, numbers by hand, intervals and tests."""

import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from support.selection import slow_except

from lora_hf import score
from lora_hf.config.task import TASKS
from lora_hf.errors import UserError
from lora_hf.evaluation.metrics import CHECKS, COMPUTED, Scoring, own, scoring_by
from lora_hf.evaluation.metrics.values import mean_of
from lora_hf.evaluation.rouge import score_dialogues
from lora_hf.evaluation.significance import bootstrap_interval
from lora_hf.scores import METRICS

MADE = [
    "the cat sat on the mat",
    "a dog",
    "he leaves on Monday, I think",
    "no way",
    "",
    "Anna buys bread",
] * 4
TRUE = [
    ["the cat sat on a mat", "a cat is sitting on the mat"],
    ["the dog barks"],
    ["He leaves on Monday."],
    ["no way"],
    ["nothing at all"],
    ["Anna is buying bread", "Anna buys some bread", "she buys bread"],
] * 4
ONE = [texts[:1] for texts in TRUE]
FIRST = [texts[0] for texts in TRUE]
CLOSER = [*FIRST[:12], *MADE[12:]]
"""Another system's outputs: half of them are the references."""


def streams():
    return [[texts[i] if i < len(texts) else None for texts in TRUE] for i in range(3)]


def installed(name):
    """Skip if the optional package of a metric is missing."""
    package = {"bleu": "sacrebleu", "chrf": "sacrebleu", "ter": "sacrebleu", "cer": "jiwer", "wer": "jiwer"}
    if name in package:
        pytest.importorskip(package[name])
    return name


def test_every_metric_of_the_registry_has_its_function_and_every_score_its_own_name():
    assert COMPUTED.keys() == METRICS.keys() and CHECKS.keys() <= METRICS.keys()
    names = [one.name for scores in METRICS.values() for one in scores]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_gives_its_scores_best_for_the_references_and_intervals_around_them(name):
    scoring = scoring_by([installed(name)])
    perfect, made = scoring.measure(FIRST, ONE), scoring.measure(MADE, TRUE)
    for one in METRICS[name]:
        ideal = one.scale if one.higher_is_better else 0
        assert perfect.scores[one.name].value == pytest.approx(ideal)
        values = made.scores[one.name]
        assert one.sign * values.value < one.sign * ideal
        low, high = values.interval()
        assert low <= values.value <= high and len(values.by_example()) == len(MADE)
        better = scoring.measure(CLOSER, TRUE).scores[one.name].against(values)
        assert one.sign * better.difference > 0 and better.p_value < 0.05
        assert better.interval[0] < better.difference < better.interval[1]
        same = values.against(values)
        assert same.p_value == 1 and same.difference == 0
        assert mean_of([values, values]).value == pytest.approx(values.value)


@pytest.mark.parametrize(("name", "kind"), [("bleu", "BLEU"), ("chrf", "CHRF"), ("ter", "TER")])
def test_corpus_scores_and_signatures_are_those_of_sacrebleu(name, kind):
    metrics = pytest.importorskip("sacrebleu.metrics")
    for references, columns in ((ONE, [FIRST]), (TRUE, streams())):
        theirs = getattr(metrics, kind)()
        expected = theirs.corpus_score(MADE, columns).score
        record = score(MADE, references, name)
        assert record[name] == pytest.approx(expected, abs=1e-9)
        assert record[f"{name}_signature"] == str(theirs.get_signature())


def test_bleu_divides_chinese_as_sacrebleu_does_for_chinese():
    pytest.importorskip("sacrebleu")
    made, true = ["安娜明天去北京。"] * 3, [["安娜明天来北京。"]] * 3
    by_script, by_code = score(made, true, "bleu"), score(made, true, "bleu", language="zho_Hans")
    assert by_script == by_code and "tok:zh" in by_script["bleu_signature"]
    assert by_script["bleu"] > 40


SPACELESS = {
    "th": ("ฉันชอบอ่านหนังสือทุกวัน", "ฉันชอบอ่านหนังสือทุกคืน"),
    "lo": ("ຂ້ອຍຮັກເຈົ້າຫຼາຍ", "ຂ້ອຍຮັກເຈົ້າແທ້"),
    "km": ("ខ្ញុំស្រលាញ់អ្នកណាស់", "ខ្ញុំស្រលាញ់អ្នកមែន"),
    "my": ("ကျွန်တော်စာဖတ်သည်", "ကျွန်တော်စာရေးသည်"),
    "zh": ("我喜欢每天晚上看书。", "我喜欢每天早上看书。"),
    "ja": ("私は本を読むのが好きです。", "私は本を書くのが好きです。"),
}


def test_references_that_have_no_word_for_rouge_are_counted(caplog):
    found = score(["😀🎉", "yes", "..."], [["😀🎉"], ["yes"], ["...", "so"]], "rouge")
    assert found["rouge1"] == pytest.approx(1 / 3)
    assert found["rouge_note"].startswith("2 of 3 examples have references without letters or digits")
    assert found["rouge_note"] in caplog.text
    assert "rouge_note" not in score(["7", "да"], [["7"], ["да"]], "rouge")


def test_the_bleu_of_korean_is_the_same_with_and_without_its_code():
    pytest.importorskip("sacrebleu")
    made, true = ["안나는 내일 북경에 갑니다."], [["안나는 내일 북경에 옵니다."]]
    by_script = score(made, true, "bleu")
    assert by_script == score(made, true, "bleu", language="kor_Hang") and by_script["bleu"] > 40
    assert "tok:13a" in score(["he met 안나"], [["he met 안나 today"]], "bleu")["bleu_signature"]


@pytest.mark.parametrize("code", slow_except(["th", "zh"], SPACELESS, versions=True))
def test_scripts_without_spaces_are_not_scored_as_one_word(code):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("jiwer")
    made, true = SPACELESS[code]
    by_script = score([made], [[true]], ["bleu", "ter", "wer", "squad"])
    assert by_script["bleu"] > 40 and by_script["mean_words"] > 5 and by_script["f1"] > 50
    assert "wer_note" in by_script and "use cer" in by_script["wer_note"]
    assert score([made], [[true]], "bleu", language=code)["bleu"] == by_script["bleu"]
    if code in ("zh", "ja"):
        assert by_script["ter"] < 30 and "asian:yes" in by_script["ter_signature"]
    else:
        assert "use cer" in by_script["ter_note"]
    english = score(["he met 李明"], [["he met 李明 today"]], ["wer", "ter"])
    assert not [name for name in english if name.endswith("_note")]


@pytest.mark.parametrize(
    ("made", "true", "exact"),
    [
        ("北京。", "北京", 100),
        ("«Москва»", "Москва", 100),
        ("¿Madrid?", "Madrid", 100),
        ("caf\u00e9", "cafe\u0301", 100),
    ]
    + [("“Paris”", "Paris", 0), ("Łódź — “tak”", "Łódź tak", 100)],
)
def test_punctuation_of_all_scripts_is_no_part_of_an_answer(made, true, exact):
    # of English texts the official script keeps curly quotes
    assert score([made], [[true]], "squad")["exact_match"] == exact


@pytest.mark.parametrize("name", ["cer", "wer"])
def test_error_rates_are_those_of_jiwer(name):
    jiwer = pytest.importorskip("jiwer")
    assert score(MADE, ONE, name)[name] == pytest.approx(getattr(jiwer, name)(FIRST, MADE))
    # of two references the nearer one counts: 1 edit; the second has 3, of words and of characters
    assert (
        score(["ab cde x", "ab"], [["x y", "ab cde f"], ["a b c"]], name)[name]
        == {
            "wer": pytest.approx((1 + 3) / (3 + 3)),
            "cer": pytest.approx((1 + 3) / (8 + 5)),
        }[name]
    )


@pytest.mark.parametrize("name", ["cer", "wer"])
def test_an_empty_reference_adds_its_edits_and_only_empty_ones_have_no_rate(name):
    pytest.importorskip("jiwer")
    record = score(["a", "b c", ""], [[""], ["b c"], ["", "x"]], name)
    assert record[name] == pytest.approx({"cer": 1 / 3, "wer": 1 / 2}[name])
    with pytest.raises(UserError, match=f"{name}: all references are empty"):
        score(["a", ""], [[""], [""]], name)


def test_answers_are_scored_as_by_the_official_script_of_squad():
    evaluate = pytest.importorskip("evaluate")
    assert evaluate is not None
    record = score(
        ["The Cat!", "in 1990", "dog", ""], [["a cat"], ["1990", "the year 1990"], ["cat"], ["x"]], "squad"
    )
    # F1 of "in 1990": 2/3 with "1990", and with "year 1990" 1/2
    assert record["exact_match"] == 25 and record["f1"] == pytest.approx(100 * (1 + 2 / 3) / 4)


def test_accuracy_and_macro_f1_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    true = ["pos", "neg", "neutral", "pos", "neg", "pos"]
    made = ["pos", "neg ", "pos", "other", "pos", "pos"]
    record = score(made, true, ["accuracy", "macro_f1"])
    texts = [text.strip() for text in made]
    assert record["accuracy"] == pytest.approx(metrics.accuracy_score(true, texts))
    expected = metrics.f1_score(true, texts, labels=sorted({*true}), average="macro", zero_division=0)
    assert record["macro_f1"] == pytest.approx(expected)
    assert score(["b"], [["a", "b"]], "macro_f1")["macro_f1"] == 1  # one of several references is met


def test_rouge_by_the_registry_is_rouge_to_the_bit():
    measured, known = Scoring().measure(MADE, TRUE), score_dialogues(MADE, TRUE)
    for name, values in known.mean.items():
        assert measured.scores[name].value == float(np.mean(values))
        assert measured.scores[name].interval() == list(bootstrap_interval(values))
        assert measured.best[name].by_example() == known.best[name]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_scores_do_not_depend_on_how_line_ends_are_written(end):
    scoring = scoring_by(["rouge", "accuracy"])
    made, true = ["Anna calls.\nTom waits.", "yes\nno"], [["Tom waits.\nAnna calls."], ["yes\nno"]]
    ends = [[text.replace("\n", end) for text in texts] for texts in true]
    unix, other = scoring.measure(made, true), scoring.measure(made, ends)
    for name, values in unix.scores.items():
        assert other.scores[name].value == values.value, name


def test_english_words_are_no_measure_of_an_output_in_another_script():
    record = score(["hello я не знаю", "he walks", "they sing"], ["hello", "he is walking", "all sing"])
    assert record["rouge_tokenizer"].startswith("english") and record["rouge_unicode_examples"] == 1
    assert "rouge_unicode_examples" not in score(["hello"], ["hello"])


def test_names_of_metrics_may_be_one_text_by_commas():
    assert score(["a"], ["a"], "accuracy, squad") == score(["a"], ["a"], ["accuracy", "squad"])


def test_the_language_chooses_the_stemmer():
    made, true = ["die Häuser"], [["das Haus"]]
    assert score(made, true, language="de")["rouge_tokenizer"] == "unicode, german stems"
    assert score(made, true, language="german") == score(made, true, language="de")
    english = ["he walks"], ["he walked"]
    assert score(*english, language="English") == score(*english, language="en") == score(*english)
    for wrong, near in (("klingon", ""), ("xq", ""), ("germn", "Did you mean 'german'")):
        with pytest.raises(UserError, match=f"language='{wrong}' is neither .*{near}"):
            score(made, true, language=wrong)


def test_a_file_of_the_users_own_is_a_metric_with_a_mean_or_with_sums(tmp_path):
    mean = tmp_path / "short.py"
    mean.write_text(
        "label = 'short'\nhigher_is_better = False\ndef per_example(p, r): return [len(x) for x in p]"
    )
    record = score(["a", "bbb"], [["x"], ["y"]], [str(mean), "accuracy"])
    assert record["short"] == 2 and record["accuracy"] == 0 and record["short_interval"] == [1, 3]
    scoring = scoring_by([str(mean)])
    assert scoring.main.label == "short" and not scoring.main.higher_is_better
    ratio = tmp_path / "ratio.py"
    ratio.write_text(
        "def per_example(p, r): return [(len(x), len(y[0])) for x, y in zip(p, r)]\n"
        "def aggregate(sums): return sums[0] / sums[1]"
    )
    assert score(["a", "bbb"], [["xx"], ["yyyyyy"]], str(ratio))["ratio"] == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "no function per_example"),
        ("import nothing_there", "ModuleNotFoundError"),
        ("def per_example(p, r): return [1.0]", r"one number for each of the 2 predictions; .* \(1,\)"),
        ("def per_example(p, r): return [float('nan')] * 2", "not a finite number"),
        ("def per_example(p, r): raise KeyError('a')", "per_example failed: KeyError"),
        (
            "def per_example(p, r): return [[1, 0]] * 2\ndef aggregate(s): return s[0] / s[1]",
            "aggregate of the sums of all examples returned inf, which is not a finite number",
        ),
        (
            "def per_example(p, r): return [[1, 0], [1, 2]]\ndef aggregate(s): return int(s[0]) / int(s[1])",
            "aggregate of one example's statistics failed: ZeroDivisionError",
        ),
        (
            "def per_example(p, r): return [[1], [2]]\ndef aggregate(s): return 'x'",
            "aggregate of the sums of all examples failed: ValueError",
        ),
        ("scale = 7\ndef per_example(p, r): return [1, 2]", "scale=7 must be 1 or 100"),
    ],
)
def test_a_file_that_is_no_metric_is_one_error(tmp_path, text, words):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        score(["a", "b"], ["a", "b"], str(file))


def test_a_metric_of_the_users_own_cannot_change_the_texts_and_is_read_again_when_it_changes(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def per_example(p, r):\n    p.sort()\n    r[0].clear()\n    return [1] * 2")
    made, true = ["b", "a"], [["b"], ["a"]]
    record = score(made, true, [str(file), "accuracy"])
    assert record["accuracy"] == record["mine"] == 1 and (made, true) == (["b", "a"], [["b"], ["a"]])
    file.write_text("def per_example(p, r):\n    p.sort()\n    r[0].clear()\n    return [2] * 2")
    assert score(made, true, [str(file)])["mine"] == 2


LENGTH = """
import datasets
import evaluate

class Length(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"f1": [len(p) / len(r) for p, r in zip(predictions, references)]}
"""


def test_a_metric_of_evaluate_in_a_folder_is_called_by_a_file_as_the_page_shows(tmp_path, monkeypatch):
    (tmp_path / "metrics/bertscore").mkdir(parents=True)
    (tmp_path / "metrics/bertscore/bertscore.py").write_text(LENGTH)
    page = (Path(__file__).parents[2] / "docs/tasks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import evaluate\n.*?)```", page, re.DOTALL)
    (tmp_path / "bert.py").write_text(code.replace(', lang="en"', ""))
    monkeypatch.chdir(tmp_path)
    assert score(["abc", "a"], [["abcdef"], ["ab"]], metrics="bert.py")["bert"] == 0.5
    with pytest.raises(UserError, match="'bertscore' is neither .* download the code .*: name a Python file"):
        score(["a"], [["a"]], metrics="bertscore")


@pytest.mark.parametrize(
    ("name", "metric"), [("ROUGE", "rouge"), ("rougeL", "rouge"), ("F1", "squad"), ("exact match", "squad")]
)
def test_a_metric_by_the_name_of_a_score_is_answered_with_the_metric(name: str, metric: str) -> None:
    with pytest.raises(UserError, match=rf"nor a Python file\. Did you mean '{metric}'\?"):
        score(["a"], [["a"]], metrics=name)


def test_two_metrics_with_a_score_of_one_name_are_refused_and_one_named_twice_counts_once(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        for name in ("own", "f1"):
            file = tmp_path / place / f"{name}.py"
            file.write_text(
                "def per_example(predictions, references):\n    return [1.0] * len(predictions)\n"
            )
    first, second, f1 = (str(tmp_path / name) for name in ("a/own.py", "b/own.py", "a/f1.py"))
    for metrics, name in (([first, second], "own"), ([f1, "squad"], "f1")):
        with pytest.raises(UserError, match=f"give two scores of the name '{name}': rename a Python file"):
            score(["a"], [["a"]], metrics=metrics)
    assert score(["a b"], [["a c"]], metrics="rouge,rouge") == score(["a b"], [["a c"]])


@pytest.mark.parametrize(
    "name", ["loss", "steps", "seed", "mean_words", "n_examples", "own_best", "a_interval"]
)
def test_a_metric_with_the_name_of_another_entry_is_refused(name: str, tmp_path: Path) -> None:
    """It would take the place of that entry, or that entry its own."""
    file = tmp_path / f"{name}.py"
    file.write_text("def per_example(predictions, references):\n    return [1.0] * len(predictions)\n")
    with pytest.raises(
        UserError, match=f"would be '{name}', which is another entry of results: rename the file"
    ):
        score(["a"], [["a"]], metrics=[str(file)])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import sys; sys.exit(3)", "per_example failed: SystemExit: 3"),
        ("return [1j] * len(predictions)", "it returned complex numbers"),
    ],
)
def test_a_metric_that_ends_the_program_or_counts_with_i_is_one_error(
    body: str, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    file.write_text(f"def per_example(predictions, references):\n    {body}\n")
    with pytest.raises(UserError, match=says):
        score(["a"], [["a"]], metrics=[str(file)])
    file.write_text("higher_is_better = 'no'\ndef per_example(predictions, references):\n    return [1.0]\n")
    with pytest.raises(UserError, match="higher_is_better='no' must be True or False"):
        score(["a"], [["a"]], metrics=[str(file)])


def test_code_from_the_hubs_cache_and_unknown_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "HF_HUB_CACHE", str(tmp_path))
    file = tmp_path / "models--a--b" / "mine.py"
    file.parent.mkdir()
    file.write_text("raise SystemExit('was run')")
    with pytest.raises(UserError, match="code from the Hub is not run"):
        score(["a"], ["a"], str(file))
    with pytest.raises(UserError, match="there is no such file"):
        score(["a"], ["a"], "missing.py")
    with pytest.raises(UserError, match="'blue' is neither .* Did you mean 'bleu'"):
        score(["a"], ["a"], "blue")
    assert constants.HF_HUB_CACHE


def test_a_missing_package_is_one_error_with_the_command_that_installs_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(UserError, match=r"needs the package jiwer .*pip install 'lora_hf\[metrics\]'"):
        Scoring(TASKS["text_to_text"].model_copy(update={"metrics": ("wer",)})).check()
