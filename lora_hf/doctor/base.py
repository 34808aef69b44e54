"""Checks of a base model's files, for configs and adapters. Nothing is downloaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lora_hf.adapters.checkpoint_io import read_shapes
from lora_hf.config import ModelConfig
from lora_hf.data.tokenize import missing_tokens
from lora_hf.doctor.check import Finding, Findings, fault, ok
from lora_hf.families import family_of, has_own_head
from lora_hf.files import read_object
from lora_hf.hub.download import SETTINGS
from lora_hf.models.checkpoint import checkpoint_files
from lora_hf.models.load import check_base, find_base, load_tokenizer
from lora_hf.models.weight_values import check_values, file_tensors
from lora_hf.reporting.tables import bytes_cell

HEAD, EMBEDDINGS = "lm_head.weight", "shared.weight"
PREFIX = "transformer."
"""First part of T5's names in some checkpoints, which Transformers leaves out when it loads them."""
VALUES_READ = 2 * 2**30
"""Largest checkpoint, in bytes, whose values the doctor reads: 1 GB takes 0.2 s from the page cache."""


def checkpoint(storage: ModelConfig) -> Findings:
    """Check that the base's files are on this machine and complete; return their folder.

    It reads names, shapes and dtypes; and every value as loading does, of up to `VALUES_READ` bytes.
    """
    folder = Path(find_base(storage, "weights", download=False)[0])
    check_base(storage, str(folder))
    files = checkpoint_files(folder)
    tensors = [key for file in files for key in read_shapes(file)]
    size = sum(file.stat().st_size for file in files)
    if size <= VALUES_READ:
        beside = family_of(read_object(folder / SETTINGS)).beside
        note = check_values(file_tensors(files), storage.as_written, beside)
    else:
        note = "their values are checked when a run loads them"
    found = f"{storage.model_name_or_path}: {len(tensors)} tensors, {bytes_cell(size)}"
    yield ok("; ".join(filter(None, (found, note))))
    return folder


def tokenizer(storage: ModelConfig, checkpoint: Path) -> Findings:
    """Check that the tokenizer loads and has the special tokens that training needs; return it."""
    found = load_tokenizer(storage)
    for what in missing_tokens(found):
        yield fault(f"the tokenizer has no {what}", f"name one in {checkpoint / 'tokenizer_config.json'}")
    yield ok(f"{len(found):,} tokens")
    return found


def head(checkpoint: Path) -> Findings:
    """Check that an untied output head was not replaced by the embeddings when the model was saved."""
    found = rows_of(checkpoint, (HEAD, EMBEDDINGS))
    yield judge_head(read_object(checkpoint / SETTINGS), found.get(HEAD), found.get(EMBEDDINGS))


def rows_of(folder: Path, names: tuple[str, ...], most: int = 64) -> dict[str, torch.Tensor]:
    """Return the first rows of the given tensors, as far as the checkpoint has them."""
    rows = {}
    for file in checkpoint_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():
                if (name := key.removeprefix(PREFIX)) in names:
                    rows[name] = tensors.get_slice(key)[:most]
    return rows


def judge_head(
    settings: Mapping[str, Any], head: torch.Tensor | None, embeddings: torch.Tensor | None
) -> Finding:
    """Return the finding on the head, from config.json and the first rows of head and embeddings.

    T5 1.1, FLAN-T5 and mT5 have an untied head, and Transformers loads a checkpoint without one as a tied
    model. A checkpoint that was saved after the head was tied by accident has no head, or the embeddings in
    its place. In other families a missing tensor is an error of `checkpoint`; the head may have other names.
    """
    is_own = has_own_head(settings) or settings.get("scale_decoder_outputs") is False
    if not is_own and (head is None or settings.get("tie_word_embeddings") is not False):
        if settings.get("tie_word_embeddings") is False:
            return ok("the head is as config.json describes it")
        return ok("the head is tied to the embeddings, as expected for this model")
    remedy = "use the published checkpoint, and save it with lora_hf, which keeps the head"
    if head is None:
        why = "this kind of model has an untied head, but the checkpoint has no lm_head.weight"
        return fault(f"{why}: the embeddings would take its place", remedy)
    if embeddings is not None and torch.equal(head, embeddings):
        return fault("lm_head.weight holds the embeddings: the head was tied before it was saved", remedy)
    return ok("the head is untied")
