"""One run in several processes, as torchrun and `accelerate launch` start them: who this is, what all know.

In a process of its own every function is trivial. Otherwise the first process (`is_main`) writes and
prints, and a mistake that one of them meets ends all of them, told once: a process that ends alone leaves
the others waiting for it.
"""

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from lora_hf.errors import UserError

T = TypeVar("T")
LOST_PEER_ERRORS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""What the errors of a collective say whose other side is gone; gloo's have no class of their own."""


class Agreed(UserError):
    """A mistake that one process met and all know; the first one tells it."""


def world_size() -> int:
    """The number of processes of this run."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def start() -> None:
    """Meet the other processes, and take this one's GPU."""
    if world_size() == 1:
        return
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())


def stop() -> None:
    """Part from the others, once all have come here."""
    if world_size() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End this process with an exit status.

    Where DeepSpeed was at work, without the interpreter's own end: threads of its collectives abort that
    now and then ("terminate called without an active exception"), when everything is written.
    """
    if world_size() > 1 and "deepspeed" in sys.modules:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if world_size() == 1:  # the threads of a process group must be collected, or they abort the process
        gc.freeze()  # or the interpreter's end goes through all imports once more, which takes a second
    sys.exit(status)


def all_gather(value: T) -> list[T]:
    """Every process's value, by rank."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def is_anywhere(mine: bool) -> bool:
    """Whether it is so in any process; cheap enough for every step."""
    return total(int(mine)) > 0


def total(mine: float) -> float:
    """The sum of every process's number, which all then have."""
    if world_size() == 1:
        return mine
    import torch
    from torch import distributed

    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    number = torch.tensor(mine, dtype=torch.float32, device=device)
    distributed.all_reduce(number)
    return float(number)


def together(task: Callable[[], T]) -> T:
    """Do a task in every process; what one cannot do ends all.

    Raises:
        UserError: in any of them; of several the first one's.
    """
    if world_size() == 1:
        return task()
    result, mistake = None, None
    try:
        result = task()
    except UserError as error:
        mistake = str(error)
    told = [words for words in all_gather(mistake) if words is not None]
    if told:
        raise Agreed(told[0])
    return result  # type: ignore[return-value]


def from_main(task: Callable[[], T]) -> T:
    """Do a task in the first process alone, and know in all what it returned.

    Raises:
        UserError: as `together`.
    """
    if world_size() == 1:
        return task()
    result = together(lambda: task() if is_main() else None)
    return all_gather(result)[0]  # type: ignore[return-value]


def refuse_several(what: str, remedy: str) -> None:
    """End what several processes would all do, each by itself.

    Raises:
        UserError: there are several.
    """
    if world_size() > 1:
        raise Agreed(f"{what} is for one process, and there are {world_size()}: {remedy}")


def shares(lengths: Sequence[int], world: int) -> list[list[int]]:
    """Rows for each of `world` processes: every row once, and about as many tokens for each."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[one::world] for one in range(world)]


def has_lost_another(error: BaseException) -> bool:
    """Whether an error says that another process of this run is gone."""
    return (
        world_size() > 1
        and isinstance(error, RuntimeError)
        and any(sign in str(error) for sign in LOST_PEER_ERRORS)
    )


def is_sharded(model: Any) -> bool:
    """Whether this process holds a part of the weights only: FSDP2's DTensors, or ZeRO-3's."""
    return any(_is_dtensor(p) or hasattr(p, "ds_id") for p in model.parameters())


@contextmanager
def full_weights(model: Any, only_trained: bool = True, changed: bool = False) -> Iterator[None]:
    """Inside the block a sharded model's weights are whole, in every process; all must enter it.

    Args:
        model: any; one that is not sharded is left alone.
        only_trained: those that train, which is what an adapter is; or all, which must fit.
        changed: write back what the block changes, equally in every process.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad or not only_trained]
    if any(hasattr(p, "ds_id") for _, p in named):
        import deepspeed

        with deepspeed.zero.GatheredParameters([p for _, p in named], modifier_rank=0 if changed else None):
            yield
        return
    sharded = [(name, p) for name, p in named if _is_dtensor(p)]
    places = [(*_place(model, name), p, p.full_tensor().detach()) for name, p in sharded]
    for parameters, key, p, full in places:
        parameters[key] = _parameter(full, p.requires_grad)
    try:
        yield
    finally:
        for parameters, key, p, full in places:
            parameters[key] = p
            if changed:
                _put_back(p, full)


def _is_dtensor(p: Any) -> bool:
    return hasattr(p, "full_tensor")


def _place(model: Any, name: str) -> tuple[dict[str, Any], str]:
    path, _, key = name.rpartition(".")
    return model.get_submodule(path)._parameters, key


def _parameter(tensor: Any, requires_grad: bool) -> Any:
    from torch import nn

    return nn.Parameter(tensor, requires_grad)


def _put_back(p: Any, full: Any) -> None:
    import torch
    from torch.distributed.tensor import distribute_tensor

    with torch.no_grad():
        p.copy_(distribute_tensor(full, p.device_mesh, p.placements))
