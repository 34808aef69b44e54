"""The model card of a pushed adapter, in the Hub's format.

Equal facts give equal bytes, so a push without changes makes no commit.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lora_hf.hub.upload import TAG, with_checksum
from lora_hf.reporting.card_facts import EMBEDDED, CardFacts
from lora_hf.reporting.card_text import card_words

TEMPLATE = Path(__file__).parents[1] / "assets" / "card" / "README.md.j2"


def model_card(facts: CardFacts) -> str:
    """Return README.md: metadata with every score as `model-index`, and the text."""
    card = ModelCard.from_template(card_data(facts), template_path=str(TEMPLATE), **card_words(facts))
    return with_checksum(f"{card}\n")


def card_data(facts: CardFacts) -> ModelCardData:
    """Return the metadata; it names the base and the dataset only if they are on the Hub."""
    results = eval_results(facts)
    dataset = None if facts.dataset == EMBEDDED else facts.dataset
    return ModelCardData(
        base_model=facts.base.on_hub,
        base_model_relation="adapter" if facts.base.on_hub else None,
        datasets=[dataset] if dataset else None,
        eval_results=results or None,
        model_name=facts.name if results else None,
        library_name="peft" if facts.method == "lora" else TAG,
        license=facts.license,
        metrics=list(dict.fromkeys(name for name, _ in facts.scoring.by_metric)) if results else None,
        pipeline_tag=facts.scoring.task.hub_task,
        tags=[TAG, facts.method],
    )


def eval_results(facts: CardFacts) -> list[EvalResult]:
    """Return every score of the run, with its interval if it has one; empty without a run."""
    if facts.config is None:
        return []
    record = dict(facts.record)
    found = []
    for end, note in (("", ""), ("_best", ", best reference")):
        for metric, score in facts.scoring.by_metric:
            if (name := f"{score.name}{end}") in record:
                interval = record.get(f"{name}_interval")
                found.append(_result(facts, metric, name, f"{score.label}{note}", record[name], interval))
    return found


def _result(facts: CardFacts, metric: str, name: str, label: str, value: Any, interval: Any) -> EvalResult:
    assert facts.config is not None
    task = facts.scoring.task
    return EvalResult(
        task_type=task.hub_task,
        task_name=task.title,
        dataset_type=facts.dataset or "local",
        dataset_name=facts.data_name,
        dataset_config=facts.config.data.dataset_config,
        dataset_split="test",
        dataset_revision=facts.config.data.dataset_revision,
        metric_type=metric,
        metric_name=label,
        metric_config=name,
        metric_value=value,
        metric_args={"interval_95": interval} if interval else None,
    )
