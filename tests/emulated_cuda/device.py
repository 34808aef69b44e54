"""CUDA devices that do not exist, for torch's CPU build: tensors have shape, dtype and device, and no data.

Only what a GPU computes is missing. Tensors on different devices, products of different dtypes and waits of
the host are found; kernels, bytes and memory are counted. Values, races and kernels are not tested.

`guard.cpp` must be loaded before torch is imported, so a process of its own is needed: call `start` first.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GUARD = Path(__file__).with_name("guard.cpp")
GIB = 2**30
T4, A100, H100 = (7, 5), (8, 0), (9, 0)
"""Compute capabilities."""


def torch_folder() -> Path:
    """Return the folder of torch, without importing it."""
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def why_not() -> str | None:
    """Return why CUDA cannot be emulated here, or None."""
    if shutil.which("g++") is None:
        return "there is no C++ compiler (g++) to compile the device guard with"
    if not (torch_folder() / "lib" / "libtorch_cpu.so").exists():
        return "this torch has no libtorch_cpu.so, as only builds for Linux have it"
    version = (torch_folder() / "version.py").read_text(encoding="utf-8")
    if not re.search(r"^cuda\b.*= None$", version, re.MULTILINE):
        return "this torch is built for CUDA, whose own devices cannot be replaced"
    return None


def guard() -> Path:
    """Return the compiled guard, from a cache in the temporary folder."""
    torch, source = torch_folder(), GUARD.read_bytes()
    key = hashlib.sha256(source + (torch / "version.py").read_bytes()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"lora_hf-emulated-cuda-{os.getuid()}" / f"{key}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        beside = library.with_suffix(f".{os.getpid()}")
        options = ["-O1", "-shared", "-fPIC", "-std=c++20", f"-I{torch}/include", f"-L{torch}/lib"]
        subprocess.run(["g++", *options, str(GUARD), "-o", str(beside), "-lc10", "-ltorch_cpu"], check=True)
        beside.rename(library)
    return library


def start(capability: tuple[int, int] = A100, gib: int = 40, cards: int = 1) -> None:
    """Make `torch.cuda` report cards of this capability and memory, and let fake tensors be on them."""
    if "torch" not in sys.modules:
        for library in ("libc10.so", "libtorch_cpu.so"):
            ctypes.CDLL(str(torch_folder() / "lib" / library), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(guard()), mode=ctypes.RTLD_GLOBAL)
        _prepare_torch()
    report(capability, gib, cards)


def report(capability: tuple[int, int], gib: int = 40, cards: int = 1) -> None:
    """Let `torch.cuda` describe another card."""
    import torch
    from torch import cuda

    major, minor = capability
    properties = {"major": major, "minor": minor, "name": "emulated", "total_memory": gib * GIB}
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": cards,
        "current_device": 0,
        "get_device_capability": capability,
        "get_device_name": "emulated",
        "get_device_properties": type("Properties", (), properties | {"multi_processor_count": 108})(),
        "is_bf16_supported": major >= 8,
        "is_initialized": False,
        "mem_get_info": (gib * GIB, gib * GIB),
        "max_memory_allocated": 0,
        "max_memory_reserved": 0,
        "memory_allocated": 0,
        "memory_reserved": 0,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "current_stream": None,
    }
    silent = (
        "set_device empty_cache synchronize manual_seed manual_seed_all set_rng_state reset_peak_memory_stats"
    )
    for name, answer in (answers | dict.fromkeys(silent.split())).items():
        setattr(cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
    cuda.Event = Event  # type: ignore[misc]


class Event:
    """Counts the waits for events: the host waits for a point of the past, and the device has more to do."""

    waited = 0

    def record(self, stream: Any = None) -> None:
        """Record nothing."""

    def synchronize(self) -> None:
        """Count."""
        Event.waited += 1


def _prepare_torch() -> None:
    with suppress(ImportError):  # checks that do not need it hide it
        import bitsandbytes  # noqa: F401  # while there is no card: its kernels for CUDA need torch's CUDA build
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    FakeTensorMode.avoid_device_init = property(lambda self: True)  # type: ignore[assignment]
    nn.Module._apply = _apply  # type: ignore[method-assign]
    F.scaled_dot_product_attention = _efficient_attention(F.scaled_dot_product_attention)
    # torch's CUDA build has a kernel for each way of the norm, so that autograd does not take the norm apart
    _KERNELS.append(library := torch.library.Library("aten", "IMPL"))
    for name in ("_fused_rms_norm", "_fused_rms_norm_backward"):
        library.impl(name, _never, "CUDA")


_KERNELS: list[Any] = []


def _never(*args: Any) -> None:
    raise AssertionError("a kernel of an emulated device was started")


def _efficient_attention(plain: Any) -> Any:
    """Return SDPA as CUDA computes it with a float mask: by the memory-efficient kernel."""
    import torch
    import torch.nn.functional as F

    def attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if query.device.type != "cuda":
            return plain(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            query, key, value = (x.to(dtype) if x.dtype == torch.float32 else x for x in (query, key, value))
            if attn_mask is not None and attn_mask.dtype == torch.float32:
                attn_mask = attn_mask.to(dtype)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                zero = torch.zeros((), dtype=query.dtype, device=query.device)
                attn_mask = torch.where(attn_mask, zero, float("-inf"))
            if attn_mask.dtype != query.dtype:
                raise RuntimeError(f"attn_mask is {attn_mask.dtype} and the query {query.dtype}")
            keys = key.shape[2]
            strides = attn_mask.stride()  # aligned_tensor and pad_bias of aten/transformers/attention.cpp
            if strides[-1] != 1 or any(stride % 8 for stride in strides[:-1]):
                attn_mask = F.pad(attn_mask, (0, 8 - keys % 8))[..., :keys]
            attn_mask = attn_mask.expand(*query.shape[:3], keys)
        needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, needs_grad, dropout_p, is_causal, scale=scale
        )[0]

    return attention


def _apply(self: Any, fn: Any, recurse: bool = True) -> Any:
    """Put new parameters in place: fake ones are weakly referenced, so that their data cannot be replaced."""
    import torch

    if recurse:
        for child in self.children():
            child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            moved = fn(parameter)
        if moved is not parameter:
            self._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in self._buffers.items():
        self._buffers[name] = None if buffer is None else fn(buffer)
    return self
