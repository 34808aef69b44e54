"""DoRA: h = m (W + s B A) x / ‖W + s B A‖, the norm of each output row (Liu et al., arXiv:2402.09353, eq. 5).

The norm is held constant in the backward pass (their section 4.3). It is computed in every forward that
trains, for an optimizer may write A and B in ways that go unnoticed, and once for a whole generation.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.functional import row_norms
from lora_hf.adapters.inits import LoraInit
from lora_hf.adapters.methods.lora import Lora


class Dora(Lora):
    """LoRA's parameters and `lora_magnitude_vector`, m (out,), which starts at the norm."""

    def __init__(self, config: LoraConfig, base: Backend, start: LoraInit, is_restored: bool = False) -> None:
        super().__init__(config, base, start, is_restored)
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

    def _factor(self, norm: Tensor) -> Tensor:
        """c = m / ‖V‖; a row that is zero has no direction to scale, and is left to A and B: c = 1."""
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
        """Forget the norm: the weights may be others by now."""
        self._norm = (None, torch.empty(0))
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._norm = (None, torch.empty(0))
        return super()._apply(fn, recurse)
