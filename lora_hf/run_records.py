"""The records that runs and their comparisons leave as JSON: types and readers.

The types are TypedDicts: a record is the JSON object itself, so files keep keys of other versions, and a key
that an older version did not write is absent.
"""

import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from lora_hf.errors import NOT_JSON, UserError, first_line
from lora_hf.files import file_sha256, read_object
from lora_hf.run_files import PREDICTIONS, RESULTS, RETENTION, ROUGE_NAMES, RougeName

MAX_RECORD_BYTES = 2**30
"""Room for the log of a long training."""
PREDICTIONS_VERSION = 2
"""Rows of predictions.jsonl hold their ROUGE since version 2; rows without a version are version 1."""
WITHOUT_ROUGE = 3
"""Version of the rows of a task that is not scored by ROUGE."""

RougeByReference = dict[RougeName, list[float]]
"""One F1 value per reference of a dialogue."""
Interval = list[float]
"""[low, high], 95 %."""


class RetentionRow(TypedDict):
    """One row of retention.jsonl: an example of a task that was not trained."""

    task: str
    """Its name in the section `retention`."""
    id: str
    source: str
    references: list[str]
    prediction: str
    base: str
    """What the base wrote."""


class RetentionRecord(TypedDict, total=False):
    """Main score of a model on a task that was not trained, beside the base's."""

    metric: str
    label: str
    scale: int
    n: int
    value: float
    interval: Interval
    base: float
    kept: float | None
    """The score as a share of the base's; None where the base has 0."""
    kept_interval: Interval
    p_value: float
    """Of the paired test against the base."""


class Prediction(TypedDict):
    """One row of predictions.jsonl: a test dialogue."""

    id: str
    dialogue: str
    references: list[str]
    prediction: str
    version: NotRequired[int]
    rouge: NotRequired[RougeByReference]


class Scores(TypedDict, total=False):
    """The scores of the task, averaged over examples, and how they were obtained; here those of ROUGE.

    Other metrics have keys of the same form: `<name>`, `<name>_interval`, and what results say of the metric.
    """

    n_examples: int
    rouge1: float
    rouge2: float
    rougeL: float
    rougeLsum: float
    rouge1_interval: Interval
    rouge2_interval: Interval
    rougeL_interval: Interval
    rougeLsum_interval: Interval
    rouge1_best: float
    rouge2_best: float
    rougeL_best: float
    rougeLsum_best: float
    mean_words: float
    reference_words: float
    rouge_tokenizer: str
    """Rule that divided texts into words; missing in older results, which knew English alone."""
    rouge_unicode_examples: int
    """Examples beside English references that were compared by Unicode's words; missing if there are none."""
    eval_seconds: float
    peak_memory_mib: float


class TrainingRecord(TypedDict, total=False):
    """training.json; of a run without training only seconds (0) and numbers of parameters."""

    train_seconds: float
    resumed_at_step: int | None
    steps: int
    train_loss: float
    learning_rate: float
    best_metric: float | None
    log: list[dict[str, float]]
    trainable_parameters: int
    total_parameters: int


class RunResult(Scores, TrainingRecord, total=False):
    """results.json; `spread`, `seeds` and `runs` are there in the mean over several seeds."""

    method: str
    adapter: str | None
    """In the results of `lora-hf evaluate`."""
    model: str
    """The same of a whole model."""
    quantization: str
    """Of the linear layers while texts were written, in the results of `lora-hf evaluate --quantization`."""
    seed: int
    bytes_on_disk: int
    max_new_tokens: int
    truncation: list[str]
    data_warnings: list[str]
    """Unknown tokens, and dialogues in several splits, in such numbers that the scores mislead."""
    splits: dict[str, str]
    """Origin of each split: its files, or its share of them with the seed."""
    base_model: str
    base_fingerprint: str | None
    base_settings: str | None
    """Hash of the config and the tokenizer of a base in a folder; not recorded by earlier versions."""
    data_fingerprint: str
    dtype: str
    storage: str
    device: str
    processes: int
    task: str | dict[str, Any]
    """Name or fields of the task; missing for summarization."""
    retention: dict[str, RetentionRecord]
    """By task; missing if the config lists none."""
    retention_tasks: dict[str, dict[str, Any]]
    """How the tasks of `retention` are scored: `task` and `language`, as of the run itself."""
    language: str
    """Language of the references, if the config gives it."""
    versions: dict[str, str]
    sha256: dict[str, str]
    spread: dict[str, float]
    seeds: list[int]
    runs: "list[RunResult]"


class PairedRecord(TypedDict):
    """Paired test of the main score between two variants, example by example."""

    metric: str
    difference: float
    interval: Interval
    p_value: float
    n: int


class Gains(TypedDict):
    """Gain in the main score over the base, positive if better; the share is None if full gained nothing."""

    full: float
    lora: float
    lora_share_of_full: float | None


