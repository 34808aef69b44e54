"""A training split that is read during training, one window of rows at a time."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset

from lora_hf.config import DataConfig
from lora_hf.data.columns import DIALOGUE, PLAIN, SUMMARY, Columns, Row
from lora_hf.data.examples import Example
from lora_hf.data.overlap import SharedDialogues, dialogue_key, dialogue_keys, shared_dialogues
from lora_hf.data.sampler import EpochSampler
from lora_hf.data.sources import is_on_hub, open_part
from lora_hf.data.splits import SplitColumns, iterate_split, load_split_and_origin, origin_of, read_part
from lora_hf.data.tokenize import TokenizedDialogues
from lora_hf.errors import UserError
from lora_hf.hub.download import public_info

WINDOW = 4096
"""Rows per window. Shuffling and length grouping stay within a window."""
WINDOWS = 2**20
"""Offset between the window numbers of two epochs; more than an epoch has."""


@dataclass(frozen=True)
class Source:
    """The source of the rows."""

    rows: Callable[[], Iterator[Row]]
    """Return the checked rows, from the beginning at each call."""
    n: int | None
    """Number of rows; None for data on the Hub, where it may be unknown."""
    fingerprint: str
    """Hash of the texts in order; for data on the Hub, the commit."""
    keys: "array[int] | None"
    """`dialogue_keys` of all rows; None for data on the Hub, which is not read beforehand."""
    origin: str = ""
    """Origin of the split."""
    columns: Columns = PLAIN


def train_source(config: DataConfig) -> Source:
    """Open the training split. Local data is read once in full, so that bad rows are reported at once.

    Raises:
        UserError: no such source, split or column, an empty split, or a row without text.
    """

    part = open_part(config, "train")
    part.log_notes()
    origin = origin_of(part, config, "train")
    columns = read_part(part, config)[1]

    def rows() -> Iterator[Row]:
        return iterate_split(config, "train", reported=columns)

    if is_on_hub(config):
        next(rows(), None)
        known = public_info(config.dataset_name, "dataset", config.dataset_revision)
        commit = str(getattr(known, "sha", None) or config.dataset_revision)
        return Source(rows, None, commit, None, origin, columns)
    keys, digest = array("q"), sha256()
    named = SplitColumns(config.dataset_name, part.is_one_file)
    for row in named.noted(rows()):
        digest.update(repr((row[DIALOGUE], row[SUMMARY])).encode())
        keys.append(dialogue_key(row[DIALOGUE]))
    named.warn()
    return Source(rows, len(keys), digest.hexdigest()[:16], keys, origin, columns)


class StreamedDialogues(IterableDataset):
    """The rows of `TokenizedDialogues`, one per row of the source, one window at a time.

    The order is a pure function of (data, seed, epoch). Windows follow each other; within a window,
    `EpochSampler` shuffles and groups the rows and shares batches among processes. A source of unknown length
    restarts when it ends, without limit.

    Args:
        source: the rows.
        tokenizer: the model's tokenizer.
        config: columns, prompt and lengths.
    """

    def __init__(self, source: Source, tokenizer: Any, config: DataConfig) -> None:
        self.source, self.tokenizer, self.config = source, tokenizer, config
        self.sampler: Callable[[int, list[int] | None], EpochSampler] | None = None
        self.is_grouped, self.batch_size, self.epoch = False, 1, 0
        first = list(islice(source.rows(), WINDOW))
        beginning = self._tokens(first)
        self.rows, self.target_lengths = beginning.rows, beginning.target_lengths
        """Rows and target lengths of the first window, in the source's order."""
        self.truncation, self.unknown = beginning.truncation, beginning.unknown
        self.unknown_in_prompt, self.added_end = beginning.unknown_in_prompt, beginning.added_end
        self.with_special = beginning.with_special
        self.keys, self.keys_of = source.keys, "train"
        """`dialogue_keys` of the rows that were read so far, and what messages call these rows."""
        if self.keys is None:
            self.keys = dialogue_keys(row[DIALOGUE] for row in first)
            self.keys_of = f"the first {len(first):,} rows of train"

    def share(
        self, sampler: Callable[[int, list[int] | None], EpochSampler], batch_size: int, is_grouped: bool
    ) -> None:
        """Set how a window is ordered and shared among processes.

        Args:
            sampler: makes the sampler of a number of rows and their lengths.
            batch_size: rows per batch over all processes; a window is a multiple of it.
            is_grouped: whether batches hold rows of similar length.
        """
        self.sampler, self.batch_size, self.is_grouped = sampler, batch_size, is_grouped

    def set_epoch(self, epoch: int) -> None:
        """The Trainer calls this before each epoch, also the one it resumes in."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.source.n is None:
            raise TypeError("the number of rows in the source is unknown")
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
        examples = [Example("", row[DIALOGUE], (row[SUMMARY],)) for row in rows]
        return TokenizedDialogues(examples, self.tokenizer, self.config, f"train, first {len(rows):,} rows")


class TrainingSplit(NamedTuple):
    """The training split."""

    rows: TokenizedDialogues | StreamedDialogues
    """Its token ids."""
    examples: list[Example]
    """Its texts; for a streamed split, one example that holds the hash of its texts."""
    origin: str
    """Its origin."""
    columns: Columns = PLAIN

    @property
    def n(self) -> int | None:
        """Return the number of its dialogues; None if a stream's is unknown."""
        return self.rows.source.n if isinstance(self.rows, StreamedDialogues) else len(self.examples)

    def shared_with(self, held_out: dict[str, Sequence[Example]]) -> list[SharedDialogues]:
        """Return the dialogues that stand in several splits, of which `held_out` are the others by name."""
        if isinstance(self.rows, StreamedDialogues):
            assert self.rows.keys is not None
            return shared_dialogues(self.rows.keys, self.rows.keys_of, held_out)
        keys = (dialogue_key(example.dialogue) for example in self.examples)
        return shared_dialogues(keys, "train", held_out)


def load_train(config: DataConfig, tokenizer: Any) -> TrainingSplit:
    """Load and tokenize the training split, or the first window of a streamed one.

    Raises:
        UserError: as `load_split`.
    """
    if config.streaming:
        source = train_source(config)
        examples = [Example("", source.fingerprint, ())]
        return TrainingSplit(
            StreamedDialogues(source, tokenizer, config), examples, source.origin, source.columns
        )
    try:
        examples, origin, columns = load_split_and_origin(config, "train")
        rows = TokenizedDialogues(examples, tokenizer, config, "train")
        return TrainingSplit(rows, examples, origin, columns)
    except MemoryError as error:
        remedy = f"data.streaming: true holds {WINDOW:,} rows at a time"
        raise UserError(
            f"data.dataset_name={config.dataset_name!r} does not fit in memory; {remedy}"
        ) from error


def check_steps(source: Source, config: DataConfig, max_steps: int) -> None:
    """Check that the length of training is known.

    Raises:
        UserError: neither the number of rows nor the number of steps is known.
    """
    if source.n is None and max_steps <= 0:
        raise UserError(
            f"data.streaming=true: the number of rows in {config.dataset_name!r} is unknown; set "
            "training.max_steps, the number of steps"
        )
