"""QA-LoRA: h = W x + s B A P x, P the sum over each quantization group (Xu et al., arXiv:2309.14717, eq. 4).

The update is constant within a group of columns, so that an affine store takes it into its zero points with
no loss: the merged 4-bit model is the trained one. The sum, not the mean, is the paper's own scale
(`D_in // L` times its average pooling); PEFT multiplies the mean by the number of groups instead.
"""

from torch import Tensor

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.functional import dropout
from lora_hf.adapters.inits import LoraInit
from lora_hf.adapters.methods.lora import Lora
from lora_hf.errors import UserError


class QALora(Lora):
    """lora_A (r, in / group), lora_B (out, r)."""

    def __init__(self, config: LoraConfig, base: Backend, start: LoraInit, is_restored: bool = False) -> None:
        super().__init__(config, base, start, is_restored)
        self.group_size = group_size_of(config, base)

    @staticmethod
    def view(W: Tensor, config: LoraConfig, base: Backend) -> Tensor:
        """The means of W over the groups: what of it an update of this kind can hold."""
        return W.unflatten(1, (-1, group_size_of(config, base))).mean(-1)

    def branch(self, x: Tensor, Wx: Tensor, base: Backend) -> Tensor:
        if self.dropout and self.training:
            dropped = self._pool(dropout(x, self.dropout))
        else:
            dropped = self._pool(x)
        added = base.low_rank(dropped, self.lora_A, self.lora_B, self.scaling, 0.0)
        if self.taken_over is None:
            return added
        return added - base.low_rank(self._pool(x), *self.taken_over, self.scaling, 0.0)

    def delta(self, W: Tensor) -> Tensor:
        return self.update().repeat_interleave(self.group_size, dim=1)

    def _pool(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.group_size)).sum(-1)


def group_size_of(config: LoraConfig, base: Backend) -> int:
    """The store's own group size, or the config's where the store has none.

    Raises:
        UserError: they differ, neither is known, or the layer cannot be grouped so.
    """
    layer = type(base.layer).__name__
    if not base.is_linear:
        raise UserError(f"lora.use_qalora=True groups the inputs of linear layers; a {layer} cannot carry it")
    if config.init_lora_weights == "loftq":
        raise UserError(
            "lora.init_lora_weights='loftq' and use_qalora=True exclude each other: use pissa, or true"
        )
    ours, theirs = config.qalora_group_size, base.group_size
    if ours and theirs and ours != theirs:
        raise UserError(
            f"lora.qalora_group_size={ours}: the {layer} is stored in groups of {theirs}; leave it out"
        )
    size = ours or theirs
    if size is None:
        raise UserError(
            f"lora.use_qalora=True: a {layer} is not stored in groups; give lora.qalora_group_size"
        )
    if base.in_features % size:
        raise UserError(
            f"lora.qalora_group_size={size} does not divide the {base.in_features} inputs of a {layer}"
        )
    return size
