"""Out of memory in training: the batch is halved and the accumulation doubled, or the error says what helps.

The batches stay as the sampler made them, and each is taken in pieces from the step on in which memory ran
out: `LoraTrainer`'s loss is a batch's share of its step's mean, so that the pieces' gradients add up to the
batch's own. Number of steps, order of the data and what a checkpoint counts stay as they are. Transformers'
own `auto_find_batch_size` takes a tenth off the batch, keeps the accumulation (another effective batch), and
begins the schedule again on weights that have been trained.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from lora_hf.distributed import Agreed
from lora_hf.errors import UserError, first_line

KEY = "train_micro_batch_size"
"""Of the entry in the Trainer's log that says so: a resumed run finds it there."""
LESS = (
    "training.gradient_checkpointing: true and model.load_in_4bit: true need less; `lora-hf plan` counts it"
)
HALVE = f"training.auto_find_batch_size: true takes the batches in halves, to the same sums; {LESS}"
EVALUATE = "give a smaller generation.batch_size (or training.per_device_eval_batch_size)"
Batch = dict[str, Any]
Run = Callable[[Batch], Tensor]
logger = logging.getLogger(__name__)


class Halving:
    """Takes the batches of one training's steps in pieces, halved whenever one runs out of memory.

    Args:
        trainer: whose training it is.

    Raises:
        UserError: it is asked for with several processes: the others would wait for one that goes back.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.is_asked = trainer.args.auto_find_batch_size
        if self.is_asked and (trainer.args.world_size > 1 or trainer.is_deepspeed_enabled):
            raise Agreed(
                "training.auto_find_batch_size=true halves a batch in one process alone; with several, or "
                "with DeepSpeed, give a smaller training.per_device_train_batch_size"
            )
        self._rows = 0  # of a piece; set at the first step
        self._taken: list[Batch] = []

    def take(self, run: Run, batch: Batch) -> Tensor:
        """One batch, forward and backward; where memory runs out, the whole step so far again, in halves.

        Args:
            run: forward and backward of a piece; adds to the gradients and returns its share of the loss.
            batch: tensors of one length, which is the number of rows.

        Raises:
            UserError: one row alone does not fit.
        """
        if not self._taken:
            self._begin()
        self._taken.append(batch)
        loss = self._try(run, [batch])
        while loss is None:
            self._halve(rows_of(batch))
            loss = self._try(run, self._taken)
        return loss

    def end_step(self) -> None:
        """The gradients are whole: what made them is needed no more."""
        self._taken = []

    def _begin(self) -> None:
        self._random = random_states(self.trainer.args.device)
        if not self._rows:
            sizes = [entry[KEY] for entry in self.trainer.state.log_history if KEY in entry]
            self._rows = sizes[-1] if sizes else self.trainer.args.train_batch_size  # sizes: after a resume

    def _try(self, run: Run, batches: list[Batch]) -> Tensor | None:
        """The last batch's loss, or None where memory ran out: then the error, and what it holds, is gone."""
        try:
            for batch in batches:
                loss = torch.stack([run(piece) for piece in pieces_of(batch, self._rows)]).sum()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        return loss

    def _halve(self, rows: int) -> None:
        """Go back to the step's beginning, gradients and random numbers too, with pieces of half the size."""
        step, args = self.trainer.state.global_step + 1, self.trainer.args
        before = min(rows, self._rows)
        if before == 1:
            raise UserError(f"step {step}: out of memory with one dialogue at a time; {LESS}")
        self._rows = before // 2
        times = -(-args.train_batch_size // self._rows)
        logger.warning(
            "step %d: out of memory with %d dialogues at a time; from here on %d, as training."
            "per_device_train_batch_size=%d with gradient_accumulation_steps=%d: the same effective batch",
            *(step, before, self._rows, self._rows, times * args.gradient_accumulation_steps),
        )
        self.trainer.log({KEY: self._rows})
        self.trainer.model.zero_grad()
        clear_device_cache(garbage_collection=True)
        set_random_states(args.device, self._random)


def pieces_of(batch: Batch, rows: int) -> list[Batch]:
    """A batch in pieces of so many rows, the last maybe smaller."""
    starts = range(0, rows_of(batch), rows)
    return [{name: tensor[start : start + rows] for name, tensor in batch.items()} for start in starts]


def rows_of(batch: Batch) -> int:
    """The number of dialogues."""
    return len(next(iter(batch.values())))


def random_states(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Of the CPU's generator, and of the device's."""
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    return torch.get_rng_state(), own


def set_random_states(device: torch.device, states: tuple[Tensor, Tensor | None]) -> None:
    """Back to what `random_states` gave."""
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.get_device_module(device).set_rng_state(states[1])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was made from, says that memory ran out, of a device or of the machine."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return any(
        isinstance(e, kinds) or (isinstance(e, Exception) and should_reduce_batch_size(e))
        for e in (error, error.__cause__)
    )


@contextmanager
def memory_told(when: Callable[[], str], remedy: str) -> Iterator[None]:
    """An out-of-memory error inside the block as a `UserError` that says when, and what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{when()}: out of memory ({first_line(error)}); {remedy}") from error
