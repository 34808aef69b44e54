"""The tasks: what is read and written, how it is asked for, and how the result is scored.

Everything that the package does with texts goes by these values: columns, prompt, metrics, and the words of
tables, pages and cards. A new task is one entry of `TASKS`, or a mapping in a YAML.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from lora_hf.config.types import Items, Section, Text
from lora_hf.data.prompts import prompt_template
from lora_hf.errors import counted, did_you_mean
from lora_hf.scores import METRICS, Score

TaskName = Literal["summarization", "translation", "question_answering", "classification", "text_to_text"]
Trivial = Literal["first lines", "source", "most frequent"]
SUFFIX = ".py"
"""A metric with this end is a Python file of the user's (`evaluation/metrics/own.py`)."""


def _check_metrics(value: Any) -> Any:
    """Accept one name for a list of one, and take a name that is given twice once."""
    if isinstance(value, str):
        return (value,)
    is_names = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    return tuple(dict.fromkeys(value)) if is_names else value


class Task(Section):
    """What is learned: the name of a task, or a mapping of these fields for one of your own.

    Known are summarization (the default), translation, question_answering, classification, text_to_text.
    """

    source: Text = "source"
    """Word for a text that the model reads, as reports show it: `dialogue`."""
    target: Text = "target"
    """Word for a text that the model writes, as reports show it: `summary`."""
    source_column: Text = "source"
    """Default of `data.dialogue_column`; `{context} {question}` joins several columns."""
    target_column: Text | Items[Text] = "target"
    """Default of `data.summary_column`."""
    prompt: Text = "{source}"
    """Default of `data.prompt`; with `data.target_language` the text alone is the default."""
    metrics: Annotated[Items[Text], BeforeValidator(_check_metrics), Field(min_length=1)] = ("chrf", "bleu")
    """Metrics by name (rouge, bleu, chrf, ter, squad, accuracy, macro_f1, cer, wer), or paths of Python files
    (docs/tasks.md)."""
    main_metric: Text | None = None
    """The score that decides which model is better: a score of `metrics`, such as rouge1; null takes the
    first."""
    title: Text = "Text to text"
    """The task as the model card calls it."""
    purpose: Text = "turning one text into another"
    """What the trained model is for, as the model card says it."""
    trivial: Trivial = "source"
    """What a comparison shows as trivial output: the first lines of the source, the source itself, or the
    most frequent reference."""
    hub_task: Text = "text-generation"
    """The task's name on the Hub, for the model card."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        try:
            prompt_template(self.prompt)
        except ValueError as error:
            raise _wrong("prompt", str(error)) from None
        for name in self.metrics:
            if name not in METRICS and not name.endswith(SUFFIX):
                raise _wrong("metrics", f"holds {name!r}, which is {not_a_metric(name)}")
        if self.main_metric is not None and self.main_metric not in self.score_names:
            raise _wrong(
                "main_metric", f"is not one of {', '.join(self.score_names)}, which the metrics give"
            )
        return self

    @property
    def score_names(self) -> tuple[str, ...]:
        """Return the names of all scores; a Python file gives one of its own name."""
        return tuple(name for metric in self.metrics for name in _names_of(metric))

    @property
    def metric_files(self) -> tuple[str, ...]:
        """Return the metrics that are Python files."""
        return tuple(name for name in self.metrics if name not in METRICS)

    @property
    def main(self) -> str:
        """Return the name of the score that decides."""
        return self.main_metric or self.score_names[0]

    def counted(self, n: int, split: str = "") -> str:
        """Return a number of sources: `1 dialogue`, or `1,200 test dialogues` of a split."""
        kind = f"{split} " if split else ""
        return counted(n, f"{kind}{self.source}", f"{kind}{self.sources}")

    @property
    def sources(self) -> str:
        """Return what several sources are called."""
        return several(self.source)

    @property
    def targets(self) -> str:
        """Return what several targets are called."""
        return several(self.target)

    def data_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of `data` that the task sets where the section does not.

        Args:
            given: the section. A multilingual model is asked by its languages, not by a prompt.
        """
        prompt = PLAIN if given.get("target_language") and self.name != "summarization" else self.prompt
        return {
            "dialogue_column": self.source_column,
            "summary_column": self.target_column,
            "prompt": prompt,
        }

    @property
    def name(self) -> str | None:
        """Return the name of a known task; None for a task of the user's own."""
        return next((name for name, task in TASKS.items() if task == self), None)

    def written(self) -> str | dict[str, Any]:
        """Return the task as a YAML has it: its name, or its fields."""
        return self.name or self.model_dump(mode="json")


def _names_of(metric: str) -> tuple[str, ...]:
    return tuple(score.name for score in METRICS[metric]) if metric in METRICS else (Path(metric).stem,)


