"""int8 by torchao: W = code * scale, codes -127 to 127, one float32 scale per output row.

torchao quantizes and multiplies. Its `Int8Tensor` is made for each product from the two tensors that the
layer holds: as a Parameter it fails in DistributedDataParallel, safetensors, `isfinite` and `equal`, its
`nbytes` are those of the dense weight, and its product keeps a dense copy of W for the backward pass.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_hf.config import ModelConfig
from lora_hf.fast.int8 import RowInt8
from lora_hf.models.storage.base import LayerwiseFormat


@dataclass(frozen=True, eq=False)
class Int8Weight(RowInt8):
    """codes int8 (out, in); scale float32 (out, 1)."""

    @classmethod
    def quantize(cls, weight: Tensor) -> Self:
        """Round each row of W (out, in) to multiples of its scale."""
        from torchao.quantization import Int8Tensor, PerRow

        made: Any = Int8Tensor.from_hp(weight.float(), PerRow())  # symmetric: its zero points are all 0
        return cls(made.qdata, made.scale)

    @property
    def format(self) -> str:
        return "torchao int8, one scale per row"

    def multiply(self, x: Tensor) -> Tensor:
        return F.linear(x, self._tensor(x.dtype))

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        weight: Tensor = self._tensor(dtype).dequantize()
        return weight

    def _tensor(self, dtype: torch.dtype) -> Any:
        """The `Int8Tensor` of these tensors, which stands for a weight of `dtype`."""
        from torchao.quantization import Int8Tensor

        return Int8Tensor(self.codes.detach(), self.scale, [1, self.codes.shape[1]], dtype)


class TorchaoInt8(LayerwiseFormat):
    """`load_in_8bit: true` with `quant_method: torchao`."""

    package = quant_method = "torchao"

    def quantize(self, weight: Tensor, config: ModelConfig) -> Int8Weight:
        self.check_package()
        return Int8Weight.quantize(weight)

    def bytes_per_weight(self, config: ModelConfig) -> float:
        return 1.0
