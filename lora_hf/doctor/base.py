"""Checks of a base model's files, for configs and adapters. Nothing is downloaded."""

from collections.abc import Iterable
from pathlib import Path

from lora_hf.adapters.checkpoint_io import read_shapes
from lora_hf.config import ModelConfig
from lora_hf.data.tokenize import missing_tokens
from lora_hf.doctor.check import Findings, fault, notice, ok
from lora_hf.families import family_of
from lora_hf.files import read_object
from lora_hf.hub.download import SETTINGS
from lora_hf.models.checkpoint import checkpoint_files
from lora_hf.models.head import KEEPS_HEAD, lost_head
from lora_hf.models.load import check_base, find_base, load_tokenizer
from lora_hf.models.weight_values import check_values, file_tensors
from lora_hf.reporting.tables import bytes_cell

VALUES_READ = 2 * 2**30
"""Largest checkpoint, in bytes, whose values the doctor reads: 1 GB takes 0.2 s from the page cache."""


def checkpoint(storage: ModelConfig) -> Findings:
    """Check that the base's files are on this machine and complete; return their folder.

    It reads names, shapes and dtypes; and every value as loading does, of up to `VALUES_READ` bytes.
    """
    folder = Path(find_base(storage, "weights", download=False)[0])
    as_stored = check_base(storage, str(folder))
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
    if as_stored and as_stored.note:
        yield notice(as_stored.note)
    return folder


def tokenizer(storage: ModelConfig, checkpoint: Path) -> Findings:
    """Check that the tokenizer loads and has the special tokens that training needs; return it."""
    found = load_tokenizer(storage)
    for what in missing_tokens(found):
        yield fault(f"the tokenizer has no {what}", f"name one in {checkpoint / 'tokenizer_config.json'}")
    yield ok(f"{len(found):,} tokens")
    return found


def stored(formats: Iterable[str]) -> str:
    """Return how a base's weights are stored, in words, from keys of `STORAGE_FORMATS`."""
    return " or ".join(
        "as its files store it" if name == "dense" else f"quantized to {name}" for name in formats
    )


def head(checkpoint: Path) -> Findings:
    """Check that an untied output head was not replaced by the embeddings when the model was saved."""
    if lost := lost_head(checkpoint):
        yield fault(lost, KEEPS_HEAD)
    else:
        yield ok("the output layer is the one that was trained")
