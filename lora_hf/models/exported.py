"""Models in a folder that `lora-hf export` wrote, which another library than torch runs.

An exported model stands where a Transformers model does: it generates, on the CPU, and has a configuration
and generation settings. It has no layers, so that nothing can be trained, merged or added.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import AutoConfig
from transformers import GenerationConfig as TransformersConfig

from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.errors import UserError
from lora_hf.files import file_sha256, read_object

Engine = Literal["ctranslate2", "onnx"]
"""What a model can be exported to."""
ENGINES: tuple[Engine, ...] = get_args(Engine)
MARKS: dict[Engine, str] = {"ctranslate2": "model.bin", "onnx": "encoder_model.onnx"}
"""The file by which a folder's engine is known."""
OLD = "encoder.onnx"
EXPORT = "export"
"""Entry of the manifest that says what the folder was made from."""
AGAIN = "export the model again"
logger = logging.getLogger(__name__)


def engine_of(folder: str | Path) -> Engine | None:
    """Return the engine of an exported folder, by the files in it; None for any other folder.

    Raises:
        UserError: an older version wrote it, or its model is missing.
    """
    folder = Path(folder).expanduser()
    if (folder / OLD).is_file():
        raise UserError(f"{folder} holds ONNX graphs of an older version, under other names: {AGAIN}")
    found = next((engine for engine, file in MARKS.items() if (folder / file).is_file()), None)
    manifest = folder / MANIFEST_NAME
    if found is None and manifest.is_file() and EXPORT in read_object(manifest):
        raise UserError(
            f"{folder} was exported, but it has no {' and no '.join(MARKS.values())}: {AGAIN}, or download "
            "all of its files again"
        )
    return found


def export_record(folder: Path) -> dict[str, Any]:
    """Return what the manifest says of an export: engine, quantization, base, adapter, the model's config.

    Raises:
        UserError: the folder has no such manifest.
    """
    try:
        record = read_object(folder / MANIFEST_NAME).get(EXPORT)
    except FileNotFoundError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise UserError(f"{folder} has no {MANIFEST_NAME} that says what it was exported from: {AGAIN}")
    return record


def made_from(record: Mapping[str, Any]) -> str:
    """Return the base and the adapter of an export, in words."""
    base, adapter = record.get("base_model_name_or_path"), record.get("adapter")
    return f"{base} with the adapter {adapter}" if adapter else str(base)


def exported_config(folder: Path) -> Any:
    """Return the Transformers configuration of the model that a folder was exported from.

    Raises:
        UserError: the manifest does not hold one.
    """
    settings = dict(export_record(folder)["config"])
    try:
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / MANIFEST_NAME}: {EXPORT}.config does not describe a model ({error}): {AGAIN}"
        ) from error


def refuse_exported(folder: str | Path, model: str) -> None:
    """Refuse an exported folder where a model with layers is needed.

    Args:
        folder: the model's folder.
        model: the model as errors name it.

    Raises:
        UserError: it is one.
    """
    if engine := engine_of(folder):
        raise UserError(
            f"{model} is a model that was exported to {engine}, which only predict, evaluate, serve, demo "
            "and lora_hf.load can use: give the model that it was exported from"
        )


class ExportedModel(ABC):
    """A model that another library runs on the CPU.

    Attributes:
        folder: where it was exported to.
        config: the Transformers configuration of the model that it was made from.
        generation_config: the settings in the folder, in the model's language.
        quantization: of the weights, such as `int8`.
    """

    engine: Engine
    device = torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        """Read the settings beside the model.

        Raises:
            UserError: a file is missing or not what the export wrote.
        """
        self.folder = folder
        self.config = exported_config(folder)
        record = export_record(folder)
        self.quantization = str(record.get("quantization", "float32"))
        for name, recorded in (record.get("sha256") or {}).items():
            if not (folder / name).is_file() or file_sha256(folder / name) != recorded:
                raise UserError(
                    f"{folder / name} is not the file that was exported from {made_from(record)}: {AGAIN}, "
                    "or download all of its files again"
                )
        logger.debug("%s was exported from %s", folder, made_from(record))
        try:
            settings = read_object(folder / "generation_config.json")
        except FileNotFoundError:
            raise UserError(f"{folder} has no generation_config.json: {AGAIN}") from None
        self.generation_config = TransformersConfig(**settings)

    @property
    def description(self) -> str:
        """Engine and quantization, for the log."""
        return f"{self.quantization} by {self.engine}"

    def options(self, given: dict[str, Any]) -> TransformersConfig:
        """Return the generation settings of a call: the tokens of the model's family, and what is given."""
        needed = (
            *("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"),
            *("forced_bos_token_id", "bad_words_ids"),
        )
        own = {name: value for name in needed if (value := getattr(self.generation_config, name)) is not None}
        return TransformersConfig(**(own | given))

    @abstractmethod
    def generate_ids(
        self, sources: list[list[int]], limits: list[int], options: TransformersConfig
    ) -> list[list[int]]:
        """Generate one batch.

        Args:
            sources: token ids, one list per text, longest first.
            limits: the most tokens of each output.
            options: the result of `options`.

        Returns:
            The token ids of each output, without the decoder's start.

        Raises:
            UserError: the engine lacks what the options ask for.
        """

    def check_language(self, target: str | None) -> None:
        """Check that texts are to be written in the language that the model was exported for.

        Raises:
            UserError: they are not.
        """
        own = read_object(self.folder / MANIFEST_NAME).get("target_language")
        if target and own and target.strip("_") != own.strip("_"):
            raise UserError(
                f"data.target_language={target!r}: {self.folder} was exported for {own!r}; export the model "
                "again with this language"
            )
