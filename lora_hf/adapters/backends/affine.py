"""A group-wise affine 4-bit store: W = code * scale + offset, codes 0 to 15, both floats a group of columns.

QA-LoRA (arXiv:2309.14717) needs zero points that move freely: an update that is constant within a group is
added to the offsets, exactly. The codes are chosen by HQQ's half-quadratic solver (the package `hqq`), which
keeps its zero points as floats; torchao's int4 tensors round theirs to integers. The container is ours:
`HQQLinear.to` does nothing, it casts its zeros to the compute dtype, and it has no `weight`, which T5 reads.
"""

import sys
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_hf.adapters.backends.base import Backend, frozen
from lora_hf.errors import UserError

LEVELS = 15


class AffineWeight(NamedTuple):
    """codes int8 (out, in / 2), two a byte; scale and offset float32 (out, in / group_size)."""

    codes: Tensor
    scale: Tensor
    offset: Tensor

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """W (out, in)."""
        packed = self.codes.view(torch.uint8)
        codes = torch.stack((packed & LEVELS, packed >> 4), dim=-1)
        rows, groups = self.scale.shape
        values = codes.view(rows, groups, -1) * self.scale[..., None] + self.offset[..., None]
        return values.view(rows, -1).to(dtype)


def check_hqq() -> None:
    """Refuse at once what would fail once a model is loaded.

    Raises:
        UserError: `hqq` is not installed.
    """
    if sys.modules.get("hqq", sys) is None:  # hidden from Transformers by a command, see `cli.HIDDEN`
        del sys.modules["hqq"]
    if find_spec("hqq") is None:
        raise UserError(
            "model.quant_method='hqq' needs the package hqq, which is an extra: pip install 'lora_hf[hqq]'"
        )


def quantize_affine(weight: Tensor, group_size: int) -> AffineWeight:
    """Choose codes, scales and offsets of W (out, in), on its own device.

    Raises:
        UserError: `group_size` does not divide the columns, or `hqq` is not installed.
    """
    rows, columns = weight.shape
    if columns % group_size or group_size % 2:
        raise UserError(
            f"model.hqq_group_size={group_size} must be even and divide the {columns} inputs of every layer"
        )
    check_hqq()
    from hqq.core.quantize import Quantizer

    options = {"nbits": 4, "group_size": group_size, "axis": 1, "round_zero": False, "bitpack": False}
    codes, meta = Quantizer.quantize(
        weight.detach().float(), **options, device=weight.device, compute_dtype=torch.float32
    )
    scale, zero = (meta[name].float().view(rows, -1) for name in ("scale", "zero"))
    pairs = codes.to(torch.uint8).view(rows, -1, 2)
    packed = pairs[..., 0] | (pairs[..., 1] << 4)
    return AffineWeight(packed.view(torch.int8), scale, -zero * scale)


class _Product(torch.autograd.Function):
    """x W^T that keeps the codes for the backward pass, not the unpacked W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *stored: Tensor) -> Tensor:
        ctx.save_for_backward(*stored)
        return F.linear(x, AffineWeight(*stored).dequantize(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        weight = AffineWeight(*ctx.saved_tensors).dequantize(grads[0].dtype)
        return grads[0] @ weight, None, None, None


class AffineLinear(nn.Module):
    """A frozen linear layer in this store. `weight` are the codes: int8, which T5 does not cast to."""

    scale: Tensor
    offset: Tensor

    def __init__(self, stored: AffineWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = frozen(stored.codes)
        self.register_buffer("scale", stored.scale)
        self.register_buffer("offset", stored.offset)
        self.bias = bias
        self.out_features, groups = stored.scale.shape
        self.in_features = stored.codes.shape[1] * 2
        self.group_size = self.in_features // groups

    @classmethod
    def from_linear(cls, layer: nn.Linear, group_size: int) -> "AffineLinear":
        """The layer, quantized."""
        return cls(quantize_affine(layer.weight, group_size), layer.bias)

    @property
    def stored(self) -> AffineWeight:
        """The weight as it is kept."""
        return AffineWeight(self.weight, self.scale, self.offset)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out), in the dtype of x."""
        output: Tensor = _Product.apply(x, *self.stored)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """`model.to(bfloat16)` moves scales and offsets and leaves them float32: folding must stay exact."""
        exact = self.scale, self.offset
        super()._apply(fn, recurse)
        self.scale, self.offset = (
            t.to(now.device) for t, now in zip(exact, (self.scale, self.offset), strict=True)
        )
        return self


class Affine(Backend):
    """An `AffineLinear`."""

    is_quantized = True

    def __init__(self, layer: AffineLinear) -> None:
        super().__init__(layer)
        self.group_size = layer.group_size

    @property
    def format(self) -> str:
        return f"affine 4 bits, groups of {self.group_size}"

    def _get(self) -> AffineWeight:
        stored: AffineWeight = self.layer.stored
        return stored

    def _put(self, stored: AffineWeight) -> None:
        codes = stored.codes
        self.layer.weight = codes if isinstance(codes, nn.Parameter) else frozen(codes)
        self.layer.scale, self.layer.offset = stored.scale, stored.offset

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self.stored.dequantize(dtype)

    def requantize(self, weight: Tensor) -> AffineWeight:
        return quantize_affine(weight.to(self.device), self.layer.group_size)

    def shift_groups(self, shift: Tensor) -> AffineWeight:
        stored = self.stored
        return stored._replace(offset=stored.offset + shift)
