"""The layer that carries adapters: h = W x + b + sum of the active adapters' branches.

A wrapper module rather than `torch.nn.utils.parametrize` (which needs a dense weight and never sees x)
or forward hooks (whose order is hidden). It shows the wrapped layer's `weight` and `bias`, because T5
reads `wo.weight.dtype`.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import backend_for
from lora_hf.adapters.methods import Lora
from lora_hf.errors import UserError


class LoraLayer(nn.Module):
    """A frozen layer and its adapters.

    Attributes:
        base_layer: the wrapped layer; its weight is never changed in place.
        base: the backend that reads and stores that weight.
        adapters: name -> method, each with its own parameters.
        active: names whose branches are added, in order.
        merged: names folded into the weight at the moment.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.base = backend_for(base_layer)
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.merged: tuple[str, ...] = ()
        self.enabled = True
        self._pristine: list[nn.Parameter] = []  # in a list, so that nn.Module does not register it

    @property
    def weight(self) -> nn.Parameter:
        """The wrapped layer's weight as stored."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> nn.Parameter | None:
        """The wrapped layer's bias, or None."""
        return self.base_layer.bias  # type: ignore[return-value]

    def methods(self, names: Sequence[str]) -> list[Lora]:
        """This layer's adapters of these names; a name that only other layers have is passed over."""
        return [self.adapters[name] for name in names if name in self.adapters]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), in the wrapped layer's own output dtype."""
        output = self.base_layer(x)
        if not self.enabled or self.merged:
            return output
        Wx = output if self.bias is None else output - self.bias.to(output.dtype)
        for method in self.methods(self.active):
            output = output + method.branch(x, Wx, self.base).to(output.dtype)
        return output

    def merge(self, names: Sequence[str]) -> None:
        """Fold adapters into a fresh weight; the old Parameter is kept, so that unmerging is bit-exact.

        All deltas are taken against the same W and added once, in float32.
        """
        if self.merged:
            raise RuntimeError(
                f"adapters {list(self.merged)} are merged already; call unmerge_adapters first"
            )
        methods = self.methods(names)
        if not methods:
            return
        W = self.base.dequantize(torch.float32)
        merged = self.base.requantize(W + sum(method.delta(W) for method in methods))
        self._pristine = [self.weight]
        self.base_layer.weight = merged
        self.merged = tuple(names)

    def unmerge(self) -> None:
        """Put the pristine Parameter back, on the device where the layer is by now."""
        if self.merged:
            pristine, device = self._pristine.pop(), self.weight.device
            if pristine.device != device:
                moved: Tensor = pristine.to(device)  # a 4-bit Parameter stays one, a plain one does not
                is_parameter = isinstance(moved, nn.Parameter)
                pristine = moved if is_parameter else nn.Parameter(moved, requires_grad=False)  # type: ignore
            self.base_layer.weight = pristine
            self.merged = ()


def check_adapter_name(name: str) -> None:
    """Names become folder names and module names: letters, digits, `_` and `-` only.

    Raises:
        UserError: any other name, or one that `nn.ModuleDict` keeps for itself.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or hasattr(nn.ModuleDict(), name):
        raise UserError(
            f"adapter name {name!r}: use 1 to 64 letters, digits, '_' or '-', "
            "and no name of a method of torch.nn.ModuleDict"
        )
