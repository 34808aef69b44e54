"""Load and tokenize the data of a run. All runs of a comparison get the same data."""

import logging
from dataclasses import dataclass
from typing import Any

from lora_hf.config import RunConfig
from lora_hf.data.examples import Example, data_fingerprint
from lora_hf.data.splits import load_split
from lora_hf.data.streaming import StreamedDialogues, check_steps, load_train
from lora_hf.data.tokenize import TokenizedDialogues, Truncation, encode_sources, generation_length

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


def load_data(config: RunConfig, tokenizer: Any) -> RunData:
    """Load, check and tokenize all splits, and log what is truncated.

    Every run reads all splits, even of the base model: the length of summaries is chosen from the training
    and validation references, and must be the same in all runs.

    Raises:
        UserError: as `load_split`.
    """
    train_rows, train = load_train(config.data, tokenizer)
    if isinstance(train_rows, StreamedDialogues):
        check_steps(train_rows.source, config.data, config.training.get("max_steps", -1))
    validation, test = load_split(config.data, "validation"), load_split(config.data, "test")
    validation_rows = TokenizedDialogues(validation, tokenizer, config.data, "validation")
    sources = encode_sources([example.dialogue for example in test], tokenizer, config.data)
    limit = config.data.max_source_length
    cut_in_test = Truncation("test", len(test), sources.cut, sources.long, limit)
    for line in (train_rows.truncation, validation_rows.truncation, cut_in_test):
        logger.info("%s", line)
    lengths = train_rows.target_lengths + validation_rows.target_lengths
    chosen = generation_length(lengths, config.data.max_target_length)
    max_new_tokens = config.generation.max_new_tokens or chosen
    logger.info("summaries may have %d tokens; the longest reference has %d", max_new_tokens, max(lengths))
    fingerprint = data_fingerprint(train, validation, test)
    return RunData(train_rows, validation_rows, test, sources.ids, max_new_tokens, fingerprint)
