"""Load the splits of a dataset: rows in the source's order, checked, by dialogue."""

import logging
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from lora_hf.config import DataConfig
from lora_hf.config.model import EMBEDDED
from lora_hf.config.task import SUMMARIZATION, Task
from lora_hf.data.columns import (
    DIALOGUE,
    HEAD,
    PLAIN,
    TURN,
    Columns,
    Row,
    find_columns,
    has_column,
    head_of,
    holds_numbers,
)
from lora_hf.data.examples import (
    Example,
    check_each,
    check_rows,
    fault_of,
    group_rows,
    one_per_reference,
)
from lora_hf.data.overlap import dialogue_key, home_of_byte, homes_of_copies, plain_text
from lora_hf.data.prompts import unfilled_prompt
from lora_hf.data.sources import Part, limit_of, open_part, read_source
from lora_hf.data.split_names import SPLITS, Split, split_named
from lora_hf.data.translation import common_order
from lora_hf.errors import UserError, few

logger = logging.getLogger(__name__)
DEFAULT_SHARES = (0.1, 0.1)
"""Default shares of validation and test, which earlier runs were divided by."""
BY_HASH = "by a hash of the text"
"""How rows are divided among splits that share a file, as the origin of a split says it."""

SPLIT_COLUMNS = {"split", "set", "subset", "partition", "fold"}
"""Last words of the name of a column that may say which split a row of a file with all splits belongs to."""
OF_VALIDATION = "validation"
"""Beginning of the origin of a test split that has no references."""
MOST_NAMES = 6
"""Most different names of splits in such a column."""
SCORED_ON_VALIDATION = "the test split has no references; scores are those of the validation split"
"""What a run warns of and records where its scores are not those of the test split."""
FEW_SCORED = 20
"""Test dialogues below which a score says little."""


class LoadedSplit(NamedTuple):
    """The dialogues of a split, and how they were chosen from the source."""

    examples: list[Example]
    origin: str
    columns: Columns = PLAIN


def load_split(config: DataConfig, split: Split) -> list[Example]:
    """Load the dialogues of a split in the source's order, at most `max_<split>_samples` of them.

    Raises:
        UserError: no such source, split or column, an empty split, or a row without text.
    """
    return load_split_and_origin(config, split).examples


def load_split_and_origin(config: DataConfig, split: Split, reported: Columns | None = None) -> LoadedSplit:
    """Load a split as `load_split`, and say how it was made, as a run records it.

    Columns that were found are logged, unless they are those of `reported`, an earlier split.
    """
    limit = limit_of(config, split)
    if (scored := scored_split(config, split)) != split:
        name = str(Path(config.dataset_name).expanduser().absolute().name) or config.dataset_name
        text = f"%s: {SCORED_ON_VALIDATION} (`lora-hf predict` writes what the model makes of it)"
        logger.warning(text, name)
    part = open_part(config, scored)
    origin = origin_of(part, config, scored)
    if scored != split:
        origin = f"{OF_VALIDATION}, because test has no references: {origin}"
    part.log_notes()
    rows, columns = read_part(part, config, reported=reported)
    if config.streaming:
        found = list(_until(_rows_of(rows, columns, part, config, scored), limit))
        return LoadedSplit(group_rows(found), origin, columns)
    checked = check_rows(list(rows), columns, config, part)
    if part.homes:
        moved = homes_of_copies(row[DIALOGUE] for row in checked) if _is_to_the_letter(config, part) else {}
        checked = _slice(checked, config, scored, part, moved)
    return LoadedSplit(group_rows(checked)[:limit], origin, columns)


def iterate_split(config: DataConfig, split: Split, reported: Columns | None = None) -> Iterator[Row]:
    """Yield the checked rows of a split, one per reference; at most `max_train_samples` of train.

    Each row has its texts under `dialogue` and `summary`, beside the columns of its source. Columns that were
    found are logged, unless they are those of `reported`.

    Raises:
        UserError: as `load_split`, when the faulty row is reached.
    """
    scored = scored_split(config, split)
    part = open_part(config, scored)
    yield from _rows_of(*read_part(part, config, reported=reported), part, config, scored)


