"""A training split that is read while it is trained on: a window of its rows is in memory, never all."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset

from lora_hf.config import DataConfig
from lora_hf.data.examples import Example, Row
from lora_hf.data.sampler import EpochSampler
from lora_hf.data.splits import is_on_hub, iterate_split, load_split
from lora_hf.data.tokenize import TokenizedDialogues
from lora_hf.errors import UserError
from lora_hf.hub.download import public_info

WINDOW = 4096
"""Rows that are shuffled, and grouped by length, among themselves."""
WINDOWS = 2**20
"""More than an epoch has: what the numbers of two epochs are apart."""


@dataclass(frozen=True)
class Source:
    """Where the rows come from."""

    rows: Callable[[], Iterator[Row]]
    """From the beginning, each time it is called; checked."""
    n: int | None
    """Their number; None on the Hub, which need not know it."""
    fingerprint: str
    """Of their texts, in order; on the Hub the commit."""


def train_source(config: DataConfig) -> Source:
    """The training split; what is on this machine is read through once, so that a bad row is told now.

    Raises:
        UserError: no such source, split or column, an empty split, or a row without text.
    """

    def rows() -> Iterator[Row]:
        return iterate_split(config, "train")

    if is_on_hub(config):
        next(rows(), None)
        known = public_info(config.dataset_name, "dataset", config.dataset_revision)
        return Source(rows, None, str(getattr(known, "sha", None) or config.dataset_revision))
    n, digest = 0, sha256()
    for n, row in enumerate(rows(), start=1):  # noqa: B007
        digest.update(repr((row[config.dialogue_column], row[config.summary_column])).encode())
    return Source(rows, n, digest.hexdigest()[:16])


class StreamedDialogues(IterableDataset):
    """The rows of `TokenizedDialogues`, one a row of the source, a window at a time.

    The order is a pure function of (data, seed, epoch): the windows come in turn, and within one rows are
    shuffled and grouped by length as `EpochSampler` has it; several processes share its batches. A source
    whose length is not known begins again by itself, and never ends.

    Args:
        source: the rows.
        tokenizer: the model's.
        config: columns, prompt and lengths.
    """

    def __init__(self, source: Source, tokenizer: Any, config: DataConfig) -> None:
        self.source, self.tokenizer, self.config = source, tokenizer, config
        self.sampler: Callable[[int, list[int] | None], EpochSampler] | None = None
        self.is_grouped, self.batch_size, self.epoch = False, 1, 0
        beginning = self._tokens(list(islice(source.rows(), WINDOW)))
        self.rows, self.target_lengths = beginning.rows, beginning.target_lengths
        """Of the first window, in the source's order."""
        self.truncation = beginning.truncation

    def share(
        self, sampler: Callable[[int, list[int] | None], EpochSampler], batch_size: int, is_grouped: bool
    ) -> None:
        """Say how a window is ordered, and shared by processes.

        Args:
            sampler: of a number of rows and their lengths.
            batch_size: rows of a batch over all processes: a window is a multiple of it.
            is_grouped: batches hold rows of like length.
        """
        self.sampler, self.batch_size, self.is_grouped = sampler, batch_size, is_grouped

    def set_epoch(self, epoch: int) -> None:
        """The Trainer calls this before each epoch, also the one it resumes in."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.source.n is None:
            raise TypeError("the source does not say how many rows it has")
        return self.source.n if self.sampler is None else len(self.sampler(self.source.n, None))

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        epoch = self.epoch
        while True:
            rows, number = self.source.rows(), epoch * WINDOWS
            while window := list(islice(rows, max(1, WINDOW // self.batch_size) * self.batch_size)):
                yield from self._ordered(self._tokens(window).rows, number)
                number += 1
            if self.source.n is not None:
                return
            epoch += 1

    def _ordered(self, rows: list[dict[str, list[int]]], number: int) -> Iterator[dict[str, list[int]]]:
        if self.sampler is None:
            return iter(rows)
        sampler = self.sampler(
            len(rows), [len(row["input_ids"]) for row in rows] if self.is_grouped else None
        )
        sampler.set_epoch(number)
        return (rows[i] for i in sampler)

    def _tokens(self, rows: list[Row]) -> TokenizedDialogues:
        dialogue, summary = self.config.dialogue_column, self.config.summary_column
        examples = [Example("", row[dialogue], (row[summary],)) for row in rows]
        return TokenizedDialogues(examples, self.tokenizer, self.config, f"train, first {len(rows):,} rows")


def load_train(
    config: DataConfig, tokenizer: Any
) -> tuple[TokenizedDialogues | StreamedDialogues, list[Example]]:
    """The training split as token ids, and as text; for that of one that is streamed its hash stands.

    Raises:
        UserError: as `load_split`.
    """
    if config.streaming:
        source = train_source(config)
        return StreamedDialogues(source, tokenizer, config), [Example("", source.fingerprint, ())]
    try:
        examples = load_split(config, "train")
        return TokenizedDialogues(examples, tokenizer, config, "train"), examples
    except MemoryError as error:
        remedy = f"data.streaming: true holds {WINDOW:,} rows at a time"
        raise UserError(
            f"data.dataset_name={config.dataset_name!r} does not fit in memory; {remedy}"
        ) from error


def check_steps(source: Source, config: DataConfig, max_steps: int) -> None:
    """See that it is known when a training on it ends.

    Raises:
        UserError: neither the number of rows nor that of steps is known.
    """
    if source.n is None and max_steps <= 0:
        raise UserError(
            f"data.streaming=true: the Hub does not say how many rows {config.dataset_name!r} has; give "
            "training.max_steps, the number of steps"
        )
