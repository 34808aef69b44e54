"""Fields that a config gives and that none of its runs reads: refused, because the user expects an effect.

A field counts as given if its value is not the default. What chooses a storage format may be given together
with `load_in_4bit: false`, so that one field switches quantization off.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lora_hf.config.model import DENSE, EMBEDDED
from lora_hf.config.problems import KeyPath, Mistake, dotted, shown
from lora_hf.config.schema import RunConfig
from lora_hf.config.variants import with_grid, with_variant

SAVED_BESIDE = ("bottleneck", "prompt_tuning")
"""Methods that save what they add, and no further layers."""


class Reader(NamedTuple):
    """Condition under which a run reads a field, and the remedy if none does."""

    reads: Callable[[RunConfig], bool]
    remedy: str


def _is_local(name: str) -> bool:
    """Return whether a name is in the package or a path on this machine, which have no revisions."""
    with suppress(OSError):
        return name == EMBEDDED or Path(name).expanduser().exists()
    return False


def _on_hub(field: str, place: Callable[[RunConfig], str]) -> Reader:
    remedy = f"it is for names on the Hub, and this one is on this machine: set {field}=null"
    return Reader(lambda run: not _is_local(place(run)), remedy)


def _model_name(run: RunConfig) -> str:
    return run.model.model_name_or_path


def _dataset_name(run: RunConfig) -> str:
    return run.data.dataset_name


BNB_4BIT = Reader(
    lambda run: run.model.storage in ("nf4", "fp4"), "it needs load_in_4bit: true with quant_method: bnb"
)
READERS: dict[str, Reader] = {
    "lora.loftq_iter": Reader(
        lambda run: run.lora.init_lora_weights == "loftq", "it needs lora.init_lora_weights: loftq"
    ),
    "lora.modules_to_save": Reader(
        lambda run: run.method not in SAVED_BESIDE or bool(run.arms),
        "only method: lora trains whole layers beside what it adds; remove it",
    ),
    "model.quantize_wo": Reader(
        lambda run: run.model.is_quantized, "it needs load_in_4bit: true or load_in_8bit: true"
    ),
    "model.bnb_4bit_quant_type": BNB_4BIT,
    "model.bnb_4bit_use_double_quant": BNB_4BIT,
    "model.bnb_4bit_compute_dtype": BNB_4BIT,
    "model.hqq_group_size": Reader(
        lambda run: run.model.storage == "affine4", "it needs load_in_4bit: true with quant_method: hqq"
    ),
    "model.revision": _on_hub("model.revision", _model_name),
    "data.dataset_revision": _on_hub("data.dataset_revision", _dataset_name),
    "data.dataset_config": _on_hub("data.dataset_config", _dataset_name),
}
"""Fields that only some runs read."""
STORAGE_FIELDS = tuple(
    name for name in READERS if name.startswith(("model.bnb_", "model.hqq_", "model.quant"))
)
_DEFAULTS = RunConfig()


def unread_fields(config: RunConfig) -> list[Mistake]:
    """Return a mistake for each given field that neither the config's run nor one of its variants reads."""
    runs = dict(_runs(config))
    is_switched_off = not config.model.is_quantized and not config.model.model_fields_set.isdisjoint(DENSE)
    mistakes = []
    for field, reader in READERS.items():
        given = {path: run for path, run in runs.items() if _value(run, field) != _value(_DEFAULTS, field)}
        if not given or any(reader.reads(run) for run in given.values()):
            continue
        if is_switched_off and field in STORAGE_FIELDS:
            continue
        path, run = next(iter(given.items()))
        prefix = f"{dotted(path)}: " if path else ""
        text = f"{prefix}{field}={shown(_value(run, field))} has no effect: {reader.remedy}"
        mistakes.append(Mistake((*path, *field.split(".")), text))
    return mistakes


def _runs(config: RunConfig) -> Iterator[tuple[KeyPath, RunConfig]]:
    """Yield the config's own run, its variants and those of its sweep, each with its place in the YAML."""
    yield (), config
    for section, study in (("variants", config), ("sweep", with_grid(config))):
        for name in study.variants:
            with suppress(ValidationError):  # reported by `check_variants`, where the variants run
                yield (section, name), with_variant(study, name)


def _value(run: RunConfig, field: str) -> Any:
    section, name = field.split(".")
    return getattr(getattr(run, section), name)
