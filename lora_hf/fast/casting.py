"""Casts of the adapters' factors, all those of a stack by one operation.

A and B are float32 and are used in the dtype of the activations. A model with adapters on 72 layers would
start 144 kernels for that in each forward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lora_hf.adapters.functional import device_path
from lora_hf.adapters.methods.lora import Lora

DEVICES = ("cuda",)
"""Where starting a kernel takes longer than the cast."""


@contextmanager
def cast_together(stacks: list[nn.Module]) -> Iterator[None]:
    """Inside the block, cast A and B of each stack's adapters together when the stack is called on a GPU.

    The copies serve as long as A and B are not changed: until the optimizer's step, or a checkpoint's
    recomputation.

    Args:
        stacks: encoder and decoder, each with a `final_layer_norm` in the dtype of its activations.
    """
    hooks = []
    methods = [method for stack in stacks for method in stack.modules() if isinstance(method, Lora)]
    try:
        hooks = [stack.register_forward_pre_hook(_cast) for stack in stacks if methods]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for method in methods:
            method.keep_cast(None)


def _cast(stack: Any, inputs: Any) -> None:
    dtype, device = stack.final_layer_norm.weight.dtype, stack.final_layer_norm.weight.device.type
    if device_path(stack.final_layer_norm.weight) not in DEVICES:
        return
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    methods = [method for method in stack.modules() if isinstance(method, Lora)]
    factors: list[Tensor] = [factor.detach() for m in methods for factor in (m.lora_A, m.lora_B)]
    if not factors or dtype == factors[0].dtype:
        for method in methods:
            method.keep_cast(None)
        return
    copies = [torch.empty_like(factor, dtype=dtype) for factor in factors]
    with torch.no_grad():
        torch._foreach_copy_(copies, factors)
    for method, A, B in zip(methods, copies[::2], copies[1::2], strict=True):
        method.keep_cast((A, B))
