"""bitsandbytes' `Linear4bit`: NF4 or FP4 blocks, optionally double-quantized (QLoRA, arXiv:2305.14314).

bitsandbytes is imported inside the functions: a model that holds such a layer has loaded it already, and
one that does not never needs it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.functional import low_rank_product


def keep_differentiable(model: nn.Module) -> None:
    """Stop 4-bit layers from repacking themselves for inference, and undo it where it has happened.

    On processors with AVX512-BF16, bitsandbytes 0.50 rewrites a layer's weight at its first forward in
    evaluation mode, for good, to a layout whose product has no gradient: after one evaluation, training
    goes on with no gradient below that layer and no error. The layout also rounds the scales to bfloat16,
    so that undoing it is not exact: call this before the first forward. It refuses sizes that 32 (out) or
    the block size (in) does not divide.
    """
    for layer in model.modules():
        if not hasattr(layer, "support_avx512bf16_for_cpu"):
            continue
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        weight: Any = layer.weight
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

            weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(
                weight.data, weight.quant_state
            )


class Linear4bit:
    """A `bitsandbytes.nn.Linear4bit`, whose packed weight (n, 1) uint8 stands for W (out, in)."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.in_features = layer.in_features
        self.out_features = layer.out_features

    def low_rank(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, dropout: float) -> Tensor:
        return low_rank_product(x, lora_A, lora_B, scaling, dropout)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        packed = self.layer.weight
        return dequantize_4bit(packed.data, packed.quant_state).to(dtype)

    def requantize(self, weight: Tensor) -> nn.Parameter:
        """Quantize anew, with the stored weight's own block size, type and double quantization."""
        from bitsandbytes.nn import Params4bit

        old = self.layer.weight
        fresh: Any = Params4bit(
            weight.to(old.quant_state.dtype).cpu(),
            requires_grad=False,
            blocksize=old.blocksize,
            compress_statistics=old.compress_statistics,
            quant_type=old.quant_type,
            quant_storage=old.quant_storage,
        )
        quantized: nn.Parameter = fresh.to(old.device)  # moving is what quantizes
        return quantized