def not_a_metric(name: str) -> str:
    """Return why a name does not name a metric, and what to do instead."""
    words = [
        (word, metric) for metric, scores in METRICS.items() for s in scores for word in (s.name, s.label)
    ]
    spelled = {_letters(word): metric for word, metric in words} | {name: name for name in METRICS}
    meant = spelled.get(_letters(name))
    hint = f" Did you mean {meant!r}?" if meant else did_you_mean(name.lower(), METRICS)
    why = " `evaluate` would download the code of a metric by its name from the Hub and run it"
    remedy = "name a Python file that calls it (docs/tasks.md)"
    return f"neither a metric ({', '.join(METRICS)}) nor a Python file.{hint or f'{why}: {remedy}'}"


def _letters(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())


def _wrong(field: str, phrase: str) -> PydanticCustomError:
    return PydanticCustomError("together", phrase, {"path": ("task", field)})


def several(word: str) -> str:
    """Return the plural of a word of the known tasks: a user's own word may be of any language."""
    is_known = any(word in (task.source, task.target) for task in TASKS.values())
    return plural(word) if is_known else f"{word} texts"


def plural(word: str) -> str:
    """Return the plural of an English word: dialogues, summaries, classes."""
    if word.endswith("y") and word[-2:-1] not in (*"aeiou", ""):
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"


PLAIN = "plain"
TASKS: dict[str, Task] = {
    "summarization": Task(
        source="dialogue",
        target="summary",
        source_column="dialogue",
        target_column="summary",
        prompt="summarize_dialogue",
        metrics=("rouge",),
        title="Dialogue summarization",
        purpose="summarizing dialogues",
        trivial="first lines",
        hub_task="summarization",
    ),
    "translation": Task(
        source="sentence",
        target="translation",
        prompt="Translate the following text.\n\n{source}\n\nTranslation: ",
        metrics=("chrf", "bleu", "ter"),
        title="Translation",
        purpose="translating sentences",
        hub_task="translation",
    ),
    "question_answering": Task(
        source="question",
        target="answer",
        source_column="{context}\n\n{question}",
        target_column="answer",
        prompt="Answer the question.\n\n{source}\n\nAnswer: ",
        metrics=("squad",),
        main_metric="f1",
        title="Question answering",
        purpose="answering questions",
        trivial="most frequent",
        hub_task="question-answering",
    ),
    "classification": Task(
        source="text",
        target="label",
        source_column="text",
        target_column="label",
        prompt="Classify the following text.\n\n{source}\n\nLabel: ",
        metrics=("accuracy", "macro_f1"),
        title="Text classification",
        purpose="classifying texts",
        trivial="most frequent",
        hub_task="text-classification",
    ),
    "text_to_text": Task(),
}
"""By the name that `task:` takes."""
SUMMARIZATION = TASKS["summarization"]
assert tuple(TASKS) == get_args(TaskName)


def read_task(value: Any) -> Any:
    """Return the task of a name; leave anything else to the checks of the fields."""
    if not isinstance(value, str):
        return value
    if value not in TASKS:
        raise ValueError(
            f"is not one of {', '.join(TASKS)}, nor a mapping of a task's fields.{did_you_mean(value, TASKS)}"
        )
    return TASKS[value]


def with_task(data: dict[str, Any]) -> dict[str, Any]:
    """Return a config's fields with what its task sets in `data` where the config does not."""
    try:
        task = read_task(data.get("task"))
        task = Task.model_validate(task) if isinstance(task, dict) else task
    except ValueError:  # reported by the field
        return data
    section = data.get("data")
    section = {} if section is None else section
    if not isinstance(task, Task) or task == SUMMARIZATION:
        return data
    if isinstance(section, dict):
        return data | {"data": task.data_defaults(section) | section}
    given = {name: getattr(section, name) for name in getattr(section, "model_fields_set", ())}
    missing = {k: v for k, v in task.data_defaults(given).items() if k not in given}
    return data | {"data": section.model_copy(update=missing)} if given or missing else data


EMBEDDED_TASKS = ("who_said", "place", "repeat", "restore")
"""Tasks that the embedded model was made with, and that `retention: embedded` scores."""


def embedded_retention() -> dict[str, Any]:
    """Return the section `retention` of the embedded model's tasks; each row has its whole prompt."""
    fields = {"source": "request", "target": "answer", "source_column": "request", "target_column": "answer"}
    task = fields | {"metrics": ["squad"], "main_metric": "f1", "trivial": "most frequent"}
    return {name: {"task": task, "data": {"dataset_name": f"embedded/{name}"}} for name in EMBEDDED_TASKS}


def task_of(result: Mapping[str, Any]) -> Task:
    """Return the task that a run's results name; older ones name none, which is summarization."""
    written = result.get("task", SUMMARIZATION)
    return Task.model_validate(read_task(written))


def best_scores(written: Any) -> tuple[str, ...]:
    """Return the scores of the task in a config that is not checked yet; the default's of a wrong one."""
    try:
        return Task.model_validate(read_task(written)).score_names
    except ValueError:
        return SUMMARIZATION.score_names


def known_scores(task: Task) -> list[Score]:
    """Return the scores of a task's known metrics, without those of Python files."""
    return [score for metric in task.metrics for score in METRICS.get(metric, ())]
