"""Initial A and B: one pure function for each initialization, float32 in, float32 out.

An initialization is a function (weight, r, scaling, quantize) -> LoraInit. Some of them move a part of the
weight into the adapter: `subtracted` are the factors of the product that the base must lack, so that base and
adapter together are the original weight. Plain initializations read only the weight's shape. Random numbers
are drawn on the CPU, so that a seed gives the same factors on every device.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lora_hf.errors import UserError

Factors = tuple[Tensor, Tensor]
Quantize = Callable[[Tensor], Tensor]
OVERSAMPLING = 10
"""Columns a randomized SVD draws beyond r: "5 or 10" (Halko, Martinsson, Tropp, arXiv:0909.4061, 4.2)."""


class LoraInit(NamedTuple):
    """lora_A (r, in_features), lora_B (out_features, r), and factors of the same shapes, or None."""

    lora_A: Tensor
    lora_B: Tensor
    subtracted: Factors | None = None


Init = Callable[[Tensor, int, float, Quantize | None], LoraInit]


def kaiming(weight: Tensor, r: int, scaling: float, quantize: Quantize | None = None) -> LoraInit:
    """Draw A uniformly in ±1/sqrt(in_features); B is zero, so that the adapter adds nothing at first.

    This is `kaiming_uniform_(A, a=sqrt(5))`, as in the authors' own code (microsoft/LoRA) and PEFT's default.
    """
    out_features, in_features = weight.shape
    lora_A = torch.empty(r, in_features)
    torch.nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))
    return LoraInit(lora_A, torch.zeros(out_features, r))


def gaussian(weight: Tensor, r: int, scaling: float, quantize: Quantize | None = None) -> LoraInit:
    """Draw A from a normal with deviation 1/r, which is PEFT's; B is zero (arXiv:2106.09685, section 4.1)."""
    out_features, in_features = weight.shape
    return LoraInit(torch.randn(r, in_features) / r, torch.zeros(out_features, r))


def lookup(weight: Tensor, r: int, scaling: float, quantize: Quantize | None = None) -> LoraInit:
    """Return A zero and B normal, for an embedding: each token trains one column of A (microsoft/LoRA)."""
    out_features, in_features = weight.shape
    return LoraInit(torch.zeros(r, in_features), torch.randn(out_features, r))


def pissa(
    weight: Tensor, r: int, scaling: float, quantize: Quantize | None = None, niter: int | None = None
) -> LoraInit:
    """Return the r principal singular directions of W (arXiv:2404.02948, eq. 2 to 4), divided by the scale.

    Args:
        weight: W (out, in).
        r: number of directions; at most min(out, in).
        scaling: s; s B A is the best approximation of rank r at any s.
        quantize: not used.
        niter: None for the exact SVD, else the power iterations of a randomized one (their section 3.2).

    Raises:
        UserError: r is above the smaller side.
    """
    _check_rank(weight, r)
    svd = (
        torch.linalg.svd(weight, full_matrices=False) if niter is None else _svd_randomized(weight, r, niter)
    )
    factors = svd_factors(svd, r, scaling)
    return LoraInit(*factors, subtracted=factors)


def olora(weight: Tensor, r: int, scaling: float, quantize: Quantize | None = None) -> LoraInit:
    """Return the first r columns of Q and rows of R, W = Q R: B is orthonormal (OLoRA, arXiv:2406.01775).

    Raises:
        UserError: r is above the smaller side.
    """
    _check_rank(weight, r)
    Q, R = torch.linalg.qr(weight)
    factors = R[:r].contiguous(), Q[:, :r].contiguous()
    return LoraInit(*factors, subtracted=factors)


def loftq(
    weight: Tensor, r: int, scaling: float, quantize: Quantize | None = None, iterations: int = 1
) -> LoraInit:
    """Alternate Q = quant(W - s B A) and s B A = svd_r(W - Q) (LoftQ, arXiv:2310.08659, algorithm 1).

    The factors are divided by the scale, so that s B A fills the gap at every alpha / r.

    Args:
        weight: W (out, in) before quantization.
        r: rank of the correction; at most min(out, in).
        scaling: s.
        quantize: weight (out, in) -> its quantized values (out, in); None for a dense layer.
        iterations: T of the paper.

    Raises:
        UserError: the layer is not quantized, or r is above the smaller side.
    """
    if quantize is None:
        raise UserError(
            "init_lora_weights='loftq' compensates for quantization, and this layer is dense; store it in "
            "4 or 8 bits (T5's wo needs quantize_wo: true), leave it out by exclude_modules, or choose "
            "another initialization",
            "init_lora_weights",
        )
    _check_rank(weight, r)
    subtracted: Factors | None = None
    factors: Factors | None = None
    for _ in range(iterations):
        subtracted = factors
        rest = weight if factors is None else weight - scaling * (factors[1] @ factors[0])
        gap = weight - quantize(rest)
        factors = svd_factors(torch.linalg.svd(gap, full_matrices=False), r, scaling)
    assert factors is not None
    return LoraInit(*factors, subtracted=subtracted)


INITS: dict[bool | str, Init] = {
    True: kaiming,
    "kaiming": kaiming,
    "gaussian": gaussian,
    "lookup": lookup,
    "pissa": pissa,
    "pissa_niter_4": partial(pissa, niter=4),
    "pissa_niter_16": partial(pissa, niter=16),
    "olora": olora,
    "loftq": loftq,
}
SHAPE_ONLY = (True, "kaiming", "gaussian", "lookup")
"""Initializations that read only the weight's shape."""


def init_for(name: bool | str, loftq_iter: int) -> Init:
    """Return the function of a configuration's `init_lora_weights`."""
    prefix, _, number = str(name).rpartition("_")
    if prefix == "pissa_niter":
        return partial(pissa, niter=int(number))
    return partial(loftq, iterations=loftq_iter) if name == "loftq" else INITS[name]


def svd_factors(svd: tuple[Tensor, Tensor, Tensor], r: int, scaling: float) -> Factors:
    U, S, Vh = svd
    root = (S[:r] / scaling).sqrt()
    return root[:, None] * Vh[:r], U[:, :r] * root


def _svd_randomized(weight: Tensor, r: int, niter: int) -> tuple[Tensor, Tensor, Tensor]:
    """Run subspace iteration from a random matrix (arXiv:0909.4061, algorithms 4.4 and 5.1)."""
    columns = min(r + OVERSAMPLING, *weight.shape)
    Q = weight @ torch.randn(weight.shape[1], columns).to(weight.device)
    for _ in range(niter):
        Q = weight @ torch.linalg.qr(weight.T @ torch.linalg.qr(Q).Q).Q
    Q = torch.linalg.qr(Q).Q
    U, S, Vh = torch.linalg.svd(Q.T @ weight, full_matrices=False)
    return Q @ U, S, Vh


def _check_rank(weight: Tensor, r: int) -> None:
    if r > min(weight.shape):
        raise UserError(
            f"r={r} is above {min(weight.shape)}, the smaller side of a weight {tuple(weight.shape)} that "
            "it decomposes; lower r (rank_pattern for one layer) or set init_lora_weights: true",
            "r",
        )