def _rows_of(
    rows: Iterator[Row], columns: Columns, part: Part, config: DataConfig, split: Split
) -> Iterator[Row]:
    rows = check_each(rows, columns, config, part)
    if part.homes:
        moved = _moved_in_files(config, part, columns) if _is_to_the_letter(config, part) else {}
        rows = filter(lambda row: _home(row[DIALOGUE], config, part, moved) in part.homes, rows)
    rows = one_per_reference(rows)
    first = next(rows, None)
    if first is None:
        raise UserError(f"data.dataset_name={config.dataset_name!r}: no rows belong to the split {split}")
    yield from islice(chain([first], rows), config.max_train_samples if split == "train" else None)


def scored_split(config: DataConfig, split: Split) -> Split:
    """Return the split itself, or validation for a test split that has no references."""
    if split != "test" or config.dataset_name == EMBEDDED:
        return split
    part = open_part(config, split)
    if part.homes:  # a share of rows that have references
        return split
    head = head_of(part.rows, config)
    if not head or _columns_of(head, part, config, needs_references=False).references:
        return split
    return "validation"


def with_columns_of_training(config: DataConfig, task: Task, trained_by: Mapping[str, Any]) -> DataConfig:
    """Return a config with the columns of a model's training, where its test split has them.

    Args:
        config: columns that it sets are kept.
        task: the config's.
        trained_by: fields of `data` that the model's training was read by.
    """
    filled = {} if task == SUMMARIZATION else task.data_defaults({})  # into the config, by its task
    taken = {
        name: value
        for name, value in trained_by.items()
        if name not in config.model_fields_set or (name in filled and getattr(config, name) == filled[name])
    }
    if (name := taken.get("id_column")) is not None and not _has_ids(config, name):
        del taken["id_column"]
    changed = config.model_copy(update=taken)
    names = changed.summary_column
    columns = (changed.dialogue_column, *([names] if isinstance(names, str) else names))
    try:
        head = head_of(open_part(changed, "test").rows, changed)
    except UserError:  # of the config's own fields, it is reported by what reads the data
        return config
    if not taken or not all(has_column(head, name) for name in columns):
        return config
    read = ", ".join(f"data.{name}={value!r}" for name, value in taken.items())
    logger.info("the texts are read by %s, as in training", read)
    return changed


def read_part(
    part: Part, config: DataConfig, needs_references: bool = True, reported: Columns | None = None
) -> tuple[Iterator[Row], Columns]:
    """Return the rows with their texts under the keys of `columns`, and the columns.

    Columns that were found are logged, unless they are those of `reported`.
    """
    head = head_of(part.rows, config)
    if not head:
        return iter(()), PLAIN
    columns = replace(_columns_of(head, part, config, needs_references), is_csv=part.is_csv)
    if holds_numbers(columns, head[0]):
        columns = replace(columns, is_numeric=True)
    if columns.is_found and not needs_references and columns.dialogue != config.dialogue_column:
        logger.info("%s: the texts are in column %r (--dialogue-column)", part.name, columns.dialogue)
    if needs_references and columns != reported:
        if problem := unfilled_prompt(config.prompt, {key for row in head for key in row}):
            logger.warning("%s", problem)
        if columns.is_found:
            logger.info("%s: columns %s (data.dialogue_column, data.summary_column)", part.name, columns)
        if columns.is_numeric:
            text = "%s: %r holds numbers or true/false, which are read as text"
            logger.info(text, part.name, columns.references[0])
        report_template(columns, head, part.name)
    return map(columns.read, chain(head, part.rows)), columns


