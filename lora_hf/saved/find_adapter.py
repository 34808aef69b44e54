"""Find a saved adapter: in a folder, in a run directory or on the Hub; and load it with its base model."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.adapters.peft_format import CONFIG_NAME
from lora_hf.adapters.saved_adapter import CONVERT, PICKLE, SavedAdapter
from lora_hf.config import DataConfig, ModelConfig, RunConfig
from lora_hf.config.load import load_config
from lora_hf.config.model import DENSE, Dtype
from lora_hf.config.prediction import COLUMN_FIELDS, NEW_TOKENS, PROMPT_FIELDS, RECORDED, PredictionSettings
from lora_hf.errors import UserError, few, first_line, is_windows_path, path_hint
from lora_hf.files import refuse_git_lfs_pointer
from lora_hf.hub.download import SETTINGS, fetch, of_folder, public_info
from lora_hf.hub.names import ADDRESS, is_hub_name, split_name
from lora_hf.models.base_files import DamagedTokenizer
from lora_hf.models.languages import in_languages, languages, target_vocabulary
from lora_hf.models.load import load_model, load_tokenizer, model_config
from lora_hf.models.positions import check_positions, within_positions
from lora_hf.run_files import ADAPTER, CHECKPOINTS, CONFIG, MODEL, RESULTS, TRAINED, run_above
from lora_hf.run_records import read_record, read_result
from lora_hf.system import pick_device
from lora_hf.training.registry import load_saved

ADAPTER_FILES = (
    *("adapter_*.json", "adapter_*.safetensors", "lora_hf*"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt"),
    *("merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "*.spm"),
)
"""The files of a Hub repository that belong to an adapter, with those of a tokenizer of its own."""
logger = logging.getLogger(__name__)
AS_MODEL = "predict and evaluate take it by --model, and serve takes it by --base"


def find_adapter(name: str, option: str = "--adapter", or_model: bool = False) -> SavedAdapter:
    """Find an adapter: in a folder, in a run directory, or on the Hub, from where it is downloaded.

    Args:
        name: a path, or USER/NAME or USER/NAME@REVISION: a commit, a tag or a branch.
        option: where the user wrote it, for errors.
        or_model: also take a repository of the Hub that holds a whole model: its settings are downloaded.

    Raises:
        UserError: none of these, or a run without an adapter.
    """
    folder = Path(name).expanduser()
    if (folder / ADAPTER).is_dir():
        return SavedAdapter(folder / ADAPTER, name)
    if (folder / MODEL).is_dir():
        raise UserError(
            f"{option} {name!r} is a run of full fine-tuning: it holds a whole model and no adapter; use the "
            f"model by `predict --model {name}`, `evaluate --model {name}`, `serve --base {folder / MODEL}`, "
            f"or lora_hf.load({name!r}) in Python; {upload_hint(folder / MODEL)}"
        )
    if folder.is_dir():
        if problem := not_adapter(folder):
            raise UserError(f"{option} {name!r} {problem}")
        return SavedAdapter(folder, name)
    if folder.is_file():
        raise UserError(f"{option} {name!r} is a file: give the folder of the adapter{_holder(folder)}")
    if address := ADDRESS.match(name):
        pinned = f"@{address['revision']}" if address["revision"] else ""
        raise UserError(f"{option} {name!r} is not a name on the Hub: write {address['name']}{pinned}")
    repository = name.partition("@")[0]
    if repository.count("/") != 1 or not is_hub_name(repository) or is_windows_path(name):
        raise UserError(f"{option} {name!r}: no such folder.{path_hint(name)}".removesuffix("."))
    hint = path_hint(name).strip(" .")
    near = f" ({hint[0].lower()}{hint[1:]})" if hint else ""
    if not near and (folder.parent / ADAPTER).is_dir():
        near = f" (did you mean the run {str(folder.parent)!r}?)"
    action = (
        f"{option} {name!r}: there is no such folder here{near}, and from the Hub it cannot be downloaded"
    )
    fetched = fetch(name, (*ADAPTER_FILES, *[SETTINGS] * or_model), action)
    is_model = or_model and (fetched / SETTINGS).is_file() and not (fetched / CONFIG_NAME).is_file()
    # The local copy may hold the weights of a model too, if that was used before.
    has_weights = is_model or any(fetched.glob("adapter_*.safetensors"))
    if not has_weights and (problem := _not_in_repository(name, fetched.name)):
        raise UserError(f"{option} {name!r}: the repository {problem}")
    return SavedAdapter(fetched, name, revision=fetched.name)


def _not_in_repository(name: str, commit: str) -> str:
    """Return why a repository is not an adapter's, by all of its files; empty where the Hub does not say.

    Its local copy has only the files of an adapter.
    """
    info = public_info(split_name(name)[0], "model", commit)
    held = [file.rfilename for file in getattr(info, "siblings", None) or []]
    here = few(file for file in held if not file.startswith("."))
    if not held:
        return ""
    if PICKLE in held:
        return f"has its weights only as a pickle, {PICKLE}, {CONVERT}"
    if below := sorted(file for file in held if file.endswith(f"/{CONFIG_NAME}")):
        folder = below[0].rpartition("/")[0]
        return f"has its adapter in a folder: {of_folder(split_name(name)[0], folder)}"
    if SETTINGS in held:
        return f"is that of a whole model and not of an adapter: {AS_MODEL}"
    return f"has no adapter ({CONFIG_NAME} and adapter_model.safetensors); it holds {here}"


def not_adapter(folder: Path) -> str:
    """Return why a folder is not an adapter's, with the folders that are; empty for one that holds its files.

    The text follows the folder's name.
    """
    if any(folder.glob("adapter_*")):
        return ""
    if (folder / SETTINGS).is_file():
        return f"is a whole model and not an adapter: {AS_MODEL}"
    if (folder / MANIFEST_NAME).is_file():
        return ""
    below = (file.parent for depth in ("*", "*/*", "*/*/*") for file in folder.glob(f"{depth}/{CONFIG_NAME}"))
    found = [one.parent if one.name == ADAPTER else one for one in below if CHECKPOINTS not in one.parts]
    if found:
        return f"holds no adapter itself: give one of the folders in it, {few(map(str, set(found)))}"
    if (folder / CONFIG).is_file():
        if (result := read_record(folder / RESULTS)) is not None:
            if result.get("method") == "base":
                return "is a run of the base model, which has no adapter: give the run of another method"
            again = f"restore it, or delete {RESULTS} and {TRAINED} and rerun the command"
            return f"is a finished run without its folder {ADAPTER!r}: {again}"
        return "is a run that has not finished, and holds no adapter yet: rerun its command"
    above = run_above(folder)
    return f"is not an adapter folder{above}" if above else ""


def _holder(file: Path) -> str:
    """Return the folder of a file that belongs to an adapter or a run, as the end of a sentence."""
    is_ours = (file.parent / CONFIG_NAME).is_file() or (file.parent / ADAPTER).is_dir()
    return f", {str(file.parent)!r}" if is_ours else ""


def upload_hint(model: Path) -> str:
    """Name the shell command that uploads a full model."""
    return f"publish a whole model with `hf upload USER/NAME {model}`"


def config_of_run(saved: SavedAdapter) -> RunConfig:
    """Load the config of the run that an adapter is in.

    Raises:
        UserError: it is not in a run directory.
    """
    if (run := run_directory(saved)) is None:
        raise UserError(
            f"--adapter {saved.source!r} is not in a run directory; say with --config whose data to use"
        )
    return load_config(run / CONFIG, is_recorded=True)


def run_directory(saved: SavedAdapter) -> Path | None:
    """Return the run that an adapter is in, as its result or in one of its checkpoints; None if in none."""
    above = saved.folder.resolve().parent
    run = above.parent if above.name == CHECKPOINTS else above
    return run if (run / CONFIG).is_file() else None


def warn_of_unscored(run: Path | None) -> None:
    """Warn that a model is used whose run has not scored it; `run` is None for a model in no run."""
    if run is not None and not (run / RESULTS).is_file():
        logger.warning(
            "%s has not been scored, so the quality of what it writes is not known: rerun the command that "
            "made it, or write `lora-hf train --config %s`",
            *(run, run / CONFIG),
        )


def load_with_base(
    saved: SavedAdapter, base: str | None = None, dtype: Dtype | None = None
) -> tuple[Any, Any]:
    """Load the base model of an adapter, in its storage format, with the adapter on it.

    Args:
        saved: the adapter.
        base: the base model, or None for the one the adapter names.
        dtype: of the frozen weights; None takes the one that the adapter was scored in.

    Returns:
        Model and tokenizer.
    """
    config = base_config(saved, base)
    if dtype is not None:
        config = config.model_copy(update={"dtype": dtype})
    tokenizer = tokenizer_of(saved, config)
    return load_saved(load_model(config, pick_device()), saved), tokenizer


def tokenizer_of(saved: SavedAdapter, base: ModelConfig) -> Any:
    """Return the tokenizer of an adapter's texts: its own, where it has other tokens, or that of its base."""
    return own_tokenizer(saved, base, tokenizer := load_tokenizer(base)) or tokenizer


