"""The metrics by name, and the scoring of a task by all of its metrics.

A metric is a function of predictions and references; it returns statistics of each example, so that the
bootstrap and the paired test hold for every one. A new metric is a function here and a line in
`lora_hf.scores.METRICS`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_hf.config import RunConfig
from lora_hf.config.task import SUFFIX, SUMMARIZATION, TASKS, Task, not_a_metric, task_of
from lora_hf.data.prompts import unix_lines
from lora_hf.errors import UserError
from lora_hf.evaluation.metrics import answers, errors, translation
from lora_hf.evaluation.metrics.own import own_metric, own_score
from lora_hf.evaluation.metrics.rouge import BY_UNICODE, is_english, rouge
from lora_hf.evaluation.metrics.values import Measured, ScoreValues
from lora_hf.evaluation.rouge import load_scorer
from lora_hf.language_codes import check_language
from lora_hf.scores import METRICS, Score

Compute = Callable[[list[str], list[list[str]], str | None], Measured]
"""predictions, references of each, language code or None."""
COMPUTED: dict[str, Compute] = {
    "rouge": rouge,
    "bleu": translation.bleu,
    "chrf": translation.chrf,
    "ter": translation.ter,
    "squad": answers.squad,
    "accuracy": answers.accuracy,
    "macro_f1": answers.macro_f1,
    "cer": errors.cer,
    "wer": errors.wer,
}
CHECKS: dict[str, Callable[[], None]] = {
    "rouge": load_scorer,
    **dict.fromkeys(("bleu", "chrf", "ter"), translation.check),
    **dict.fromkeys(("cer", "wer"), errors.check),
}
"""What a metric needs, imported before a model is loaded."""
LANGUAGE = "language"
"""Key in results.json: the language of the references, where the config gives it."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """How the outputs of a run are scored."""

    task: Task = SUMMARIZATION
    language: str | None = None
    """Language of the references, as a code of the model's tokenizer; it chooses stemmers and tokenizers."""

    @classmethod
    def of_config(cls, config: RunConfig) -> "Scoring":
        """Return the scoring of a run."""
        return cls(config.task, config.data.target_language)

    @classmethod
    def of_result(cls, result: Mapping[str, Any]) -> "Scoring":
        """Return the scoring that a run's results.json was made with."""
        return cls(task_of(result), result.get(LANGUAGE))

    def fields(self) -> dict[str, Any]:
        """Return the entries of results.json from which `of_result` reads it; summarization has none."""
        task = {} if self.task == SUMMARIZATION else {"task": self.task.written()}
        return task | ({LANGUAGE: self.language} if self.language else {})

    @property
    def scores(self) -> list[Score]:
        """Return the scores, in the order of the metrics."""
        return [score for _, score in self.by_metric]

    @property
    def by_metric(self) -> list[tuple[str, Score]]:
        """Return the scores, each with the name of its metric; a file's is the name of its score."""
        found: list[tuple[str, Score]] = []
        for metric in self.task.metrics:
            if metric in METRICS:
                found += [(metric, score) for score in METRICS[metric]]
            else:
                score = own_score(metric)
                found.append((score.name, score))
        return found

    @property
    def main(self) -> Score:
        """Return the score that decides which model is better."""
        return next(score for score in self.scores if score.name == self.task.main)

    def check(self) -> None:
        """Import what the metrics need.

        Raises:
            UserError: a package is missing, a metric's file is not there or is not a metric, or two metrics
                give a score of one name.
        """
        for metric in self.task.metrics:
            if metric in METRICS:
                CHECKS.get(metric, lambda: None)()
            else:
                own_score(metric)
        names = self.task.score_names
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UserError(
                f"the metrics {', '.join(self.task.metrics)} give two scores of the name {twice[0]!r}: "
                "rename a Python file, whose score has its name"
            )

    def measure(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        known: Mapping[str, Measured] | None = None,
    ) -> Measured:
        """Score predictions by all metrics; line ends count as the same whichever way they are written.

        Args:
            predictions: n texts.
            references: n lists of one or more texts.
            known: scores of metrics that were computed before.
        """
        texts = list(map(unix_lines, predictions))
        of_each = [list(map(unix_lines, own)) for own in references]
        found = []
        for name in self.task.metrics:
            if known and name in known:
                found.append(known[name])
            else:
                compute = COMPUTED[name] if name in COMPUTED else own_metric(name)
                found.append(compute(texts, of_each, self.language))
        return Measured(
            scores={key: value for part in found for key, value in part.scores.items()},
            best={key: value for part in found for key, value in part.best.items()},
            by_reference={key: value for part in found for key, value in part.by_reference.items()},
            facts={key: value for part in found for key, value in part.facts.items()},
        )

    def record(self, measured: Measured) -> dict[str, Any]:
        """Return the scores with their 95 % intervals, as results.json has them."""
        record: dict[str, Any] = {}
        for score in self.scores:
            values = measured.scores[score.name]
            record[score.name] = values.value
            record[f"{score.name}_interval"] = values.interval()
            if score.name in measured.best:
                record[f"{score.name}_best"] = measured.best[score.name].value
        if not is_english(dict(measured.facts)):
            logger.info("ROUGE: the references are not English; their words are counted by Unicode's rules")
        if by_unicode := measured.facts.get(BY_UNICODE):
            logger.warning(
                "ROUGE: the references are English, but in %s of %s examples a tenth or more of a text's "
                "letters are outside a-z; the words of these are counted by Unicode's rules",
                f"{by_unicode:,}",
                f"{len(next(iter(measured.scores.values())).statistics):,}",
            )
        for name, note in measured.facts.items():
            if name.endswith("_note"):
                logger.warning("%s: %s", name.removesuffix("_note").upper(), note)
        return record | dict(measured.facts)


def scoring_by(metrics: Sequence[str], language: str | None = None) -> Scoring:
    """Return the scoring by metrics alone, without a task; what they need is imported.

    Raises:
        UserError: an unknown metric or language, or a metric that needs a package that is missing.
    """
    names = tuple(dict.fromkeys(metrics))
    task = SUMMARIZATION if names == SUMMARIZATION.metrics else None
    for name in names:
        if name not in METRICS and not name.endswith(SUFFIX):
            raise UserError(f"metric {name!r} is {not_a_metric(name)}")
    if not names:
        raise UserError(f"name at least one metric: {', '.join(METRICS)}, or a Python file")
    scoring = Scoring(
        task or TASKS["text_to_text"].model_copy(update={"metrics": names}), check_language(language)
    )
    scoring.check()
    return scoring


__all__ = ["COMPUTED", "Compute", "Measured", "ScoreValues", "Scoring", "scoring_by"]
