"""The engines that a model can be exported for: how each is written and opened."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_hf.errors import UserError
from lora_hf.exporting import ctranslate2, onnx
from lora_hf.models.exported import Engine, ExportedModel, engine_of


@dataclass(frozen=True)
class Exporter:
    """One engine."""

    title: str
    """As people call it."""

    families: tuple[str, ...]
    """Values of `model_type` that it knows."""
    quantizations: tuple[str, ...]
    packages: tuple[str, ...]
    """Packages whose versions the manifest names; the first one is the engine's."""
    check: Callable[[], Any]
    """Raises `UserError` where a package is missing."""
    write: Callable[[Any, Any, Path, str], None]
    """Writes model, tokenizer, folder, quantization."""
    open: Callable[[Path], ExportedModel]
    weights: Callable[[Path], list[Path]]
    """The files of a folder that hold the model."""
    readme_code: Callable[[Any, Any], str]
    """Code of a README, from the tokenizer and the generation settings."""


EXPORTERS: dict[Engine, Exporter] = {
    "ctranslate2": Exporter(
        "CTranslate2",
        ctranslate2.FAMILIES,
        ctranslate2.QUANTIZATIONS,
        ("ctranslate2",),
        ctranslate2.package,
        ctranslate2.write_ctranslate2,
        ctranslate2.CTranslate2Model,
        lambda folder: [folder / ctranslate2.MODEL],
        ctranslate2.readme_code,
    ),
    "onnx": Exporter(
        "ONNX Runtime",
        onnx.FAMILIES,
        onnx.QUANTIZATIONS,
        onnx.PACKAGES,
        onnx.check_packages,
        onnx.write_onnx,
        onnx.OnnxModel,
        onnx.weights_of,
        onnx.readme_code,
    ),
}


def check_family(engine: Engine, kind: str, name: str) -> None:
    """Check that an engine knows a family.

    Args:
        engine: what the model is exported for.
        kind: its `model_type`.
        name: the model as errors name it.

    Raises:
        UserError: it does not.
    """
    if kind not in (known := EXPORTERS[engine].families):
        raise UserError(
            f"{name} is of type {kind}, which cannot be exported to {engine}; these can: {', '.join(known)}. "
            "Use the model with Transformers (`lora-hf merge` makes a plain folder from an adapter)"
        )


def open_exported(folder: Path) -> ExportedModel:
    """Return the model in a folder that `lora-hf export` wrote.

    Raises:
        UserError: the folder is not complete, or the package that runs it is not installed.
    """
    engine = engine_of(folder)
    assert engine is not None
    return EXPORTERS[engine].open(folder)
