"""QA-LoRA: h = W x + s B A P x, P the sum over each quantization group (Xu et al., arXiv:2309.14717, eq. 4).

The update is constant within a group of columns, so that an affine storage format takes it into its zero
points without loss: the merged 4-bit model is the trained one. The sum, not the mean, is the paper's own
scale (`D_in // L` times its average pooling); PEFT multiplies the mean by the number of groups instead.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.functional import dropout
from lora_hf.adapters.methods.base import Shapes
from lora_hf.adapters.methods.lora import Lora
from lora_hf.errors import UserError


class QALora(Lora):
    """lora_A (r, in / group), lora_B (out, r)."""

    title = "QA-LoRA"
    is_low_rank = False
    folds_into_groups = True

    def __init__(self, config: LoraConfig, base: Backend, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, base, *args, **kwargs)
        self.group_size = group_size_of(config, base)

    @classmethod
    def check(cls, config: LoraConfig, base: Backend) -> None:
        group_size_of(config, base)

    @classmethod
    def initialized_matrix(cls, W: Tensor, config: LoraConfig, base: Backend) -> Tensor:
        """Return the means of W over the groups: the part of W that an update of this kind can hold."""
        return W.unflatten(1, (-1, group_size_of(config, base))).mean(-1)

    def branch(self, x: Tensor, Wx: Tensor, base: Backend) -> Tensor:
        pooled = self._pool(dropout(x, self.dropout) if self.dropout and self.training else x)
        added = base.low_rank(pooled, self.lora_A, self.lora_B, self.scaling, 0.0)
        if self.base_offset is None:
            return added
        return added - base.low_rank(self._pool(x), *self.base_offset, self.scaling, 0.0)

    def delta(self, W: Tensor) -> Tensor:
        return self.group_shift().repeat_interleave(self.group_size, dim=1)

    def group_shift(self) -> Tensor:
        return self._product()

    def to_peft(self, base: Backend) -> dict[str, Tensor]:
        tensors, name = super().to_peft(base), base.peft_names["lora_A"]
        return tensors | {name: tensors[name] * (self.group_size / self.lora_A.shape[1])}

    def from_peft(self, tensors: Mapping[str, Tensor], base: Backend) -> None:
        name = base.peft_names["lora_A"]
        A = tensors[name] * (self.lora_A.shape[1] / self.group_size)
        super().from_peft({**tensors, name: A}, base)

    @classmethod
    def peft_shapes(cls, config: LoraConfig, base: Backend) -> Shapes:
        columns = base.in_features // group_size_of(config, base)
        return super().peft_shapes(config, base) | {base.peft_names["lora_A"]: (config.r, columns)}

    def resolved(self, config: LoraConfig) -> LoraConfig:
        return replace(config, qalora_group_size=self.group_size)

    def _pool(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.group_size)).sum(-1)


def group_size_of(config: LoraConfig, base: Backend) -> int:
    """Return the group size of the base's storage format, or the configured one where it has none.

    Raises:
        UserError: they differ, neither is known, or the layer cannot be grouped.
    """
    layer = type(base.layer).__name__
    if not base.is_linear:
        raise UserError(
            f"use_qalora=True groups the inputs of linear layers; remove the {layer} from target_modules",
            "use_qalora",
        )
    ours, theirs = config.qalora_group_size, base.group_size
    if ours and theirs and ours != theirs:
        raise UserError(
            f"qalora_group_size={ours}: this {layer} is quantized in groups of {theirs}; leave the field out",
            "qalora_group_size",
        )
    size = ours or theirs
    if size is None:
        raise UserError(
            f"use_qalora=True: a {layer} is not quantized in groups; set qalora_group_size", "use_qalora"
        )
    if base.in_features % size:
        raise UserError(
            f"qalora_group_size={size} does not divide the {base.in_features} inputs of a {layer}",
            "qalora_group_size",
        )
    return size
