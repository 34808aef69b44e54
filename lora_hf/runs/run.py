"""One arm, end to end: load, adapt, train, score, record. `method` is the only switch between the arms.

Each stage leaves its result in the run directory, so that the same command goes on where it was: after the
last checkpoint, or, once trained, at the scoring.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lora_hf.adapters import count_parameters
from lora_hf.config import RunConfig
from lora_hf.data.prepare import ArmData, load_data
from lora_hf.distributed import all_gather, from_main, is_sharded, together, world_size
from lora_hf.evaluation.evaluate import score_model, write_predictions
from lora_hf.files import file_sha256, folder_sha256, write_json
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.run_files import ADAPTER, MODEL, PREDICTIONS, RESULTS, TRAINED
from lora_hf.run_records import folder_bytes, read_record
from lora_hf.runs.finished import LEFT, sources_of
from lora_hf.runs.lock import run_lock
from lora_hf.runs.run_dir import RunDirectory
from lora_hf.saved.push import check_push, push_run
from lora_hf.system import device_name, peak_memory_mib, pick_device, versions
from lora_hf.training.arguments import check_trackers
from lora_hf.training.registry import ADDED_WEIGHTS
from lora_hf.training.train import adapt, fit, load_trained

logger = logging.getLogger(__name__)


def run_arm(config: RunConfig) -> dict[str, Any]:
    """Run one arm, push it where asked to, and return its record, which is also in `results.json`.

    Raises:
        UserError: a mistake in the config, the data, the model or the output directory, or no push of it.
        Interrupted: told to stop; a checkpoint is saved.
    """
    run, sources = RunDirectory(config), sources_of(config)
    device = pick_device()
    tokenizer, data, model = together(lambda: _read(config, run, device))
    with run_lock(run.path):
        fingerprints = {"data": data.fingerprint, "model": model.base_fingerprint}
        from_main(lambda: run.claim(fingerprints, sources))
        return _run(config, run, model, tokenizer, data)


def _run(config: RunConfig, run: RunDirectory, model: Any, tokenizer: Any, data: ArmData) -> dict[str, Any]:
    """The stages that write, each of them left out where its result is there."""
    if (record := from_main(run.results)) is not None:
        logger.info(LEFT, run.path)
        from_main(lambda: push_run(config))
        return record
    set_seed(config.seed)
    if config.method != "base":
        model = _trained(config, run, model, tokenizer, data)
    scores, rows = score_arm(config, model, tokenizer, data)
    scores["peak_memory_mib"] = max(all_gather(round(peak_memory_mib(model.device), 1)))
    return from_main(lambda: _written(config, run, _record(config, run, model, data) | scores, rows))


def score_arm(
    config: RunConfig, model: Any, tokenizer: Any, data: ArmData
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`score_model` of an arm's model on its test split."""
    return score_model(
        config.generation,
        model,
        tokenizer,
        data.test,
        data.test_sources,
        data.max_new_tokens,
        config.fast_paths,
    )


def _read(config: RunConfig, run: RunDirectory, device: torch.device) -> tuple[Any, ArmData, Any]:
    """Tokenizer, data and base model, once all that can be wrong without them is seen to be right."""
    run.check()
    check_push(config)
    if config.method != "base":
        check_trackers(config.training.get("report_to"))
    tokenizer = load_tokenizer(config.model)
    data = load_data(config, tokenizer)
    model = load_model(config.model, device, train_all=config.method == "full")
    if config.method in ADDED_WEIGHTS:
        ADDED_WEIGHTS[config.method].check(config, model)  # a typo must not clear the directory
    return tokenizer, data, model


def _trained(config: RunConfig, run: RunDirectory, model: Any, tokenizer: Any, data: ArmData) -> Any:
    """The model with what was learned in it, trained here or before, and whole in every process."""
    device = model.device
    if from_main((run / TRAINED).is_file):
        return together(lambda: load_trained(config, run.path, model, device))
    together(lambda: adapt(config, model))
    trained = fit(config, run.path, model, tokenizer, data)
    from_main(lambda: write_json(run / TRAINED, trained))
    if not is_sharded(model):
        return model
    unset_hf_deepspeed_config()  # or the next model would be loaded in parts too
    fresh = load_model(config.model, device, train_all=config.method == "full")
    return load_trained(config, run.path, fresh, device)


def _written(
    config: RunConfig, run: RunDirectory, record: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    write_predictions(run / PREDICTIONS, rows)
    write_json(run / RESULTS, record | {"sha256": hashes(run.path)})
    push_run(config)
    return record


def hashes(run: Path) -> dict[str, str]:
    """SHA-256 of what was learned and written, by its path in the run's folder."""
    kept = {f"{part}/{name}": h for part in (ADAPTER, MODEL) for name, h in folder_sha256(run / part).items()}
    return kept | {PREDICTIONS: file_sha256(run / PREDICTIONS)}


def _record(config: RunConfig, run: RunDirectory, model: Any, data: ArmData) -> dict[str, Any]:
    """What is known of an arm beside its scores."""
    trained = read_record(run / TRAINED) or {
        "train_seconds": 0.0,
        "trainable_parameters": 0,
        "total_parameters": count_parameters(model)[1],
    }
    return trained | {
        "method": config.method,
        "seed": config.seed,
        "bytes_on_disk": folder_bytes(run / ADAPTER) + folder_bytes(run / MODEL),
        "max_new_tokens": data.max_new_tokens,
        "truncation": [str(rows.truncation) for rows in (data.train, data.validation)],
        "base_model": config.model.model_name_or_path,
        "base_fingerprint": model.base_fingerprint,
        "data_fingerprint": data.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "storage": config.model.storage,
        "device": device_name(model.device),
        "processes": world_size(),
        "versions": versions(),
    }
