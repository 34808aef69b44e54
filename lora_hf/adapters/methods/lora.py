"""LoRA: h = W x + s B A x (Hu et al., arXiv:2106.09685, eq. 3)."""

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.functional import lora_scaling
from lora_hf.adapters.inits import Factors, LoraInit


class Lora(nn.Module):
    """The parameters of one LoRA adapter on one layer: lora_A (r, in), lora_B (out, r), float32.

    A start that takes a part of W over, s B' A', needs a base without it. A dense base is left as it is, and
    the branch takes s B' A' x away instead: no weight is rounded, other adapters and `disable_adapters` see
    the untouched base, and the start is exact. A quantized base is stored anew (`is_restored`), for that is
    where the lower error of such a start comes from.

    The law every method obeys, on every backend: `branch(x, W x, base) == delta(W) x`.
    """

    start_A: Tensor | None
    start_B: Tensor | None

    def __init__(self, config: LoraConfig, base: Backend, start: LoraInit, is_restored: bool = False) -> None:
        super().__init__()
        self.scaling = lora_scaling(config.r, config.lora_alpha, config.use_rslora)
        self.dropout = config.lora_dropout
        self.is_restored = is_restored
        self.lora_A = nn.Parameter(start.lora_A.to(base.device, torch.float32, copy=True))
        self.lora_B = nn.Parameter(start.lora_B.to(base.device, torch.float32, copy=True))
        subtracted = start.subtracted or (None, None)
        for name, factor in zip(("start_A", "start_B"), subtracted, strict=True):
            self.register_buffer(name, None if factor is None else factor.to(base.device), persistent=False)

    @staticmethod
    def view(W: Tensor, config: LoraConfig, base: Backend) -> Tensor:
        """The matrix (out, columns of A) that the start sees, of W (out, in)."""
        return W

    @property
    def taken_over(self) -> Factors | None:
        """A' and B' that the branch takes away, or None."""
        if self.start_A is None or self.start_B is None or self.is_restored:
            return None
        return self.start_A, self.start_B

    def branch(self, x: Tensor, Wx: Tensor, base: Backend) -> Tensor:
        """What this adapter adds to the layer's output, for x (..., in); returns (..., out)."""
        rate = self.dropout if self.training else 0.0
        added = base.low_rank(x, self.lora_A, self.lora_B, self.scaling, rate)
        if self.taken_over is None:
            return added
        return added - base.low_rank(x, *self.taken_over, self.scaling, 0.0)

    def scaled_factors(self) -> Factors:
        """A (rank, in) and s B (out, rank), whose product is the update, with what is taken over in it."""
        A, B = self.lora_A, self.scaling * self.lora_B
        if self.taken_over is None:
            return A, B
        start_A, start_B = self.taken_over
        return torch.cat([A, start_A]), torch.cat([B, -self.scaling * start_B], dim=1)

    def update(self) -> Tensor:
        """s (B A - B' A'), (out, columns of A), without gradients."""
        with torch.no_grad():
            update = self.scaling * (self.lora_B @ self.lora_A)
            if self.taken_over is None:
                return update
            start_A, start_B = self.taken_over
            return update - self.scaling * (start_B @ start_A)

    def delta(self, W: Tensor) -> Tensor:
        """The branch as a matrix (out, in), float32; `W` (out, in) is what the base stores."""
        return self.update()
