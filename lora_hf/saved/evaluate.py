"""Score a saved adapter, a whole model or the base model on the test split of a config."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import DataConfig, ModelConfig, RunConfig
from lora_hf.config.load import changed_fields, load_config
from lora_hf.config.prediction import PROMPT_FIELDS, PredictionSettings
from lora_hf.data import overlap
from lora_hf.data.columns import DIALOGUE
from lora_hf.data.examples import Example
from lora_hf.data.overlap import dialogue_keys, shared_dialogues
from lora_hf.data.prepare import data_line, encode_test, load_data
from lora_hf.data.prompts import prompt_template
from lora_hf.data.sources import is_on_hub, is_remote, open_part
from lora_hf.data.splits import iterate_split, load_split, scored_split, with_columns_of_training
from lora_hf.errors import UserError, as_typed, few
from lora_hf.evaluation.evaluate import score_model
from lora_hf.evaluation.metrics import Scoring
from lora_hf.exporting.engines import open_exported
from lora_hf.fast.int8 import quantize_for_generation
from lora_hf.models.exported import engine_of
from lora_hf.models.languages import set_language
from lora_hf.models.load import check_lengths, load_model, load_tokenizer, report_model
from lora_hf.run_files import CONFIG
from lora_hf.run_records import Prediction, RunResult
from lora_hf.saved.find_adapter import as_recorded, run_directory, tokenizer_of, virtual_tokens_of
from lora_hf.saved.inference import check_engine
from lora_hf.saved.source import Source
from lora_hf.system import device_name, pick_device
from lora_hf.training.registry import load_saved

logger = logging.getLogger(__name__)
SCORING = ("task", "model", "data", "generation", "fast_paths")
"""Fields and sections of a config that scoring reads; the others say how a model is trained."""
OF_OTHER_SPLITS = ("max_train_samples", "max_eval_samples", "max_target_length")
"""Fields of `data` that scoring reads only where the length of outputs follows from the references."""
SHARES = ("split_seed", "validation_share")
"""Fields of `data` that scoring reads only where the test split is a share of other rows."""
DIVISION = ("dataset_name", *SHARES, "test_share")
"""Fields of `data` that say which rows of a file are in which split."""
OF_RUN = "train of its run"


def evaluate(
    config: RunConfig, given: SavedAdapter | Source | None, quantization: str | None = None
) -> tuple[RunResult, list[Prediction]]:
    """Score an adapter or a whole model, or the config's base model where none is given, on its test split.

    Columns that the config does not set are those of the training, if the data has them.

    Args:
        config: data, generation settings and metrics. The model that it names is the base of an adapter; a
            whole model replaces it.
        given: an adapter, or what `find_source` found: a whole model may be an exported one.
        quantization: `int8` scores with the linear layers in int8 on the CPU, as `lora_hf.load` has it.

    Returns:
        The scores and the rows of predictions.jsonl.

    Raises:
        UserError: a mistake in the config, the data or the model.
    """
    source = _source(config, given)
    adapter = source.adapter if source else None
    if source and source.columns:
        data = with_columns_of_training(config.data, config.task, source.columns)
        config = config.model_copy(update={"data": data})
    if source and not adapter:
        config = config.model_copy(update={"model": source.model})
    scoring = Scoring.of_config(config)
    scoring.check()
    base = as_recorded(config.model, adapter) if adapter else config.model
    folder = _folder(base)
    is_exported = engine_of(folder) is not None
    check_engine(None, quantization, base)
    device = torch.device("cpu") if is_exported or quantization else pick_device()
    tokenizer = tokenizer_of(adapter, base) if adapter else load_tokenizer(base)
    if not is_exported:
        report_model(base, device)
    recorded = _recorded(config, source)
    max_new_tokens = _length(config, recorded)
    check_lengths(
        *(base, config.data, config.generation, virtual_tokens_of(adapter) if adapter else 0),
        has_labels=not max_new_tokens,
    )
    if is_exported:
        model = open_exported(folder)
        logger.info("model: %s in %s on %s", base.model_name_or_path, model.description, device_name(device))
    else:
        is_ours = source is not None and source.settings is not None  # its settings are compared below
        model = load_model(base, device, False, not is_ours)
        if quantization:
            quantize_for_generation(model)
            logger.info("linear layers in %s", quantization)
    if adapter:
        _report_other_base(base, adapter, model.config._commit_hash)
        load_saved(model, adapter)
    if recorded:
        report_other_settings(config, recorded, "adapter" if adapter else "model")
    if max_new_tokens:
        test = load_split(config.data, "test")
        logger.info("%s", data_line(config, {"test": len(test)}, {}))
        sources, warnings = encode_test(test, tokenizer, config.data, config.task)
    else:  # the length follows from the references of training and validation
        loaded = load_data(config, tokenizer)
        test, sources, max_new_tokens = loaded.test, loaded.test_sources, loaded.max_new_tokens
        warnings = loaded.warnings
    if recorded:
        warnings = list(dict.fromkeys([*warnings, *report_trained_on(config, recorded, test)]))
    set_language(model, tokenizer, config.data)
    scores, rows = score_model(
        config.generation, model, tokenizer, test, sources, max_new_tokens, config.fast_paths, scoring
    )
    result: RunResult = {
        "adapter": adapter.source if adapter else None,
        "seed": config.seed,
        "max_new_tokens": max_new_tokens,
        "data_warnings": warnings,
        **scores,
    }
    if source and not adapter:
        result["model"] = source.name
    if quantization:
        result["quantization"] = quantization
    return result, rows


def _source(config: RunConfig, given: SavedAdapter | Source | None) -> Source | None:
    return Source(given.source, config.model, given) if isinstance(given, SavedAdapter) else given


def _recorded(config: RunConfig, source: Source | None) -> SavedAdapter | None:
    """Return the folder whose manifest has the settings of the training; None for a plain base model."""
    if source and source.adapter:
        return source.adapter
    folder = _folder(source.model if source else config.model)
    return SavedAdapter(folder) if source or engine_of(folder) else None


def _folder(model: ModelConfig) -> Path:
    return Path(model.model_name_or_path).expanduser()


def _length(config: RunConfig, recorded: SavedAdapter | None) -> int | None:
    """Return the largest length of outputs; None if it follows from the references of the other splits."""
    return config.generation.max_new_tokens or (recorded.manifest.get("max_new_tokens") if recorded else None)


def report_unread(overrides: Sequence[str], given: SavedAdapter | Source | None, config: RunConfig) -> None:
    """Warn of fields on the command line that scoring does not read, such as the rank of a saved adapter.

    Those of a config file are not named: it is the one of the training.

    Args:
        overrides: `key.sub=value`, already checked.
        given: as for `evaluate`.
        config: with the overrides.
    """
    source = _source(config, given)
    names = [one.partition("=")[0].strip() for one in overrides]
    unread = {name for name in names if name.partition(".")[0] not in SCORING}
    if source and not source.adapter:
        unread |= {name for name in names if name.partition(".")[0] == "model"}
    if engine_of(_folder(source.model if source else config.model)):
        unread.add("fast_paths")
    if _length(config, _recorded(config, source)):
        fields = [*OF_OTHER_SPLITS, *([] if is_on_hub(config.data) else ["streaming"])]
        if any(f"data.{field}" in names for field in SHARES) and not _is_share(config):
            fields += SHARES
        unread |= {f"data.{field}" for field in fields}
    if typed := [one for one, name in zip(overrides, names, strict=True) if name in unread]:
        shown = source.name if source else "the base model"
        text = "%s: no effect here, because %s is scored as it was saved, on the test split"
        logger.warning(text, few(typed), shown)


def _is_share(config: RunConfig) -> bool:
    """Return whether the rows that are scored are a share of a file with others."""
    try:
        return bool(open_part(config.data, scored_split(config.data, "test")).homes)
    except UserError:  # reported by what reads the data
        return True


def _report_other_base(base: ModelConfig, adapter: SavedAdapter, commit: str | None) -> None:
    """Log that the config asks for another base, or another revision of it, than the adapter was trained on.

    Adapters with a fingerprint of their base are compared by it when they are loaded.

    Args:
        base: the model that was loaded.
        adapter: it may record the commit of a tag that the config names.
        commit: the commit of the loaded model; None for a folder, which has no revisions.
    """
    named = adapter.base_model
    if named and named != base.model_name_or_path and "base_fingerprint" not in adapter.manifest:
        text = "model.model_name_or_path=%r is used; the adapter names its base %r"
        logger.warning(text, base.model_name_or_path, named)
    recorded = adapter.base_revision if adapter.base_model == base.model_name_or_path else None
    if commit and recorded not in (None, base.revision, commit):
        logger.warning(
            "model.revision=%r is used; the adapter was trained on %r of %s",
            base.revision,
            recorded,
            base.model_name_or_path,
        )


def report_trained_on(config: RunConfig, trained_model: SavedAdapter, test: Sequence[Example]) -> list[str]:
    """Warn of test dialogues that the model was trained on, such as those of another division of the rows.

    Args:
        config: whose test split is scored.
        trained_model: the folder of an adapter or a whole model. The training split is read as its run's
            config has it, if it is on this machine; what is in no run has no record of it.
        test: the test split.

    Returns:
        What was found, without the remedy.
    """
    run = run_directory(trained_model)
    if run is None:
        return []
    try:
        trained = load_config(run / CONFIG, is_recorded=True).data
        if is_remote(trained):
            return []
        train = dialogue_keys(row[DIALOGUE] for row in iterate_split(trained, "train"))
    except UserError:  # `settings_of` logs it; or the data is not there any more
        return []
    found = [shared.in_words_of(config.task) for shared in shared_dialogues(train, OF_RUN, {"test": test})]
    warnings = [str(shared) for shared in found if shared.is_fault]
    for text in warnings:
        logger.warning("%s. Remedy: %s", text, _remedy(trained, config.data))
    return warnings


def _remedy(trained: DataConfig, used: DataConfig) -> str:
    """Return what keeps the rows of the training out of the test split."""
    other = [name for name in DIVISION if getattr(trained, name) != getattr(used, name)]
    if not other:
        return overlap.REMEDY
    fields = " ".join(as_typed(f"data.{name}={getattr(trained, name)}") for name in other)
    return f"divide the rows as the run did, by {fields}"


def report_other_settings(config: RunConfig, trained_model: SavedAdapter, kind: str = "adapter") -> None:
    """Log where the config's prompt, lengths and generation settings are not those of the model's training.

    Settings that the manifest does not record are not compared.

    Args:
        config: whose settings are used.
        trained_model: a folder with a manifest: an adapter, or a merged or exported model.
        kind: the word for it.

    Raises:
        UserError: the manifest has values that are not valid.
    """
    manifest = trained_model.manifest
    trained = PredictionSettings.read(manifest, trained_model.folder / MANIFEST_NAME)
    used = PredictionSettings.of_run(config, config.generation.max_new_tokens or trained.max_new_tokens)
    recorded = {*manifest, *(manifest.get("generation") or {})}

    def compared(settings: PredictionSettings) -> dict[str, Any]:
        fields = settings.manifest()
        in_generation = {"max_new_tokens": fields["max_new_tokens"]} | fields["generation"]
        in_data = {name: getattr(settings.data, name) for name in PROMPT_FIELDS}
        if prompt_template(settings.data.prompt) == prompt_template(config.data.prompt):
            in_data["prompt"] = config.data.prompt  # a shipped prompt's name and its text are the same
        sections = {"data": in_data, "generation": in_generation}
        return {
            section: {name: value for name, value in values.items() if name in recorded}
            for section, values in sections.items()
        }

    if changed := changed_fields(compared(trained), compared(used)):
        logger.warning("the config's settings are used, not the %s's (%s)", kind, "; ".join(changed))
