"""Find what `load`, `predict`, `evaluate` and `export` are given, before any weight is loaded.

A source is a run, an adapter, a whole model (merged, trained whole, or of the Hub) or an exported folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.adapters.peft_format import CONFIG_NAME
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.config import ModelConfig, RunConfig
from lora_hf.config.load import load_config
from lora_hf.config.model import EMBEDDED
from lora_hf.config.prediction import COLUMN_FIELDS, NEW_TOKENS, PredictionSettings
from lora_hf.errors import UserError
from lora_hf.files import read_object
from lora_hf.hub.download import TEXTS, fetch
from lora_hf.hub.names import split_name
from lora_hf.models.exported import EXPORT, MARKS, engine_of, export_record
from lora_hf.models.load import model_config
from lora_hf.run_files import ADAPTER, CONFIG, MODEL
from lora_hf.run_records import read_result
from lora_hf.saved.find_adapter import (
    base_config,
    changed_settings,
    check_form,
    columns_of,
    find_adapter,
    run_directory,
    settings_on_base,
)


@dataclass(frozen=True)
class Source:
    """A model by its files: a base with an adapter, or a whole model."""

    name: str
    """As the user wrote it."""
    model: ModelConfig
    """The base of an adapter, or the whole model."""
    adapter: SavedAdapter | None = None
    settings: PredictionSettings | None = None
    """Of a whole model; None where nothing records them, and for an adapter, whose manifest does."""
    run: Path | None = None
    """The run directory that it is in."""
    form: Mapping[str, Any] = field(default_factory=dict)
    """The prompt and the languages of its texts, as fields of `data`, where it records none itself."""

    @property
    def columns(self) -> dict[str, Any]:
        """The fields of `data` by which the texts of its training were read."""
        if self.adapter:
            return columns_of(self.adapter)
        if self.settings is None:
            return {}
        return self.settings.data.model_dump(include={*COLUMN_FIELDS}, exclude_defaults=True)

    def settings_with(self, where: str, changes: Mapping[str, Any]) -> PredictionSettings:
        """Return the settings that the model is used with, checked before it is loaded.

        Args:
            where: who asks, for errors, such as `generate`.
            changes: fields of `generation` that replace those that it was scored with.

        Raises:
            UserError: as `settings_on_base`, or the model records another prompt or language than `form`.
        """
        if self.adapter:
            return settings_on_base(self.adapter, self.model, where, changes, self.form)
        settings, model = self.settings or PredictionSettings(), model_config(self.model)
        check_form(self.settings.manifest() if self.settings else {}, self.form, self.name)
        settings = replace(settings, data=settings.data.model_copy(update=self.form))
        return changed_settings(settings, model, self.model, where, changes)


def find_source(name: str, base: str | None = None, option: str = "--model") -> Source:
    """Find a run, an adapter, a model or an exported folder.

    Args:
        name: a folder, `embedded`, or USER/NAME[@REVISION] on the Hub.
        base: the base model, if not the one that the adapter names; for an adapter only.
        option: where the user wrote the name, for errors.

    Raises:
        UserError: there is none of these, a run has not finished, or `base` without an adapter.
    """
    folder = Path(name).expanduser()
    named = option.removeprefix("--")
    if (folder / CONFIG).is_file() and not (folder / ADAPTER).is_dir():
        source = _run_without_adapter(name, folder)
    elif engine_of(folder):
        export_record(folder)
        model = ModelConfig(model_name_or_path=name).with_name_field(named)
        source = Source(name, model, settings=settings_beside(folder))
    else:
        is_model = (
            name == EMBEDDED
            or (folder / "config.json").is_file()
            or ("/" not in name and not folder.exists())
        )
        saved = None if is_model and not is_adapter(folder) else find_adapter(name, option, or_model=True)
        if saved is not None and not (saved.revision and not is_adapter(saved.folder)):
            return Source(name, base_config(saved, base), saved, run=run_directory(saved))
        repo_id, revision = (name, None) if folder.exists() else split_name(name)
        if saved and (exported := _exported_on_hub(saved, f"{option} {name!r}")):
            repo_id, revision = str(exported), None
        model = ModelConfig(model_name_or_path=repo_id, revision=revision).with_name_field(named)
        settings = settings_beside(saved.folder if saved else folder)
        source = Source(name, model, settings=settings, run=_run_of_model(folder))
    if base:
        raise UserError(f"base={base!r} is for an adapter, and {named}={name!r} is none: leave it out")
    return source


def _exported_on_hub(saved: SavedAdapter, action: str) -> Path | None:
    """Return the local copy of an export on the Hub, which is downloaded; None for another repository.

    Args:
        saved: what `find_adapter` found there.
        action: begins the error.
    """
    if EXPORT not in saved.manifest:
        return None
    files = [*(export_record(saved.folder).get("sha256") or {}), *(f"*{end}" for end in TEXTS)]
    repo_id, _ = split_name(saved.source)
    folder = fetch(f"{repo_id}@{saved.revision}", files, f"{action} cannot be downloaded from the Hub")
    if not any((folder / file).is_file() for file in MARKS.values()):
        raise UserError(f"{action} was exported, but the repository has no {' and no '.join(MARKS.values())}")
    return folder


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter; the manifest of a merged model names no weights."""
    return (folder / CONFIG_NAME).is_file() or "weights_sha256" in SavedAdapter(folder).manifest


def settings_beside(folder: Path) -> PredictionSettings | None:
    """Return the settings of a merged or exported folder, which its manifest holds; None for other models."""
    try:
        manifest = read_object(folder / MANIFEST_NAME)
    except FileNotFoundError:
        return None
    return PredictionSettings.read(manifest, folder / MANIFEST_NAME) if manifest else None


def model_of_run(run: Path) -> ModelConfig:
    """Return the model of a run of full fine-tuning, which was trained and scored in float32."""
    return ModelConfig(model_name_or_path=str(run / MODEL), dtype="float32")


def _run_of_model(folder: Path) -> Path | None:
    """Return the run whose model a folder is."""
    run = folder.resolve().parent
    return run if folder.name == MODEL and (run / CONFIG).is_file() else None


def _run_without_adapter(name: str, run: Path) -> Source:
    """Return the model of a run of full fine-tuning, or the base of an untrained one."""
    config: RunConfig = load_config(run / CONFIG, is_recorded=True)
    if (run / MODEL).is_dir():
        model = model_of_run(run)
    elif config.method == "base":
        model = config.model
    else:
        raise UserError(
            f"{run} has not finished training: rerun `lora-hf train` with its config to resume it"
        )
    length = (read_result(run) or {}).get("max_new_tokens", NEW_TOKENS)
    return Source(name, model, settings=PredictionSettings.of_run(config, length), run=run)
