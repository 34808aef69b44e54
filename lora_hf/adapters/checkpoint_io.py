"""Files of tensors, without pickles, and their comparison with a model's: all differences in one error."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_hf.errors import UserError
from lora_hf.files import refuse_git_lfs_pointer, whole

MANIFEST_NAME = "lora_hf.json"
DAMAGED = "cannot be read, because it is incomplete or damaged; download or copy it again"
Shapes = dict[str, tuple[int, ...]]
T = TypeVar("T")


def write_weights(tensors: dict[str, Tensor], file: Path) -> None:
    """Write all or nothing; one metadata key, because safetensors writes several in random order.

    A tensor with two names, as the bias of BERT's head in a copy of `cls`, is written under both.
    """
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    with whole(file) as beside:
        save_file(apart, beside, metadata={"format": "pt"})


def read_shapes(file: Path) -> Shapes:
    """Return the names and shapes in a safetensors file's header; errors as `read_tensors`."""
    return _read_header(file, lambda entry: tuple(entry.get_shape()))


def read_dtypes(file: Path) -> dict[str, str]:
    """Return the names and dtypes (`F32`, `I8`) in a safetensors file's header; errors as `read_tensors`."""
    return _read_header(file, lambda entry: entry.get_dtype())


def _read_header(file: Path, field: Callable[[Any], T]) -> dict[str, T]:
    """Return one field of each tensor's entry."""
    refuse_git_lfs_pointer(file)
    try:
        with safe_open(file, framework="numpy") as opened:  # torch's would take memory for the whole
            return {name: field(opened.get_slice(name)) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file} {DAMAGED}: {error}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        UserError: it cannot be read.
    """
    refuse_git_lfs_pointer(file)
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} {DAMAGED}: {error}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def check_numbers(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Require finite floating-point numbers: an adapter with others writes empty or random texts.

    Raises:
        UserError: a tensor has NaN or infinite values, or holds integers.
    """
    for name, tensor in sorted(tensors.items()):
        if not tensor.is_floating_point():
            raise UserError(f"{file}: {name} is stored as {tensor.dtype}, not as floating-point numbers")
        values = tensor if tensor.element_size() > 1 else tensor.to(torch.bfloat16)  # of 8-bit floats
        if not values.isfinite().all():
            raise UserError(
                f"{file}: {name} has NaN or infinite values: its training diverged, or the file is damaged. "
                "Take an earlier checkpoint, or train it again with a lower learning rate and not in float16"
            )


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
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    if differences := list_differences(missing, unexpected, wrong):
        raise UserError(f"the adapter {source} does not fit the model: {differences}")


def list_differences(missing: Iterable[str], unexpected: Iterable[str], reshaped: Iterable[str]) -> str:
    """Return the differences between a file's tensors and a model's in words; empty if there are none."""
    parts = [
        _listing("missing", sorted(missing)),
        _listing("unexpected", sorted(unexpected)),
        _listing("of another shape", sorted(reshaped)),
    ]
    return "; ".join(part for part in parts if part)


def _listing(title: str, names: list[str], most: int = 4) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {title}: {', '.join(names[:most])}{more}"
