"""The engines that a model can be exported for: how each is written and opened."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_hf.config import ModelConfig
from lora_hf.errors import UserError
from lora_hf.exporting import ctranslate2, onnx
from lora_hf.models.exported import Engine, ExportedModel, engine_of
from lora_hf.models.load import check_base, find_base, model_config


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


def check_model(engine: Engine, model: ModelConfig) -> None:
    """Check without its weights that a model, or the base of an adapter, can be converted.

    Raises:
        UserError: the engine does not know its family, or it is quantized.
    """
    name = model.as_written
    check_family(engine, model_config(model).model_type, name)
    if model.is_quantized:
        raise UserError(
            f"{name} is stored in {model.storage}, and only dense models can be exported to {engine}: merge "
            "the adapter first (`lora-hf merge --onto checkpoint`), and give that folder"
        )
    if check_base(model, find_base(model, "weights")[0]):
        raise UserError(
            f"{name}: its weights are stored quantized and cannot be exported to {engine}; give the "
            "checkpoint before quantization"
        )


def open_exported(folder: Path) -> ExportedModel:
    """Return the model in a folder that `lora-hf export` wrote.

    Raises:
        UserError: the folder is not complete, or the package that runs it is not installed.
    """
    engine = engine_of(folder)
    assert engine is not None
    return EXPORTERS[engine].open(folder)
