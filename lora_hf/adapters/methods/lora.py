"""LoRA: h = W x + s B A x (Hu et al., arXiv:2106.09685, eq. 3)."""

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.functional import lora_scaling
from lora_hf.adapters.inits import INITS
from lora_hf.errors import UserError


class Lora(nn.Module):
    """The parameters of one LoRA adapter on one layer: lora_A (r, in), lora_B (out, r), float32.

    The law every method obeys, on every backend: `branch(x, W x, base) == delta(W) x`.
    """

    def __init__(self, config: LoraConfig, base: Backend, device: torch.device) -> None:
        super().__init__()
        if config.init_lora_weights not in INITS:
            raise UserError(f"lora.init_lora_weights={config.init_lora_weights!r} is none of {list(INITS)}")
        self.scaling = lora_scaling(config.r, config.lora_alpha)
        self.dropout = config.lora_dropout
        shape = torch.empty(base.out_features, base.in_features, device="meta")
        start = INITS[config.init_lora_weights](shape, config.r, self.scaling)
        self.lora_A = nn.Parameter(start.lora_A.to(device))
        self.lora_B = nn.Parameter(start.lora_B.to(device))

    def branch(self, x: Tensor, Wx: Tensor, base: Backend) -> Tensor:
        """What this adapter adds to the layer's output, for x (..., in); returns (..., out)."""
        return base.low_rank(
            x, self.lora_A, self.lora_B, self.scaling, self.dropout if self.training else 0.0
        )

    def delta(self, W: Tensor) -> Tensor:
        """The same as a matrix (out, in), float32; `W` (out, in) is what the base stores."""
        return self.scaling * (self.lora_B @ self.lora_A).detach()
