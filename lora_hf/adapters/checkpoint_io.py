"""Files of tensors, without pickles, and their comparison with a model's: all differences in one error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_hf.errors import UserError
from lora_hf.files import whole

MANIFEST_NAME = "lora_hf.json"
Shapes = dict[str, tuple[int, ...]]


def write_weights(tensors: dict[str, Tensor], file: Path) -> None:
    """Write all or nothing; one metadata key, because safetensors writes several in random order."""
    with whole(file) as beside:
        save_file(tensors, beside, metadata={"format": "pt"})


def read_shapes(file: Path) -> Shapes:
    """Return the names and shapes in a safetensors file's header; errors as `read_tensors`."""
    try:
        with safe_open(file, framework="numpy") as opened:  # torch's would take memory for the whole
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def check_tensors(tensors: Mapping[str, Tensor], expected: Shapes, source: Any) -> None:
    """Compare tensors with expected shapes, as `check_shapes`."""
    check_shapes({key: tuple(tensor.shape) for key, tensor in tensors.items()}, expected, source)


def check_shapes(found: Shapes, expected: Shapes, source: Any) -> None:
    """Compare names and shapes, and report all differences in one error.

    Raises:
        UserError: missing, unexpected or mis-shaped tensors.
    """
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
