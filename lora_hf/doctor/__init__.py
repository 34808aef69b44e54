"""What can be seen to be wrong before it hurts: of a machine, a config, an adapter, a finished run.

A new check is a function and one line in a registry. The order is that of the report, and of what needs what.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lora_hf.adapters.saved_adapter import AGAIN
from lora_hf.config.load import find_config, load_config
from lora_hf.doctor import adapter_files, adapter_on_base, base, configs, machine, runs
from lora_hf.doctor.check import Check, Finding, examine
from lora_hf.errors import UserError
from lora_hf.models.load import locate
from lora_hf.saved.adapter import find_adapter

AS_SAID = "correct the config as said"
CONVERT = "take the folder that save_adapter or PEFT wrote, whole"
NAME_BASE = "give the base it was trained on: --base FOLDER or USER/NAME"

MACHINE: dict[str, Check] = {
    "versions": Check(machine.versions, "pip install -e ."),
    "device": Check(machine.device, "see pytorch.org for the build of torch that fits this machine"),
}
CONFIG: dict[str, Check] = {
    "fields": Check(configs.fields, AS_SAID),
    "store": Check(configs.store, AS_SAID),
    "dtype": Check(configs.dtype, "model.dtype: auto"),
    "training": Check(configs.training, AS_SAID),
    "checkpoint": Check(base.checkpoint, "correct model.model_name_or_path, or download the model again"),
    "tokenizer": Check(base.tokenizer, "put the tokenizer's files beside the weights"),
    "head": Check(base.head, "download the model again"),
    "targets": Check(
        configs.targets, "name layers that the model has in lora.target_modules, or lower lora.r"
    ),
    "tokens": Check(configs.tokens, "correct the section data"),
    "memory": Check(configs.memory, AS_SAID),
}
ADAPTER: dict[str, Check] = {
    "weights": Check(adapter_files.weights, CONVERT),
    "settings": Check(adapter_files.settings, CONVERT),
    "numbers": Check(adapter_files.numbers, "train again in bfloat16 or float32, or go back to a checkpoint"),
    "store": Check(adapter_files.store, NAME_BASE),
    "checkpoint": Check(base.checkpoint, NAME_BASE),
    "tokenizer": Check(base.tokenizer, "put the tokenizer's files beside the weights"),
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
    "rouge": Check(runs.rouge, runs.AGAIN),
    "made_by": Check(runs.made_by, runs.AGAIN),
    "config": Check(runs.config, runs.AGAIN),
    "data": Check(runs.data, "put the data back that it was trained on"),
    "model": Check(runs.model, "put the base model back that it was trained on"),
    "scoring": Check(runs.scoring, runs.AGAIN),
}


def of_machine() -> Iterator[Finding]:
    """The findings on versions and device."""
    return examine(MACHINE, {})


def of_config(path: Path, overrides: list[str]) -> Iterator[Finding]:
    """The findings on a config.

    Raises:
        UserError: there is no such file.
    """
    if not find_config(path).is_file():
        load_config(path, overrides)
    return examine(CONFIG, {"path": path, "overrides": overrides})


def of_adapter(name: str, base_name: str | None = None) -> Iterator[Finding]:
    """The findings on an adapter and its base.

    Args:
        name: a folder, or USER/NAME on the Hub.
        base_name: the base, if not the one that the adapter names.

    Raises:
        UserError: there is no such adapter, or no such folder for the base.
    """
    adapter = find_adapter(name)
    if base_name:
        locate(base_name, "--base")
    return examine(ADAPTER, {"adapter": adapter, "base_name": base_name})


def of_run(path: Path) -> Iterator[Finding]:
    """The findings on a finished run, or on each of those in a folder.

    Raises:
        UserError: there is none.
    """
    found = runs.finished(path)
    if not found:
        raise UserError(f"{path} holds no finished run: one has config.yaml and results.json")
    for run in found:
        name = "" if len(found) == 1 else f"{run.relative_to(path)}: "
        for finding in examine(RUN, {"run": run}):
            yield replace(finding, title=f"{name}{finding.title}")
