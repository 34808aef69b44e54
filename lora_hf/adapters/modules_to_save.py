"""`modules_to_save`: layers that an adapter contains as a whole, such as a new classification head."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.wrappers import NotPlain
from lora_hf.errors import UserError


class SavedModule(NotPlain):
    """A frozen module, and one trained copy of it per adapter.

    Attributes:
        original: the module as it was loaded.
        copies: adapter name -> its copy.
        active: the adapter whose copy is used, or None for the original.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.copies = nn.ModuleDict()
        self.active: str | None = None
        self.enabled = True

    def __getattr__(self, name: str) -> Any:
        """Take other attributes, such as an embedding's `weight`, from the module in use."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.used, name)

    @property
    def used(self) -> nn.Module:
        """The module in use."""
        modules = self.__dict__["_modules"]
        is_copy = self.__dict__["active"] is not None and self.__dict__["enabled"]
        used: nn.Module = modules["copies"][self.__dict__["active"]] if is_copy else modules["original"]
        return used

    def add(self, name: str) -> None:
        """Give an adapter its copy, in float32 because it trains."""
        self.copies[name] = _float_copy(self.original).requires_grad_(True)

    def remove(self, name: str) -> None:
        """Remove an adapter's copy, if it has one."""
        if self.active == name:
            self.active = None
        if name in self.copies:
            del self.copies[name]

    def check_together(self, names: Mapping[str, float]) -> list[str]:
        """Return those of these adapters that have a copy: none, or one.

        Raises:
            UserError: several.
        """
        owners = [name for name in names if name in self.copies]
        if len(owners) > 1:
            raise UserError(f"adapters {owners} each have their own copy of a layer; activate one of them")
        return owners

    def activate(self, names: Mapping[str, float]) -> None:
        """Use the copy of the one of these adapters that has one; raises as `check_together` does."""
        owners = self.check_together(names)
        self.active = owners[0] if owners else None

    @property
    def plain(self) -> nn.Module:
        """The module in use, in the dtype of the original: it remains after a permanent merge."""
        dtype = next((p.dtype for p in self.original.parameters() if p.is_floating_point()), None)
        return self.used.to(dtype) if dtype else self.used

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module in use; floating-point inputs are cast to its dtype."""
        used = self.used
        dtype = next((p.dtype for p in used.parameters()), None)
        original = next((p.dtype for p in self.original.parameters()), None)
        if dtype == original:
            return used(*args, **kwargs)
        cast = [a.to(dtype) if hasattr(a, "is_floating_point") and a.is_floating_point() else a for a in args]
        output = used(*cast, **kwargs)
        return output.to(original) if hasattr(output, "to") else output


def _float_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose floating-point tensors are float32.

    Each tensor is copied once, in its new dtype; fake tensors, which plans use, cannot be cast in place.
    """
    copies: dict[int, Any] = {id(buffer): _float_clone(buffer) for buffer in module.buffers()}
    for parameter in module.parameters():
        copies[id(parameter)] = nn.Parameter(_float_clone(parameter), requires_grad=False)
    return copy.deepcopy(module, copies)


def _float_clone(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(dtype, copy=True)
