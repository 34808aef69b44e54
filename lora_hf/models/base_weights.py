"""The weights of a checkpoint's files, read on demand when a quantized model needs them unquantized."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_hf.errors import UserError


class CheckpointWeights:
    """A function from a layer's name to its weight (out, in) in the checkpoint's dtype, on the CPU.

    Only names are kept in memory; each call reads one tensor from its file.
    """

    def __init__(
        self,
        files: list[Path],
        prefix: str = "",
        transposed: Collection[str] = (),
        renamings: Collection[Any] = (),
    ) -> None:
        """Read the tensor names of the files.

        Args:
            files: safetensors files.
            prefix: first part of a name that a checkpoint may omit or add, such as BART's `model`.
            transposed: layers whose weight the checkpoint stores as (in, out), as GPT-2's `Conv1D` does.
            renamings: Transformers' changes of names when it loads the model, such as T5Gemma 2's.
        """
        self.prefix, self.transposed = prefix, frozenset(transposed)
        stored: dict[str, tuple[Path, str]] = {}
        renamed: dict[str, tuple[Path, str]] = {}
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():
                    name = key
                    for renaming in renamings:
                        name, _ = renaming.rename_source_key(name)
                    stored[key] = renamed[name] = file, key
        self.places = stored | renamed
        """Name in the model -> file, and name there. Transformers 5.17 renames too much, hence both names."""

    def __call__(self, layer: str) -> Tensor:
        """Return the weight of a layer.

        Raises:
            UserError: the tensor is not in the checkpoint or quantized there, or its file cannot be read.
        """
        file, key = self._place(layer)
        try:
            with safe_open(file, framework="pt") as tensors:
                weight: Tensor = tensors.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {key!r} from {file}: {error}") from error
        if not weight.is_floating_point():
            raise UserError(
                f"{key!r} in {file} is quantized ({weight.dtype}): the weights before "
                "quantization are in another checkpoint; give that one as model.model_name_or_path"
            )
        return weight.T if layer in self.transposed else weight

    def _place(self, layer: str) -> tuple[Path, str]:
        name, head = f"{layer}.weight", f"{self.prefix}."
        for key in (name, name.removeprefix(head), head + name):
            if key in self.places:
                return self.places[key]
        files = sorted({str(file) for file, _ in self.places.values()})
        raise UserError(f"the checkpoint {files} has no tensor {name!r}")
