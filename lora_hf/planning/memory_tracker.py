"""Count the bytes that code holds at once, without running its computations.

Fake tensors have shapes and no memory. On them the same code makes the same tensors, and each is counted from
the operation that makes it until nothing refers to it.
"""

import weakref
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Count the tensors made inside the block: `now` is the bytes held, `peak` their maximum.

    `changes` lists the bytes of each storage in order: positive when it is made, negative when it is freed.

    Args:
        known: tensors that exist already, such as the weights; neither they nor their views are counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.changes: list[int] = []
        self._seen: dict[int, Any] = {}
        self._kept = [tensor.untyped_storage() for tensor in known]
        for storage in self._kept:
            self._seen[storage._cdata] = None

    @property
    def now(self) -> int:
        return sum(self.changes)

    @property
    def peak(self) -> int:
        return most_held(self.changes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # autograd asks a fake tensor for it twice per operation
            return args[0].device
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen[key] = weakref.finalize(storage, self._forget, key, size)
            self.changes.append(size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.pop(key, None)
        self.changes.append(-size)


class NoValues(TorchDispatchMode):
    """Answer questions about the values of fake tensors, inside the block.

    A forward asks such questions to leave out work (`if mask.any()`) or to check its input (`torch.all`). The
    answers are those of a batch without padding and without global attention: all, but not any; otherwise 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self._all = weakref.WeakValueDictionary[int, Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            made = func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if func is not torch.ops.aten._local_scalar_dense.default:
                raise
            kind = args[0].dtype
            if kind is torch.bool:
                return id(args[0]) in self._all
            return 0.0 if kind.is_floating_point else 0
        if func.overloadpacket is torch.ops.aten.all:
            self._all[id(made)] = made
        return made


def most_held(changes: Iterable[int]) -> int:
    """Return the peak of a running sum of allocated and freed bytes."""
    return max(accumulate(changes, initial=0))