def own_tokenizer(saved: SavedAdapter, base: ModelConfig, tokenizer: Any) -> Any:
    """Return the tokenizer beside an adapter if it reads texts otherwise than the base's; else None.

    It is in the adapter's folder, or in the one above: trainers write it once, there, and adapters that are
    not named `default` into subfolders. Scripts that add tokens save it beside PEFT's files, and PEFT, vLLM
    and `AutoTokenizer.from_pretrained(adapter)` use it. With the base's, texts would be divided otherwise
    than in training, also where the base has rows to spare, as T5 has 28.

    Args:
        saved: the adapter.
        base: its base.
        tokenizer: that of the base, which is used with a warning where the adapter's has tokens for which the
            base has no embeddings.

    Raises:
        UserError: its files cannot be read.
    """
    files = ("tokenizer.json", *tokenizer.vocab_files_names.values())
    above = saved.folder.absolute().parent
    places = [saved.folder, *([] if (above / "config.json").exists() else [above])]  # a model has its own
    held_in = [place for place in places if any((place / file).is_file() for file in files)]
    if not held_in:
        return None
    for file in files:
        refuse_git_lfs_pointer(held_in[0] / file)
    try:
        own = load_tokenizer(base, held_in[0])
    except DamagedTokenizer as error:
        raise UserError(f"{error}; without these files, the tokenizer of the base is used") from error
    except UserError as error:
        logger.warning("the tokenizer in %s is not used, but that of the base: %s", held_in[0], error)
        return None
    known, held = tokenizer.get_vocab(), own.get_vocab()
    others = [token for token, number in held.items() if known.get(token) != number]
    if held != known:
        more = few(map(repr, others)) or f"{len(known) - len(held)} fewer"
        how = f"its tokens are not those of the base's ({more})"
    elif _readings(own, spoken := _spoken(saved, own, tokenizer)) != _readings(tokenizer, spoken):
        how = "it has the tokens of the base's, and divides texts otherwise or has other languages"
    else:
        return None
    logger.info("%s has a tokenizer of its own, which is used; %s", held_in[0], how)
    return own


