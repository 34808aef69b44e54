"""A linear layer with a quantized weight: one module and one backend for all storage formats of this kind.

A storage format of `models/storage/` subclasses `QuantizedWeight`. The layer holds its tensors as a plain
Parameter and buffers, which everything around a model can handle: a tensor subclass as a Parameter fails in
DistributedDataParallel, in safetensors and in `isfinite`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_hf.adapters.backends.base import Backend, frozen
from lora_hf.adapters.wrappers import NotPlain


@dataclass(frozen=True, eq=False)
class QuantizedWeight(ABC):
    """W (out, in) in a storage format. Every field is a tensor; none is changed in place.

    Attributes:
        codes: int8, because T5 casts activations to the dtype of `wo.weight` unless that is int8.
    """

    codes: Tensor

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix."""

    @property
    @abstractmethod
    def format(self) -> str:
        """Storage format in words. Adapters that compensate for its errors fit no other format."""

    @property
    def group_size(self) -> int | None:
        """Number of columns that share a zero point; None if there are no zero points to shift."""
        return None

    @abstractmethod
    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return W (out, in)."""

    @abstractmethod
    def requantize(self, weight: Tensor) -> Self:
        """Quantize another matrix of the same shape with the same settings."""

    def multiply(self, x: Tensor) -> Tensor:
        """Return x W^T (..., out) in the dtype of x, for x (..., in)."""
        return F.linear(x, self.dequantize(x.dtype))

    def shift_groups(self, shift: Tensor) -> Self:
        """Add `shift` (out, in / group_size), one number per group of columns, exactly."""
        raise NotImplementedError(f"{self.format}: there are no zero points to shift")

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.codes.device

    def to(self, device: torch.device) -> Self:
        """Copy to another device."""
        return type(self)(*(tensor.to(device) for tensor in self.tensors()))

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields in order."""
        return tuple(getattr(self, field.name) for field in fields(self))


class _Product(torch.autograd.Function):
    """y = x W^T; saves the quantized weight for the backward pass, not the dense W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: type[QuantizedWeight], *tensors: Tensor) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(*tensors)
        return kind(*tensors).multiply(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g = grads[0]  # dL/dy (..., out)
        tensors = ctx.saved_tensors  # read once: activation checkpointing does not allow it twice
        weight = ctx.kind(*tensors).dequantize(g.dtype)
        return g @ weight, None, *[None] * len(tensors)  # dL/dx = g W: (..., out) @ (out, in)


class QuantizedLinear(NotPlain):
    """A frozen linear layer: `weight` holds the codes, and every other tensor is a buffer."""

    whole_copies = "keep it dense or leave it out"
    """What to do where an adapter has a whole copy of such a layer."""

    def __init__(self, quantized: QuantizedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.kind = type(quantized)
        self.buffer_names = [field.name for field in fields(quantized)][1:]
        self.weight = frozen(quantized.codes)
        for name in self.buffer_names:
            self.register_buffer(name, getattr(quantized, name))
        self.bias = bias
        self.out_features, self.in_features = quantized.shape

    @property
    def quantized(self) -> QuantizedWeight:
        """The weight in its storage format."""
        return self.kind(self.weight, *(getattr(self, name) for name in self.buffer_names))

    def put(self, stored: QuantizedWeight) -> None:
        """Replace the weight by another one in the same format."""
        codes = stored.codes
        self.weight = codes if isinstance(codes, nn.Parameter) else frozen(codes)
        for name in self.buffer_names:
            setattr(self, name, getattr(stored, name))

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + b (..., out) in the dtype of x, for x (..., in)."""
        output: Tensor = _Product.apply(x, self.kind, *self.quantized.tensors())
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move scales and offsets, but never change their dtype: QA-LoRA merges exactly in float32."""
        before = {name: getattr(self, name) for name in self.buffer_names}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            setattr(self, name, tensor.to(getattr(self, name).device))
        return self


class Quantized(Backend):
    """A `QuantizedLinear`."""

    is_quantized = True

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__(layer)
        self.group_size = layer.quantized.group_size

    @property
    def format(self) -> str:
        return self._get().format

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._get().tensors())

    @property
    def codes(self) -> Tensor:
        return self._get().codes

    def _get(self) -> QuantizedWeight:
        quantized: QuantizedWeight = self.layer.quantized
        return quantized

    def _put(self, stored: QuantizedWeight) -> None:
        self.layer.put(stored)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self._get().dequantize(dtype)

    def requantize(self, weight: Tensor) -> QuantizedWeight:
        return self._get().requantize(weight.to(self.device))

    def shift_groups(self, shift: Tensor) -> QuantizedWeight:
        return self._get().shift_groups(shift)
