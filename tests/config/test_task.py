"""Tasks as values: what they set in a config, what is refused, and the tasks of the documentation."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.selection import slow_except

import lora_hf
from lora_hf.config import DataConfig, RunConfig
from lora_hf.config.load import load_config, resolved_yaml
from lora_hf.config.task import SUMMARIZATION, TASKS, Task, plural, task_of
from lora_hf.data.prompts import prompt_template
from lora_hf.errors import UserError
from lora_hf.evaluation.metrics import Scoring
from lora_hf.experiments.report import report
from lora_hf.run_records import read_predictions

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FILES = {
    "translation": [{"source": f"Guten Tag, {name}", "target": f"Good day, {name}"} for name in NAMES],
    "question_answering": [
        {"context": f"{name} is in Rome.", "question": f"Where is {name}?", "answers": {"text": ["Rome"]}}
        for name in NAMES
    ],
}  # fmt: skip
SMALL = ["training.max_steps=1", "training.per_device_train_batch_size=2", "data.max_train_samples=4",
         "data.max_eval_samples=2", "data.max_test_samples=3", "generation.max_new_tokens=4",
         "training.eval_strategy=steps", "training.eval_steps=1", "training.save_steps=1",
         "training.load_best_model_at_end=true", "training.save_strategy=steps"]  # fmt: skip


def documented(heading: str) -> dict[str, Any]:
    """Return the YAML below a heading of the page."""
    text = PAGE.split(f"# {heading}\n")[1].split("```yaml\n")[1].split("```")[0]
    return yaml.safe_load(text)


def test_no_task_is_summarization_and_changes_nothing() -> None:
    assert RunConfig().task == SUMMARIZATION and RunConfig(task="summarization").data == DataConfig()
    assert task_of({}) == SUMMARIZATION and SUMMARIZATION.score_names[0] == SUMMARIZATION.main == "rouge1"


@pytest.mark.parametrize("name", TASKS)
def test_a_task_sets_columns_and_prompt_where_the_config_does_not(name: str) -> None:
    config, task = load_config({"task": name}), TASKS[name]
    assert (config.data.dialogue_column, config.data.summary_column) == (
        task.source_column,
        task.target_column,
    )
    assert "{dialogue}" in prompt_template(config.data.prompt)
    own = load_config({"task": name, "data": {"dialogue_column": "a", "prompt": "{source}!"}})
    assert (own.data.dialogue_column, own.data.summary_column) == ("a", task.target_column)
    assert load_config({"task": name}, ["data.summary_column=b"]).data.summary_column == "b"
    assert load_config(yaml.safe_load(resolved_yaml(config))) == config
    assert task_of({"task": task.written()}) == task and isinstance(task.written(), str)
    assert RunConfig(task=name, data=DataConfig(id_column="n")).data.prompt == task.prompt  # type: ignore[arg-type]


def test_a_multilingual_model_is_asked_by_its_languages() -> None:
    data = {"source_language": "deu_Latn", "target_language": "eng_Latn"}
    assert load_config({"task": "translation", "data": data}).data.prompt == "plain"


def test_a_task_of_the_users_own_is_a_mapping_and_its_scores_can_choose_the_best_checkpoint() -> None:
    fields = documented("A task of your own")
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "metric_for_best_model": "exact_match"}
    config = load_config(fields | {"training": best})
    assert config.task.main == "rougeL" and config.data.summary_column == "reply"
    assert load_config(yaml.safe_load(resolved_yaml(config))) == config
    assert task_of({"task": config.task.written()}) == config.task and config.task.name is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": "translatoin"}, "task='translatoin' is not one of.*Did you mean 'translation'"),
        ({"task": {"metrics": ["blue"]}}, "holds 'blue', which is neither a metric.*Did you mean 'bleu'"),
        ({"task": {"metrics": ["bleu"], "main_metric": "f1"}}, "task.main_metric='f1' is not one of bleu"),
        ({"task": {"sorce": "x"}}, "unknown key 'task.sorce'.*did you mean 'task.source'"),
        ({"task": {"prompt": "x"}}, "task.prompt='x' is neither a shipped prompt"),
        ({"task": {"metrics": []}}, "task.metrics"),
        ({"task": "classification", "training": {"metric_for_best_model": "rouge1"}},
         "metric_for_best_model='rouge1' is not one of loss, accuracy, macro_f1, words"),
    ],
)  # fmt: skip
def test_a_wrong_task_is_one_error(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(fields)


def test_a_metric_that_is_named_twice_counts_once() -> None:
    assert Task.model_validate({"metrics": ["rouge", "bleu", "rouge"]}).metrics == ("rouge", "bleu")
    assert task_of({"task": TASKS["summarization"].model_dump() | {"metrics": ["rouge"] * 2}}).name


def test_plurals_of_the_words() -> None:
    words = {
        "dialogue": "dialogues",
        "summary": "summaries",
        "class": "classes",
        "reply": "replies",
        "day": "days",
    }
    assert {word: plural(word) for word in words} == words
    assert Task(source="question", target="summary").sources == "questions"
    own = Task(source="Frage", target="ticket")  # in any language, whose plural is not known
    assert (own.sources, own.targets) == ("Frage texts", "ticket texts")


@pytest.mark.parametrize(
    ("heading", "package"),
    slow_except(
        [("Classification", "")],
        [("Translation", "sacrebleu"), ("Question answering", ""), ("Classification", "")],
        versions=True,
    ),
)
def test_the_examples_of_the_page_train_the_embedded_model(
    heading: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    fields = documented(heading)
    task = TASKS[fields["task"]]
    if rows := FILES.get(fields["task"]):
        Path(fields["data"]["dataset_name"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = lora_hf.train(fields | {"output_dir": "run"}, SMALL)
    assert result["task"] == fields["task"] and {*task.score_names} <= result.keys()
    assert 0 <= result[task.main] <= 100 and f"{task.main}_interval" in result
    log = result["log"]
    assert any(f"eval_{task.main}" in entry for entry in log) and result["best_metric"] is not None
    assert {row["version"] for row in read_predictions(Path("run"))} == {3}
    page = report(Path("run"))[2].read_text(encoding="utf-8")
    assert f"{task.source.capitalize()} by {task.source}" in page and f"of trivial {task.targets}" in page
    assert "ROUGE" not in page and "dialogue by" not in page


def test_the_python_of_the_page_runs_and_its_own_metric_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    call, own = (block.split("```")[0] for block in PAGE.split("```python\n")[1:3])
    exec(call, {})
    assert float(capsys.readouterr().out) == pytest.approx(100 * 2 / 3)  # one of its two words
    Path("brevity.py").write_text(own)
    task = load_config(documented("A metric of your own")).task
    assert [score.label for score in Scoring(task).scores][-1] == "short outputs"
    assert lora_hf.score(["a", "b" * 90], ["a", "b"], task.metrics)["brevity"] == 0.5  # type: ignore
