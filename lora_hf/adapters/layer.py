"""The layer that carries adapters: h = W x + b + the sum of the active adapters' branches.

A wrapper module rather than `torch.nn.utils.parametrize` (which needs a dense weight and never sees x)
or forward hooks (whose order is hidden). It exposes the wrapped layer's `weight` and `bias`, because T5
reads `wo.weight.dtype`.
"""

import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lora_hf.adapters.backends import backend_for
from lora_hf.adapters.backends.base import StoredWeight
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.initialize import LayerInit
from lora_hf.adapters.kept import KeptWeights
from lora_hf.adapters.methods import ADAPTER_METHODS, Method
from lora_hf.adapters.mixed_batch import MixedBatch
from lora_hf.adapters.wrappers import NotPlain
from lora_hf.errors import UserError


class LoraLayer(NotPlain):
    """A frozen layer and its adapters.

    Attributes:
        base_layer: the wrapped layer; its weight is never changed in place.
        base: the backend that reads and replaces that weight.
        adapters: name -> method, each with its own parameters.
        active: name -> weight of the branches that are added, in order.
        merged: name -> weight of the adapters that are merged into the base.
        mixed_batch: the adapter of each row of the batch, or None if all rows have the active ones.
        weight_was_read: something has read `weight`, as a model does that computes without calling the layer.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.base = backend_for(base_layer)
        self.adapters = nn.ModuleDict()
        self.active: Mapping[str, float] = {}
        self.merged: Mapping[str, float] = {}
        self.mixed_batch: MixedBatch | None = None
        self.enabled = True
        self.weight_was_read = False
        self._loaded_weight: StoredWeight = None  # the base as loaded, while another weight is in its place
        self._own_weights: dict[str, StoredWeight] = {}  # adapter name -> its base weight

    @property
    def weight(self) -> nn.Parameter:
        """The wrapped layer's weight, in its storage format."""
        if not (self.weight_was_read or torch.compiler.is_compiling()):
            self.weight_was_read = True
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> nn.Parameter | None:
        """The wrapped layer's bias, or None."""
        return getattr(self.base_layer, "bias", None)  # an embedding has none

    def add(
        self,
        name: str,
        config: LoraConfig,
        init: LayerInit,
        shared: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        """Add an adapter, not yet active.

        Args:
            name: of the adapter.
            config: settings of this layer.
            init: its initial factors.
            shared: the tensors that it shares with other layers; None draws them for this layer alone.
        """
        self.activate({})
        if init.base_weight is not None:
            self._own_weights[name] = init.base_weight
            self._put_weight(init.base_weight)
        if shared is None:
            shared = shared_parameters(config, [self])
        has_own_base = init.base_weight is not None
        method = ADAPTER_METHODS[config.method](config, self.base, init.factors, has_own_base, shared)
        self.adapters[name] = method
        self.activate({})

    def remove(self, name: str) -> None:
        """Remove an adapter, if the layer has it."""
        self.activate({n: w for n, w in self.active.items() if n != name})
        self._own_weights.pop(name, None)
        if name in self.adapters:
            del self.adapters[name]

    def activate(self, weights: Mapping[str, float]) -> None:
        """Choose the branches that are added, and the base weight that they were initialized on.

        Raises:
            UserError: two of them need different base weights.
        """
        owners = self.check_together(weights)
        self.active = dict(weights)
        self._put_weight(self._own_weights[owners[0]] if owners and self.enabled else None)

    def check_together(self, weights: Mapping[str, float]) -> list[str]:
        """Return the adapters that need a base weight of their own: none, or one that is active alone."""
        owners = [name for name in weights if name in self._own_weights]
        if owners and len(self.methods(weights)) > 1:
            raise UserError(
                f"adapter {owners[0]!r} was initialized on a base quantized for it; it cannot be active "
                f"together with {[name for name in weights if name != owners[0]]}"
            )
        return owners

    def enable(self, enabled: bool) -> None:
        """Turn all branches on or off; with them off, the layer is the one that was loaded."""
        self.enabled = enabled
        self.activate(self.active)

    def _put_weight(self, weight: StoredWeight | None) -> None:
        """Put a weight in the base's place, or with None the loaded one."""
        if weight is None and self._loaded_weight is not None:
            self.base.stored_weight, self._loaded_weight = _moved(self._loaded_weight, self.base.device), None
        elif weight is not None:
            if self._loaded_weight is None:
                self._loaded_weight = self.base.stored_weight
            self.base.stored_weight = _moved(weight, self.base.device)

    def methods(self, names: Mapping[str, float]) -> list[tuple[float, Method]]:
        """Return the weight and method of each of these adapters that the layer has."""
        return [(w, self.adapters[n]) for n, w in names.items() if n in self.adapters]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        """Take x as the wrapped layer does, batch first; return its output in the wrapped layer's dtype.

        Raises:
            RuntimeError: accelerate has offloaded the adapters.
        """
        methods = self.methods(self.active) if self.enabled and not self.merged else []
        if len(methods) == 1 and self.mixed_batch is None:
            ((weight, method),) = methods
            output = method.layer_output(x, self.base, weight)
            if output is not None:
                return output
        return self.add_branches(x, self.base_layer(x))

    def add_branches(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the layer's output, for that of the wrapped layer; it may be changed in place.

        Raises:
            RuntimeError: accelerate has offloaded the adapters.
        """
        if not self.enabled or self.merged:
            return output
        methods = self.methods(self.active)
        for adapter in self.adapters.values():  # PyTorch multiplies with empty tensors, without an error
            if any(p.is_meta for p in adapter.parameters()) and not x.is_meta:  # a replica has no parameters
                raise RuntimeError(
                    "accelerate has offloaded the adapters' weights (cpu_offload, disk_offload) and does not "
                    "fetch them while the model runs; keep the model on one device"
                )
        Wx = output if self.bias is None else output - self.base.per_row(self.bias.to(output.dtype))
        if self.mixed_batch is not None:
            return self._mixed(x, Wx, output, self.mixed_batch)
        for place, (weight, method) in enumerate(methods, 1):
            # the last may change the output, and with it Wx, in place
            add = method.add_branch if place == len(methods) else partial(Method.add_branch, method)
            output = add(output, x, Wx, self.base, weight)
        return output

    def _mixed(self, x: Tensor, Wx: Tensor, output: Tensor, batch: MixedBatch) -> Tensor:
        """Add to each row the branch of its own adapter."""
        groups = batch.groups(x.shape[0], x.device)
        left = [name for name in groups if name in self.adapters]
        stackable = self._stackable(batch) if len(left) > 1 else {}
        if sum(name in groups for name in stackable) > 1:
            indices = batch.indices(tuple(stackable), x.shape[0], x.device)
            added = batch.stacked(id(self), stackable, x.dtype).branches(x, indices)
            output = output.index_add(0, indices.rows, added.to(output.dtype))
            left = [name for name in left if name not in stackable]
        for name in left:
            ((_, method),) = self.methods({name: 1.0})
            rows = groups[name]
            if len(rows) == x.shape[0]:
                return output + method.branch(x, Wx, self.base).to(output.dtype)
            added = method.branch(x[rows], Wx[rows], self.base)
            output = output.index_add(0, rows, added.to(output.dtype))
        return output

    def _stackable(self, batch: MixedBatch) -> dict[str, Method]:
        """Return the adapters of a batch that one batched product can serve."""
        if not batch.are_frozen or torch.is_grad_enabled() or self.training or not self.base.is_linear:
            return {}
        methods = {name: method for name in self.active for _, method in self.methods({name: 1.0})}
        return {name: method for name, method in methods.items() if method.is_low_rank}

    def merge(self, names: Mapping[str, float], kept: KeptWeights | None = None) -> None:
        """Merge adapters into a new weight; the old one is kept, so that unmerging is bit-exact.

        All deltas are computed from the same W and added once, in float32. Updates that are constant within
        the groups of the storage format move its zero points, and nothing is rounded.

        Args:
            names: adapter -> weight.
            kept: merged weights of earlier calls, which are used again while nothing has changed.
        """
        if self.merged:
            raise RuntimeError(
                f"adapters {list(self.merged)} are merged already; call unmerge_adapters first"
            )
        methods = self.methods(names)
        if not methods:
            return
        if self.base.group_size and all(method.folds_into_groups for _, method in methods):
            shift: Tensor = sum(weight * method.group_shift() for weight, method in methods)  # type: ignore[assignment]
            self._put_weight(self.base.shift_groups(shift))
        else:
            self._put_weight(self._merged(names, methods, kept))
        self.merged = dict(names)

    def _merged(
        self, names: Mapping[str, float], methods: list[tuple[float, Method]], kept: KeptWeights | None
    ) -> StoredWeight:
        """Return a weight with adapters merged; one that was kept for the same adapters, if there is one."""

        def compute() -> StoredWeight:
            return self.base.requantize(self.merged_weight(methods))

        if kept is None or self.base.is_quantized:
            return compute()
        own = [tensor for _, method in methods for tensor in (*method.parameters(), *method.buffers())]
        return kept.of(self.merged_key, [self.base.stored_weight, *own], compute, dict(names))

    @property
    def merged_key(self) -> tuple[str, int]:
        """The key of the layer's merged weight in `KeptWeights`."""
        return "merged", id(self)

    def folds_exactly(self, names: Mapping[str, float]) -> bool:
        """Return whether merging these adapters rounds nothing but floats."""
        is_grouped = all(method.folds_into_groups for _, method in self.methods(names))
        return not self.base.is_quantized or (self.base.group_size is not None and is_grouped)

    def merged_weight(self, methods: list[tuple[float, Method]]) -> Tensor:
        """Return W plus the deltas of these adapters, float32 (out, in)."""
        W = self.base.dequantize(torch.float32)
        return W + sum(weight * method.delta(W) for weight, method in methods)

    def unmerge(self) -> None:
        """Put the unmerged weight back, on the layer's current device."""
        if self.merged:
            self.merged = {}
            self._put_weight(None)
            self.activate(self.active)


def shared_parameters(config: LoraConfig, layers: list[LoraLayer]) -> dict[str, nn.Parameter]:
    """Draw the frozen tensors that one adapter's layers share; most methods have none.

    They are one Parameter in all layers: moving or counting the model handles it once.
    """
    method = ADAPTER_METHODS[config.method]
    shapes = method.shared_shapes(config, [layer.base for layer in layers])
    drawn = method.draw_shared(config, shapes)
    return {
        name: nn.Parameter(tensor.to(layers[0].base.device), requires_grad=False)
        for name, tensor in drawn.items()
    }


def _moved(weight: StoredWeight, device: torch.device) -> StoredWeight:
    """Move a weight to a device; a 4-bit Parameter moves as one, a plain one does not."""
    if weight.device == device:
        return weight
    moved: Tensor = weight.to(device)
    is_parameter = isinstance(weight, nn.Parameter) and not isinstance(moved, nn.Parameter)
    return nn.Parameter(moved, requires_grad=False) if is_parameter else moved


def check_adapter_name(name: str) -> None:
    """Refuse a name that cannot become the name of a folder and of a module.

    Raises:
        UserError: other characters than those listed, or a name that `nn.ModuleDict` reserves.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise UserError(f"adapter name {name!r}: write 1 to 64 ASCII letters, digits, '_' or '-'")
    if hasattr(nn.ModuleDict(), name):
        raise UserError(
            f"adapter name {name!r} is reserved by PyTorch; choose another one, such as '{name}-1'"
        )
