"""Load and tokenize the data of a run. All runs of a comparison get the same data."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_hf import terminal
from lora_hf.config import DataConfig, RunConfig
from lora_hf.config.task import SUMMARIZATION, Task
from lora_hf.data import overlap, unknown_tokens
from lora_hf.data.examples import Example, data_fingerprint
from lora_hf.data.familiar import far_data
from lora_hf.data.overlap import SharedDialogues
from lora_hf.data.splits import (
    BY_HASH,
    SCORED_ON_VALIDATION,
    few_scored,
    load_split_and_origin,
    scored_split,
)
from lora_hf.data.streaming import StreamedDialogues, check_steps, load_train
from lora_hf.data.tokenize import TokenizedDialogues, Truncation, encode_sources, generation_length
from lora_hf.data.translation import TRANSLATION
from lora_hf.data.unknown_tokens import Unknown, UnknownTokens
from lora_hf.errors import UserError

ADDED_END = "the tokenizer adds no end token; %s is added to each %s, so that the model learns to stop"
WITH_SPECIAL = "%s: %s %s and %s contain a special token of the tokenizer, such as %s: it is read as text"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """Tokenized training and validation data, and the test dialogues with their token ids."""

    train: TokenizedDialogues | StreamedDialogues
    validation: TokenizedDialogues
    test: list[Example]
    test_sources: list[list[int]]
    max_new_tokens: int
    fingerprint: str
    warnings: list[str]
    """Faults of the data, without the remedies."""
    splits: dict[str, str] = field(default_factory=dict)
    """Origin of each split: files, or a share of them."""
    translated_column: str | None = None
    """Column of the sources where they are a language of `translation` that no field names."""


def load_data(
    config: RunConfig, tokenizer: Any, beside: Mapping[str, Sequence[Example]] | None = None
) -> RunData:
    """Load, check and tokenize all splits, and log what is truncated, unknown or in several splits.

    Every run reads all splits, even of the base model: the length of summaries is chosen from the training
    and validation references, and must be the same in all runs.

    Args:
        config: the run.
        tokenizer: the base's.
        beside: what else the model is scored on, by name, such as the tasks of `retention`: texts of it that
            are training texts too are logged.

    Raises:
        UserError: as `load_split`, or summaries must be longer than they may be.
    """
    train = load_train(config.data, tokenizer)
    train_rows = train.rows
    if isinstance(train_rows, StreamedDialogues):
        check_steps(train_rows.source, config.data, config.training.get("max_steps", -1))
    validation, validation_origin, columns = load_split_and_origin(config.data, "validation", train.columns)
    test, test_origin, _ = load_split_and_origin(config.data, "test", train.columns)
    origins = {"train": train.origin, "validation": validation_origin, "test": test_origin}
    counts = {"train": train.n, "validation": len(validation), "test": len(test)}
    text = data_line(config, counts, origins)
    logger.log(terminal.level_once(text), "%s", text)
    validation_rows = TokenizedDialogues(validation, tokenizer, config.data, "validation")
    for rows in (train_rows, validation_rows):
        rows.truncation = rows.truncation.in_words_of(config.task)
        _log_cut(rows.truncation)
    task = config.task
    warnings = _log_unknown(task, train_rows.unknown, validation_rows.unknown)
    test_sources, found = encode_test(test, tokenizer, config.data, config.task)
    warnings += found
    if text := few_scored(config.data, task, len(test), test_origin):
        logger.log(terminal.level_once(text, logging.WARNING), "%s", text)
    if far := far_data([example.dialogue for example in test], tokenizer, task.sources):
        logger.log(terminal.level_once(far, logging.WARNING), "%s", far)
    for name, rows in (("train", train_rows), ("validation", validation_rows)):
        if rows.with_special:
            counted = f"{rows.with_special:,}", task.sources, task.targets
            logger.info(WITH_SPECIAL, name, *counted, tokenizer.eos_token)
    if train_rows.added_end is not None:
        logger.info(ADDED_END, train_rows.added_end, task.target)
    held_out: dict[str, Sequence[Example]] = {"validation": validation, "test": test}
    if SCORED_ON_VALIDATION in warnings:
        del held_out["test"]  # the same dialogues
    warnings += _log_shared(task, train.shared_with(held_out))
    for name, texts in (beside or {}).items():
        if shared := train.shared_with({name: texts}):
            warnings += _log_shared(task, shared)
    lengths = train_rows.target_lengths + validation_rows.target_lengths
    chosen = generation_length(lengths, config.data.max_target_length)
    max_new_tokens = config.generation.max_new_tokens or chosen
    if (least := config.generation.min_new_tokens) > max_new_tokens:
        raise UserError(
            f"generation.min_new_tokens={least} is more than the {max_new_tokens} tokens that this task's "
            f"{config.task.targets} may have, by its references; lower it, or set generation.max_new_tokens"
        )
    text = "%s may have %d tokens; the longest reference has %d"
    logger.debug(text, config.task.targets, max_new_tokens, max(lengths))
    fingerprint = data_fingerprint(train.examples, validation, test)
    is_directed = columns.is_found and columns.dialogue.startswith(f"{TRANSLATION}.")
    return RunData(
        train_rows,
        validation_rows,
        test,
        test_sources,
        max_new_tokens,
        fingerprint,
        warnings,
        origins,
        columns.dialogue if is_directed else None,
    )


def encode_test(
    test: list[Example], tokenizer: Any, config: DataConfig, task: Task = SUMMARIZATION
) -> tuple[list[list[int]], list[str]]:
    """Tokenize the dialogues of the test split, and log what is truncated or unknown.

    Returns:
        The token ids of each dialogue in its prompt, and what is wrong with them, without the remedies.

    Raises:
        UserError: as `encode_sources`.
    """
    sources = encode_sources([example.dialogue for example in test], tokenizer, config)
    limit = config.max_source_length
    cut = Truncation("test", len(test), sources.cut, sources.long, limit)
    _log_cut(cut.in_words_of(task))
    warnings = _log_unknown(task, UnknownTokens("test", sources.unknown))
    if sources.in_prompt.unknown:
        warnings.append(prompt_problem(config, sources.in_prompt))
        logger.warning("%s", warnings[-1])
    if scored_split(config, "test") == "validation":
        warnings.append(SCORED_ON_VALIDATION)  # logged when the split was read
    return sources.ids, warnings


def prompt_problem(config: DataConfig, in_prompt: Unknown) -> str:
    """Return the message on a prompt that the tokenizer does not know as a whole."""
    shown = ", ".join(map(repr, in_prompt.examples))
    return f"data.prompt={config.prompt!r}: the tokenizer does not know {shown}; write it in other characters"


def data_line(config: RunConfig, counts: Mapping[str, int | None], origins: Mapping[str, str]) -> str:
    """Return what a run reads: `data: talks.csv, 80 train, 10 validation, 10 test dialogues`."""
    name = config.data.dataset_name
    sizes = ", ".join("streamed train" if n is None else f"{n:,} {split}" for split, n in counts.items())
    seed = f", split {BY_HASH}" if any(BY_HASH in origin for origin in origins.values()) else ""
    return f"data: {name}, {sizes} {config.task.sources}{seed}"


def _log_cut(cut: Truncation) -> None:
    """Log a split's truncation: without any, only with -v; in an experiment once."""
    level = logging.INFO if cut.cut_sources or cut.cut_targets else logging.DEBUG
    logger.log(terminal.level_once(str(cut), level), "%s", cut)


def _log_unknown(task: Task, *splits: UnknownTokens) -> list[str]:
    found = [split.in_words_of(task) for split in splits]
    for split in found:
        if split.is_fault:
            logger.warning("%s. Remedy: %s", split, unknown_tokens.REMEDY)
        elif split:
            logger.log(terminal.level_once(str(split)), "%s", split)
    return [str(split) for split in found if split.is_fault]


def _log_shared(task: Task, splits: list[SharedDialogues]) -> list[str]:
    found = [shared.in_words_of(task) for shared in splits]
    for shared in found:
        if shared.is_fault:
            logger.warning("%s. Remedy: %s", shared, overlap.REMEDY)
        else:
            logger.log(terminal.level_once(str(shared)), "%s", shared)
    if not found:
        logger.debug(overlap.NONE_SHARED, task.source)
    return [str(shared) for shared in found if shared.is_fault]
