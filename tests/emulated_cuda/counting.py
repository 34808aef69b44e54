"""Count what operations would start on a GPU, and ask of it."""

import linecache
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = {
    f"aten.{name}"
    for name in """view _unsafe_view t transpose permute expand unsqueeze squeeze slice select detach alias
    as_strided split split_with_sizes unsafe_split chunk _reshape_alias reshape lift_fresh unbind empty
    empty_like new_empty empty_strided new_empty_strided view_as unfold is_same_size narrow diagonal mT
    promote_types set_""".split()
} | {"prim.device"}
"""Operations without a kernel."""
PRODUCTS = {
    f"aten.{name}"
    for name in """mm addmm addmm_ bmm baddbmm convolution addmv mv dot
    _scaled_dot_product_efficient_attention""".split()
}
"""Operations that on CUDA take tensors of one dtype; fake tensors let others pass."""
WAITS = {f"aten.{name}" for name in "_local_scalar_dense is_nonzero equal nonzero".split()}
"""Operations for whose answer the host waits until the device has computed it."""
MOST_TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
"""Lists of tensors -> tensors that one kernel of `torch._foreach_*` takes (MultiTensorApply.cuh)."""
OURS = ("/lora_hf/", "/transformers/", "/accelerate/", "/torch/optim", "/torch/nn/utils")


class Device(TorchDispatchMode):
    """Counts kernels, the bytes that they read and write, and the host's waits; gives answers to the latter.

    Args:
        answer: called with the source line that waits and the tensor; returns the number that the line reads.
    """

    def __init__(self, answer: Any = None) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.answer = answer

    @property
    def total(self) -> int:
        """Number of kernels."""
        return sum(self.kernels.values())

    @property
    def gib(self) -> float:
        """GiB read and written."""
        return sum(self.bytes.values()) / 2**30

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, str(func.overloadpacket)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if name in PRODUCTS and len({x.dtype for x in given if x.dim()}) > 1:
            raise RuntimeError(f"{func}: different dtypes, {[str(x.dtype) for x in given]}")
        on_device = any(x.device.type == "cuda" for x in given)
        to_host = name == "aten._to_copy" and on_device and str(kwargs.get("device")) == "cpu"
        if (name in WAITS and on_device) or (to_host and not kwargs.get("non_blocking")):
            self.waits[": ".join(_caller())] += 1
        try:
            made = func(*args, **kwargs)
        except DataDependentOutputException:
            if self.answer is None:
                raise
            return self.answer(_caller()[1], given[0])
        outputs = [x for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        on_device = on_device or any(x.device.type == "cuda" for x in outputs)
        if name not in FREE and on_device:
            self.kernels[name] += _launches(name, args)
            read = [x for x in tree_leaves((args, {**kwargs, "out": None})) if isinstance(x, torch.Tensor)]
            self.bytes[name] += _moved(name, read, outputs)
        return made


def _caller() -> tuple[str, str]:
    """Return file and line of the library's code that is running, and that line."""
    frame: Any = sys._getframe(2)
    while frame and not any(part in frame.f_code.co_filename for part in OURS):
        frame = frame.f_back
    if frame is None:
        return "?", "?"
    path, number = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(path).name}:{number}", linecache.getline(path, number).strip()


def _launches(name: str, args: Any) -> int:
    """Return the number of kernels: operations on lists of tensors take a limited number at a time."""
    lists = [x for x in args if isinstance(x, list | tuple) and x and isinstance(x[0], torch.Tensor)]
    if not name.startswith(("aten._foreach", "aten._fused_adam")) or not lists:
        return 1
    return -(-len(lists[0]) // MOST_TENSORS[min(len(lists), 5)])


def _moved(name: str, given: list[torch.Tensor], outputs: list[torch.Tensor]) -> int:
    """Return the bytes read and written; of a table, only the rows that are looked up or written."""
    if name in ("aten.gather", "aten.embedding", "aten.index_select"):
        return 2 * sum(map(_size, outputs))
    if name in ("aten.scatter_", "aten.scatter_add_"):
        return 2 * sum(map(_size, given[1:]))
    return sum(map(_size, given)) + sum(map(_size, outputs))


def _size(x: torch.Tensor) -> int:
    """Return the bytes of a tensor; what is expanded is read once."""
    n = 1
    for length, stride in zip(x.shape, x.stride(), strict=True):
        n *= length if stride else 1
    return n * x.element_size()
