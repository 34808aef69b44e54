"""Which adapter each row of a batch goes through: one object, shared by all layers of a model.

A loop over a batch's adapters costs each some small operations, in every layer and for every token. Where
their weights stay as they are, the low-rank ones are laid side by side once, and two products of batches of
matrices serve them all: rows in groups, an adapter each, and short groups filled up to the longest.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lora_hf.adapters.methods import Lora


class Places(NamedTuple):
    """Where the rows of several adapters are in a batch."""

    filled: Tensor
    """(adapters * longest group,), rows of the batch, group by group; what fills a group up is row 0."""
    real: Tensor
    """(rows that have one of these adapters,), where in `filled` they are."""
    rows: Tensor
    """(the same,), where in the batch they are."""
    lengths: list[int]
    """Of each adapter's group."""


class Rows:
    """A name for each row of a batch, None for the base.

    Attributes:
        are_frozen: whether the adapters' weights stay as they are, and may be laid side by side once.
    """

    def __init__(self, names: Sequence[str | None], are_frozen: bool = False) -> None:
        self.are_frozen = are_frozen
        self._stacks: dict[Any, StackedAdapters] = {}
        self.names = tuple(names)

    @property
    def names(self) -> tuple[str | None, ...]:
        """What the rows of the batch go through; to be set anew where rows leave it."""
        return self._names

    @names.setter
    def names(self, names: tuple[str | None, ...]) -> None:
        self._names = names
        self._known: dict[Any, Any] = {}

    def groups(self, size: int, device: torch.device) -> dict[str, Tensor]:
        """Name -> the rows that go through it, of a batch of `size`; names without a row are left out.

        Raises:
            ValueError: the batch is no multiple of the names.
        """
        groups: dict[str, Tensor] = self._once(("groups", size, device), lambda: self._groups(size, device))
        return groups

    def _groups(self, size: int, device: torch.device) -> dict[str, Tensor]:
        if size % len(self.names):
            raise ValueError(f"{len(self.names)} adapter names for a batch of {size} rows")
        copies = torch.arange(size // len(self.names))  # beam search repeats a row: its name is theirs too
        rows: dict[str, list[int]] = {}
        for number, name in enumerate(self.names):
            if name is not None:
                rows.setdefault(name, []).append(number)
        return {
            name: (torch.tensor(own)[:, None] * len(copies) + copies).flatten().to(device)
            for name, own in rows.items()
        }

    def places(self, names: tuple[str, ...], size: int, device: torch.device) -> Places:
        """Where these adapters' rows are in a batch of `size`."""
        places: Places = self._once((names, size, device), lambda: self._places(names, size, device))
        return places

    def _places(self, names: tuple[str, ...], size: int, device: torch.device) -> Places:
        groups, none = self.groups(size, device), torch.empty(0, dtype=torch.int64, device=device)
        own = [groups.get(name, none) for name in names]
        filled = pad_sequence(own, batch_first=True)
        lengths = torch.tensor([len(group) for group in own], device=device)
        is_real = torch.arange(filled.shape[1], device=device) < lengths[:, None]
        real = is_real.flatten().nonzero()[:, 0]
        return Places(filled.flatten(), real, torch.cat(own), lengths.tolist())

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def stack(self, layer: int, methods: Mapping[str, Lora], dtype: torch.dtype) -> "StackedAdapters":
        """These adapters of one layer side by side; `layer` is the layer's `id`."""
        key = (layer, tuple(methods), dtype)
        if key not in self._stacks:
            self._stacks[key] = StackedAdapters(list(methods.values()), dtype)
        return self._stacks[key]


class StackedAdapters:
    """The low-rank adapters of one linear layer side by side, filled up with zeros to the highest rank.

    Attributes:
        A: (adapters, rank, in_features), in the activations' dtype.
        B: (adapters, rank, out_features), the scales in it.
    """

    def __init__(self, methods: Sequence[Lora], dtype: torch.dtype) -> None:
        factors = [method.scaled_factors() for method in methods]
        self.A = pad_sequence([A for A, _ in factors], batch_first=True).to(dtype)
        self.B = pad_sequence([B.T for _, B in factors], batch_first=True).to(dtype)

    def branches(self, x: Tensor, places: Places) -> Tensor:
        """What is added to the rows `places.rows`, for x (batch, ..., in_features)."""
        if x.shape[1:-1].numel() > 1:  # rows of many tokens: what fills groups up costs more than a loop
            parts = x.index_select(0, places.rows).split(places.lengths)
            return torch.cat([(part @ A.T) @ B for part, A, B in zip(parts, self.A, self.B, strict=True)])
        grouped = x.index_select(0, places.filled).view(len(self.A), -1, x.shape[-1])
        added = torch.bmm(torch.bmm(grouped, self.A.mT), self.B)  # (adapters, rows * tokens, out_features)
        return added.view(len(places.filled), *x.shape[1:-1], -1).index_select(0, places.real)
