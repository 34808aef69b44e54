"""bitsandbytes: `Linear4bit` (NF4, FP4: QLoRA, arXiv:2305.14314), `Linear8bitLt` (int8: arXiv:2208.07339).

bitsandbytes is imported inside the functions, because only a model with such layers needs it, and that model
has imported it already.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends.base import Backend


def keep_differentiable(model: nn.Module) -> None:
    """Prevent 4-bit layers from repacking their weights for inference, and revert those already repacked.

    On processors with AVX512-BF16, bitsandbytes 0.50 permanently rewrites a layer's weight at its first
    forward in evaluation mode, to a layout whose product has no gradient: after one evaluation, training
    continues without a gradient below that layer, and without an error. The layout also rounds the scales to
    bfloat16, so that reverting it is not exact: call this before the first forward. bitsandbytes does not
    repack layers whose sizes 32 (out) or the block size (in) does not divide.
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


def keep_savable(model: nn.Module) -> None:
    """Let `save_pretrained` write a model whose weights were stored quantized.

    Transformers 5.23 packs the tensors of such a checkpoint into one Parameter while it loads them, and fails
    when it tries to reverse this. It has nothing to reverse: the layers write their own tensors.
    """
    conversions: Any = getattr(model, "_weight_conversions", None)
    if conversions:
        model._weight_conversions = [x for x in conversions if _is_reversible(x)]  # type: ignore[assignment]


def _is_reversible(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def quantized_dtype(weight: Any) -> torch.dtype | None:
    """Return the dtype in which bitsandbytes stored a quantized weight; None for any other weight.

    4 bits are bytes, also in a floating-point dtype (`bnb_4bit_quant_storage`, for FSDP).
    """
    if getattr(weight, "quant_state", None) is not None:
        storage: torch.dtype = weight.quant_storage
        return storage
    is_int8 = getattr(weight, "SCB", None) is not None and not getattr(weight, "has_fp16_weights", False)
    return torch.int8 if is_int8 else None


class Linear4bit(Backend):
    """A `bitsandbytes.nn.Linear4bit`, whose packed weight (n, 1) represents W (out, in)."""

    is_quantized = True

    @property
    def format(self) -> str:
        packed = self.layer.weight
        double = ", double quantization" if packed.compress_statistics else ""
        return f"bitsandbytes {packed.quant_type}, blocks of {packed.blocksize}{double}"

    @property
    def nbytes(self) -> int:
        packed = self.layer.weight
        state, outer = packed.quant_state, packed.quant_state.state2  # outer quantizes the scales, or is None
        parts = [packed.data, state.absmax, state.code, state.offset]
        parts += [outer.absmax, outer.code] if outer is not None else []
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def codes(self) -> Tensor:
        packed: Tensor = self.layer.weight.data
        return packed

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        packed = self.layer.weight
        return dequantize_4bit(packed.data, packed.quant_state).to(dtype)

    def requantize(self, weight: Tensor) -> nn.Parameter:
        """Quantize with the block size, type and double quantization of the present weight."""
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


class Linear8bit(Backend):
    """A `bitsandbytes.nn.Linear8bitLt`: int8 codes (out, in) and one scale per row."""

    is_quantized = True

    @property
    def format(self) -> str:
        return "bitsandbytes int8"

    def _get(self) -> nn.Parameter:
        weight, state = self.layer.weight, self.layer.state
        if weight.CB is None:  # the first forward moves them to the layer's state, the next one back
            weight.CB, weight.SCB = state.CB, state.SCB
        stored: nn.Parameter = weight
        return stored

    @property
    def nbytes(self) -> int:
        stored: Any = self._get()
        return int(stored.CB.nbytes + stored.SCB.nbytes)

    @property
    def codes(self) -> Tensor:
        stored: Any = self._get()
        codes: Tensor = stored.CB
        return codes

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        stored: Any = self._get()
        return (stored.CB.float() * (stored.SCB.float()[:, None] / 127)).to(dtype)

    def requantize(self, weight: Tensor) -> nn.Parameter:
        from bitsandbytes.nn import Int8Params

        fresh: Any = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        quantized: nn.Parameter = fresh.to(self.device)  # moving is what quantizes
        return quantized
