"""Where A and B start: one pure function a way, float32 in, float32 out.

An init is a function (weight, r, scaling) -> LoraInit. `residual` is what the frozen weight becomes,
or None where it stays as it is. Inits read the weight's shape, and some will read its values; they draw
random numbers on the CPU, so that a seed gives the same start on every device.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class LoraInit(NamedTuple):
    """lora_A (r, in_features), lora_B (out_features, r), residual (out_features, in_features) or None."""

    lora_A: Tensor
    lora_B: Tensor
    residual: Tensor | None


Init = Callable[[Tensor, int, float], LoraInit]


def kaiming(weight: Tensor, r: int, scaling: float) -> LoraInit:
    """A uniform in ±1/sqrt(in_features), B zero: the start is the identity.

    This is `kaiming_uniform_(A, a=sqrt(5))`, the start of the authors' own code (microsoft/LoRA) and
    of PEFT's default.
    """
    out_features, in_features = weight.shape
    lora_A = torch.empty(r, in_features)
    torch.nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))
    return LoraInit(lora_A, torch.zeros(out_features, r), None)


def gaussian(weight: Tensor, r: int, scaling: float) -> LoraInit:
    """A normal with deviation 1/r, B zero (arXiv:2106.09685, section 4.1; the deviation is PEFT's)."""
    out_features, in_features = weight.shape
    return LoraInit(torch.randn(r, in_features) / r, torch.zeros(out_features, r), None)


INITS: dict[bool | str, Init] = {True: kaiming, "kaiming": kaiming, "gaussian": gaussian}
