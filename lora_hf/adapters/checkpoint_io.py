"""An adapter's folder as files: tensors without pickles, our manifest, and every difference named at once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_hf.adapters.peft_format import CONFIG_NAME, WEIGHTS_NAME
from lora_hf.errors import UserError
from lora_hf.files import file_sha256, read_object, whole

MANIFEST_NAME = "lora_hf.json"
OTHER_HASH = f"{{}} is not the file that was saved: its hash is not the one in {MANIFEST_NAME}"
AGAIN = "save or download the adapter again, all of its files"
FEW = 6
"""Of a folder's files, those that an error names."""
Shapes = dict[str, tuple[int, ...]]


def write_weights(tensors: dict[str, Tensor], file: Path) -> None:
    """Whole or not at all; one metadata key, for safetensors writes several in random order."""
    with whole(file) as beside:
        save_file(tensors, beside, metadata={"format": "pt"})


def read_weights(folder: Path, check: Callable[[Shapes], None] | None = None) -> dict[str, Tensor]:
    """The tensors of an adapter folder; a pickle is refused, and a changed file is noticed.

    Args:
        folder: the adapter's.
        check: refuses shapes that do not fit, before memory is taken for them.

    Raises:
        UserError: no safetensors file, one that cannot be read, or one the manifest's hash does not fit.
    """
    file = weights_in(folder)
    if check:
        check(read_shapes(file))
    if hash_fits(folder) is False:
        raise UserError(f"{OTHER_HASH.format(file)}; it was changed or cut short: {AGAIN}")
    return read_tensors(file)


def weights_in(folder: Path) -> Path:
    """The file of an adapter's tensors.

    Raises:
        UserError: there is none, or a pickle.
    """
    file = folder / WEIGHTS_NAME
    if not file.is_file():
        why = "only a pickle, which can run code when it is read; convert it with PEFT"
        if not (folder / "adapter_model.bin").exists():
            names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
            found = ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if names[FEW:] else "")
            why = (
                f"{found or 'nothing'}. An adapter is {CONFIG_NAME} and {WEIGHTS_NAME}, as "
                "save_adapter and PEFT write them: give their folder, or the run's that it is in"
            )
        raise UserError(f"{folder} has no {WEIGHTS_NAME}; it holds {why}")
    return file


def hash_fits(folder: Path) -> bool | None:
    """Whether the tensors' file is the one whose hash is in the manifest; None where it has none."""
    recorded = read_manifest(folder).get("weights_sha256")
    return file_sha256(folder / WEIGHTS_NAME) == recorded if recorded else None


def read_shapes(file: Path) -> Shapes:
    """Names and shapes of a safetensors file, of which only the header is read; errors as `read_tensors`."""
    try:
        with safe_open(file, framework="numpy") as opened:  # torch's would take memory for the whole
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Our manifest beside PEFT's files, or nothing where PEFT wrote them."""
    try:
        return read_object(folder / MANIFEST_NAME)
    except FileNotFoundError:
        return {}


def check_tensors(tensors: Mapping[str, Tensor], expected: Shapes, source: Any) -> None:
    """`check_shapes` of tensors."""
    check_shapes({key: tuple(tensor.shape) for key, tensor in tensors.items()}, expected, source)


def check_shapes(found: Shapes, expected: Shapes, source: Any) -> None:
    """Compare names and shapes, and say everything that differs at once.

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
