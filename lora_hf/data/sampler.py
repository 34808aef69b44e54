"""The order of training rows: a pure function of (lengths, seed, epoch), so that resuming is exact.

The Trainer's own length grouping draws from the global random state, and so does not come back in the same
order after a resume from the second epoch on.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

CHUNK = 50
"""Batches sorted together: long enough for even lengths, short enough for a different mix each epoch."""


class EpochSampler(Sampler[int]):
    """Row numbers of one epoch, shuffled; in batches of like length where `lengths` is given.

    Args:
        n: number of rows.
        seed: of the order.
        batch_size: rows of one batch over all processes.
        lengths: tokens of each row, or None for a plain shuffle.
        rank: of this process, which gets its part of every batch.
        world: number of processes; they share the batches that one process would have, and divide
            `batch_size`.
    """

    def __init__(
        self,
        n: int,
        seed: int,
        batch_size: int = 1,
        lengths: Sequence[int] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.n, self.seed, self.batch_size, self.lengths = n, seed, batch_size, lengths
        self.rank, self.world = rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer calls this before each epoch, also the one it resumes in."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.n, self.batch_size)
        return whole * self.batch_size // self.world + len(self._part(list(range(rest))))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.n, generator=generator).tolist()
        order = order if self.lengths is None else self._group(order, generator)
        size = self.batch_size
        return (row for at in range(0, self.n, size) for row in self._part(order[at : at + size]))

    def _part(self, batch: list[int]) -> list[int]:
        """This process's rows of a batch; all of a last one too small for each to have one.

        Equal parts have the same mean as the whole, so that nothing counts twice.
        """
        return batch[self.rank :: self.world] if len(batch) >= self.world else batch

    def _group(self, order: list[int], generator: torch.Generator) -> list[int]:
        """Sort within chunks, then shuffle the batches; a last, smaller batch stays last."""
        assert self.lengths is not None
        lengths, size, chunk = self.lengths, self.batch_size, self.batch_size * CHUNK
        whole = self.n - self.n % size
        rest = order[whole:]
        ordered: list[int] = []
        for start in range(0, whole, chunk):
            ordered += sorted(order[start : min(start + chunk, whole)], key=lambda row: -lengths[row])
        shuffle = torch.randperm(whole // size, generator=generator).tolist()
        return [row for b in shuffle for row in ordered[b * size : (b + 1) * size]] + rest
