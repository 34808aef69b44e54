"""The commands as functions for Python; `lora_hf` exports them beside `load`.

A config is a YAML file, the name of a shipped one, a `RunConfig`, or a dict with the fields of the YAML.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from lora_hf.arguments import check_list, check_place, check_texts
from lora_hf.config import RunConfig
from lora_hf.config.load import load_config, resolved_yaml
from lora_hf.errors import UserError
from lora_hf.files import removed_if_fruitless, write_text
from lora_hf.run_records import Comparison, Prediction, RunResult, Scores

Config = str | Path | RunConfig | Mapping[str, Any]


def train(config: Config, overrides: Sequence[str] | None = ()) -> RunResult:
    """Load, adapt, train and score one run; resume an interrupted one, and return a finished one's results.

    Args:
        config: which run.
        overrides: `key.sub=value`, as on the command line; None for none.

    Returns:
        The content of `results.json` in the run's `output_dir`.

    Raises:
        UserError: a mistake in the config, the data or the model, or an `output_dir` with other inputs in it.
    """
    from lora_hf.runs.start import run_config

    return run_config(_checked_config(config), _checked_overrides(overrides))[1]


def compare(config: Config, overrides: Sequence[str] | None = ()) -> Comparison:
    """Run base, full fine-tuning and LoRA on the same data and seeds, and write the comparison.

    Each run is a process of its own. A `RunConfig` or a dict is written to OUTPUT_DIR.yaml for them, from
    which the comparison can be repeated.

    Args:
        config: what the runs have in common; its `method` is not read.
        overrides: `key.sub=value`, as on the command line; None for none.

    Returns:
        The content of `comparison.json`.

    Raises:
        UserError: a mistake in the config, or an output directory with other inputs in it.
        RunFailed: a run failed; finished ones are kept.
    """
    from lora_hf.experiments.compare import compare as run

    words = _checked_overrides(overrides)
    with _file_of(_checked_config(config), words) as file:
        return cast(Comparison, run(file, words))


def evaluate(
    config: Config, adapter: str | Path | None = None, overrides: Sequence[str] | None = ()
) -> dict[str, Any]:
    """Score a saved adapter, or the base model, on the test split of a config.

    Args:
        config: data, base model and `generation`.
        adapter: a folder, a run directory, or USER/NAME[@REVISION] on the Hub; None scores the base model.
        overrides: `key.sub=value`, as on the command line; None for none.

    Returns:
        The scores with their 95 % intervals, and under `predictions` the rows of `predictions.jsonl`.

    Raises:
        UserError: a mistake in the config, the data or the adapter.
    """
    from lora_hf.saved.evaluate import evaluate as score_adapter
    from lora_hf.saved.evaluate import report_unread
    from lora_hf.saved.find_adapter import find_adapter

    config, overrides = _checked_config(config), _checked_overrides(overrides)
    saved = find_adapter(check_place("adapter", adapter), "adapter") if adapter is not None else None
    run = load_config(config, overrides)
    report_unread(overrides, saved, run)
    scores, rows = score_adapter(run, saved)
    return {**scores, "predictions": rows}


def score(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    metrics: str | Sequence[str] = "rouge",
    language: str | None = None,
) -> Scores:
    """Compute scores of predictions, with 95 % bootstrap intervals over the examples.

    Args:
        predictions: one text per example.
        references: one text per example, or several: ROUGE is the mean over them, and docs/tasks.md says what
            the other metrics do.
        metrics: names of metrics, or paths of Python files (docs/tasks.md); in one text by commas.
        language: language of the references, if it is known: a code such as `de`, or a name such as `german`.
            It chooses the stemmer of ROUGE and the tokenizer of BLEU.

    Returns:
        Each score, such as `rouge1`, `rouge2`, `rougeL` and `rougeLsum` from 0 to 1, `<name>_interval` of
        each, of ROUGE `<name>_best` (the best reference) where an example has several, `n_examples`, and mean
        lengths in words.

    Raises:
        UserError: an argument is not a list of texts, their lengths differ, an example has no reference, or a
            metric is unknown or needs a package that is missing.
    """
    from lora_hf.evaluation.metrics import scoring_by
    from lora_hf.evaluation.predictions import score_record

    if isinstance(metrics, str):  # as the command takes them
        metrics = [name.strip() for name in metrics.split(",") if name.strip()]
    scoring = scoring_by(check_texts("metrics", metrics), language)
    predictions = check_texts("predictions", predictions)
    texts = [
        check_texts(f"references[{i}]", [own] if isinstance(own, str) else own)
        for i, own in enumerate(check_list("references", references))
    ]
    if len(texts) != len(predictions):
        raise UserError(f"score: {len(predictions)} predictions and references of {len(texts)} examples")
    if not texts or not all(texts):
        raise UserError("score: give at least one example, and at least one reference for each")
    rows = [
        {"prediction": prediction, "references": own}
        for prediction, own in zip(predictions, texts, strict=True)
    ]
    return score_record(cast(list[Prediction], rows), scoring)


def _checked_config(config: Any) -> Config:
    """Return the config, which must be of one of the types that `Config` lists."""
    if isinstance(config, Mapping):
        return dict(config)
    if isinstance(config, RunConfig):
        return config
    return check_place("config", config, ", a RunConfig or a dict")


def _checked_overrides(overrides: Any) -> list[str]:
    """Return the overrides as a list; None gives none."""
    return [] if overrides is None else check_texts("overrides", overrides)


@contextmanager
def _file_of(config: Config, overrides: Sequence[str]) -> Iterator[str | Path]:
    """Yield the config's file; where it is in none, it is written beside its output directory.

    It is removed again if the block fails before anything is in that directory.

    Raises:
        UserError: a mistake in the config, or a file of this name holds another one.
    """
    if isinstance(config, str | Path):
        yield config
        return
    folder = Path(load_config(config, overrides, is_done=lambda run: True).output_dir)
    text, file = resolved_yaml(config), folder.with_name(f"{folder.name}.yaml")
    if file.exists():
        if file.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{file} exists and differs from this config: pass its path, or another output_dir"
            )
        yield file
        return
    with removed_if_fruitless(file, folder):
        write_text(file, text)
        yield file
