"""Use a saved adapter: score it, write summaries with it."""

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_hf.adapters.checkpoint_io import MANIFEST_NAME, read_manifest
from lora_hf.adapters.peft_format import read_peft_config
from lora_hf.config import DataConfig, GenerationConfig, ModelConfig, RunConfig
from lora_hf.config.load import load_config
from lora_hf.data.prepare import load_data
from lora_hf.data.splits import load_split, read_file
from lora_hf.data.tokenize import Truncation, encode_sources
from lora_hf.errors import UserError, first_line
from lora_hf.evaluation.evaluate import score_model, summarize
from lora_hf.hub.download import fetch
from lora_hf.models.load import load_model, load_tokenizer
from lora_hf.run_files import ADAPTER, CONFIG, MODEL
from lora_hf.system import pick_device
from lora_hf.training.registry import load_saved, saved_method

NEW_TOKENS = 128
"""Length of a summary where neither the config nor the adapter's manifest says one."""
ADAPTER_FILES = ("adapter_*.json", "adapter_*.safetensors", "lora_hf*")
"""Of a repository on the Hub, those that an adapter is made of."""
logger = logging.getLogger(__name__)


def find_adapter(name: str) -> Path:
    """A folder, or the adapter in a run directory, or the local copy of an adapter on the Hub.

    Args:
        name: a path, or USER/NAME or USER/NAME@REVISION: a commit, a tag or a branch.

    Raises:
        UserError: neither, or a run that has none.
    """
    folder = Path(name).expanduser()
    if (folder / ADAPTER).is_dir():  # a run's directory, given for the adapter in it
        return folder / ADAPTER
    if (folder / MODEL).is_dir():
        raise UserError(
            f"--adapter {name!r} is a run of full fine-tuning: it holds a whole model and no adapter; "
            f"give the run of a method that trains one ({upload(folder / MODEL)})"
        )
    if folder.is_dir():
        return folder
    if name.partition("@")[0].count("/") != 1 or name.startswith((".", "~", "/")):
        raise UserError(f"--adapter {name!r}: no such folder")
    return fetch(name, ADAPTER_FILES, f"--adapter {name!r} is no folder and cannot be had from the Hub")


def upload(model: Path) -> str:
    """What pushes a whole model, which needs nothing of ours."""
    return f"a whole model goes up by `hf upload USER/NAME {model}`"


def config_of_run(adapter: str) -> RunConfig:
    """The config of the run that an adapter's folder is in.

    Raises:
        UserError: it is in none.
    """
    file = find_adapter(adapter).parent / CONFIG
    if not file.is_file():
        raise UserError(f"--adapter {adapter!r} is in no run's folder; say by --config whose data to use")
    return load_config(file)


def evaluate(config: RunConfig, adapter: str | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score an adapter, or the base model where none is given, on the config's test split.

    Returns:
        The scores and the rows of predictions.jsonl.

    Raises:
        UserError: a mistake in the config, the data or the adapter.
    """
    folder = find_adapter(adapter) if adapter else None
    tokenizer = load_tokenizer(config.model)
    model = load_model(config.model, pick_device())
    if folder:
        load_saved(model, folder)
    trained_with = read_manifest(folder).get("max_new_tokens") if folder else None
    max_new_tokens = config.generation.max_new_tokens or trained_with
    if not max_new_tokens:
        max_new_tokens = load_data(config, tokenizer).max_new_tokens
    test = load_split(config.data, "test")
    sources = encode_sources([example.dialogue for example in test], tokenizer, config.data)
    scores, rows = score_model(
        config.generation, model, tokenizer, test, sources.ids, max_new_tokens, config.fast_paths
    )
    return {"adapter": adapter, "seed": config.seed, "max_new_tokens": max_new_tokens} | scores, rows


def load_with_base(adapter: str, base: str | None) -> tuple[Any, Any, dict[str, Any]]:
    """The model an adapter was trained on, stored as it was, with the adapter on it; tokenizer; manifest."""
    folder = find_adapter(adapter)
    config = base_config(folder, base)
    model = load_saved(load_model(config, pick_device()), folder)
    return model, load_tokenizer(config), read_manifest(folder)


def base_config(folder: Path, base: str | None = None) -> ModelConfig:
    """The base in the store that it was trained on; a manifest that names none means dense.

    Raises:
        UserError: the adapter's files cannot be read, name no base, or a store that is none.
    """
    manifest = read_manifest(folder)
    described = read_peft_config(folder)[1] if saved_method(folder) == "lora" else manifest
    name = base or described.get("base_model_name_or_path") or manifest.get("base_model_name_or_path")
    if not name:
        raise UserError(f"{folder} does not name its base model; give it with --base")
    where: dict[str, Any] = {"model_name_or_path": name, "revision": manifest.get("base_model_revision")}
    if base:
        where["revision"] = None
    stored = manifest.get("base_store", {})
    try:
        config = ModelConfig(**where, **stored)
    except (TypeError, ValidationError) as error:
        raise UserError(
            f"{folder / MANIFEST_NAME}: {where} with base_store={stored!r} is no base: {first_line(error)}"
        ) from None
    return config.named_by("--base" if base else f"{folder}: base_model_name_or_path")


def prompt_config(folder: Path, **fields: Any) -> DataConfig:
    """The prompt and the length that an adapter was trained with, where its manifest says them.

    Raises:
        UserError: what it says is none.
    """
    manifest = read_manifest(folder)
    known = {key: manifest[key] for key in ("prompt", "max_source_length") if key in manifest}
    if not known:
        logger.info("%s does not say its prompt: 'summarize_dialogue' is used", folder)
    try:
        return DataConfig(**known, **fields)
    except ValidationError as error:
        wrong = ", ".join(f"{problem['loc'][0]}={problem['input']!r}" for problem in error.errors())
        raise UserError(
            f"{folder / MANIFEST_NAME}: {wrong}: no prompt or length that is known here"
        ) from None


def predict(file: Path, adapter: str, base: str | None, dialogue_column: str) -> list[dict[str, str]]:
    """Summaries of a file's dialogues, with the prompt and the lengths the adapter was trained with.

    Args:
        file: jsonl, json, csv or parquet, or a .txt that holds one dialogue.
        adapter: a folder, or USER/NAME[@REVISION] on the Hub.
        base: the base model, or None for the one the adapter names.
        dialogue_column: where the dialogues are.

    Returns:
        Rows of `id`, `dialogue`, `prediction`, in the file's order.
    """
    examples = read_file(file, DataConfig(dialogue_column=dialogue_column))
    config = prompt_config(find_adapter(adapter))
    model, tokenizer, manifest = load_with_base(adapter, base)
    sources = encode_sources([example.dialogue for example in examples], tokenizer, config)
    if sources.cut:
        limit = config.max_source_length
        logger.warning("%s", Truncation(str(file), len(examples), sources.cut, sources.long, limit))
    length = manifest.get("max_new_tokens", NEW_TOKENS)
    written = summarize(GenerationConfig(), model, tokenizer, sources.ids, length)
    return [
        {"id": example.id, "dialogue": example.dialogue, "prediction": prediction}
        for example, prediction in zip(examples, written, strict=True)
    ]


def as_lines(rows: list[dict[str, str]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
