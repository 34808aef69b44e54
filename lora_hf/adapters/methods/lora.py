"""LoRA: h = W x + s B A x (Hu et al., arXiv:2106.09685, eq. 3)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.functional import add_low_rank, has_fused_branches, lora_scaling
from lora_hf.adapters.inits import Factors, LoraInit
from lora_hf.adapters.methods.base import Method, Shapes

PEFT_FIELDS = """r lora_alpha lora_dropout target_modules exclude_modules layers_to_transform rank_pattern
alpha_pattern modules_to_save use_rslora use_dora use_qalora qalora_group_size init_lora_weights
layer_replication""".split()


class Lora(Method):
    """lora_A (r, in) and lora_B (out, r), float32.

    An initialization that takes its factors out of W, s B' A', needs a base without them. A dense base stays
    unchanged, and the branch subtracts s B' A' instead: no weight is rounded, other adapters and
    `disable_adapters` see the original base, and the initial output is exact. A quantized base is quantized
    again (`has_requantized_base`), because a lower quantization error is the point of this initialization.
    """

    title = "LoRA"
    is_low_rank = True
    peft_fields = {name: name for name in PEFT_FIELDS}
    offset_A: Tensor | None
    offset_B: Tensor | None
    _cast: tuple[Any, Factors] | None = None

    def __init__(
        self, config: LoraConfig, base: Backend, factors: LoraInit | None, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(config, base, factors, *args, **kwargs)
        assert factors is not None
        self.scaling = lora_scaling(config.r, config.lora_alpha, config.use_rslora)
        self.lora_A = nn.Parameter(factors.lora_A.to(base.device, torch.float32, copy=True))
        self.lora_B = nn.Parameter(factors.lora_B.to(base.device, torch.float32, copy=True))
        subtracted = factors.subtracted or (None, None)
        for name, factor in zip(("offset_A", "offset_B"), subtracted, strict=True):
            if factor is None:  # accelerate's offloading fails on a buffer of None
                setattr(self, name, None)
            else:
                self.register_buffer(name, factor.to(base.device), persistent=False)

    @property
    def base_offset(self) -> Factors | None:
        if self.offset_A is None or self.offset_B is None or self.has_requantized_base:
            return None
        return self.offset_A, self.offset_B

    def removed_from_base(self, W: Tensor) -> Tensor:
        if self.offset_A is None or self.offset_B is None or not self.has_requantized_base:
            return super().removed_from_base(W)
        return self.scaling * (self.offset_B @ self.offset_A)

    def branch(self, x: Tensor, Wx: Tensor, base: Backend) -> Tensor:
        rate = self.dropout if self.training else 0.0
        added = base.low_rank(x, self.lora_A, self.lora_B, self.scaling, rate)
        if self.base_offset is None:
            return added
        return added - base.low_rank(x, *self.base_offset, self.scaling, 0.0)

    def layer_output(self, x: Tensor, base: Backend, weight: float) -> Tensor | None:
        layer = base.layer
        if not self._can_be_fused(x, base) or type(layer) is not nn.Linear or layer.bias is not None:
            return None
        if layer.weight.requires_grad or layer._forward_hooks or layer._forward_pre_hooks:
            return None
        if layer.weight.device != x.device:  # DataParallel's copy of this layer: the backend has the original
            return None
        return add_low_rank(None, x, layer.weight, *self._fused_arguments(weight))

    def add_branch(self, output: Tensor, x: Tensor, Wx: Tensor, base: Backend, weight: float) -> Tensor:
        if not self._can_be_fused(x, base) or not output.is_contiguous():
            return super().add_branch(output, x, Wx, base, weight)
        return add_low_rank(output, x, None, *self._fused_arguments(weight))

    def _can_be_fused(self, x: Tensor, base: Backend) -> bool:
        if not has_fused_branches(x) or type(self).branch is not Lora.branch or not base.is_linear:
            return False
        return self.base_offset is None and self.lora_A.device == x.device

    def _fused_arguments(self, weight: float) -> tuple[Any, ...]:
        cast = None
        if self._cast is not None and self._cast[0] == self._versions(self._cast[1][0].dtype):
            cast = self._cast[1]
        rate = self.dropout if self.training else 0.0
        return self.lora_A, self.lora_B, self.scaling * weight, rate, cast

    def keep_cast(self, cast: Factors | None) -> None:
        """Keep copies of A and B in another dtype, used until A or B changes; None forgets them."""
        self._cast = None if cast is None else (self._versions(cast[0].dtype), cast)

    def _versions(self, dtype: torch.dtype) -> Any:
        return id(self.lora_A), self.lora_A._version, id(self.lora_B), self.lora_B._version, dtype

    def delta(self, W: Tensor) -> Tensor:
        return self._product()

    def factors(self) -> Factors:
        A, B = self._with_offset()
        return A, self.scaling * B

    def to_peft(self, base: Backend) -> dict[str, Tensor]:
        A, B = self._with_offset()
        ones = (1,) * (len(base.kernel) - 1)  # of a convolution: A has its kernel, B is 1 x 1
        if A.shape[1] == base.in_features:
            A = A.reshape(-1, *base.kernel)
        return {base.peft_names["lora_A"]: A, base.peft_names["lora_B"]: B.reshape(*B.shape, *ones)}

    def from_peft(self, tensors: Mapping[str, Tensor], base: Backend) -> None:
        A = tensors[base.peft_names["lora_A"]].flatten(1)
        B = tensors[base.peft_names["lora_B"]].flatten(1)
        r = len(self.lora_A)
        with torch.no_grad():
            # PEFT's own files of such an initialization, unless it converted them, have no second half
            if self.base_offset is not None and len(A) == 2 * r:
                for factor, half in zip(self.base_offset, (A[r:], -B[:, r:]), strict=True):
                    factor.copy_(half)
                A, B = A[:r], B[:, :r]
            self.lora_A.copy_(A)
            self.lora_B.copy_(B)

    @classmethod
    def peft_shapes(cls, config: LoraConfig, base: Backend) -> Shapes:
        ones = (1,) * (len(base.kernel) - 1)
        return {
            base.peft_names["lora_A"]: (config.r, *base.kernel),
            base.peft_names["lora_B"]: (base.out_features, config.r, *ones),
        }

    @torch.no_grad()
    def _product(self) -> Tensor:
        """Return s (B A - B' A'), (out, columns of A)."""
        product = self.scaling * (self.lora_B @ self.lora_A)
        if self.base_offset is None:
            return product
        offset_A, offset_B = self.base_offset
        return product - self.scaling * (offset_B @ offset_A)

    def _with_offset(self) -> Factors:
        """Return A (rank, columns) and B (out, rank) with the base offset as further rank."""
        A, B = self.lora_A.detach(), self.lora_B.detach()
        if self.base_offset is None:
            return A, B
        offset_A, offset_B = self.base_offset
        return torch.cat([A, offset_A]), torch.cat([B, -offset_B], dim=1)
