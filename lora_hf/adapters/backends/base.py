"""The contract of a backend: how an adapter reads and replaces the frozen weight W of one layer.

A backend reads W as a matrix, stores a new matrix in the same format, and applies a low-rank product by the
layer's own kind of operation. What the adapter computes is defined by its method (`adapters/methods/`). The
product W x is always the layer's own forward, so that an adapter that adds zero leaves the output bit for bit
unchanged: a bias fused into the product is rounded differently from one that is added afterwards.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.functional import low_rank_product

StoredWeight = Any
"""A weight in its storage format: the frozen Parameter, or its codes and scales. Never changed in place."""


class Backend:
    """One frozen layer as a matrix W (out_features, in_features). The defaults are those of a linear layer.

    Attributes:
        layer: the wrapped layer.
        in_features: number of columns of W.
        out_features: number of rows of W.
        group_size: number of columns that share a zero point; None without groups.
        is_quantized: whether storing a weight changes its values.
        is_linear: whether the layer maps the last dimension of x, as `nn.Linear` does.
        plain_init: the initialization that `init_lora_weights: true` selects.
        kernel: shape of one row of W as PEFT writes A: (in,), or (in, height, width).
    """

    group_size: int | None = None
    is_quantized = False
    is_linear = True
    plain_init = "kaiming"
    peft_names = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    """Names of the parameters in PEFT's files."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.in_features: int = layer.in_features
        self.out_features: int = layer.out_features
        self.changes = 0  # number of replacements of W, by which cached values are known to be outdated

    @property
    def kernel(self) -> tuple[int, ...]:
        return (self.in_features,)

    @property
    def format(self) -> str:
        """Storage format in words. Adapters that compensate for its errors fit no other format."""
        return "dense"

    @property
    def nbytes(self) -> int:
        """Number of bytes of the weight and its scales, without the bias."""
        size: int = self.layer.weight.nbytes
        return size

    @property
    def codes(self) -> Tensor | None:
        """The integers in which the weight is stored; None for a weight of floating-point numbers."""
        return None

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        device: torch.device = self.layer.weight.device
        return device

    @property
    def stored_weight(self) -> StoredWeight:
        """The weight in its storage format; a result of `requantize` can replace it."""
        return self._get()

    @stored_weight.setter
    def stored_weight(self, stored: StoredWeight) -> None:
        self._put(stored)
        self.changes += 1

    def _get(self) -> StoredWeight:
        return self.layer.weight

    def _put(self, stored: StoredWeight) -> None:
        self.layer.weight = stored

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, dropout: float) -> Tensor:
        """Return s B A dropout(x), by the layer's kind of operation; x as the layer's forward takes it."""
        return low_rank_product(x, lora_A, lora_B, scaling, dropout)

    def per_row(self, vector: Tensor) -> Tensor:
        """Reshape a vector (out,) so that it broadcasts over the layer's output."""
        return vector

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return W (out, in) in `dtype`. It may be the layer's own tensor: do not change it in place."""
        raise NotImplementedError

    def requantize(self, weight: Tensor) -> StoredWeight:
        """Return `weight` (out, in) in the layer's storage format, as a new frozen weight."""
        raise NotImplementedError

    def read(self, stored: StoredWeight) -> Tensor:
        """Return the values of a weight in the layer's storage format, float32 (out, in)."""
        before = self.stored_weight
        self._put(stored)
        weight = self.dequantize(torch.float32)
        self._put(before)
        return weight

    def shift_groups(self, shift: Tensor) -> StoredWeight:
        """Return W plus `shift` (out, in / group_size), one number per group of columns, without rounding."""
        raise NotImplementedError(f"{type(self.layer).__name__} has no zero points to shift")


def frozen(tensor: Tensor) -> nn.Parameter:
    """Return a Parameter without gradients."""
    return nn.Parameter(tensor, requires_grad=False)