class Series(TypedDict):
    """Variants along the first axis of a sweep, for one combination of the other axes."""

    runs: list[str]
    values: list[Any]
    plateau: Any
    best: Any


class Published(TypedDict):
    """Published figures that a comparison stands beside."""

    rouge1: dict[str, float]
    """By method."""
    changes: list[str]
    """Fields in which the comparison differs from the published one; empty if it repeats it."""


class Comparison(TypedDict, total=False):
    """Variants side by side: comparison.json, methods.json and sweep.json, or one run: report.json."""

    arms: dict[str, RunResult]
    """By method; in comparison.json and report.json."""
    variants: dict[str, RunResult]
    """By name; in methods.json and sweep.json, with their `order`."""
    order: list[str]
    intervals: dict[str, dict[str, Interval]]
    command: str
    """The command that makes all of it again."""
    working_directory: str
    """The folder that the command was run in; missing in older files."""
    made_from: str
    """Hash of this record and of the runs it was made from."""

    trivial: dict[str, dict[str, float]]
    samples: list[dict[str, str]]
    published: Published
    """In a comparison by `reproduce`."""
    diverged: list[str]
    """Variants that are left out, because their training diverged; absent if there are none."""
    data_warnings: list[str]
    """Faults of the data, by the runs; absent if there are none."""
    gains: Gains
    paired_test: PairedRecord
    """LoRA against full fine-tuning."""
    against_base: dict[str, PairedRecord]
    """LoRA and full fine-tuning, each against the base; missing in older files."""

    retention: dict[str, dict[str, RetentionRecord]]
    """By task of `retention` and variant: what each keeps of the base's score."""
    retention_test: dict[str, PairedRecord]
    """By task: LoRA against full fine-tuning."""

    against_lora: dict[str, PairedRecord]
    eval_ratio: dict[str, float]
    """Seconds of scoring over the base's."""

    points: dict[str, dict[str, Any]]
    """Value of each variant on each axis of a sweep."""
    axis: str
    series: dict[str, Series]
    best: str
    cheapest: str


class RankResult(Scores, total=False):
    """Scores of an adapter truncated to one rank."""

    energy: float
    """Kept share of the updates' squared singular values, over all layers."""
    against_whole: PairedRecord


class TruncationRecord(TypedDict):
    """truncation.json."""

    task: NotRequired[str | dict[str, Any]]
    language: NotRequired[str]

    adapter: str
    whole: int
    """Rank of the adapter itself."""
    needed: int
    """The least rank that is not significantly worse than the whole."""
    ranks: dict[str, RankResult]
    spectra: dict[str, list[float]]
    """Singular values of each layer's update."""


def variants_of(comparison: Comparison) -> dict[str, RunResult]:
    """Return the result of each variant, under whichever key a comparison keeps them."""
    return comparison["arms"] if "arms" in comparison else comparison["variants"]


def score_of(scores: Scores, name: str) -> float:
    """Return one of a run's scores."""
    return scores[name]  # type: ignore[literal-required]


def interval_of(scores: Scores, name: str) -> Interval:
    """Return the 95 % interval of one of a run's scores."""
    return scores[f"{name}_interval"]  # type: ignore[literal-required]


def best_of(scores: Scores, name: str) -> float | None:
    """Return the score by each example's best reference, or None where no example has several."""
    return scores.get(f"{name}_best")  # type: ignore[return-value]


def read_record(file: Path) -> dict[str, Any] | None:
    """Read a JSON object that a run has written; None if there is no such file.

    Raises:
        UserError: the file does not hold a JSON object.
    """
    return read_object(file, MAX_RECORD_BYTES) if file.is_file() else None


def read_result(directory: Path) -> RunResult | None:
    """Read a run's results.json; None if the run is not finished.

    Raises:
        UserError: the file does not hold a JSON object.
    """
    return cast(RunResult | None, read_record(directory / RESULTS))


def read_predictions(directory: Path, result: RunResult | None = None) -> list[Prediction]:
    """Read a run's predictions.jsonl.

    Args:
        directory: the run's.
        result: the run's; with it, the number of rows is checked, and that ids are unique. Equal ids in a
            file that is unchanged since the run come from the data and are accepted.

    Raises:
        UserError: the file is missing, or does not hold what a run writes.
    """
    file = directory / PREDICTIONS
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; {_remedy(directory)}") from None
    rows: list[Prediction] = []
    places: dict[str, int] = {}
    is_strict = result is not None and not has_recorded_predictions(directory, result)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _checked_row(json.loads(line.decode("utf-8")))
            if is_strict and row["id"] in places:
                raise ValueError(f"id {row['id']!r} is already on line {places[row['id']]}")
        except NOT_JSON as error:
            raise _damaged(directory, number, first_line(error)) from None
        places[row["id"]] = number
        rows.append(row)
    last = max(places.values(), default=0)
    if not rows:
        raise _damaged(directory, 1, "the file holds no rows")
    if result is not None and (expected := result.get("n_examples", len(rows))) != len(rows):
        raise _damaged(directory, last, f"the file ends with {len(rows)} rows; {RESULTS} has {expected}")
    return rows


