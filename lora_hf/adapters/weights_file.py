"""An adapter's folder as files: tensors without pickles, our manifest, and every difference named at once."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_hf.adapters.peft_format import WEIGHTS_NAME
from lora_hf.errors import UserError
from lora_hf.files import file_sha256, whole

MANIFEST_NAME = "lora_hf.json"


def write_weights(tensors: dict[str, Tensor], file: Path) -> None:
    """Whole or not at all; one metadata key, for safetensors writes several in random order."""
    with whole(file) as beside:
        save_file(tensors, beside, metadata={"format": "pt"})


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder; a pickle is refused, and a changed file is noticed.

    Raises:
        UserError: no safetensors file, one that cannot be read, or one the manifest's hash does not fit.
    """
    file = weights_in(folder)
    check_hash(folder)
    return read_tensors(file)


def weights_in(folder: Path) -> Path:
    """The file of an adapter's tensors.

    Raises:
        UserError: there is none, or a pickle.
    """
    file = folder / WEIGHTS_NAME
    if not file.is_file():
        pickle = (folder / "adapter_model.bin").exists()
        why = "only a pickle, which can run code when it is read; convert it with PEFT" if pickle else "none"
        raise UserError(f"{folder} has no {WEIGHTS_NAME} ({why})")
    return file


def check_hash(folder: Path) -> bool:
    """Whether the manifest has the hash of the tensors' file, which then fits.

    Raises:
        UserError: it does not fit.
    """
    file, recorded = folder / WEIGHTS_NAME, read_manifest(folder).get("weights_sha256")
    if recorded and recorded != file_sha256(file):
        raise UserError(f"{file} is not the file that was saved: its hash is not the one in {MANIFEST_NAME}")
    return bool(recorded)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Our manifest beside PEFT's files, or nothing where PEFT wrote them."""
    file = folder / MANIFEST_NAME
    if not file.is_file():
        return {}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable as JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{file} does not hold a JSON object")
    return manifest


def check_tensors(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]], source: Any) -> None:
    """Compare names and shapes, and say everything that differs at once.

    Raises:
        UserError: missing, unexpected or mis-shaped tensors.
    """
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    wrong = [
        f"{key} is {found[key]} here and {expected[key]} in the model"
        for key in sorted(found.keys() & expected.keys())
        if found[key] != expected[key]
    ]
    parts = [
        _listing("missing", sorted(expected.keys() - found.keys())),
        _listing("unexpected", sorted(found.keys() - expected.keys())),
        _listing("of another shape", wrong),
    ]
    if any(parts):
        raise UserError(f"the adapter {source} does not fit the model: {'; '.join(p for p in parts if p)}")


def _listing(title: str, names: list[str], most: int = 4) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {title}: {', '.join(names[:most])}{more}"
