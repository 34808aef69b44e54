"""Floating-point weights: `nn.Linear`, and GPT-2's `Conv1D`, which stores the transpose."""

from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends.base import Backend, frozen


class DenseLinear(Backend):
    """A floating-point `nn.Linear`."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        weight: Tensor = self.layer.weight.detach()
        return weight.to(dtype)

    def requantize(self, weight: Tensor) -> nn.Parameter:
        stored = self.layer.weight
        return frozen(weight.to(stored.device, stored.dtype))


class TransposedLinear(Backend):
    """`transformers.pytorch_utils.Conv1D`: a linear layer whose weight is (in, out)."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.in_features, self.out_features = layer.weight.shape
        self.changes = 0

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        weight: Tensor = self.layer.weight.detach()
        return weight.T.to(dtype)

    def requantize(self, weight: Tensor) -> nn.Parameter:
        stored = self.layer.weight
        return frozen(weight.T.to(stored.device, stored.dtype).contiguous())
