"""Micro-batching: train with less memory at the same effective batch, from the step at which memory runs out.

The sampler's batches stay the same, and each is processed in micro-batches. `LoraTrainer`'s loss is a batch's
share of the mean over its step, so the gradients of the micro-batches add up to those of the batch. The
number of steps, the order of the data and what a checkpoint counts do not change. Transformers' own
`auto_find_batch_size` takes a tenth off the batch, keeps the accumulation (which changes the effective
batch), and restarts the schedule on weights that are already trained.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from lora_hf.distributed import AgreedError
from lora_hf.errors import UserError
from lora_hf.memory import is_out_of_memory

LOG_KEY = "train_micro_batch_size"
"""Key of the entry in the Trainer's log; a resumed run reads the size from it."""
LESS_MEMORY = (
    "training.gradient_checkpointing: true and model.load_in_4bit: true need less; `lora-hf plan` shows it"
)
MICRO_BATCH = (
    f"training.auto_find_batch_size: true splits batches, at the same effective batch size; {LESS_MEMORY}"
)
UNCOMPILED = "training.torch_compile: false trains uncompiled, which may need less"
SMALLER_EVALUATION = "choose a smaller generation.batch_size (or training.per_device_eval_batch_size)"
Batch = dict[str, Any]
Step = Callable[[Batch], Tensor]
logger = logging.getLogger(__name__)


class MicroBatching:
    """Processes the batches of a training's steps in micro-batches, halved whenever memory runs out.

    Args:
        trainer: the trainer; its `auto_find_batch_size` turns micro-batching on.

    Raises:
        UserError: it is on with several processes: the others would wait for the one that repeats a step.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.is_on = trainer.args.auto_find_batch_size
        if self.is_on and (trainer.args.world_size > 1 or trainer.is_deepspeed_enabled):
            raise AgreedError(
                "training.auto_find_batch_size=true works in a single process without DeepSpeed; "
                "choose a smaller training.per_device_train_batch_size instead"
            )
        self._size = 0  # rows of a micro-batch; set at the first step
        self._batches: list[Batch] = []  # of the current step, up to now

    def run(self, forward_backward: Step, batch: Batch) -> Tensor:
        """Process one batch; if memory runs out, repeat the step so far in smaller micro-batches.

        Args:
            forward_backward: adds a micro-batch's gradients to the model's, and returns its share of the
                loss.
            batch: tensors of equal length, the number of rows.

        Raises:
            UserError: memory runs out with a single row.
        """
        if not self._batches:
            self._random_states = random_states(self.trainer.args.device)
            if not self._size:
                sizes = [entry[LOG_KEY] for entry in self.trainer.state.log_history if LOG_KEY in entry]
                self._size = (
                    sizes[-1] if sizes else self.trainer.args.train_batch_size
                )  # sizes: after resuming
        self._batches.append(batch)
        loss = self._try(forward_backward, [batch])
        while loss is None:
            self._halve(rows_of(batch))
            loss = self._try(forward_backward, self._batches)
        return loss

    def end_step(self) -> None:
        """Forget the step's batches: its gradients are complete."""
        self._batches = []

    def _try(self, forward_backward: Step, batches: list[Batch]) -> Tensor | None:
        """Return the last batch's loss, or None if memory ran out; the error and its tensors are freed."""
        try:
            for batch in batches:
                loss = torch.stack([forward_backward(part) for part in split(batch, self._size)]).sum()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        return loss

    def _halve(self, rows: int) -> None:
        """Return to the beginning of the step, gradients and random states included, with half the size."""
        step, args = self.trainer.state.global_step + 1, self.trainer.args
        before = min(rows, self._size)
        if before == 1:
            raise UserError(f"step {step}: out of memory with one dialogue at a time; {LESS_MEMORY}")
        self._size = before // 2
        times = -(-args.train_batch_size // self._size)
        logger.warning(
            "step %d: out of memory with %d dialogues at a time; continuing with %d, as training."
            "per_device_train_batch_size=%d with gradient_accumulation_steps=%d: the same effective batch",
            *(step, before, self._size, self._size, times * args.gradient_accumulation_steps),
        )
        self.trainer.log({LOG_KEY: self._size})
        self.trainer.model.zero_grad()
        clear_device_cache(garbage_collection=True)
        set_random_states(args.device, self._random_states)


def split(batch: Batch, size: int) -> list[Batch]:
    """Split a batch into micro-batches of `size` rows; the last may be smaller."""
    starts = range(0, rows_of(batch), size)
    return [{name: tensor[start : start + size] for name, tensor in batch.items()} for start in starts]


def rows_of(batch: Batch) -> int:
    """Return the number of rows, one per dialogue."""
    return len(next(iter(batch.values())))


def random_states(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the random states of the CPU and, if it is another, of the device."""
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    return torch.get_rng_state(), own


def set_random_states(device: torch.device, states: tuple[Tensor, Tensor | None]) -> None:
    """Restore the states that `random_states` returned."""
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.get_device_module(device).set_rng_state(states[1])
