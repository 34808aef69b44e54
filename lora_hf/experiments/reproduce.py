"""Reproduction of the published comparison: FLAN-T5-base on DialogSum, both from the Hub."""

import logging
import shlex
from collections.abc import Sequence

from lora_hf.config import RunConfig
from lora_hf.config.load import changed_fields, load_config
from lora_hf.data.splits import iterate_split
from lora_hf.experiments.compare import compare
from lora_hf.run_records import Comparison, Published

CONFIG = "configs/flan_t5_base_dialogsum_lora.yaml"
PUBLISHED = {"base": 0.2334, "full": 0.4216, "lora": 0.4081}
"""Published ROUGE-1; scoring the published predictions gives 0.2333, 0.4214 and 0.4081."""
logger = logging.getLogger(__name__)


def check_hub(config: RunConfig) -> None:
    """Check that base model and dataset are available, before the first run: the dataset is downloaded.

    Raises:
        UserError: one is not available.
    """
    from lora_hf.models.load import find_base  # here: it imports PyTorch

    find_base(config.model, "config")
    next(iterate_split(config.data, "test"))


def reproduce(overrides: Sequence[str] = ()) -> Comparison:
    """Run the comparison (hours on a GPU, days on a CPU) and report it beside the published figures.

    Args:
        overrides: `key.sub=value`; the report lists the fields that they change.

    Returns:
        The content of comparison.json, with `published`.

    Raises:
        UserError: a mistake in the overrides, or base model or dataset are not available.
        RunFailed: a run failed; finished ones are kept.
    """
    import torch

    config = load_config(CONFIG, overrides)
    check_hub(config)
    changes = changed_fields(load_config(CONFIG), config)
    if not changes and not torch.cuda.is_available():
        logger.warning("no CUDA device: this trains 248 million weights on the CPU, which takes days")
    published: Published = {"rouge1": PUBLISHED, "changes": changes}
    command = shlex.join(["lora-hf", "reproduce", *overrides])
    return compare(CONFIG, overrides, {"command": command, "published": published})
