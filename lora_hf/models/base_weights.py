"""A checkpoint's own weights, read again when a quantized model needs what its store has lost."""

import json
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_hf.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files that a model is loaded from: one, or the shards that the index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return []
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


class OriginalWeights:
    """Layer name -> its weight (out, in) as the checkpoint has it, in 16 or 32 bits, on the CPU.

    Nothing is kept in memory but names: a tensor is read from its file when it is asked for.
    """

    def __init__(self, files: list[Path], prefix: str = "", transposed: Collection[str] = ()) -> None:
        """Read the files' lists of names.

        Args:
            files: safetensors files.
            prefix: a name's first part that checkpoints leave out or add: BART's `model`.
            transposed: layers whose weight the checkpoint holds as (in, out): GPT-2's `Conv1D`.
        """
        self.prefix, self.transposed = prefix, frozenset(transposed)
        self.files: dict[str, Path] = {}
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                self.files |= dict.fromkeys(tensors.keys(), file)

    def __call__(self, layer: str) -> Tensor:
        """The weight of a layer.

        Raises:
            UserError: the checkpoint has no such tensor, it is quantized there, or its file has gone.
        """
        key = self._key(layer)
        try:
            with safe_open(self.files[key], framework="pt") as tensors:
                weight: Tensor = tensors.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {key!r} from {self.files[key]} again: {error}") from error
        if not weight.is_floating_point():
            raise UserError(
                f"{key!r} in {self.files[key]} is quantized ({weight.dtype}): what it was before is in "
                "another checkpoint; give that one as model.model_name_or_path"
            )
        return weight.T if layer in self.transposed else weight

    def _key(self, layer: str) -> str:
        name, head = f"{layer}.weight", f"{self.prefix}."
        for key in (name, name.removeprefix(head), head + name):
            if key in self.files:
                return key
        places = sorted({str(file) for file in self.files.values()})
        raise UserError(f"no tensor {name!r} in the checkpoint {places}: it cannot be read again")