PROBE = "Anna: I'm HERE  at 10:30 (café), 你好 🙂\n#Person1#: no\tÉtÉ "
"""A text in which it shows what tokenizers do otherwise with the same tokens: case, accents, spaces."""


def _spoken(saved: SavedAdapter, *tokenizers: Any) -> DataConfig:
    """Return the languages that an adapter records, as far as all tokenizers know them."""
    known = set[str].intersection(*({*languages(tokenizer)} for tokenizer in tokenizers))
    given = {field: saved.manifest.get(field) for field in ("source_language", "target_language")}
    return DataConfig(**{field: code for field, code in given.items() if code in known})


def _readings(tokenizer: Any, spoken: DataConfig) -> list[Any]:
    """Return what a tokenizer makes of a text as a source and as a target, and of its tokens as a text."""
    with in_languages(tokenizer, spoken):
        source = tokenizer(PROBE).input_ids
        with target_vocabulary(tokenizer):
            target = tokenizer(text_target=PROBE).input_ids
    return [source, target, tokenizer.decode(target, skip_special_tokens=True)]


def base_config(saved: SavedAdapter, base: str | None = None) -> ModelConfig:
    """Return the `model` section for an adapter's base, in the storage format and dtype of its training.

    A manifest that names no format means dense, one without a dtype means `auto`. The recorded revision
    belongs to the recorded name, so it is not used for another `base`. The head of a base is untied if PEFT
    adapted it, because PEFT leaves the embeddings as they are.

    Raises:
        UserError: the adapter's files cannot be read, name no base, or an unknown storage format.
    """
    name, manifest = base or saved.base_model, saved.manifest
    if not name:
        raise UserError(f"{saved.folder} does not name its base model; give it with --base")
    has_head = not manifest and saved.has_head
    revision = saved.base_revision if name == saved.base_model else None
    where: dict[str, Any] = {"model_name_or_path": name, "revision": revision}
    storage = manifest.get("base_store", {})
    try:
        config = ModelConfig(**where, **storage, **{"untie_head": True} if has_head else {})
    except (TypeError, UserError) as error:
        raise UserError(
            f"{saved.folder}: {CONFIG_NAME} and {MANIFEST_NAME} do not describe a base model: {where} with "
            f"base_store={storage!r}: {first_line(error)}"
        ) from None
    return config.with_name_field("--base" if base else f"{saved.folder}: base_model_name_or_path")


