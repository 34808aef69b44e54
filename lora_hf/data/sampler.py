"""The order of training rows: a pure function of (lengths, seed, epoch), so that resuming is exact.

The Trainer's length grouping draws from the global random state, so that its order differs after resuming in
the second epoch or later.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

CHUNK = 50
"""Batches sorted together: enough for even lengths, few enough for different batches in each epoch."""


class EpochSampler(Sampler[int]):
    """Shuffled row numbers of one epoch; with `lengths`, batches hold rows of similar length.

    Args:
        n: number of rows.
        seed: random seed of the order.
        batch_size: rows per batch over all processes.
        lengths: tokens of each row, or None for a plain shuffle.
        rank: number of this process, which takes its share of every batch.
        world: number of processes; it divides `batch_size`. Together they take the batches of one process.
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
        """Set the epoch. The Trainer calls this before each epoch, also when it resumes."""
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
        """Return this process's rows of a batch. A last batch with fewer rows than processes goes to each.

        Equal shares have the mean of the whole batch, so that no row counts twice.
        """
        return batch[self.rank :: self.world] if len(batch) >= self.world else batch

    def _group(self, order: list[int], generator: torch.Generator) -> list[int]:
        """Sort within chunks, then shuffle the batches. A smaller last batch stays last."""
        assert self.lengths is not None
        lengths, size, chunk = self.lengths, self.batch_size, self.batch_size * CHUNK
        whole = self.n - self.n % size
        rest = order[whole:]
        ordered: list[int] = []
        for start in range(0, whole, chunk):
            ordered += sorted(order[start : min(start + chunk, whole)], key=lambda row: -lengths[row])
        shuffle = torch.randperm(whole // size, generator=generator).tolist()
        return [row for b in shuffle for row in ordered[b * size : (b + 1) * size]] + rest
