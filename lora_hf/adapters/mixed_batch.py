"""A batch whose rows go through different adapters: one object, shared by all layers of a model.

A loop over the adapters of a batch launches several small operations for each, in every layer and for every
token. While their weights do not change, low-rank adapters are stacked once, and two batched matrix products
serve them all: rows are grouped by adapter, and short groups are padded to the longest.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lora_hf.adapters.methods import Method


class RowIndices(NamedTuple):
    """Positions of the rows of several adapters in a batch."""

    padded: Tensor
    """(adapters * longest group,), rows of the batch, group by group; a padding entry is row 0."""
    real: Tensor
    """(rows with one of these adapters,), their positions in `padded`."""
    rows: Tensor
    """(the same,), their positions in the batch."""
    lengths: list[int]
    """Rows of each adapter."""


class MixedBatch:
    """The adapter of each row of a batch; None stands for the base.

    Attributes:
        are_frozen: the adapters' weights do not change, so that they can be stacked once.
    """

    def __init__(
        self,
        names: Sequence[str | None],
        are_frozen: bool = False,
        stacked: "dict[Any, StackedAdapters] | None" = None,
    ) -> None:
        self.are_frozen = are_frozen
        self._stacked = {} if stacked is None else stacked
        self.names = tuple(names)

    @property
    def names(self) -> tuple[str | None, ...]:
        """The adapter of each row; assign it again when rows leave the batch."""
        return self._names

    @names.setter
    def names(self, names: tuple[str | None, ...]) -> None:
        self._names = names
        self._cache: dict[Any, Any] = {}

    def groups(self, size: int, device: torch.device) -> dict[str, Tensor]:
        """Return adapter name -> its rows, for a batch of `size`.

        Raises:
            ValueError: the batch size is not a multiple of the number of names.
        """

        def group() -> dict[str, Tensor]:
            if size % len(self.names):
                raise ValueError(f"{len(self.names)} adapter names for a batch of {size} rows")
            copies = torch.arange(size // len(self.names))  # beam search repeats each row
            rows: dict[str, list[int]] = {}
            for number, name in enumerate(self.names):
                if name is not None:
                    rows.setdefault(name, []).append(number)
            return {
                name: (torch.tensor(own)[:, None] * len(copies) + copies).flatten().to(device)
                for name, own in rows.items()
            }

        groups: dict[str, Tensor] = self._cached(("groups", size, device), group)
        return groups

    def indices(self, names: tuple[str, ...], size: int, device: torch.device) -> RowIndices:
        """Return the positions of these adapters' rows in a batch of `size`."""

        def locate() -> RowIndices:
            groups, none = self.groups(size, device), torch.empty(0, dtype=torch.int64, device=device)
            own = [groups.get(name, none) for name in names]
            padded = pad_sequence(own, batch_first=True)
            lengths = torch.tensor([len(group) for group in own], device=device)
            is_real = torch.arange(padded.shape[1], device=device) < lengths[:, None]
            real = is_real.flatten().nonzero()[:, 0]
            return RowIndices(padded.flatten(), real, torch.cat(own), lengths.tolist())

        indices: RowIndices = self._cached((names, size, device), locate)
        return indices

    def _cached(self, key: Any, compute: Callable[[], Any]) -> Any:
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    def stacked(self, layer: int, methods: Mapping[str, Method], dtype: torch.dtype) -> "StackedAdapters":
        """Return these low-rank adapters of one layer stacked; `layer` is the `id` of the layer."""
        key = (layer, tuple(methods), dtype)
        if key not in self._stacked:
            self._stacked[key] = StackedAdapters(list(methods.values()), dtype)
        return self._stacked[key]


class StackedAdapters:
    """The low-rank adapters of one linear layer, padded with zeros to the highest rank.

    Attributes:
        A: (adapters, rank, in_features), in the dtype of the activations.
        B: (adapters, rank, out_features), scales included.
    """

    def __init__(self, methods: Sequence[Method], dtype: torch.dtype) -> None:
        factors = [method.factors() for method in methods]
        self.A = pad_sequence([A for A, _ in factors], batch_first=True).to(dtype)
        self.B = pad_sequence([B.T for _, B in factors], batch_first=True).to(dtype)

    def branches(self, x: Tensor, indices: RowIndices) -> Tensor:
        """Return what is added to the rows `indices.rows`, for x (batch, ..., in_features)."""
        if x.shape[1:-1].numel() > 1:  # rows of many tokens: padding costs more than a loop
            parts = x.index_select(0, indices.rows).split(indices.lengths)
            return torch.cat([(part @ A.T) @ B for part, A, B in zip(parts, self.A, self.B, strict=True)])
        grouped = x.index_select(0, indices.padded).view(len(self.A), -1, x.shape[-1])
        added = torch.bmm(torch.bmm(grouped, self.A.mT), self.B)  # (adapters, rows * tokens, out_features)
        return added.view(len(indices.padded), *x.shape[1:-1], -1).index_select(0, indices.real)


class KeptStacks:
    """Stacked adapters that are kept between batches, for the sets of adapters that were used last.

    They are copies of the adapters' weights: `clear` them when a weight changes, or an adapter is added or
    removed.
    """

    def __init__(self, most: int = 4) -> None:
        """Keep the stacks of at most `most` sets of adapters; each takes the memory of its adapters."""
        self._most = most
        self._sets: OrderedDict[frozenset[str | None], dict[Any, StackedAdapters]] = OrderedDict()

    def of(self, names: Iterable[str | None]) -> dict[Any, StackedAdapters]:
        """Return the stacks for the adapters of a batch, by layer, which the batch completes."""
        key = frozenset(names) - {None}
        if len(key) < 2:  # one adapter is not stacked, and must not take the place of several
            return {}
        found = self._sets.setdefault(key, {})
        self._sets.move_to_end(key)
        if len(self._sets) > self._most:
            self._sets.popitem(last=False)
        return found

    def clear(self) -> None:
        """Drop all stacks."""
        self._sets.clear()
