"""Merged and packed weights, kept from one generation to the next while what they are made of is the same."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook


class KeptWeights:
    """Results that are computed from tensors, the last one of each key.

    A result is computed again when one of its tensors is another one or was changed in place, by an
    optimizer, `load_state_dict` or `copy_`. Changes through `Tensor.data` are not seen: `clear` then.
    """

    def __init__(self) -> None:
        self._results: dict[Hashable, tuple[Any, list[_Seen], Any]] = {}

    def of(
        self, key: Hashable, tensors: Iterable[Tensor], compute: Callable[[], Any], setting: Any = None
    ) -> Any:
        """Return `compute()`, or the result of the last call with this key if nothing has changed.

        Args:
            key: what the result is for.
            tensors: what it is computed from.
            compute: computes it.
            setting: what else it depends on.
        """
        own = list(tensors)
        if any(tensor.is_inference() for tensor in own):  # nothing counts their changes
            return compute()
        seen = [_Seen(tensor) for tensor in own]
        kept = self._results.get(key)
        if kept is None or kept[0] != setting or kept[1] != seen:
            self._results.pop(key, None)  # first, for its memory
            self._results[key] = kept = setting, seen, compute()
        return kept[2]

    def __reduce__(self) -> tuple[type["KeptWeights"], tuple[()]]:
        """Copy and pickle none of it: a copy computes its own results, and packed weights have no storage."""
        return type(self), ()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._results

    def clear(self) -> None:
        """Drop all results."""
        self._results.clear()


def _count_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Count a step of any optimizer as a change of what it trains.

    Fused kernels, which the Trainer's default optimizer has, and those of bitsandbytes write without it. A
    step leaves weights without a gradient as they are.
    """
    if not torch.compiler.is_compiling():
        for group in optimizer.param_groups:
            trained = (one for one in group["params"] if one.grad is not None)
            increment_version([one for one in trained if not one.is_inference()])


register_optimizer_step_post_hook(_count_step)


class _Seen:
    """A tensor as it was at one time; it is held, so that no other one takes its place in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.state = tensor, (tensor._version, tensor.data_ptr())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Seen) and self.tensor is other.tensor and self.state == other.state

    __hash__ = None  # type: ignore[assignment]
