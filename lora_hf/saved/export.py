"""Export a trained model for another engine, and compare what both write on the run's test split."""

import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lora_hf.adapters import merge_and_unload
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.adapters.model_state import model_state
from lora_hf.config import DataConfig, RunConfig
from lora_hf.config.load import load_config
from lora_hf.config.prediction import COLUMN_FIELDS, PredictionSettings
from lora_hf.data.examples import Example
from lora_hf.data.splits import load_split, with_columns_of_training
from lora_hf.data.tokenize import encode_sources
from lora_hf.errors import UserError
from lora_hf.evaluation.evaluate import summarize
from lora_hf.evaluation.metrics import Scoring
from lora_hf.evaluation.significance import is_significant
from lora_hf.exporting.engines import EXPORTERS, check_model, open_exported
from lora_hf.files import check_new, file_sha256, whole_output, write_json
from lora_hf.models.exported import EXPORT, Engine, export_record
from lora_hf.models.generation import generation_config
from lora_hf.models.languages import set_language
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.models.plain_folder import save_tokenizer, write_exported_readme
from lora_hf.models.special_tokens import GENERATION
from lora_hf.run_files import CONFIG
from lora_hf.saved.find_adapter import tokenizer_of
from lora_hf.saved.source import Source
from lora_hf.scores import Score
from lora_hf.training.registry import load_saved, saved_method

LARGEST_LOSS = 0.005
"""Loss of the task's main score, on a scale of 1, beyond which an export is refused if it is significant."""
EQUAL_SHARE = 0.9
"""Share of greedy outputs of an export in float32 that must be those of the model: others are near ties, of
which there is one in few outputs too."""
SAMPLE = 8
"""Dialogues of the package's test split on which a model of unknown data is compared."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What an exported model writes, compared with the model in float32."""

    n: int
    """Compared examples."""
    of: int
    """Examples of the test split."""
    equal: int
    """Those whose texts are the same."""
    score: Score | None = None
    """The task's main score; None where the model's data are not known."""
    of_model: float = 0.0
    of_export: float = 0.0
    p_value: float = 1.0
    """Of the paired test of both scores."""

    @property
    def loss(self) -> float:
        """Return the loss of the score by the export, on a scale of 1; negative for a gain."""
        return self.score.sign * (self.of_model - self.of_export) / self.score.scale if self.score else 0.0

    def __str__(self) -> str:
        part = f"{self.n:,}" if self.n == self.of else f"first {self.n:,} of {self.of:,}"
        if self.score is None:
            return f"{self.equal} of {self.n} texts of the package's sample equal the float32 model's"
        before, after = self.score.text(self.of_model), self.score.text(self.of_export)
        return (
            f"test split ({part} examples): {self.equal:,} of {self.n:,} texts equal the float32 model's; "
            f"{self.score.label} {after}, the float32 model's {before}"
        )


def export(
    source: Source,
    output: Path,
    engine: Engine,
    quantization: str = "float32",
    config: RunConfig | None = None,
    examples: int = 200,
    allow_loss: bool = False,
) -> Comparison:
    """Write a model for another engine, with tokenizer, prompt and settings, and compare what it writes.

    The adapter of a run is merged in memory, in float32.

    Args:
        source: what `find_source` found: a run, an adapter, or a whole model.
        output: a new folder.
        engine: what the model is for.
        quantization: of the weights, one of the engine's.
        config: whose test split is compared; None takes the config of the run that the model is in. Without
            one, texts of the package's sample are compared and no score.
        examples: the most examples that are compared.
        allow_loss: write the folder even if the score falls as `check_loss` refuses it.

    Raises:
        UserError: `output` exists, a package is missing, the engine does not know the model's family, the
            model is quantized or has an adapter that cannot be merged, or the export loses too much.
    """
    exporter = EXPORTERS[engine]
    check_new(output)
    _check_source(source, engine, quantization)
    exporter.check()
    if config is None and source.run:
        config = load_config(source.run / CONFIG, is_recorded=True)
    settings = source.settings_with("generation", {})
    test = _examples(source, config, settings)
    model, tokenizer = _merged(source)
    set_language(model, tokenizer, settings.data)
    own = generation_config(model, settings.generation, settings.max_new_tokens)
    of, test = len(test), test[:examples]
    data = settings.data.model_copy(update={name: getattr(DataConfig(), name) for name in COLUMN_FIELDS})
    sources = encode_sources([example.dialogue for example in test], tokenizer, data).ids

    def written(by: Any) -> list[str]:
        return summarize(settings.generation, by, tokenizer, sources, settings.max_new_tokens)

    texts = written(model)
    with whole_output(output) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        exporter.write(model, tokenizer, folder, quantization)
        own.to_json_file(folder / GENERATION)
        save_tokenizer(tokenizer, folder, settings.data)
        record = _record(source, model, engine, quantization)
        written_files = sorted(file for file in folder.iterdir() if file.name != GENERATION)
        record["sha256"] = {file.name: file_sha256(file) for file in written_files}
        write_json(folder / MANIFEST_NAME, settings.manifest() | {EXPORT: record})
        write_exported_readme(folder, settings, exporter.title, exporter.readme_code(tokenizer, own))
        found = _compared(texts, written(open_exported(folder)), test, of, config)
        check_loss(found, quantization, settings, allow_loss)
        compared: dict[str, Any] = {"examples": found.n, "equal": found.equal}
        if found.score:
            compared |= {"score": found.score.name, "model": found.of_model, "export": found.of_export}
        record = export_record(folder) | {"compared": compared}
        write_json(folder / MANIFEST_NAME, settings.manifest() | {EXPORT: record})
    return found


