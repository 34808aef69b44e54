"""Checks of a base model's files, the same for a config and for an adapter. Nothing is downloaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lora_hf.config import ModelConfig
from lora_hf.doctor.check import CannotTell, Finding, Findings, fault, ok
from lora_hf.errors import UserError, first_line
from lora_hf.models.base_weights import checkpoint_files
from lora_hf.models.load import load_tokenizer, locate
from lora_hf.reporting.tables import bytes_cell

HEAD, EMBEDDINGS = "lm_head.weight", "shared.weight"
ASKING = 5  # seconds for the Hub to answer


def checkpoint(store: ModelConfig) -> Findings:
    """The base's files are on this machine and whole; gives their folder."""
    name = locate(store.model_name_or_path, store.name_field)
    folder = Path(name) if Path(name).is_dir() else cached(name, store.revision)
    try:
        files = checkpoint_files(folder)
        tensors = [key for file in files for key in names_in(file)]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: its weights cannot be read: {first_line(error)}") from error
    if not files:
        raise UserError(f"{folder} holds no model.safetensors, nor an index of several")
    size = bytes_cell(sum(file.stat().st_size for file in files))
    yield ok(f"{store.model_name_or_path}: {len(tensors)} tensors, {size}")
    return folder


def names_in(file: Path) -> list[str]:
    """The tensors' names."""
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def cached(name: str, revision: str | None) -> Path:
    """The local copy of a model on the Hub.

    Raises:
        UserError: the Hub has no such model.
        CannotTell: there is no copy; the message says whether the Hub has one.
    """
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors"]
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True)
    except Exception:  # the Hub's client raises a dozen kinds; all mean that there is no copy
        ask_hub(name, revision)
        raise CannotTell(f"{name} is on the Hub and not on this machine; a run downloads it first") from None
    if not checkpoint_files(Path(folder)):
        raise CannotTell(f"the local copy of {name} has no weights yet; a run downloads them first")
    return Path(folder)


def ask_hub(name: str, revision: str | None) -> None:
    """Ask whether the Hub has a model; as `cached`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().model_info(name, revision=revision, timeout=ASKING)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(f"{name!r} at revision {revision or 'main'}: {first_line(error)}") from error
    except Exception as error:  # offline, or of the network's many kinds
        why = first_line(error)
        raise CannotTell(f"{name} is not on this machine, and the Hub cannot be asked: {why}") from error


def tokenizer(store: ModelConfig, checkpoint: Path) -> Findings:
    """The base's tokenizer loads, and has the two tokens that training needs; gives it."""
    found = load_tokenizer(store)
    embedded = settings_in(checkpoint).get("vocab_size", len(found))
    if len(found) > embedded:
        title = f"the tokenizer has {len(found):,} tokens, and the model embeddings for {embedded:,}"
        yield fault(title, "take the tokenizer that was saved with this model")
    for what in ("eos_token", "pad_token"):
        if getattr(found, what) is None:
            yield fault(f"the tokenizer has no {what}", f"name one in {checkpoint / 'tokenizer_config.json'}")
    yield ok(f"{len(found):,} tokens")
    return found


def head(checkpoint: Path) -> Findings:
    """The head of a model that has one of its own was not replaced by the embeddings when it was saved."""
    found = rows_of(checkpoint, (HEAD, EMBEDDINGS))
    yield judge_head(settings_in(checkpoint), found.get(HEAD), found.get(EMBEDDINGS))


def settings_in(checkpoint: Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        UserError: it cannot be read.
    """
    file = checkpoint / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{file} does not hold a JSON object")
    return settings


def rows_of(folder: Path, names: tuple[str, ...], most: int = 64) -> dict[str, torch.Tensor]:
    """The first rows of those of these tensors that a checkpoint has."""
    rows = {}
    for file in checkpoint_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in set(names) & set(tensors.keys()):
                rows[name] = tensors.get_slice(name)[:most]
    return rows


def judge_head(
    settings: Mapping[str, Any], head: torch.Tensor | None, embeddings: torch.Tensor | None
) -> Finding:
    """The finding on a head, from the model's config.json and the first rows of the two matrices.

    T5 of version 1.1, FLAN-T5 and mT5 have gated feed-forward layers and a head of their own. Saved after it
    was tied by accident, such a checkpoint has no head, or the embeddings in its place.
    """
    is_gated = str(settings.get("feed_forward_proj", "")).startswith("gated")
    is_untied = settings.get("tie_word_embeddings") is False or settings.get("scale_decoder_outputs") is False
    if not is_gated and not is_untied:
        return ok("the head is tied to the embeddings, as this kind of model has it")
    remedy = "take the checkpoint as it was published, and save it again with lora_hf, which keeps the head"
    if head is None:
        why = "a model of this kind has a head of its own, and the checkpoint has no lm_head.weight"
        return fault(f"{why}: the embeddings would take its place", remedy)
    if embeddings is not None and torch.equal(head, embeddings):
        return fault("lm_head.weight holds the embeddings: the head was tied before it was saved", remedy)
    return ok("the head is untied, and its own")
