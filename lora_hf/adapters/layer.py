"""The layer that carries adapters: h = W x + b + sum of the active adapters' branches.

A wrapper module rather than `torch.nn.utils.parametrize` (which needs a dense weight and never sees x)
or forward hooks (whose order is hidden). It shows the wrapped layer's `weight` and `bias`, because T5
reads `wo.weight.dtype`.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import backend_for
from lora_hf.adapters.backends.base import Stored
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.initialize import Start
from lora_hf.adapters.methods import ADAPTER_METHODS, Lora
from lora_hf.adapters.methods.qalora import QALora
from lora_hf.adapters.mixed_batch import Rows
from lora_hf.errors import UserError


class LoraLayer(nn.Module):
    """A frozen layer and its adapters.

    Attributes:
        base_layer: the wrapped layer; its weight is never changed in place.
        base: the backend that reads and stores that weight.
        adapters: name -> method, each with its own parameters.
        active: name -> weight of the branches that are added, in order.
        merged: name -> weight of those folded into the base at the moment.
        rows: which adapter each row of the batch goes through, or None for all the same.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.base = backend_for(base_layer)
        self.adapters = nn.ModuleDict()
        self.active: Mapping[str, float] = {}
        self.merged: Mapping[str, float] = {}
        self.rows: Rows | None = None
        self.enabled = True
        self._untouched: Stored = None  # the base as it was loaded, while another store is in its place
        self._own: dict[str, Stored] = {}  # the base as these adapters want it stored

    @property
    def weight(self) -> nn.Parameter:
        """The wrapped layer's weight as stored."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> nn.Parameter | None:
        """The wrapped layer's bias, or None."""
        return getattr(self.base_layer, "bias", None)  # an embedding has none

    def add(self, name: str, config: LoraConfig, start: Start) -> None:
        """Put an adapter on the layer, not yet active."""
        self.activate({})
        if start.stored is not None:
            self._own[name] = start.stored
            self._store(start.stored)
        self.adapters[name] = ADAPTER_METHODS[config.method](
            config, self.base, start.init, start.stored is not None
        )
        self.activate({})

    def remove(self, name: str) -> None:
        """Take an adapter off; one that only other layers have is passed over."""
        self.activate({n: w for n, w in self.active.items() if n != name})
        self._own.pop(name, None)
        if name in self.adapters:
            del self.adapters[name]

    def activate(self, weights: Mapping[str, float]) -> None:
        """Choose the branches that are added, and put the base in place that they were started on.

        Raises:
            UserError: two of them need the base stored in two ways.
        """
        owners = self.check_together(weights)
        self.active = dict(weights)
        self._store(self._own[owners[0]] if owners and self.enabled else None)

    def check_together(self, weights: Mapping[str, float]) -> list[str]:
        """The adapters among these that need the base stored in their own way: none, or one alone."""
        owners = [name for name in weights if name in self._own]
        if owners and len(self.methods(weights)) > 1:
            raise UserError(
                f"adapter {owners[0]!r} was started on a base stored for it alone; it cannot be active "
                f"together with {[name for name in weights if name != owners[0]]}"
            )
        return owners

    def enable(self, enabled: bool) -> None:
        """Switch all branches on or off; off, the layer is the one that was loaded."""
        self.enabled = enabled
        self.activate(self.active)

    def _store(self, stored: Stored | None) -> None:
        """Put this in the base's place, or with None the base as it was loaded."""
        if stored is None and self._untouched is not None:
            self.base.stored, self._untouched = _moved(self._untouched, self.base.device), None
        elif stored is not None:
            if self._untouched is None:
                self._untouched = self.base.stored
            self.base.stored = _moved(stored, self.base.device)

    def methods(self, names: Mapping[str, float]) -> list[tuple[float, Lora]]:
        """This layer's adapters of these names and their weights; a name it does not have is passed over."""
        return [(w, self.adapters[n]) for n, w in names.items() if n in self.adapters]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        """x as the wrapped layer takes it, batch first; the output in the wrapped layer's own dtype."""
        output = self.base_layer(x)
        if not self.enabled or self.merged:
            return output
        Wx = output if self.bias is None else output - self.base.per_row(self.bias.to(output.dtype))
        if self.rows is not None:
            return self._by_rows(x, Wx, output, self.rows)
        for weight, method in self.methods(self.active):
            output = output + _weighted(weight, method.branch(x, Wx, self.base).to(output.dtype))
        return output

    def _by_rows(self, x: Tensor, Wx: Tensor, output: Tensor, rows: Rows) -> Tensor:
        """Each row through its own adapter."""
        groups = rows.groups(x.shape[0], x.device)
        left = [name for name in groups if name in self.adapters]
        together = self._together(rows) if len(left) > 1 else {}
        if sum(name in groups for name in together) > 1:
            places = rows.places(tuple(together), x.shape[0], x.device)
            added = rows.stack(id(self), together, x.dtype).branches(x, places)
            output = output.index_add(0, places.rows, added.to(output.dtype))
            left = [name for name in left if name not in together]
        for name in left:
            method, index = self._method(name), groups[name]
            if len(index) == x.shape[0]:
                return output + method.branch(x, Wx, self.base).to(output.dtype)
            added = method.branch(x[index], Wx[index], self.base)
            output = output.index_add(0, index, added.to(output.dtype))
        return output

    def _together(self, rows: Rows) -> dict[str, Lora]:
        """The adapters of a batch that one product can serve."""
        if not rows.are_frozen or torch.is_grad_enabled() or self.training or not self.base.is_linear:
            return {}
        methods = {name: self._method(name) for name in self.active if name in self.adapters}
        return {name: method for name, method in methods.items() if type(method) is Lora}

    def _method(self, name: str) -> Lora:
        return self.adapters[name]  # type: ignore[return-value]

    def merge(self, names: Mapping[str, float]) -> None:
        """Fold adapters into a fresh weight; the old one is kept, so that unmerging is bit-exact.

        All deltas are taken against the same W and added once, in float32. Updates that are constant within
        the store's groups move its zero points, and nothing is rounded.
        """
        if self.merged:
            raise RuntimeError(
                f"adapters {list(self.merged)} are merged already; call unmerge_adapters first"
            )
        methods = self.methods(names)
        if not methods:
            return
        self._store(self._folded(methods))
        self.merged = dict(names)

    def _folded(self, methods: list[tuple[float, Lora]]) -> Stored:
        if self.base.group_size and all(isinstance(method, QALora) for _, method in methods):
            return self.base.shift_groups(sum(weight * method.update() for weight, method in methods))  # type: ignore[arg-type]
        return self.base.requantize(self.merged_weight(methods))

    def folds_exactly(self, names: Mapping[str, float]) -> bool:
        """Whether merging these rounds nothing but floats."""
        is_grouped = all(isinstance(method, QALora) for _, method in self.methods(names))
        return not self.base.is_quantized or (self.base.group_size is not None and is_grouped)

    def merged_weight(self, methods: list[tuple[float, Lora]]) -> Tensor:
        """W plus these adapters, float32 (out, in)."""
        W = self.base.dequantize(torch.float32)
        return W + sum(weight * method.delta(W) for weight, method in methods)

    def unmerge(self) -> None:
        """Put the unmerged weight back, on the device where the layer is by now."""
        if self.merged:
            self.merged = {}
            self._store(None)
            self.activate(self.active)


def _weighted(weight: float, branch: Tensor) -> Tensor:
    return branch if weight == 1.0 else weight * branch


def _moved(stored: Stored, device: torch.device) -> Stored:
    """A store on the layer's device; a 4-bit Parameter moves as one, a plain one does not."""
    if stored.device == device:
        return stored
    moved: Tensor = stored.to(device)
    is_parameter = isinstance(stored, nn.Parameter) and not isinstance(moved, nn.Parameter)
    return nn.Parameter(moved, requires_grad=False) if is_parameter else moved


def check_adapter_name(name: str) -> None:
    """Names become names of folders and of modules.

    Raises:
        UserError: a name with other signs than those, or one that `nn.ModuleDict` keeps for itself.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise UserError(f"adapter name {name!r}: write 1 to 64 ASCII letters, digits, '_' or '-'")
    if hasattr(nn.ModuleDict(), name):
        raise UserError(f"adapter name {name!r} is a word of PyTorch's own; take another, such as '{name}-1'")
