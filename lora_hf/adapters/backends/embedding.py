"""`nn.Embedding` as the matrix W (embedding_dim, num_embeddings) that multiplies one-hot tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_hf.adapters.backends.base import Backend, frozen


class Embedding(Backend):
    """A floating-point `nn.Embedding`; x are token ids."""

    is_linear = False
    plain_init = "lookup"
    peft_names = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.out_features, self.in_features = layer.embedding_dim, layer.num_embeddings
        self.changes = 0

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, dropout: float) -> Tensor:
        """Look up columns of A. Dropout drops whole tokens: the elements of a one-hot x are tokens."""
        dtype = self.layer.weight.dtype
        middle = F.embedding(x, lora_A.to(dtype).T) * scaling  # (...) -> (..., r)
        if dropout:
            middle = middle * F.dropout(torch.ones_like(middle[..., :1]), dropout)
        return F.linear(middle, lora_B.to(dtype))

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        weight: Tensor = self.layer.weight.detach()
        return weight.T.to(dtype)

    def requantize(self, weight: Tensor) -> nn.Parameter:
        stored = self.layer.weight
        return frozen(weight.T.to(stored.device, stored.dtype).contiguous())
