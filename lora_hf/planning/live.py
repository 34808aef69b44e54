"""The bytes that a piece of work holds at once, counted without doing the work.

Fake tensors have shapes and no memory. Run on them, the same code makes the same tensors, and each is counted
from the operation that makes it until nothing refers to it any more.
"""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside the block counts what is made: `now` bytes are held, `peak` were at most.

    Args:
        known: tensors that were there before, such as the weights; their views are not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}
        self._kept = [tensor.untyped_storage() for tensor in known]
        for storage in self._kept:
            self._seen[storage._cdata] = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen[key] = weakref.finalize(storage, self._forget, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        self._seen.pop(key, None)
        self.now -= size
