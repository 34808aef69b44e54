"""VeRA: h = W x + Λ_b B Λ_d A x (Kopiczko et al., arXiv:2310.11454, eq. 2).

A (r, in) and B (out, r) are random, frozen and the same for all layers; each layer trains the vectors d (r,)
and b (out,). A layer uses the first columns of the shared A and the first rows of the shared B, which have
the sizes of the largest layer. PEFT draws both from `projection_prng_key` in the same order, so that each
project reads the other's files, also those without A and B (`save_projection: false`).
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.inits import Factors, LoraInit
from lora_hf.adapters.methods.base import Method, Shapes
from lora_hf.errors import UserError


class Vera(Method):
    """vera_lambda_d (r,), vera_lambda_b (out,); shared vera_A (r, widest in), vera_B (widest out, r)."""

    title = "VeRA"
    peft_type = "VERA"
    is_low_rank = True
    peft_fields = {
        name: name for name in ("r", "target_modules", "layers_to_transform", "modules_to_save")
    } | {
        "vera_dropout": "lora_dropout",
        "d_initial": "vera_d_initial",
        "projection_prng_key": "projection_prng_key",
        "save_projection": "save_projection",
    }
    vera_A: nn.Parameter
    vera_B: nn.Parameter

    def __init__(
        self,
        config: LoraConfig,
        base: Backend,
        factors: LoraInit | None,
        has_requantized_base: bool,
        shared: Mapping[str, nn.Parameter],
    ) -> None:
        super().__init__(config, base, factors, has_requantized_base, shared)
        self.in_features = base.in_features
        for name, parameter in shared.items():
            self.register_parameter(name, parameter)
        device = base.device
        self.vera_lambda_d = nn.Parameter(torch.full((config.r,), config.vera_d_initial, device=device))
        self.vera_lambda_b = nn.Parameter(torch.zeros(base.out_features, device=device))

    @classmethod
    def check(cls, config: LoraConfig, base: Backend) -> None:
        if not base.is_linear:
            layer = type(base.layer).__name__
            raise UserError(
                f"use_vera=True needs linear layers; remove the {layer} from target_modules", "use_vera"
            )

    @classmethod
    def initialized_matrix(cls, W: Tensor, config: LoraConfig, base: Backend) -> None:
        return None

    @classmethod
    def shared_shapes(cls, config: LoraConfig, bases: Iterable[Backend]) -> Shapes:
        sizes = [(base.out_features, base.in_features) for base in bases]
        widest_out, widest_in = (max(size[i] for size in sizes) for i in (0, 1))
        return {"vera_A": (config.r, widest_in), "vera_B": (widest_out, config.r)}

    @classmethod
    def draw_shared(cls, config: LoraConfig, shapes: Shapes) -> dict[str, Tensor]:
        """Draw A, then B, by Kaiming's uniform distribution: in ±sqrt(6 / columns)."""
        generator = torch.Generator().manual_seed(config.projection_prng_key)
        drawn = {}
        for name, shape in shapes.items():
            bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(shape[1]))  # in PEFT's order of rounding
            drawn[name] = torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=generator)
        return drawn

    @classmethod
    def saves_shared(cls, config: LoraConfig) -> bool:
        return config.save_projection

    def branch(self, x: Tensor, Wx: Tensor, base: Backend) -> Tensor:
        rate = self.dropout if self.training else 0.0
        return base.low_rank(x, *self._scaled(), 1.0, rate)

    @torch.no_grad()
    def delta(self, W: Tensor) -> Tensor:
        A, B = self._scaled()
        return B @ A

    @torch.no_grad()
    def factors(self) -> Factors:
        return self._scaled()

    def set_trainable(self, trainable: bool) -> None:
        for vector in (self.vera_lambda_d, self.vera_lambda_b):
            vector.requires_grad_(trainable)

    def to_peft(self, base: Backend) -> dict[str, Tensor]:
        return {"vera_lambda_b": self.vera_lambda_b.detach(), "vera_lambda_d": self.vera_lambda_d.detach()}

    @torch.no_grad()
    def from_peft(self, tensors: Mapping[str, Tensor], base: Backend) -> None:
        self.vera_lambda_b.copy_(tensors["vera_lambda_b"])
        self.vera_lambda_d.copy_(tensors["vera_lambda_d"])

    @classmethod
    def peft_shapes(cls, config: LoraConfig, base: Backend) -> Shapes:
        return {"vera_lambda_b": (base.out_features,), "vera_lambda_d": (config.r,)}

    def _scaled(self) -> Factors:
        """Return Λ_d A (r, in) and Λ_b B (out, r)."""
        A = self.vera_A[:, : self.in_features]
        B = self.vera_B[: len(self.vera_lambda_b)]
        return self.vera_lambda_d[:, None] * A, self.vera_lambda_b[:, None] * B
