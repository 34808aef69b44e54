"""One run from start to end: load, adapt, train, score, record. `method` is the only switch between runs.

Each stage leaves its result in the run directory, so that the same command resumes: from the last checkpoint,
or, once trained, at the scoring.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lora_hf import terminal
from lora_hf.adapters import count_parameters
from lora_hf.adapters.inits import SHAPE_ONLY
from lora_hf.adapters.model_state import model_state
from lora_hf.config import RunConfig
from lora_hf.data.prepare import load_data
from lora_hf.distributed import all_gather, from_main, in_all_processes, is_main, is_sharded, world_size
from lora_hf.errors import NotFinite
from lora_hf.evaluation.evaluate import score_model
from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.predictions import write_predictions
from lora_hf.evaluation.retention import (
    load_retention,
    retention_fingerprint,
    retention_rows,
    write_outputs,
    write_retention,
)
from lora_hf.evaluation.retention_scores import retention_record, retention_scores
from lora_hf.evaluation.writable import REMEDY, unwritable
from lora_hf.files import file_sha256, folder_sha256, write_json
from lora_hf.models.languages import set_language
from lora_hf.models.load import check_run_lengths, load_model, load_tokenizer, report_model
from lora_hf.models.storage.bitsandbytes import storage_of
from lora_hf.planning.fake_model import CHECKPOINTING, check_fit, outline, settings_of
from lora_hf.run_files import ADAPTER, DIVERGED, MODEL, PREDICTIONS, RESULTS, RETENTION, TRAINED
from lora_hf.run_records import (
    Prediction,
    RetentionRow,
    RunResult,
    Scores,
    TrainingRecord,
    folder_bytes,
    read_record,
)
from lora_hf.runs.lock import run_lock
from lora_hf.runs.run_dir import MODEL_SETTINGS, UNCHANGED, RunDirectory, sources_of
from lora_hf.saved.push import check_push, push_run
from lora_hf.system import check_torch_state, device_name, peak_memory_mib, pick_device, versions
from lora_hf.training.arguments import check_full_batches, check_training_settings, doubtful_schedule
from lora_hf.training.nan_guard import Diverged
from lora_hf.training.registry import ADDED_WEIGHTS
from lora_hf.training.stored_base import check_base_of
from lora_hf.training.train import Run, adapt, load_trained, train

logger = logging.getLogger(__name__)


def execute(config: RunConfig) -> RunResult:
    """Make a run, push it if asked to, and return its result, which is also in `results.json`.

    Raises:
        UserError: a mistake in the config, the data, the model or the output directory, or a failed push.
        Interrupted: a signal asked to stop; a checkpoint is saved.
    """
    check_torch_state()
    directory, sources = RunDirectory(config), sources_of(config)
    device = pick_device()
    this = in_all_processes(lambda: _load(config, directory, device))
    with run_lock(directory.path):
        base = model_state(this.model)
        fingerprints = {"data": this.data.fingerprint, "model": base.base_fingerprint}
        if base.base_settings:
            fingerprints[MODEL_SETTINGS] = base.base_settings
        if this.retention:
            fingerprints["retention"] = retention_fingerprint(this.retention)
        from_main(lambda: directory.prepare(fingerprints, sources))
        if (result := from_main(directory.results)) is not None:
            logger.info(UNCHANGED, directory.path)
            rows = None
        else:
            result, rows = _make(this)
        from_main(lambda: push_run(config, result, rows))
        return result


def _load(config: RunConfig, directory: RunDirectory, device: torch.device) -> Run:
    """Load tokenizer, data and base model, after every check that needs none of them."""
    directory.check()
    check_push(config)
    check_training_settings(config)
    check_base_of(config)
    if _asks_of_outline(config):
        _check_outlines([config])
    Scoring.of_config(config).check()
    tokenizer = load_tokenizer(config.model)
    check_run_lengths(config)
    report_model(config.model, device, train_all=config.method == "full")
    retention = load_retention(config, tokenizer)
    data = load_data(config, tokenizer, {f"retention {task.name}": task.test for task in retention})
    references = [example.references for example in data.test]
    lost = unwritable(Scoring.of_config(config), references, tokenizer, config.data)
    if lost.text:
        logger.log(terminal.level_once(lost.text, logging.WARNING), "%s. Remedy: %s", lost.text, REMEDY)
    data.warnings.extend([lost.text] * lost.is_fault)
    check_full_batches(config, data.train)
    if short := doubtful_schedule(config, data.train):
        logger.warning("%s; %s", *short)
    model = load_model(config.model, device, train_all=config.method == "full")
    if config.method in ADDED_WEIGHTS:
        ADDED_WEIGHTS[config.method].check(config, model)  # a typo must not clear the directory
    return Run(config, directory.path, tokenizer, data, model, retention)


OF_THE_LAYERS = ("optim_target_modules", *CHECKPOINTING)
"""Fields of `training` that not every architecture fits."""


def _asks_of_outline(config: RunConfig) -> bool:
    """Return whether a config asks for what not every architecture has, beside targets."""
    lora = config.lora
    asks = [lora.init_lora_weights not in SHAPE_ONLY, lora.layer_replication, config.model.quantize_wo]
    return any((*asks, *map(config.training.get, OF_THE_LAYERS)))


def check_before_loading(configs: Iterable[RunConfig]) -> None:
    """Check of planned runs, before the first one, what each would refuse before its model is loaded.

    Raises:
        UserError: as `check_training_settings`, targets match no layer, or as `check_fit`.
    """
    configs = list(configs)
    for config in configs:
        check_training_settings(config)
    _check_outlines(configs)


def _check_outlines(configs: Iterable[RunConfig]) -> None:
    """Check what the model's architecture has to support for runs, without its weights.

    Raises:
        UserError: targets match no layer, or as `check_fit`.
    """
    distinct: dict[str, RunConfig] = {}
    for config in configs:
        if config.method != "base":
            fields = config.model_dump(include={"method", "model", *ADDED_WEIGHTS})
            distinct[repr((fields, *map(config.training.get, OF_THE_LAYERS)))] = config
    for config in distinct.values():
        with outline(config, settings_of(config.model), torch.float32, is_run=False) as model:
            check_fit(config, model)


def _make(run: Run) -> tuple[RunResult, list[Prediction]]:
    """Train, score and record, leaving out what is done already; return the result and the predictions."""
    base_outputs = write_outputs(run.config, run.model, run.tokenizer, run.retention)
    set_seed(run.config.seed)
    if run.config.method == "base":
        total = count_parameters(run.model)[1]
        logger.info("method: base, %s parameters, without training", f"{total:,}")
        trained: TrainingRecord = {
            "train_seconds": 0.0,
            "trainable_parameters": 0,
            "total_parameters": total,
        }
    with _divergence_noted(run):
        if run.config.method != "base":
            trained = _train(run)
        scores, rows = score(run)
    kept = retain(run, base_outputs)
    scores["peak_memory_mib"] = max(all_gather(round(peak_memory_mib(run.model.device), 1)))
    return from_main(lambda: _write(run, trained, scores, rows, kept)), rows


@contextmanager
def _divergence_noted(run: Run) -> Iterator[None]:
    """Leave a file in the run if its training diverges in the block, for a search; remove an older one."""
    file = run.directory / DIVERGED
    try:
        yield
    except (Diverged, NotFinite) as error:
        if is_main() and run.config.method != "base":  # others may not have met it
            write_json(file, {"error": str(error)})
        raise
    if is_main():
        file.unlink(missing_ok=True)


def _train(run: Run) -> TrainingRecord:
    """Leave the trained model in the run, trained here or before, and complete in every process."""
    file = run.directory / TRAINED
    if (known := from_main(lambda: read_record(file))) is not None:
        run.model = in_all_processes(lambda: load_trained(run.config, run.directory, run.model))
        return cast(TrainingRecord, known)
    in_all_processes(lambda: adapt(run))
    trained = train(run)
    from_main(lambda: write_json(file, trained))
    if is_sharded(run.model):
        unset_hf_deepspeed_config()  # or the next model would be loaded in parts too
        base = load_model(run.config.model, run.model.device, train_all=run.config.method == "full")
        run.model = load_trained(run.config, run.directory, base)
    return trained


def score(run: Run) -> tuple[Scores, list[Prediction]]:
    """Generate and score the outputs of the run's test split with its model."""
    config, data = run.config, run.data
    set_language(run.model, run.tokenizer, config.data)
    return score_model(
        config.generation,
        run.model,
        run.tokenizer,
        data.test,
        data.test_sources,
        data.max_new_tokens,
        config.fast_paths,
        Scoring.of_config(config),
    )


