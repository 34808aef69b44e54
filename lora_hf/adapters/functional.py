"""The arithmetic of low-rank updates, free of modules: the scale and the two products.

The update's matrix is s B A with A (r, in_features) and B (out_features, r). A and B are kept in
float32 whatever the base is, and cast to the activations' dtype at use: casting r * (in + out) numbers
costs less than casting every activation up, and autograd returns their gradients in float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def lora_scaling(r: int, lora_alpha: float, use_rslora: bool = False) -> float:
    """s = alpha / r (arXiv:2106.09685, section 4.1), or alpha / sqrt(r) (rsLoRA, arXiv:2312.03732, eq. 5)."""
    return lora_alpha / (math.sqrt(r) if use_rslora else r)


def low_rank_product(x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, dropout: float) -> Tensor:
    """s B A dropout(x), for x (..., in_features); returns (..., out_features) in the dtype of x.

    The scale multiplies the (..., r) middle, the smallest of the three tensors.
    """
    if dropout:
        x = F.dropout(x, dropout)
    middle = F.linear(x, lora_A.to(x.dtype)) * scaling  # (..., in) @ (in, r) -> (..., r)
    return F.linear(middle, lora_B.to(x.dtype))  # (..., r) @ (r, out) -> (..., out)


def row_norms(weight: Tensor) -> Tensor:
    """The Euclidean norm of each output row, (out, in) -> (out,)."""
    return torch.linalg.vector_norm(weight, dim=1)


def relative_error(approximation: Tensor, weight: Tensor) -> float:
    """The Frobenius norm of the difference, as a share of the weight's."""
    norm = torch.linalg.vector_norm(weight).item()
    return torch.linalg.vector_norm(approximation - weight).item() / norm if norm else 0.0
