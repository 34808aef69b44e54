"""One run in several processes, as torchrun and `accelerate launch` start them.

In a single process every function is trivial. Otherwise the first process (`is_main`) writes and prints, and
a mistake that one process meets ends all of them with one message: a process that ends alone leaves the
others waiting in a collective operation.
"""

import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from lora_hf.errors import UserError

T = TypeVar("T")
LOST_PEER_ERRORS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""Words in the errors of collectives whose peer is gone; gloo has no exception class for them."""


class AgreedError(UserError):
    """A mistake that one process met and all know about; the first process reports it."""


def world_size() -> int:
    """Return the number of processes of this run."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def check_variables() -> None:
    """Check that the variables of a launcher are whole; accelerate would wait for other processes in vain.

    Raises:
        UserError: WORLD_SIZE says that there are several processes, and RANK does not say which this is.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1" and "RANK" not in os.environ:
        raise UserError(
            f"the environment variable WORLD_SIZE={size} says that there are several processes, but RANK is "
            "not set: unset WORLD_SIZE, or start the run by torchrun, which sets both"
        )


def rank() -> int:
    """Return the index of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def is_main() -> bool:
    """Return whether this process is the one that writes and prints."""
    return rank() == 0


def start() -> None:
    """Join the other processes, and select this process's GPU."""
    if world_size() == 1:
        return
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())


def stop() -> None:
    """Wait until all processes are here, then leave the process group."""
    if world_size() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End this process with an exit status, after its threads and its `atexit` functions.

    The interpreter's own shutdown is skipped: taking all imported modules apart takes 0.15 s, and
    with several processes, threads of their collectives (Gloo, DeepSpeed) sometimes abort it ("terminate
    called without an active exception"), after everything is written.
    """
    if sys.getprofile() or sys.gettrace():  # a profiler or a debugger, which reports at the end
        sys.exit(status)
    if world_size() == 1:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)


def all_gather(value: T) -> list[T]:
    """Return every process's value, by rank."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def any_process(value: bool) -> bool:
    """Return the logical OR over all processes (one all-reduce)."""
    return total(int(value)) > 0


def total(value: float) -> float:
    """Return the sum over all processes (one all-reduce)."""
    if world_size() == 1:
        return value
    import torch
    from torch import distributed

    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    number = torch.tensor(value, dtype=torch.float32, device=device)
    distributed.all_reduce(number)
    return float(number)


def add_up(number: Any) -> None:
    """Replace a tensor by its sum over all processes (one all-reduce); on a GPU the host does not wait."""
    if world_size() == 1:
        return
    from torch import distributed

    place = number if distributed.get_backend() == "nccl" else number.cpu()
    distributed.all_reduce(place)
    if place is not number:
        number.copy_(place)


def in_all_processes(task: Callable[[], T]) -> T:
    """Run a task in every process, and return its result; a UserError in one process is raised in all.

    Raises:
        UserError: the first one by rank.
    """
    if world_size() == 1:
        return task()
    result, message = None, None
    try:
        result = task()
    except UserError as error:
        message = str(error)
    messages = [text for text in all_gather(message) if text is not None]
    if messages:
        raise AgreedError(messages[0])
    return result  # type: ignore[return-value]


def from_main(task: Callable[[], T]) -> T:
    """Run a task in the first process only, and return its result in all.

    Raises:
        UserError: as in `in_all_processes`.
    """
    if world_size() == 1:
        return task()
    result = in_all_processes(lambda: task() if is_main() else None)
    return all_gather(result)[0]  # type: ignore[return-value]


def refuse_several(what: str, remedy: str) -> None:
    """Refuse a command that must run in a single process.

    Raises:
        UserError: there are several processes.
    """
    if world_size() > 1:
        raise AgreedError(f"{what} runs in a single process, but {world_size()} were started: {remedy}")


def shares(lengths: Sequence[int], world: int) -> list[list[int]]:
    """Divide rows among `world` processes: every row once, and about as many tokens for each process."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[one::world] for one in range(world)]


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error means that another process of this run is gone."""
    return (
        world_size() > 1
        and isinstance(error, RuntimeError)
        and any(sign in str(error) for sign in LOST_PEER_ERRORS)
    )


def is_sharded(model: Any) -> bool:
    """Return whether this process holds only a part of the weights: FSDP2's DTensors, or ZeRO-3's."""
    return any(_is_dtensor(p) or hasattr(p, "ds_id") for p in model.parameters())


@contextmanager
def full_weights(model: Any, only_trained: bool = True, changed: bool = False) -> Iterator[None]:
    """Inside the block, every process holds a sharded model's full weights; all processes must enter it.

    Args:
        model: any model; one that is not sharded does not change.
        only_trained: gather the trainable weights, such as an adapter's; otherwise all, which must fit.
        changed: keep the changes made in the block, which must be the same in every process.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad or not only_trained]
    if any(hasattr(p, "ds_id") for _, p in named):
        import deepspeed

        with deepspeed.zero.GatheredParameters([p for _, p in named], modifier_rank=0 if changed else None):
            yield
        return
    sharded = [(name, p) for name, p in named if _is_dtensor(p)]
    places = []
    for name, p in sharded:
        path, _, key = name.rpartition(".")
        places.append((model.get_submodule(path)._parameters, key, p, p.full_tensor().detach()))
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


def _parameter(tensor: Any, requires_grad: bool) -> Any:
    from torch import nn

    return nn.Parameter(tensor, requires_grad)


def _put_back(p: Any, full: Any) -> None:
    import torch
    from torch.distributed.tensor import distribute_tensor

    with torch.no_grad():
        p.copy_(distribute_tensor(full, p.device_mesh, p.placements))