def check_loss(
    found: Comparison, quantization: str, settings: PredictionSettings, allow_loss: bool = False
) -> None:
    """Refuse an export that writes something else than its model, and warn of a loss that may be chance.

    One text that differs moves the score of ten texts by more than `LARGEST_LOSS`, so that the paired test
    decides: it finds no difference where fewer than six texts differ.

    Raises:
        UserError: the score falls by more than `LARGEST_LOSS`, significantly, and `allow_loss` is false; or
            greedy texts in float32 differ, which no rounding explains.
    """
    is_exact = quantization == "float32" and settings.generation.num_beams == 1
    different = found.n - found.equal
    if is_exact and different > 1 and found.equal < EQUAL_SHARE * found.n:
        raise UserError(
            f"the export computes another model: {found}. Nothing was written; please report this, with the "
            "model's family and the versions of the packages"
        )
    if found.score is None or found.loss <= LARGEST_LOSS or allow_loss:
        return
    if is_significant(found.p_value):
        raise UserError(
            f"the export loses more than {LARGEST_LOSS} of the score, and nothing was written: {found} "
            f"(p = {found.p_value:.2g}). Choose another --quantization (float32 loses nothing), or accept it "
            "with --allow-loss"
        )
    logger.warning(
        "%s of %s texts differ from the float32 model's, and the loss of %s may have come about by chance "
        "(p = %.2f): read these texts, or compare more of them (--examples, --config)",
        *(different, found.n, found.score.label, found.p_value),
    )


def _check_source(source: Source, engine: Engine, quantization: str) -> None:
    """Check what can be known before the model is loaded."""
    exporter = EXPORTERS[engine]
    if quantization not in exporter.quantizations:
        raise UserError(
            f"--quantization {quantization!r} must be one of {list(exporter.quantizations)} "
            f"with --to {engine}"
        )
    adapter = source.adapter
    if adapter and (method := saved_method(adapter)) != "lora":
        raise UserError(
            f"{source.name} holds a {method}, which does not change weights and cannot be exported; use it "
            "with `lora-hf predict`"
        )
    check_model(engine, source.model)


def _examples(source: Source, config: RunConfig | None, settings: PredictionSettings) -> list[Example]:
    """Return the test split of the config, or the package's sample."""
    if config is None:
        logger.warning(
            "the test split of %s is not known, so that no score is compared; --config names it", source.name
        )
        return load_split(DataConfig(max_test_samples=SAMPLE), "test")
    Scoring.of_config(config).check()
    return load_split(with_columns_of_training(config.data, config.task, source.columns), "test")


def _merged(source: Source) -> tuple[Any, Any]:
    """Return model and tokenizer, in float32 on the CPU, with the adapter merged."""
    config = source.model.model_copy(update={"dtype": "float32"})
    model = load_model(config, torch.device("cpu"), report_generation=False)
    if source.adapter:
        merge_and_unload(load_saved(model, source.adapter))
        return model, tokenizer_of(source.adapter, config)
    return model, load_tokenizer(config)


def _record(source: Source, model: Any, engine: Engine, quantization: str) -> dict[str, Any]:
    """Return the manifest's entry: what the folder was made from, and by what."""
    adapter = source.adapter
    return {
        "engine": engine,
        "quantization": quantization,
        "base_model_name_or_path": source.model.model_name_or_path,
        "base_model_revision": getattr(model.config, "_commit_hash", None),
        "base_fingerprint": model_state(model).base_fingerprint,
        "adapter": source.name if adapter else None,
        "adapter_sha256": file_sha256(adapter.weights_file) if adapter else None,
        "versions": {name: version(name) for name in EXPORTERS[engine].packages},
        "config": model.config.to_diff_dict(),
    }


def _compared(
    texts: list[str], exported: list[str], test: list[Example], of: int, config: RunConfig | None
) -> Comparison:
    """Compare the texts of a model with those of its export."""
    equal = sum(a == b for a, b in zip(texts, exported, strict=True))
    if config is None:
        return Comparison(len(test), of, equal)
    scoring = Scoring.of_config(config)
    references = [list(example.references) for example in test]
    before, after = (scoring.measure(one, references).scores[scoring.main.name] for one in (texts, exported))
    p_value = after.against(before).p_value
    return Comparison(len(test), of, equal, scoring.main, before.value, after.value, p_value)