def read_retention(directory: Path) -> list[RetentionRow]:
    """Read a run's retention.jsonl; an empty list if it has none.

    Raises:
        UserError: the file does not hold what a run writes.
    """
    file = directory / RETENTION
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            texts = [row[name] for name in ("task", "id", "source", "prediction", "base")]
            if not all(isinstance(text, str) for text in (*texts, *row["references"])):
                raise ValueError("a field is not text")
        except (*NOT_JSON, KeyError, TypeError) as error:
            raise UserError(f"{file}: line {number}: {first_line(error)}; {_remedy(directory)}") from None
        rows.append(cast(RetentionRow, row))
    return rows


def has_recorded_predictions(directory: Path, result: RunResult) -> bool:
    """Return whether predictions.jsonl has the hash that results.json holds; older versions wrote none."""
    recorded = result.get("sha256", {}).get(PREDICTIONS)
    return recorded is not None and recorded == file_sha256(directory / PREDICTIONS)


def same_order(directory: Path, rows: list[Prediction], first: list[Prediction]) -> list[Prediction]:
    """Return a run's rows in the order of another run's, matched by id; equal ids match in turn.

    Rows whose ids differ, as older versions counted rows without ids otherwise, are matched by dialogue.

    Args:
        directory: the run's.
        rows: its predictions.
        first: the predictions of the run that it is compared with.

    Raises:
        UserError: the ids differ.
    """
    dialogues = {row["dialogue"]: row for row in rows}
    others = {row["id"] for row in rows} ^ {row["id"] for row in first}
    if others and all(name.isdecimal() for name in others) and len(dialogues) == len(rows) == len(first):
        if dialogues.keys() == {row["dialogue"] for row in first}:
            return [dialogues[row["dialogue"]] for row in first]
    remaining: dict[str, list[Prediction]] = {}
    for row in reversed(rows):
        remaining.setdefault(row["id"], []).append(row)
    ordered = []
    for row in first:
        if not (found := remaining.get(row["id"])):
            raise _other_ids(directory, f"lacks id {row['id']!r}, which the run compared with it has")
        ordered.append(found.pop())
    for row in rows:
        if remaining[row["id"]]:
            raise _other_ids(directory, f"has id {row['id']!r}, which the run compared with it lacks")
    return ordered


def _checked_row(row: Any) -> Prediction:
    """Return a row of predictions.jsonl, or raise a ValueError that names the field at fault."""
    if not isinstance(row, dict):
        raise ValueError(f"{type(row).__name__} in place of a JSON object")
    for name in ("id", "dialogue", "prediction"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"{name} must be a string")
    references = row.get("references")
    if not (isinstance(references, list) and references and all(isinstance(x, str) for x in references)):
        raise ValueError("references must be a list of at least one string")
    version = row.get("version", 1)
    if type(version) is not int or not 1 <= version <= WITHOUT_ROUGE:
        raise ValueError(f"unknown version {version!r}; this lora-hf reads up to {WITHOUT_ROUGE}")
    if version == PREDICTIONS_VERSION or "rouge" in row and version > PREDICTIONS_VERSION:
        _check_rouge(row.get("rouge"), len(references))
    return cast(Prediction, row)


def _check_rouge(rouge: Any, count: int) -> None:
    if not isinstance(rouge, dict):
        raise ValueError("rouge must be a JSON object")
    for name in ROUGE_NAMES:
        values = rouge.get(name)
        if not (
            isinstance(values, list)
            and len(values) == count
            and all(type(value) in (int, float) and 0 <= value <= 1 for value in values)
        ):
            raise ValueError(f"rouge.{name} must hold one number from 0 to 1 per reference ({count})")


def _damaged(directory: Path, line: int, reason: str) -> UserError:
    return UserError(f"{directory / PREDICTIONS}: line {line}: {reason}; {_remedy(directory)}")


def _other_ids(directory: Path, reason: str) -> UserError:
    return UserError(
        f"{directory / PREDICTIONS} {reason}: the runs have different test dialogues; {_remedy(directory)}"
    )


def _remedy(directory: Path) -> str:
    """Return what to do; `overwrite=true` would keep a finished run with the same inputs."""
    return f"restore the file, or delete {directory / RESULTS} and run again, which scores the model again"


def folder_bytes(folder: Path) -> int:
    """Return the total size of all files below a folder; 0 if there is no folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
