"""The engines that a model can be exported for: how each is written and opened."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_hf.exporting import ctranslate2
from lora_hf.models.exported import Engine, ExportedModel, engine_of


@dataclass(frozen=True)
class Exporter:
    """One engine."""

    families: tuple[str, ...]
    """Values of `model_type` that it knows."""
    quantizations: tuple[str, ...]
    packages: tuple[str, ...]
    """Packages whose versions the manifest names."""
    check: Callable[[], Any]
    """Raises `UserError` where a package is missing."""
    write: Callable[[Any, Any, Path, str], None]
    """Writes model, tokenizer, folder, quantization."""
    open: Callable[[Path], ExportedModel]
    weights: Callable[[Path], list[Path]]
    """The files of a folder that hold the model."""


EXPORTERS: dict[Engine, Exporter] = {
    "ctranslate2": Exporter(
        ctranslate2.FAMILIES,
        ctranslate2.QUANTIZATIONS,
        ("ctranslate2",),
        ctranslate2.package,
        ctranslate2.write_ctranslate2,
        ctranslate2.CTranslate2Model,
        lambda folder: [folder / ctranslate2.MODEL],
    ),
}


def open_exported(folder: Path) -> ExportedModel:
    """Return the model in a folder that `lora-hf export` wrote.

    Raises:
        UserError: the folder is not complete, or the package that runs it is not installed.
    """
    engine = engine_of(folder)
    assert engine is not None
    return EXPORTERS[engine].open(folder)
