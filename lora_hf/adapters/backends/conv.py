"""`nn.Conv2d`, also with groups, as the matrix W (out, in / groups * height * width).

A is a convolution to r channels with the layer's kernel size, stride, padding and dilation; B is a 1 x 1
convolution. In a layer with groups, A is the same for all groups of inputs, and each group of outputs uses
its own rows of B: the update is a matrix of W's shape and can be merged. PEFT's A reads all inputs for every
group, which no weight with groups can hold: it refuses to merge, and its files fit only if groups = 1.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_hf.adapters import functional
from lora_hf.adapters.backends.base import Backend, frozen


class Conv2d(Backend):
    """A floating-point `nn.Conv2d`."""

    is_linear = False

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.out_features = layer.out_channels
        self.in_features = math.prod(layer.weight.shape[1:])
        self.changes = 0

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.layer.weight.shape[1:])

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, dropout: float) -> Tensor:
        layer, r = self.layer, lora_A.shape[0]
        if dropout:
            x = functional.dropout(x, dropout)
        down = lora_A.to(x.dtype).view(r, *self.kernel).repeat(layer.groups, 1, 1, 1)
        middle = layer._conv_forward(x, down, None) * scaling  # (batch, groups * r, height, width)
        up = lora_B.to(x.dtype).view(self.out_features, r, 1, 1)
        return F.conv2d(middle, up, groups=layer.groups)

    def per_row(self, vector: Tensor) -> Tensor:
        return vector.view(-1, 1, 1)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        weight: Tensor = self.layer.weight.detach()
        return weight.flatten(1).to(dtype)

    def requantize(self, weight: Tensor) -> nn.Parameter:
        stored = self.layer.weight
        return frozen(weight.to(stored.device, stored.dtype).reshape(stored.shape))
