"""The contract of a method: what one adapter adds to one frozen layer.

A method is a subclass of `Method` in a file of its own, a line in `ADAPTER_METHODS` and a field of
`LoraConfig` that selects it. Nothing else asks for its class or its name: layers, initialization, merging,
mixed batches and PEFT's files use the members below.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.inits import Factors, LoraInit

Shapes = dict[str, tuple[int, ...]]
"""Tensor name -> shape."""


class Method(nn.Module):
    """The parameters of one adapter on one layer, and the update they stand for.

    On every backend `branch(x, W x, base) == delta(W) x`; the equivalence test runs over all methods.

    Args:
        config: settings of this layer.
        base: the layer's backend.
        factors: initial A and B; None for a method without factors of its own.
        has_requantized_base: the base was quantized again without the adapter's initial product.
        shared: this adapter's frozen tensors that all its layers share, see `shared_shapes`.
    """

    title: ClassVar[str]
    """Name in model cards."""
    peft_type: ClassVar[str] = "LORA"
    """`peft_type` of PEFT's configuration file."""
    peft_fields: ClassVar[Mapping[str, str]]
    """Field of PEFT's configuration -> field of `LoraConfig`."""
    peft_constants: ClassVar[Mapping[str, Any]] = {"bias": "none", "fan_in_fan_out": False}
    """Fields of PEFT's configuration that are the same for every adapter of this method."""
    is_low_rank: ClassVar[bool] = False
    """The branch is a product of two factors of the layer's size: `factors` returns them."""
    folds_into_groups: ClassVar[bool] = False
    """The update is constant within a quantization group: zero points take it without loss."""
    scaling: float = 1.0
    """s, the factor of the update."""

    def __init__(
        self,
        config: LoraConfig,
        base: Backend,
        factors: LoraInit | None,
        has_requantized_base: bool = False,
        shared: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        super().__init__()
        self.dropout = config.lora_dropout
        self.has_requantized_base = has_requantized_base
        self.shared_names = tuple(shared or ())

    @classmethod
    def check(cls, config: LoraConfig, base: Backend) -> None:
        """Refuse a layer or a configuration that this method cannot serve.

        Raises:
            UserError: it names the field and what to use instead.
        """

    @classmethod
    def initialized_matrix(cls, W: Tensor, config: LoraConfig, base: Backend) -> Tensor | None:
        """Return the matrix (out, columns of A) that B A approximates at initialization, from W (out, in).

        None for a method without factors of its own.
        """
        return W

    @classmethod
    def shared_shapes(cls, config: LoraConfig, bases: Iterable[Backend]) -> Shapes:
        """Return the frozen tensors that all layers of one adapter share; most methods have none."""
        return {}

    @classmethod
    def draw_shared(cls, config: LoraConfig, shapes: Shapes) -> dict[str, Tensor]:
        """Draw the tensors of `shared_shapes` on the CPU."""
        return {}

    @classmethod
    def saves_shared(cls, config: LoraConfig) -> bool:
        """Return whether an adapter's file holds the shared tensors; otherwise loading draws them again."""
        return True

    @property
    def base_offset(self) -> Factors | None:
        """A' and B', whose product times s the branch subtracts from the base's output, or None."""
        return None

    def removed_from_base(self, W: Tensor) -> Tensor:
        """Return s B' A', (out, in), which a base that was quantized again for this adapter lacks."""
        return torch.zeros_like(W)

    def branch(self, x: Tensor, Wx: Tensor, base: Backend) -> Tensor:
        """Return what is added to the layer's output, for x (..., in): (..., out)."""
        raise NotImplementedError

    def layer_output(self, x: Tensor, base: Backend, weight: float) -> Tensor | None:
        """Return W x + weight * branch(x, W x), (..., out), if this method computes both at once, or None."""
        return None

    def add_branch(self, output: Tensor, x: Tensor, Wx: Tensor, base: Backend, weight: float) -> Tensor:
        """Return output + weight * branch(x, Wx), (..., out); the output may be changed in place."""
        branch = self.branch(x, Wx, base).to(output.dtype)
        return output + (branch if weight == 1.0 else weight * branch)

    def delta(self, W: Tensor) -> Tensor:
        """Return the branch as a matrix (out, in), float32, without gradients; W (out, in) is the base's."""
        raise NotImplementedError

    def factors(self) -> Factors:
        """Return A (rank, in) and s B (out, rank), whose product is the update; see `is_low_rank`."""
        raise NotImplementedError

    def group_shift(self) -> Tensor:
        """Return the update of each quantization group, (out, in / group_size); see `folds_into_groups`."""
        raise NotImplementedError

    def set_trainable(self, trainable: bool) -> None:
        """Turn gradients on or off; a method may keep some of its parameters frozen."""
        self.requires_grad_(trainable)

    def to_peft(self, base: Backend) -> dict[str, Tensor]:
        """Return the tensors of this layer as PEFT stores them, by their names below the layer."""
        raise NotImplementedError

    def from_peft(self, tensors: Mapping[str, Tensor], base: Backend) -> None:
        """Copy tensors such as `to_peft` returns into this adapter."""
        raise NotImplementedError

    @classmethod
    def peft_shapes(cls, config: LoraConfig, base: Backend) -> Shapes:
        """Return the tensors that a file must hold for a layer with these settings."""
        raise NotImplementedError

    def resolved(self, config: LoraConfig) -> LoraConfig:
        """Return the configuration with the settings that this adapter took from its layer."""
        return config
