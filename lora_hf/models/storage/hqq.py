"""Group-wise affine 4 bits: W = code * scale + offset, codes 0 to 15, two floats per group of columns.

QA-LoRA (arXiv:2309.14717) needs zero points that move freely: an update that is constant within a group is
added to the offsets, exactly. HQQ's half-quadratic solver chooses the codes and keeps its zero points as
floats; torchao's int4 tensors round theirs to integers. Only the solver is used: `HQQLinear.to` does nothing,
it casts its zeros to the compute dtype, and it has no `weight`, which T5 reads.
"""

from dataclasses import dataclass, replace
from math import gcd
from typing import Any, Self

import torch
from torch import Tensor

from lora_hf.adapters.backends.quantized import QuantizedWeight
from lora_hf.config import ModelConfig
from lora_hf.errors import UserError
from lora_hf.models.storage.base import LayerwiseFormat, quantized_layers

LEVELS = 15


@dataclass(frozen=True, eq=False)
class AffineWeight(QuantizedWeight):
    """codes (out, in / 2), two per byte; scale and offset float32 (out, in / group_size)."""

    scale: Tensor
    offset: Tensor

    @classmethod
    def quantize(cls, weight: Tensor, group_size: int) -> Self:
        """Choose codes, scales and offsets of W (out, in), which stay on its device.

        They are computed on the CPU: HQQ's solver works in float16 on CUDA and in float32 elsewhere, and an
        adapter would run on other weights than those it was trained on.
        """
        from hqq.core.quantize import Quantizer

        options = {"nbits": 4, "group_size": group_size, "axis": 1, "round_zero": False, "bitpack": False}
        codes, meta = Quantizer.quantize(
            weight.detach().float().cpu(), **options, device="cpu", compute_dtype=torch.float32
        )
        rows = len(weight)
        scale, zero = (meta[name].float().view(rows, -1) for name in ("scale", "zero"))
        pairs = codes.to(torch.uint8).view(rows, -1, 2)
        packed = pairs[..., 0] | (pairs[..., 1] << 4)
        own = cls(packed.view(torch.int8), scale, -zero * scale)  # (code - zero) * scale
        return own.to(weight.device)

    @property
    def shape(self) -> tuple[int, int]:
        rows, pairs = self.codes.shape
        return rows, 2 * pairs

    @property
    def group_size(self) -> int:
        return self.shape[1] // self.scale.shape[1]

    @property
    def format(self) -> str:
        return f"affine 4 bits, groups of {self.group_size}"

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        packed = self.codes.view(torch.uint8)
        codes = torch.stack((packed & LEVELS, packed >> 4), dim=-1)  # (out, in / 2, 2)
        rows, groups = self.scale.shape
        values = codes.view(rows, groups, -1) * self.scale[..., None] + self.offset[..., None]
        return values.view(rows, -1).to(dtype)

    def requantize(self, weight: Tensor) -> Self:
        return self.quantize(weight, self.group_size)

    def shift_groups(self, shift: Tensor) -> Self:
        return replace(self, offset=self.offset + shift)


class HqqAffine(LayerwiseFormat):
    """`quant_method: hqq`, in groups of `hqq_group_size`."""

    package = quant_method = "hqq"

    def check_model(self, model: Any, config: ModelConfig) -> None:
        size, layers = config.hqq_group_size, quantized_layers(model, config)
        fitting = gcd(*(layer.in_features for layer in layers.values()))
        for name, layer in layers.items():
            if layer.in_features % size or size % 2:
                raise UserError(
                    f"model.hqq_group_size={size} must be even and divide the {layer.in_features} inputs of "
                    f"layer {name}; every layer of this model takes {fitting}, or an even number that "
                    "divides it"
                )

    def quantize(self, weight: Tensor, config: ModelConfig) -> AffineWeight:
        self.check_package()
        return AffineWeight.quantize(weight, config.hqq_group_size)

    def bytes_per_weight(self, config: ModelConfig) -> float:
        return 0.5 + 2 * 4 / config.hqq_group_size  # half a byte, and two float32 per group

    def group_size(self, config: ModelConfig) -> int:
        return config.hqq_group_size
