"""The text of a model card: values for its template."""

from pathlib import Path
from typing import Any

from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.config.prediction import PredictionSettings
from lora_hf.data.prompts import PLACE, prompt_template
from lora_hf.evaluation.metrics import Scoring
from lora_hf.reporting.card_facts import EMBEDDED, Base, CardFacts, Fields
from lora_hf.reporting.comparison_table import kept_cell, spaced
from lora_hf.reporting.tables import bytes_cell, markdown_table, sample_markdown, seconds_cell
from lora_hf.run_records import Prediction, RunResult, best_of, interval_of, score_of
from lora_hf.scores import METRICS, Score

HUB_IMPORT = "from transformers import AutoModelForSeq2SeqLM\n"
EMBEDDED_IMPORT = "\nfrom lora_hf import ModelConfig, load_model\n"


def card_words(facts: CardFacts) -> Fields:
    """Return the values by their names in the template."""
    base, manifest = facts.base, facts.manifest
    prompt, is_unknown = manifest.get("prompt"), base.name is None
    place = f"{{{facts.scoring.task.source}}}"
    return {
        "facts": facts,
        "task": facts.scoring.task,
        "about_scores": _about_scores(facts),
        "kept": _kept(facts.record) if facts.config else "",
        "where": f"{facts.repo_id}@{facts.branch}" if facts.branch else facts.repo_id,
        "base_option": " --base PATH/TO/BASE" if is_unknown else "",
        "base_argument": ', base="PATH/TO/BASE"' if is_unknown else "",
        "scores": _scores(facts.record) if facts.config and facts.record else "",
        "why_no_peft": why_no_peft(facts),
        "peft_note": _peft_note(manifest),
        "peft_import": EMBEDDED_IMPORT if base.name == EMBEDDED else HUB_IMPORT,
        "peft_base": _peft_base(base),
        "prompt": prompt_template(prompt).replace(PLACE, place) if prompt else "",
        "generate_options": _generate_options(manifest),
        "languages": _languages(manifest),
        "max_source_length": manifest.get("max_source_length"),
        "data_warnings": facts.record.get("data_warnings", []),
        "samples": "\n\n".join(_sample(row) for row in facts.samples),
        "training": markdown_table([["", ""], *training_lines(facts)], is_text=True),
        "license_text": _license(facts),
    }


def _generate_options(manifest: Fields) -> str:
    """Return the keywords of Transformers' `generate`; empty if the manifest does not have them."""
    if "generation" not in manifest:
        return ""
    settings = PredictionSettings.read(manifest, Path(MANIFEST_NAME))
    return repr(settings.generation.options() | {"max_new_tokens": settings.max_new_tokens})


def _languages(manifest: Fields) -> str:
    """Return the languages of the training in words; empty for a model without any."""
    known = {side: manifest.get(f"{side}_language") for side in ("source", "target")}
    return " and ".join(f"the {side} language `{code.strip('_')}`" for side, code in known.items() if code)


def why_no_peft(facts: CardFacts) -> str:
    """Return why PEFT cannot load these files; empty if it can."""
    if facts.method != "lora":
        return f"it does not read {facts.weights.lower()} in this form"
    if facts.adapter.get("layer_replication"):
        return "it does not replicate the layers of an encoder-decoder"
    if formats := facts.manifest.get("base_formats"):
        stored = ", ".join(formats)
        return (
            f"these weights compensate for the errors of a base stored as {stored} and requantized for them"
        )
    return ""


def training_lines(facts: CardFacts) -> list[list[str]]:
    """Return training and machine as lines of a table, without unknown values."""
    adapter, record = facts.adapter, facts.record
    training = facts.config.training if facts.config else {}
    known = {
        "base": str(facts.base),
        "base stored as": record.get("storage"),
        "rank r": adapter.get("r"),
        "lora_alpha": adapter.get("lora_alpha"),
        "target_modules": _listed(adapter["target_modules"]) if adapter else None,
        "weights trained": _share(record),
        "learning rate": f"{record['learning_rate']:g}" if "learning_rate" in record else None,
        "batch size": training.get("per_device_train_batch_size"),
        "steps": record.get("steps"),
        "seed": record.get("seed"),
        "training time": seconds_cell(record.get("train_seconds", 0.0)) if record else None,
        "peak memory": bytes_cell(int(record.get("peak_memory_mib", 0) * 2**20)) if record else None,
        "device": record.get("device"),
        "versions": ", ".join(f"{name} {v}" for name, v in sorted(record.get("versions", {}).items())),
    }
    return [[name, str(value)] for name, value in known.items() if value not in (None, "")]


