"""The contract between an adapter and the layer it sits on: how W is stored, and nothing else.

A backend wraps one frozen layer. It knows how to read the weight as a matrix, how to store a new
one in the same format, and how to apply a low-rank product by the layer's own kind of operation. What
the adapter adds is the methods' business. The product W x itself is the layer's own forward: calling it
keeps the start bit for bit that of the untouched model (a bias fused into the product rounds differently
from one added after it).
"""

from typing import Protocol

from torch import Tensor, dtype, nn


class Backend(Protocol):
    """One frozen layer, seen as a matrix W (out_features, in_features)."""

    in_features: int
    out_features: int

    def __init__(self, layer: nn.Module) -> None: ...

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, dropout: float) -> Tensor:
        """s B A dropout(x), by this layer's own operation; x as the layer's forward takes it."""
        ...

    def dequantize(self, dtype: dtype) -> Tensor:
        """W as a matrix (out_features, in_features) of `dtype`; never a view of the stored weight."""
        ...

    def requantize(self, weight: Tensor) -> nn.Parameter:
        """A fresh, frozen Parameter that holds `weight` (out_features, in_features) in the layer's format."""
        ...