def retain(run: Run, base_outputs: Mapping[str, list[str]]) -> list[RetentionRow]:
    """Return the rows of retention.jsonl: outputs of the run's model on further tasks, beside the base's."""
    if run.config.method == "base":
        outputs = base_outputs
    else:
        outputs = write_outputs(run.config, run.model, run.tokenizer, run.retention)
    return retention_rows(run.retention, outputs, base_outputs)


def _write(
    run: Run,
    trained: TrainingRecord,
    scores: Scores,
    rows: list[Prediction],
    kept: list[RetentionRow],
) -> RunResult:
    config, data, folder = run.config, run.data, run.directory
    write_predictions(folder / PREDICTIONS, rows)
    if kept:
        write_retention(folder / RETENTION, kept)
    result: RunResult = {
        **trained,
        **scores,
        "method": config.method,
        "seed": config.seed,
        "bytes_on_disk": folder_bytes(folder / ADAPTER) + folder_bytes(folder / MODEL),
        "max_new_tokens": data.max_new_tokens,
        "truncation": [str(split.truncation) for split in (data.train, data.validation)],
        "data_warnings": data.warnings,
        "splits": data.splits,
        "base_model": config.model.model_name_or_path,
        "base_fingerprint": model_state(run.model).base_fingerprint,
        "base_settings": model_state(run.model).base_settings,
        "data_fingerprint": data.fingerprint,
        "dtype": str(run.model.dtype).removeprefix("torch."),
        "storage": storage_of(run.model, config.model),
        "device": device_name(run.model.device),
        "processes": world_size(),
        "versions": versions(),
        "sha256": hashes(folder),
    }
    if kept:
        scorings = {task.name: task.scoring for task in run.retention}
        result["retention_tasks"] = {name: scoring.fields() for name, scoring in scorings.items()}
        result["retention"] = {
            name: retention_record(pair, scorings[name])
            for name, pair in retention_scores(kept, scorings).items()
        }
    write_json(folder / RESULTS, result)
    return result


def hashes(run: Path) -> dict[str, str]:
    """Return the SHA-256 of the trained weights and the predictions, by path in the run's folder."""
    kept = {f"{part}/{name}": h for part in (ADAPTER, MODEL) for name, h in folder_sha256(run / part).items()}
    files = [name for name in (PREDICTIONS, RETENTION) if (run / name).is_file() or name == PREDICTIONS]
    return kept | {name: file_sha256(run / name) for name in files}