def report_template(columns: Columns, head: Iterable[Row], name: str) -> None:
    """Warn of a template of turns that changes none of the first rows; `name` is theirs, for messages."""
    plain = replace(columns, turn_template=TURN)
    if plain != columns and all(plain.read(row)[DIALOGUE] == columns.read(row)[DIALOGUE] for row in head):
        text = "%s: data.turn_template=%r has no effect on the first row: its dialogue is text and not turns"
        logger.warning(text, name, columns.turn_template)


def _columns_of(head: list[Row], part: Part, config: DataConfig, needs_references: bool) -> Columns:
    """Return the columns of a part; the order of a translation's languages is that of train."""
    order, keeps_order = common_order(head), part.keeps_order
    if order and part.origin not in (None, "train"):
        train = open_part(config, "train")
        order, keeps_order = common_order(head_of(train.rows, config)), train.keeps_order
    return find_columns(head, config, part.name, needs_references, order if keeps_order else ())


def _has_ids(config: DataConfig, name: str) -> bool:
    """Return whether the test split has a column; ids are names alone, and rows have others without it."""
    try:
        return has_column(list(islice(open_part(config, "test").rows, HEAD)), name)
    except UserError:  # reported by what reads the data
        return False


def _until(rows: Iterator[Row], limit: int | None) -> Iterator[Row]:
    """Yield the rows of the first `limit` dialogues, reading one row further at most."""
    seen: set[str] = set()
    for row in rows:
        seen.add(row[DIALOGUE])
        if limit is not None and len(seen) > limit:
            return
        yield row


def _shares(config: DataConfig) -> tuple[float, float]:
    return config.validation_share, config.test_share


def _is_to_the_letter(config: DataConfig, part: Part) -> bool:
    """Return whether dialogues are divided by the hash of their exact text, as all once were."""
    return part.is_one_file and config.split_seed == 0 and _shares(config) == DEFAULT_SHARES


def _moved_in_files(config: DataConfig, part: Part, columns: Columns) -> dict[int, Split]:
    """Return `homes_of_copies` of the part's files, which are read once for each state that they are in."""
    state = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in part.files]
    key = repr((state, columns, part.form))
    if key not in _MOVED:
        rows = (columns.read(row) for file in part.files for row in read_source(file, part.form))
        texts = (row[DIALOGUE] for row in rows if not fault_of(row, columns))
        _MOVED.clear()
        _MOVED[key] = homes_of_copies(texts)
    return _MOVED[key]


_MOVED: dict[str, dict[int, Split]] = {}
"""The result for the last files, which a streamed split needs in each epoch."""


def _home(dialogue: str, config: DataConfig, part: Part, moved: Mapping[int, Split]) -> Split:
    """Return the split of a dialogue in data without that split, by its hash.

    Copies of a dialogue with other spaces or in another case have the same home. One file with the default
    seed and shares is divided as it always was, by its dialogues to the letter, so that earlier runs stay
    valid; there, `moved` has the home of those that have such copies.
    """
    shares = _shares(config)
    if _is_to_the_letter(config, part):
        if moved and (home := moved.get(dialogue_key(dialogue))):
            return home
        text = dialogue.encode()
    else:
        text = f"{config.split_seed}\n".encode() + plain_text(dialogue)
    digest = sha256(text).digest()
    if shares == DEFAULT_SHARES:
        return home_of_byte(digest[0])
    place = int.from_bytes(digest[:8], "big") / 2**64
    validation, test = shares
    return "test" if place < test else "validation" if place < test + validation else "train"


def origin_of(part: Part, config: DataConfig, split: Split) -> str:
    """Return how a split was made, such as `about 10 % of all.jsonl, by a hash of the text, ...`.

    Files are named without their folder, because results are published.
    """
    source = few((file.name for file in part.files), most=5) if part.files else part.name
    if not part.homes:
        return source
    validation, test = _shares(config)
    share = {"validation": validation, "test": test, "train": 1 - validation - test}
    percent = f"{100 * sum(share[home] for home in part.homes):.3g} %"
    return f"about {percent} of {source}, {BY_HASH} (data.split_seed={config.split_seed})"