def _listed(targets: Any) -> str:
    return f"`{targets}`" if isinstance(targets, str) else ", ".join(f"`{name}`" for name in targets or ())


def _share(record: RunResult) -> str | None:
    if "trainable_parameters" not in record:
        return None
    trained, total = record["trainable_parameters"], record["total_parameters"]
    return f"{trained:,} of {total:,} ({trained / total:.2%})"


def _peft_base(base: Base) -> str:
    if base.name == EMBEDDED:
        return "load_model(ModelConfig())"
    revision = f', revision="{base.revision}"' if base.revision else ""
    return f'AutoModelForSeq2SeqLM.from_pretrained("{base.name or "PATH/TO/BASE"}"{revision})'


def _peft_note(manifest: Fields) -> str:
    fields_of_training = manifest.get("base_store")
    if not fields_of_training:
        return ""
    fields = ", ".join(f"{name}: {str(value).lower()}" for name, value in fields_of_training.items())
    return f", preferably on a base in the storage format of the training ({fields})"


def _scores(record: RunResult) -> str:
    lines, scoring = [], Scoring.of_result(record)
    for score in scoring.scores:
        low, high = map(score.text, interval_of(record, score.name))
        lines.append([score.titled, score.text(score_of(record, score.name)), f"{low}–{high}"])
        if (best := best_of(record, score.name)) is not None:
            lines.append([f"{score.label}, best reference", score.text(best), ""])
    heading = "F1" if scoring.task.metrics == ("rouge",) else "score"
    return markdown_table([["", heading, "95 % interval"], *lines])


def _kept(record: RunResult) -> str:
    """Return the table of the tasks that were not trained; empty without any."""
    lines = []
    for name, of in record.get("retention", {}).items():
        score = Score(of["metric"], of["label"], scale=of["scale"])
        values = [score.text(of["base"]), score.text(of["value"])]
        lines.append([f"{spaced(name)}, {of['label']}", *values, kept_cell(of, ""), f"{of['p_value']:.2g}"])
    heading = ["", "base", "this model", "kept, with its 95 % interval", "p"]
    return markdown_table([heading, *lines]) if lines else ""


def _about_scores(facts: CardFacts) -> str:
    """Say on what the scores were computed, their scale, and how several references count."""
    scoring, n = facts.scoring, facts.record.get("n_examples", 0)
    on = f"on {scoring.task.counted(n, 'test')}"
    if scoring.task.metrics == ("rouge",):
        return (
            f"ROUGE is F1 from 0 to 1 {on}, with stemming; ROUGE-Lsum compares sentence by sentence.\nA "
            f"{scoring.task.source} with several references counts with the mean over them."
        )
    scales = [_scale(score) for score in scoring.scores]
    signatures = [f"`{value}`" for name, value in facts.record.items() if name.endswith("_signature")]
    by = f" By sacrebleu: {', '.join(signatures)}." if signatures else ""
    return f"{', '.join(scales)}, {on}.{by}"


def _scale(score: Score) -> str:
    """Return the range of a score; error rates have no upper bound, and own metrics none known."""
    if score not in (known for metric in METRICS.values() for known in metric):
        return score.titled
    return (
        f"{score.label} from 0 to {score.scale}" if score.higher_is_better else f"{score.titled}, from 0 up"
    )


def _sample(row: Prediction) -> str:
    written = [("reference", row["references"][0]), ("this model", row["prediction"])]
    return sample_markdown(row["dialogue"], written)


def _license(facts: CardFacts) -> str:
    if facts.license is None:
        return "Not stated. The licenses of the base model and of the data apply in any case."
    return f"{facts.license}. The licenses of the base model and of the data apply too."
