"""What the Trainer and accelerate do to a model on its device, where `LoraTrainer` needs it otherwise."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora_hf.fast.t5 import why_not

logger = logging.getLogger(__name__)


def use_one_gpu(args: Any) -> None:
    """Train on one GPU where a single process sees several.

    The Trainer would wrap the model in `nn.DataParallel` without a word: batches become as many times larger,
    the steps fewer, autocast is lost, and its replicas lack what DoRA and prompt tuning read from a module.

    Args:
        args: a `TrainingArguments`, or None; changed in place.
    """
    if args is None or args.n_gpu <= 1:
        return
    logger.warning(
        "%d GPUs are visible, and one process trains on one of them, %s. To use all: "
        "torchrun --nproc_per_node %d SCRIPT ...",
        *(args.n_gpu, args.device, args.n_gpu),
    )
    args._n_gpu = 1


def skip_unused_search(args: Any, model: Any) -> None:
    """Let DDP not search each step's graph for weights without a gradient, where there are none.

    Transformers' default searches. A T5 calls all of its layers in every step, so all adapters are used.

    Args:
        args: a `TrainingArguments`, or None; changed in place, unless it says what DDP should do.
        model: is about to train.
    """
    if args is None or args.world_size == 1 or args.ddp_find_unused_parameters is not None:
        return
    if why_not(model) is None:
        args.ddp_find_unused_parameters = False


@contextmanager
def without_autocast(model: Any) -> Iterator[bool]:
    """Take away the autocast that accelerate has put around a model's forward, for the block.

    Under autocast, a model writes other texts than the same model loaded from its files, and every token pays
    for the casts.

    Yields:
        Whether there was one.
    """
    own, wrapped = vars(model).get("_original_forward"), vars(model).get("forward")
    if own is None or wrapped is None:
        yield False
        return
    model.forward = own
    try:
        yield True
    finally:
        model.forward = wrapped
