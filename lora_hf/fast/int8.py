"""A frozen base in int8 for generation on a CPU: weights by output row, activations by token.

Reading weights takes most of the time of a token: int8 reads a quarter of float32's bytes. Adapters stay in
float32 above it, so that one base serves all of them.

    y_i = s_i m sum_j c_ij q_j    q_j = round(127 x_j / m), m = max_j |x_j|, c the codes of W, s their scales

Products of few rows take integer kernels (FBGEMM's, in PyTorch), whose sums of integers are exact. In a
product of several rows, each is rounded by its own scale; a single row is rounded within its own smallest and
largest number, in the same kernel, so that a text alone can differ from the same text in a batch. Many rows,
as in an encoder, are limited by arithmetic: they take W as floating-point numbers, and x is not rounded.
"""

import logging
import math
import operator
import warnings
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_hf.adapters.backends.quantized import QuantizedLinear, QuantizedWeight
from lora_hf.adapters.save_pretrained import guard_save_pretrained
from lora_hf.adapters.wrappers import named_modules, set_submodule

LARGEST = 127
FEW_ROWS = 32
"""Rows up to which a product is limited by reading W."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RowInt8(QuantizedWeight):
    """W = code * scale; codes int8 (out, in) from -127 to 127, scale float32 (out, 1)."""

    scale: Tensor

    @classmethod
    def quantize(cls, weight: Tensor) -> Self:
        """Round each row of W (out, in) to multiples of its scale; a row of zeros keeps the scale 1."""
        wide = weight.detach().float()
        scale = wide.abs().amax(1, keepdim=True) / LARGEST
        scale = torch.where(scale == 0, 1.0, scale)
        return cls((wide / scale).round_().to(torch.int8), scale)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def format(self) -> str:
        return "int8, one scale per row"

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.codes * self.scale).to(dtype)

    def requantize(self, weight: Tensor) -> Self:
        return self.quantize(weight)


class Int8Linear(QuantizedLinear):
    """A linear layer that multiplies few rows by integer kernels where no gradient is needed."""

    whole_copies = "leave out the quantization, or merge the adapter and quantize the merged model"

    def __init__(self, quantized: RowInt8, bias: nn.Parameter | None) -> None:
        super().__init__(quantized, bias)
        self._packed: dict[int, tuple[list[Tensor], _Packed]] = {}  # by the number of layers

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        rows = x.numel() // max(1, x.shape[-1])
        if torch.is_grad_enabled() or not rows or x.device.type != "cpu":
            return super().forward(x)
        output = self._by_floats(x) if rows > FEW_ROWS else self.packed().multiply(x.float()).to(x.dtype)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def _by_floats(self, x: Tensor) -> Tensor:
        """Codes are exact in bfloat16; the scales multiply the sums."""
        dtype = torch.bfloat16 if _has_fast_bfloat16() else x.dtype
        return (F.linear(x.to(dtype), self.weight.to(dtype)) * self.scale[:, 0]).to(x.dtype)  # type: ignore[index]

    def packed(self, *others: "Int8Linear") -> "_Packed":
        """Return the codes of this layer, and of others with the same input below them, for few rows.

        They are laid out when they are first asked for, and kept.
        """
        weights: list[Any] = [layer.weight for layer in (self, *others)]
        kept = self._packed.get(len(weights))
        if kept is None or any(map(operator.is_not, kept[0], weights)):
            scale = torch.cat([layer.scale for layer in (self, *others)])  # type: ignore[misc]
            self._packed[len(weights)] = kept = weights, _Packed(torch.cat(weights), scale[:, 0])
        return kept[1]


class _Packed:
    """Codes (out, in) and their scales (out,), laid out for products of few rows."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self._packed: Any = _fbgemm_layout(codes, scale)
        self._general = (codes.T, scale / LARGEST) if self._packed is None else None

    def multiply(self, x: Tensor) -> Tensor:
        """Return W x (..., out), for float32 x (..., in)."""
        product: Tensor
        is_one = self._packed is not None and x.numel() == x.shape[-1]
        if is_one and math.isfinite(x.sum().item()):  # the kernel would hide NaN, or fail
            product = torch.ops.quantized.linear_dynamic(x, self._packed, False)
            return product
        largest = x.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny)
        scaled = x / largest
        if self._general is None:
            multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
            product = multiply(scaled, 1 / LARGEST, 128, self._packed)
        else:
            columns, scale = self._general
            codes = (scaled.flatten(0, -2) * LARGEST).round_().to(torch.int8)
            sums = torch._int_mm(codes, columns)  # (rows, in) @ (in, out), int32
            product = sums.mul(scale).view(*x.shape[:-1], -1)
        return product.mul_(largest)


def quantize_for_generation(model: Any) -> None:
    """Store the linear layers of a dense model in int8, the output head too; its floats are freed.

    Embeddings, norms and other layers stay as they are. Adapters can be loaded afterwards.

    Args:
        model: a dense encoder-decoder model on the CPU, without adapters.
    """
    layers = {name: layer for name, layer in named_modules(model) if type(layer) is nn.Linear}
    for name in list(layers):
        layer = layers.pop(name)
        set_submodule(model, name, Int8Linear(RowInt8.quantize(layer.weight), layer.bias))
    guard_save_pretrained(model)


def _fbgemm_layout(codes: Tensor, scale: Tensor) -> Any:
    """Return W in the layout of FBGEMM's kernels, or None where these are missing or not exact.

    Without VNNI instructions they add products in 16 bits, which overflow.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines or not torch.cpu._is_vnni_supported():
        return None
    engine = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "fbgemm"
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # PyTorch will remove its quantized tensors, and with them this layout
            zeros = torch.zeros(len(codes), dtype=torch.int64)
            weight = torch._make_per_channel_quantized_tensor(codes, scale.double(), zeros, 0)
            return torch.ops.quantized.linear_prepack(weight, None)
    except (AttributeError, RuntimeError) as error:
        logger.debug("int8 products by the general kernel: %s", error)
        return None
    finally:
        torch.backends.quantized.engine = engine


def _has_fast_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported()
