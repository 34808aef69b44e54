"""The device, its memory, and the versions of the software on it."""

import importlib.metadata
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from lora_hf import __version__
from lora_hf.errors import UserError, counted

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_torch_state() -> None:
    """Refuse what a caller has set in PyTorch that would change a run, and that no file of the run says.

    Raises:
        UserError: another default dtype or device, autocast, or no gradients.
    """
    cpu, gpu = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    states = {
        f"the default dtype {torch.get_default_dtype()}": torch.get_default_dtype() != torch.float32,
        "the default device meta": torch.get_default_device().type == "meta",
        "torch.autocast": cpu or gpu,
        "torch.no_grad": not torch.is_grad_enabled(),
    }
    if found := [name for name, is_set in states.items() if is_set]:
        raise UserError(
            f"a run inside {' and '.join(found)} would be another one, and no file of it would say so: set "
            "it back before the call; training.bf16 and model.dtype choose the numbers of a run"
        )


def pick_device() -> torch.device:
    """Return CUDA if available, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a name; `auto` is bfloat16 on CUDA 8.0 and later, and float32 elsewhere."""
    if name != "auto":
        return DTYPES[name]
    has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_bf16 else torch.float32


PACKAGES = ("torch", "transformers", "datasets", "accelerate", "bitsandbytes", "evaluate", "rouge_score")


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of every package that can affect a score."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"lora_hf": __version__, "python": platform.python_version()} | installed


def reveal(package: str) -> bool:
    """Find a package, also if a command has hidden it from Transformers (`cli.HIDDEN`).

    Returns:
        Whether it is installed.
    """
    if sys.modules.get(package, sys) is None:
        del sys.modules[package]
    return find_spec(package) is not None


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the processor's architecture and number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} {platform.machine()}, {counted(threads, 'thread')}"


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory of this process in MiB: the CUDA allocator's on a GPU, else resident memory.

    On Linux `getrusage` cannot be used: its figure starts at that of the parent process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) / 2**10  # "  123456 kB"
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