def as_recorded(config: ModelConfig, saved: SavedAdapter) -> ModelConfig:
    """Return a config's `model` section with the base's revision, dtype and storage that an adapter records.

    Args:
        config: the fields that it gives stay, with a warning where the base is then stored otherwise than in
            the training; all do if it names another base than the adapter.
        saved: the adapter.

    Raises:
        UserError: the adapter's files cannot be read or have no valid values.
    """
    if config.model_name_or_path != saved.base_model:
        return config
    recorded, taken = base_config(saved), dict[str, Any]()
    if not config.revision and recorded.revision:
        taken["revision"] = recorded.revision
    if "dtype" not in config.model_fields_set and recorded.dtype != config.dtype:
        taken["dtype"] = recorded.dtype
    if config.model_fields_set.isdisjoint({*ModelConfig.model_fields} - NOT_STORAGE):
        taken |= _storage(recorded)
    else:
        warn_of_other_storage(config, saved)
    for name, value in taken.items():
        logger.info("model.%s is not given: %r is used, with which the adapter was trained", name, value)
    return config.model_copy(update=taken)


NOT_STORAGE = {"model_name_or_path", "revision", "dtype"}
"""Fields of the section `model` that do not say how the weights are stored."""


def warn_of_other_storage(base: ModelConfig, saved: SavedAdapter) -> None:
    """Warn of an adapter that was trained on its base in another storage format than this one."""
    trained_on = base_config(saved, base.model_name_or_path)
    if _storage(base) != _storage(trained_on):
        logger.warning(
            "the base is stored as %s; %s was trained on it as %s, and can write other texts on this one",
            *(_in_words(base), saved.folder, _in_words(trained_on)),
        )


def _storage(config: ModelConfig) -> dict[str, Any]:
    """Return the fields that say how the weights are stored; neither dtype nor an untied head is one."""
    fields = config.storage_fields()
    return {name: value for name, value in fields.items() if name not in ("dtype", "untie_head")}


def _in_words(config: ModelConfig) -> str:
    more = [f"{name}={value!r}" for name, value in _storage(config).items() if name not in DENSE]
    return config.storage + (f" ({', '.join(more)})" if more else "")


def settings_of(saved: SavedAdapter, **data: Any) -> PredictionSettings:
    """Return the prompt, the lengths and the generation settings that an adapter was trained with.

    Args:
        saved: the adapter; what its manifest lacks is taken from the run that it is in. If neither names a
            prompt, `summarize_dialogue` is used, with a warning.
        data: further fields of `data`; a prompt or a language only where the adapter records none.

    Raises:
        UserError: the manifest's values are not valid, or `data` has another prompt or language.
    """
    recorded = _settings_of_run(saved) | saved.manifest
    check_form(recorded, data, str(saved.folder))
    if "prompt" not in data and not any(name in recorded for name in PROMPT_FIELDS):
        logger.warning(
            "%s does not say its prompt: 'summarize_dialogue' is assumed. If it was trained with another, "
            'add "prompt" (plain for none), and "target_language" for a multilingual model, to %s; '
            "predict also takes data.prompt and data.target_language",
            *(saved.folder, saved.folder / MANIFEST_NAME),
        )
    return PredictionSettings.read(recorded, saved.folder / MANIFEST_NAME, **data)


def check_form(recorded: Mapping[str, Any], given: Mapping[str, Any], name: str) -> None:
    """Check that a prompt and languages are not given in place of those that a model was trained with.

    Args:
        recorded: the entries of its manifest.
        given: fields of `data`.
        name: of the model, for errors.

    Raises:
        UserError: it records another value.
    """
    for field, value in given.items():
        own = recorded.get(field) if field in PROMPT_FIELDS else None
        if own is not None and own != value:
            raise UserError(
                f"data.{field}={value!r}: {name} was trained with {own!r}, which is used; leave the field out"
            )