def few_scored(config: DataConfig, task: Task, n: int, origin: str) -> str:
    """Return a warning on scores of very few dialogues; empty if there are enough, or so few were asked for.

    Args:
        config: of the data.
        task: its words are used.
        n: number of scored dialogues.
        origin: of the test split, as `load_split_and_origin` returns it.
    """
    if n >= FEW_SCORED or n == config.max_test_samples:
        return ""
    split = "validation" if origin.startswith(f"{OF_VALIDATION}, ") else "test"
    more = "more rows, or a larger data.test_share" if BY_HASH in origin else f"more {split} rows"
    tells = "anything" if n <= 5 else "much"
    return f"the score rests on {task.counted(n, split)}: too few to tell {tells}; give {more}"


def _slice(
    rows: list[Row], config: DataConfig, split: Split, part: Part, moved: Mapping[int, Split]
) -> list[Row]:
    chosen = [row for row in rows if _home(row[DIALOGUE], config, part, moved) in part.homes]
    count = f"{len(chosen):,} of {len(rows):,} rows"
    if part.is_one_file:
        text = "%s [%s]: %s, by a hash of the text (data.split_seed=%d)"
        logger.debug(text, config.dataset_name, split, count, config.split_seed)
        if split == "test":
            columns = SplitColumns(config.dataset_name, part.is_one_file)
            deque(columns.noted(rows), maxlen=0)
            columns.warn()
    else:
        held = [name for name in SPLITS if (name in part.homes) == (split != "train")]
        text = "%s [%s]: %s of train; %s is missing and taken from train by a hash (data.split_seed=%d)"
        logger.debug(text, part.name.rpartition(" [")[0], split, count, " and ".join(held), config.split_seed)
    if not chosen:
        what = "one file" if part.is_one_file else f"data without the split {split}"
        validation, test = (f"{100 * share:.3g}" for share in _shares(config))
        train = f"{100 * (1 - sum(_shares(config))):.3g}"
        is_one_text = len(rows) > 1 and len({dialogue_key(row[DIALOGUE]) for row in rows}) == 1
        copies = ", all copies of one text" if is_one_text else ""
        raise UserError(
            f"data.dataset_name={config.dataset_name!r} is {what}, split {train}/{validation}/{test} by a "
            f"hash of the text, and none of its rows ({len(rows)}{copies}) belongs to {split}; give more "
            "rows, another data.split_seed, data.validation_share, data.test_share, or a folder with a file "
            f"for each of {', '.join(SPLITS)}"
        )
    return chosen


class SplitColumns:
    """The columns of one file that name the split of each row, which nothing reads."""

    def __init__(self, name: str, is_one_file: bool) -> None:
        self.name = name
        self._values: dict[str, set[str]] | None = None if is_one_file else {}

    def noted(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows, and note what is in such columns."""
        for row in rows:
            if self._values is None:
                columns = [
                    name for name in row if re.split(r"[\W_]+", str(name).lower())[-1] in SPLIT_COLUMNS
                ]
                self._values = {column: set() for column in columns}
            for column, values in self._values.items():
                if len(values) <= MOST_NAMES:
                    values.add(str(row.get(column)))
            yield row

    def warn(self) -> None:
        """Warn of a column whose values in all rows are names of several splits."""
        for column, values in (self._values or {}).items():
            homes = {split_named(value) for value in values}
            if len(values) <= MOST_NAMES and len(homes) > 1 and None not in homes:
                text = (
                    "%s: its column %r (%s) is not read, so rows are divided %s: write each split to a file "
                )
                text += "of its own"
                logger.warning(text, self.name, column, ", ".join(sorted(values)), BY_HASH)
                return
