"""DoRA: h = m (W + s B A) x / ‖W + s B A‖, the norm of each output row (Liu et al., arXiv:2402.09353, eq. 5).

The norm is a constant in the backward pass (their section 4.3). Training computes it in every forward pass,
because an optimizer may write A and B in ways that go unnoticed; evaluation computes it once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.functional import row_norms
from lora_hf.adapters.methods.base import Shapes
from lora_hf.adapters.methods.lora import Lora

MAGNITUDE = "lora_magnitude_vector"


class Dora(Lora):
    """LoRA's parameters and `lora_magnitude_vector`, m (out,), which is the norm at initialization."""

    title = "DoRA"
    is_low_rank = False

    def __init__(self, config: LoraConfig, base: Backend, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, base, *args, **kwargs)
        self._norm: tuple[object, Tensor] = (None, torch.empty(0))
        W = base.dequantize(torch.float32)
        self.lora_magnitude_vector = nn.Parameter(row_norms(W + super().delta(W)))

    def branch(self, x: Tensor, Wx: Tensor, base: Backend) -> Tensor:
        c = self._factor(self._cached_norm(base))
        scaled = base.per_row(c.to(Wx.dtype)) * super().branch(x, Wx, base)
        return base.per_row((c - 1).to(Wx.dtype)) * Wx + scaled

    def delta(self, W: Tensor) -> Tensor:
        V = W + super().delta(W)
        return self._factor(row_norms(V)).detach()[:, None] * V - W

    def to_peft(self, base: Backend) -> dict[str, Tensor]:
        magnitude = self.lora_magnitude_vector.detach().reshape(_magnitude_shape(base))
        return super().to_peft(base) | {MAGNITUDE: magnitude}

    def from_peft(self, tensors: Mapping[str, Tensor], base: Backend) -> None:
        super().from_peft(tensors, base)
        with torch.no_grad():
            self.lora_magnitude_vector.copy_(tensors[MAGNITUDE].flatten())

    @classmethod
    def peft_shapes(cls, config: LoraConfig, base: Backend) -> Shapes:
        return super().peft_shapes(config, base) | {MAGNITUDE: _magnitude_shape(base)}

    def _factor(self, norm: Tensor) -> Tensor:
        """Return c = m / ‖V‖; 1 for a row of zeros, which has no direction and is left to A and B."""
        is_zero = norm == 0
        return torch.where(is_zero, 1.0, self.lora_magnitude_vector / norm.masked_fill(is_zero, 1.0))

    @torch.no_grad()
    def _cached_norm(self, base: Backend) -> Tensor:
        if self.training:
            return self._new_norm(base)
        weight, factors = base.layer.weight, (self.lora_A, self.lora_B)
        key = (base.changes, weight._version, id(weight), *(factor._version for factor in factors))
        if self._norm[0] != key:
            self._norm = (key, self._new_norm(base))
        return self._norm[1]

    def _new_norm(self, base: Backend) -> Tensor:
        W = base.dequantize(torch.float32)
        return row_norms(W + super().delta(W))

    def train(self, mode: bool = True) -> "Dora":
        """Drop the cached norm: the weights may have changed."""
        self._norm = (None, torch.empty(0))
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._norm = (None, torch.empty(0))
        return super()._apply(fn, recurse)


def _magnitude_shape(base: Backend) -> tuple[int, ...]:
    ones = (1,) * (len(base.kernel) - 1)
    return (1, base.out_features, *ones) if ones else (base.out_features,)
