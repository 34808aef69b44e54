"""The contract between an adapter and the layer it sits on: how W is stored, and nothing else.

A backend wraps one frozen layer. It knows how to read the weight as a matrix, how to store a new
one in the same format, and how to apply a low-rank product by the layer's own kind of operation. What
the adapter adds is the methods' business. The product W x itself is the layer's own forward: calling it
keeps the start bit for bit that of the untouched model (a bias fused into the product rounds differently
from one added after it).
"""

from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.functional import low_rank_product

Stored = Any
"""What a store keeps: the frozen Parameter itself, or a tuple with its scales. Never changed in place."""


class Backend:
    """One frozen layer, seen as a matrix W (out_features, in_features); this class is a plain linear one's.

    Attributes:
        layer: the wrapped layer.
        in_features: columns of W.
        out_features: rows of W.
        group_size: columns that share a zero point, or None where there are no groups.
        is_quantized: whether storing a weight changes it.
        is_linear: whether the layer maps the last dimension of x, as `nn.Linear` does.
        plain_init: the start that `init_lora_weights: true` stands for.
        kernel: the shape of one row of W as PEFT writes A: (in,), or (in, height, width).
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
        self.changes = 0  # counted, so that whoever caches something of W knows when it is stale

    @property
    def kernel(self) -> tuple[int, ...]:
        return (self.in_features,)

    @property
    def format(self) -> str:
        """How the weight is stored, in words; starts that make up for a store's errors fit no other."""
        return "dense"

    @property
    def nbytes(self) -> int:
        """Bytes of the stored weight with its scales, without the bias."""
        size: int = self.layer.weight.nbytes
        return size

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        device: torch.device = self.layer.weight.device
        return device

    @property
    def stored(self) -> Stored:
        """The weight as it is kept; what `requantize` makes can be put in its place."""
        return self._get()

    @stored.setter
    def stored(self, stored: Stored) -> None:
        self._put(stored)
        self.changes += 1

    def _get(self) -> Stored:
        return self.layer.weight

    def _put(self, stored: Stored) -> None:
        self.layer.weight = stored

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, dropout: float) -> Tensor:
        """s B A dropout(x), by this layer's own operation; x as the layer's forward takes it."""
        return low_rank_product(x, lora_A, lora_B, scaling, dropout)

    def per_row(self, vector: Tensor) -> Tensor:
        """One number an output row, (out,), shaped to broadcast over the layer's output."""
        return vector

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """W (out, in) in `dtype`; it may be the stored weight itself, so never change it."""
        raise NotImplementedError

    def requantize(self, weight: Tensor) -> Stored:
        """`weight` (out, in) in the layer's format, fresh and frozen."""
        raise NotImplementedError

    def read(self, stored: Stored) -> Tensor:
        """What a store of this layer stands for, float32 (out, in)."""
        before = self.stored
        self._put(stored)
        weight = self.dequantize(torch.float32)
        self._put(before)
        return weight

    def shift_groups(self, shift: Tensor) -> Stored:
        """W plus one number a group of columns, `shift` (out, in / group_size), with no loss."""
        raise NotImplementedError(f"{type(self.layer).__name__} has no zero points to shift")


def frozen(tensor: Tensor) -> nn.Parameter:
    """A Parameter that never trains."""
    return nn.Parameter(tensor, requires_grad=False)