def settings_on_sample(saved: SavedAdapter, **data: Any) -> PredictionSettings:
    """Return `settings_of` for the package's own dialogues, whose columns are not those of the training."""
    settings = settings_of(saved, **data)
    own = {name: getattr(DataConfig(), name) for name in COLUMN_FIELDS}
    return replace(settings, data=settings.data.model_copy(update=own))


def settings_on_base(
    saved: SavedAdapter,
    base: ModelConfig,
    where: str,
    changes: Mapping[str, Any],
    form: Mapping[str, Any] | None = None,
) -> PredictionSettings:
    """Return the settings that an adapter is used with on a base, checked before the base is loaded.

    Args:
        saved: the adapter.
        base: its base model; lengths that the adapter does not record are at most its positions.
        where: who asks, for errors, such as `generate`.
        changes: fields of `generation` that replace the adapter's.
        form: the prompt and the languages, as fields of `data`, of an adapter that records none.

    Raises:
        UserError: as `settings_of`, `PredictionSettings.changed` and `check_positions`.
    """
    model = model_config(base)  # first: a base that is not there is the error, whatever the adapter lacks
    settings = settings_of(saved, **(form or {}))
    return changed_settings(settings, model, base, where, changes, virtual_tokens_of(saved))


def changed_settings(
    settings: PredictionSettings,
    model: Any,
    base: ModelConfig,
    where: str,
    changes: Mapping[str, Any],
    virtual_tokens: int = 0,
) -> PredictionSettings:
    """Return settings with changes, checked against a model's positions before it is loaded.

    Args:
        settings: those that a model or an adapter records.
        model: the model's Transformers configuration.
        base: the same model by its name.
        where: who asks, for errors, such as `generate`.
        changes: fields of `generation` that replace those of `settings`.
        virtual_tokens: number of positions before each source that prompt tuning takes.

    Raises:
        UserError: as `PredictionSettings.changed` and `check_positions`.
    """
    settings = within_positions(settings, model, base.model_name_or_path, virtual_tokens)
    settings = settings.changed(where, changes)
    check_positions(
        model, settings.data, settings.generation, base.as_written, virtual_tokens, has_labels=False
    )
    return settings


def virtual_tokens_of(saved: SavedAdapter) -> int:
    """Return the number of positions that an adapter of prompt tuning takes before each source, or 0."""
    settings = saved.manifest.get("settings") if saved.method == "prompt_tuning" else None
    number = settings.get("num_virtual_tokens") if isinstance(settings, dict) else None
    return number if isinstance(number, int) else 0


def columns_of(saved: SavedAdapter) -> dict[str, Any]:
    """Return the fields of `data` by which the texts of an adapter's training were read.

    Those that it does not record are taken from the run that it is in; defaults are left out.

    Raises:
        UserError: the adapter records values that are not valid.
    """
    recorded = {name: saved.manifest[name] for name in COLUMN_FIELDS if name in saved.manifest}
    run = run_directory(saved)
    if recorded or run is None:
        data = PredictionSettings.read(recorded, saved.folder / MANIFEST_NAME).data
        return data.model_dump(include=set(recorded))
    try:
        config = load_config(run / CONFIG, is_recorded=True)
    except UserError:  # `settings_of` logs it
        return {}
    return config.data.model_dump(include={*COLUMN_FIELDS}, exclude_defaults=True)


def _settings_of_run(saved: SavedAdapter) -> dict[str, Any]:
    """Return the settings of the run that an adapter is in, for one that does not record them all itself.

    Older versions wrote fewer settings, and a checkpoint has none.
    """
    run = run_directory(saved)
    if run is None or saved.manifest.keys() >= RECORDED:
        return {}
    try:
        config = load_config(run / CONFIG, is_recorded=True)
    except UserError as error:
        logger.warning("the settings of the run are not used, because its config cannot be read: %s", error)
        return {}
    scored = (read_result(run) or {}).get("max_new_tokens")
    length = scored or config.generation.max_new_tokens or NEW_TOKENS
    logger.info("%s does not record all of its settings: those of %s are used", saved.folder, run / CONFIG)
    return PredictionSettings.of_run(config, length).manifest()
