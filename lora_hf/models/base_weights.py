"""The weights of a checkpoint's files, read on demand when a quantized model needs them unquantized."""

from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_hf.errors import UserError


class CheckpointWeights:
    """A function from a layer's name to its weight (out, in) in the checkpoint's dtype, on the CPU.

    Only names are kept in memory; each call reads one tensor from its file.
    """

    def __init__(self, files: list[Path], prefix: str = "", transposed: Collection[str] = ()) -> None:
        """Read the tensor names of the files.

        Args:
            files: safetensors files.
            prefix: first part of a name that a checkpoint may omit or add, such as BART's `model`.
            transposed: layers whose weight the checkpoint stores as (in, out), as GPT-2's `Conv1D` does.
        """
        self.prefix, self.transposed = prefix, frozenset(transposed)
        self.files: dict[str, Path] = {}
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                self.files |= dict.fromkeys(tensors.keys(), file)

    def __call__(self, layer: str) -> Tensor:
        """Return the weight of a layer.

        Raises:
            UserError: the tensor is not in the checkpoint or quantized there, or its file cannot be read.
        """
        key = self._key(layer)
        try:
            with safe_open(self.files[key], framework="pt") as tensors:
                weight: Tensor = tensors.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {key!r} from {self.files[key]}: {error}") from error
        if not weight.is_floating_point():
            raise UserError(
                f"{key!r} in {self.files[key]} is quantized ({weight.dtype}): the weights before "
                "quantization are in another checkpoint; give that one as model.model_name_or_path"
            )
        return weight.T if layer in self.transposed else weight

    def _key(self, layer: str) -> str:
        name, head = f"{layer}.weight", f"{self.prefix}."
        for key in (name, name.removeprefix(head), head + name):
            if key in self.files:
                return key
        places = sorted({str(file) for file in self.files.values()})
        raise UserError(f"the checkpoint {places} has no tensor {name!r}")
