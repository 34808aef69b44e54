"""Checks of a finished run: its files are unchanged, and repeating the scoring gives the same result."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from lora_hf.adapters.model_state import model_state
from lora_hf.config import RunConfig
from lora_hf.config.load import changed_fields, load_config
from lora_hf.data.prepare import RunData, load_data
from lora_hf.doctor.check import CannotTell, Finding, Findings, fault, ok, unknown
from lora_hf.errors import UserError, few, first_line
from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.predictions import score_record
from lora_hf.evaluation.retention_scores import retention_record, retention_scores, scorings_of
from lora_hf.files import file_sha256, read_object
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.run_files import CONFIG, INPUTS, RESULTS, TRAINED
from lora_hf.run_records import Prediction, RunResult, Scores, read_predictions, read_retention
from lora_hf.runs.run import hashes, score
from lora_hf.system import device_name, pick_device, versions
from lora_hf.training.train import Run, load_trained

AGAIN = f"repeat the run: delete {RESULTS} and {TRAINED} in its folder, and rerun its command"
"""Remedy for damaged files: with equal inputs, `overwrite=true` leaves a finished run unchanged."""
REPLACE = "repeat the run: rerun its command with overwrite=true"
"""Remedy for inputs that differ from the recorded ones."""
EXACT = 1e-9
"""Tolerance between results of the same arithmetic in the same order."""


def finished(runs: Path) -> list[Path]:
    """Return the folders of runs in a folder; an empty list if none has finished."""
    found = sorted(file.parent for file in runs.rglob(CONFIG) if (file.parent / INPUTS).is_file())
    return found if any((run / RESULTS).is_file() for run in found) else []


def record(run: Path) -> Findings:
    """Check that the record is complete; return `results.json`."""
    if not (run / RESULTS).is_file():
        raise UserError(f"it has not finished: {RESULTS} is missing")
    held = read_object(run / RESULTS)
    try:
        scoring = Scoring.of_result(held)
    except ValidationError as error:
        raise UserError(f"{run / RESULTS}: task={held.get('task')!r}: {first_line(error)}") from None
    if wrong := [name for name in scoring.task.score_names if not isinstance(held.get(name), float)]:
        raise UserError(f"{run / RESULTS} is not a record of a run: {wrong[0]}={held.get(wrong[0])!r}")
    main = scoring.main
    value = main.text(held[main.name])
    yield ok(f"{held.get('method')}, seed {held.get('seed')}: {main.label} {value}")
    return held


def files(run: Path, record: RunResult) -> Findings:
    """Check that all recorded files are unchanged, and that no weights were added."""
    known = record.get("sha256")
    if not known:
        raise CannotTell(f"{RESULTS} holds no hashes: it was written by an older version")
    gone = [name for name in known if not (run / name).is_file()]
    changed = [name for name in known if name not in gone and file_sha256(run / name) != known[name]]
    if gone:
        yield fault(f"missing: {few(gone)}", AGAIN)
    if changed:
        yield fault(f"changed since the run: {few(changed)}", f"restore it from a copy, or {AGAIN}")
    if added := [name for name in hashes(run) if name not in known]:
        yield fault(f"not recorded by the run: {few(added)}", f"move it away, or {AGAIN}")
    if not gone + changed + added:
        one = len(known) == 1
        yield ok(f"{len(known)} {'file is' if one else 'files are'} unchanged (SHA-256)")


def scores(run: Path, record: RunResult) -> Findings:
    """Check that the recorded scores are those of the recorded outputs; return these."""
    try:
        rows = read_predictions(run)
        scoring = Scoring.of_result(record)
        found = score_record(rows, scoring)
    except (ValueError, TypeError) as error:  # ROUGE's limits on the length of texts
        raise UserError(first_line(error)) from error
    further = scorings_of(record)
    if further:
        kept = retention_scores(read_retention(run), further)
        again = {name: retention_record(pair, further[name])["value"] for name, pair in kept.items()}
        held = {name: of["value"] for name, of in record["retention"].items()}
        if _is_near(list(again.values()), [held.get(name) for name in again]):
            yield ok(f"the scores on {len(again)} tasks that were not trained equal the record")
        else:
            yield fault(f"the scores on tasks that were not trained differ: {held} -> {again}", AGAIN)
    yield from _compared(f"of the recorded {scoring.task.targets}", found, record)
    return rows


def made_by(record: RunResult) -> Findings:
    """Compare versions and device with those of the run; others may give slightly different results."""
    here = {"versions": versions(), "device": device_name(pick_device())}
    if changed := changed_fields({key: record.get(key) for key in here}, here):
        yield unknown(f"other versions or device than the run's, outputs may differ: {'; '.join(changed)}")
    else:
        yield ok(f"the same versions, on {here['device']}")


def config(run: Path) -> Findings:
    """Check that the config is readable; return it."""
    held = load_config(run / CONFIG, is_recorded=True)
    yield ok(f"{run / CONFIG} is readable")
    return held


def data(config: RunConfig, record: RunResult) -> Findings:
    """Check that the data is unchanged; return it tokenized."""
    try:
        tokenizer = load_tokenizer(config.model)
    except UserError:
        raise CannotTell("it needs the tokenizer of the base model, which cannot be loaded") from None
    found = load_data(config, tokenizer)
    remedy = f"restore the data that it was trained on, or {REPLACE}"
    yield _same(config.data.dataset_name, found.fingerprint, record.get("data_fingerprint"), remedy)
    return found


def model(config: RunConfig, record: RunResult) -> Findings:
    """Check that the base model is unchanged; return it."""
    base = load_model(config.model, pick_device())
    name, remedy = (
        config.model.model_name_or_path,
        f"set model.revision to the commit that was used, or {REPLACE}",
    )
    yield _same(name, model_state(base).base_fingerprint, record.get("base_fingerprint"), remedy)
    if known := record.get("base_settings"):
        yield _same(f"the config and tokenizer of {name}", model_state(base).base_settings, known, remedy)
    return base


def trained(run: Path, config: RunConfig, model: Any) -> Findings:
    """Check that the trained weights can be loaded; return the trained model."""
    found = model if config.method == "base" else load_trained(config, run, model)
    yield ok("nothing was trained" if config.method == "base" else f"the weights of {run} can be loaded")
    return found


def scoring(
    run: Path, config: RunConfig, data: RunData, trained: Any, scores: list[Prediction], record: RunResult
) -> Findings:
    """Check that generating again gives the recorded outputs and scores."""
    _, rows = score(Run(config, run, load_tokenizer(config.model), data, trained))
    scoring = Scoring.of_result(record)
    targets = scoring.task.targets
    before = {row["dialogue"]: row["prediction"] for row in scores}  # older versions counted ids otherwise
    other = [str(row["id"]) for row in rows if before.get(row["dialogue"]) != row["prediction"]]
    if other:
        yield fault(
            f"{len(other)} of {len(rows)} {targets} differ from the recorded ones: {few(other)}", AGAIN
        )
    else:
        yield ok(f"all {len(rows)} {targets} are the same when generated again")
    yield from _compared(f"of the new {targets}", score_record(rows, scoring), record)


def _same(name: str, found: str | None, known: str | None, remedy: str) -> Finding:
    """Return the finding on the hash of a model or a dataset."""
    if found == known:
        return ok(f"{name} is unchanged (hash {found})")
    return fault(f"{name} has changed: its hash is {found}, and the run recorded {known}", remedy)


def _is_near(found: Any, known: Any) -> bool:
    """Return whether numbers or intervals are equal up to rounding, and texts equal."""
    if isinstance(found, str):
        return bool(found == known)
    try:
        return bool(np.allclose(found, known, rtol=0, atol=EXACT))
    except (TypeError, ValueError):
        return False


def _compared(what: str, found: Scores, known: RunResult) -> Findings:
    recorded = set(found) - ({"rouge_tokenizer"} - set(known))  # older versions did not record it
    other = [name for name in recorded if not _is_near(found.get(name), known.get(name))]
    if not other:
        yield ok(f"the scores {what} equal the record")
        return
    reported = ", ".join(
        f"{name} {known.get(name)} -> {value}" for name, value in found.items() if name in other
    )
    yield fault(f"the scores {what} differ from the record: {reported}", AGAIN)
