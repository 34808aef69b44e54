"""Memory of the device: how much is free, and one error where it runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size

from lora_hf.errors import OutOfMemory, first_line

SMALLER_MODEL = (
    "model.dtype: bfloat16 or model.load_in_4bit: true need less memory, or choose a smaller model; "
    "`lora-hf plan` shows what a run needs"
)
SMALLER_GENERATION = "choose a smaller generation.batch_size, fewer generation.num_beams, or shorter texts"


def free_memory(device: torch.device) -> int | None:
    """Return the free memory of the device in bytes, or None if unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.is_file():
        return None
    lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 2**10 if "MemAvailable" in lines else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or its cause, means that a device or the machine ran out of memory."""
    kinds = (torch.OutOfMemoryError, MemoryError)

    def is_one(e: BaseException | None) -> bool:
        if isinstance(e, kinds):
            return True
        # accelerate looks for words in what the error was raised with, which need not be a text
        return (
            isinstance(e, Exception)
            and isinstance(next(iter(e.args), ""), str)
            and should_reduce_batch_size(e)
        )

    return is_one(error) or is_one(error.__cause__)


@contextmanager
def out_of_memory_reported(when: Callable[[], str], remedy: str) -> Iterator[None]:
    """Inside the block, turn an out-of-memory error into an `OutOfMemory` with the time and a remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # `OutOfMemory` of a block inside is neither
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{when()}: out of memory ({first_line(error)}); {remedy}") from error
