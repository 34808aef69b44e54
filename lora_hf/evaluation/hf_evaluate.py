"""`Rouge`: the scores of `rouge.py` as a metric of Hugging Face's `evaluate`.

`evaluate.load("rouge")` downloads a script from the Hub; this class needs no download. `evaluate` keeps its
inputs in Arrow files below the cache directory, and creates that directory as soon as a metric is built. Here
they stay in memory and no directory is created, so that a read-only or missing cache does no harm.
"""

import os
from statistics import fmean
from typing import Any

import datasets
import evaluate

from lora_hf.evaluation.rouge import score_dialogues

_DESCRIPTION = (
    "ROUGE-1, 2, L and Lsum as F1 from 0 to 1, with the Porter stemmer, over one or more references per row."
)
_INPUTS = """
Args:
    predictions: one summary per row.
    references: one summary, or a list of them, per row.
Returns:
    rouge1, rouge2, rougeL, rougeLsum: mean over rows of the mean over references; if a row has several
    references also rouge1_best, ...: mean over rows of the best reference.
"""
_CITATION = """@inproceedings{lin-2004-rouge,
  title = "{ROUGE}: A Package for Automatic Evaluation of Summaries", author = "Lin, Chin-Yew",
  booktitle = "Text Summarization Branches Out", year = "2004", pages = "74--81",
  url = "https://aclanthology.org/W04-1013"}"""


class Rouge(evaluate.Metric):
    """ROUGE with several references: `Rouge().compute(predictions=["a"], references=[["b", "c"]])`.

    Accepts the keywords of `evaluate.Metric`. `keep_in_memory=False` uses its files, and so does
    `num_process > 1`, which needs them. `compute` raises ValueError if there is no row, or one without a
    reference.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("keep_in_memory", kwargs.get("num_process", 1) == 1)
        super().__init__(**kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one row."""
        super().add(prediction=prediction, reference=_as_list(reference), **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add rows."""
        if references is not None:
            references = [_as_list(reference) for reference in references]
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
            reference_urls=["https://github.com/google-research/google-research/tree/master/rouge"],
        )

    def _build_data_dir(self) -> str:
        if not self.keep_in_memory:
            return str(super()._build_data_dir())
        return os.path.join(self._data_dir_root, self.name, self.config_name)  # not created

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        if not predictions:
            raise ValueError("no rows to score")
        scores = score_dialogues(predictions, references)
        result: dict[str, float] = {name: fmean(values) for name, values in scores.mean.items()}
        if any(len(texts) > 1 for texts in references):
            result |= {f"{name}_best": fmean(values) for name, values in scores.best.items()}
        return result


def _as_list(reference: Any) -> Any:
    return [reference] if isinstance(reference, str) else reference
