"""Check a machine, a config, an adapter or a finished run, and report what is wrong.

A new check is a function and one line in a registry. Registries are ordered: a check may use the
values of earlier ones.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lora_hf.adapters.saved_adapter import AGAIN
from lora_hf.config.load import find_config, load_config
from lora_hf.doctor import adapter_files, adapter_on_base, base, configs, machine, runs
from lora_hf.doctor.check import Check, Finding, examine
from lora_hf.errors import UserError, path_hint
from lora_hf.models.load import locate
from lora_hf.run_files import RESULTS
from lora_hf.saved.find_adapter import find_adapter

CORRECT_CONFIG = "correct the config"
CONVERT = "use a complete folder written by save_adapter or PEFT"
NAME_BASE = "name the base it was trained on: --base FOLDER or USER/NAME"

MACHINE: dict[str, Check] = {
    "versions": Check(machine.versions, "pip install -e ."),
    "device": Check(machine.device, "install the build of torch for this machine: see pytorch.org"),
}
CONFIG: dict[str, Check] = {
    "fields": Check(configs.fields, CORRECT_CONFIG),
    "storage": Check(configs.storage, CORRECT_CONFIG),
    "dtype": Check(configs.dtype, "model.dtype: auto"),
    "metrics": Check(configs.metrics, CORRECT_CONFIG),
    "training": Check(configs.training, CORRECT_CONFIG),
    "checkpoint": Check(base.checkpoint, "correct model.model_name_or_path, or download the model again"),
    "tokenizer": Check(base.tokenizer, "add the tokenizer's files to the model's folder"),
    "head": Check(base.head, "download the model again"),
    "targets": Check(configs.targets, "correct that field; lora.target_modules: auto fits every family"),
    "tokens": Check(configs.tokens, "correct the section `data`"),
    "retention": Check(configs.retention, "correct the section `retention`"),
    "batches": Check(configs.batches, CORRECT_CONFIG),
    "memory": Check(configs.memory, CORRECT_CONFIG),
}
ADAPTER: dict[str, Check] = {
    "weights": Check(adapter_files.weights, CONVERT),
    "settings": Check(adapter_files.settings, CONVERT),
    "numbers": Check(
        adapter_files.numbers, "train again in bfloat16 or float32, or use an earlier checkpoint"
    ),
    "storage": Check(adapter_files.storage, NAME_BASE),
    "checkpoint": Check(base.checkpoint, NAME_BASE),
    "tokenizer": Check(base.tokenizer, "add the tokenizer's files to the model's folder"),
    "head": Check(base.head, NAME_BASE),
    "base": Check(adapter_on_base.base, NAME_BASE),
    "adapted": Check(adapter_on_base.adapted, f"{AGAIN}, or {NAME_BASE}"),
    "dtype": Check(adapter_on_base.dtype, AGAIN),
    "effect": Check(adapter_on_base.effect, AGAIN),
    "merging": Check(adapter_on_base.merging, AGAIN),
    "tokens": Check(adapter_on_base.tokens, "train with a larger data.max_source_length"),
}
RUN: dict[str, Check] = {
    "record": Check(runs.record, runs.AGAIN),
    "files": Check(runs.files, runs.AGAIN),
    "scores": Check(runs.scores, runs.AGAIN),
    "made_by": Check(runs.made_by, runs.AGAIN),
    "config": Check(runs.config, runs.REPLACE),
    "data": Check(runs.data, "restore the data that it was trained on"),
    "model": Check(runs.model, "restore the base model that it was trained on"),
    "trained": Check(runs.trained, runs.AGAIN),
    "scoring": Check(runs.scoring, runs.AGAIN),
}


def of_machine() -> Iterator[Finding]:
    """Check versions and device."""
    return examine(MACHINE, {})


def of_config(path: Path, overrides: list[str]) -> Iterator[Finding]:
    """Check a config.

    Raises:
        UserError: the file does not exist.
    """
    if not find_config(path).is_file():
        load_config(path, overrides)
    return examine(CONFIG, {"path": path, "overrides": overrides})


def of_adapter(name: str, base_name: str | None = None) -> Iterator[Finding]:
    """Check an adapter and its base.

    Args:
        name: a folder, or USER/NAME on the Hub.
        base_name: the base; None for the one that the adapter names.

    Raises:
        UserError: the adapter or the base's folder does not exist.
    """
    adapter = find_adapter(name, "ADAPTER")
    if base_name:
        locate(base_name, "--base")
    return examine(ADAPTER, {"adapter": adapter, "base_name": base_name})


def of_run(path: Path) -> Iterator[Finding]:
    """Check a finished run, or each finished run in a folder.

    Raises:
        UserError: the folder holds none.
    """
    found = runs.finished(path)
    if not found:
        inside = (path.parent / RESULTS).is_file()
        hint = f"; give the run that it is in, {str(path.parent)!r}" if inside else path_hint(str(path))
        raise UserError(f"{path} holds no finished run, which would have config.yaml and results.json{hint}")
    for run in found:
        name = "" if len(found) == 1 else f"{run.relative_to(path)}: "
        for finding in examine(RUN, {"run": run}):
            cause = f"{name}{finding.cause}" if finding.cause else ""
            yield replace(finding, title=f"{name}{finding.title}", cause=cause)
