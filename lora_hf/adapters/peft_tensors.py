"""An adapter's tensors as PEFT names and shapes them: the border that they cross both ways.

- A start that was taken over from the weight is written as plain LoRA of rank 2r, `[A; A']` and
  `[B, -B']`: it is relative to the untouched checkpoint, any reader of LoRA reads it, and reading it back
  into such an adapter is exact (PiSSA's paper, arXiv:2404.02948, appendix C).
- PEFT's QA-LoRA multiplies the mean of a group by the number of groups, ours sums it: A changes by the ratio.
- Convolutions have the layer's kernel in A, and 1 x 1 in B.
"""

import torch
from torch import Tensor

from lora_hf.adapters.backends import Backend
from lora_hf.adapters.config import LoraConfig
from lora_hf.adapters.methods import Lora
from lora_hf.adapters.methods.dora import Dora
from lora_hf.adapters.methods.qalora import QALora, group_size_of

MAGNITUDE = "lora_magnitude_vector"


def peft_tensors(method: Lora, base: Backend) -> dict[str, Tensor]:
    """The adapter of one layer: PEFT's name below the layer -> float32 tensor on the CPU."""
    A, B = method.lora_A.detach(), method.lora_B.detach()
    if method.taken_over is not None:
        start_A, start_B = method.taken_over
        A, B = torch.cat([A, start_A]), torch.cat([B, -start_B], dim=1)
    if isinstance(method, QALora):
        A = A * (method.group_size / A.shape[1])
    tensors = {base.peft_names["lora_A"]: A, base.peft_names["lora_B"]: B}
    if isinstance(method, Dora):
        tensors[MAGNITUDE] = method.lora_magnitude_vector.detach()
    shapes = _shapes(base, A.shape[0], A.shape[1], isinstance(method, Dora))
    return {name: t.reshape(shapes[name]).cpu().contiguous() for name, t in tensors.items()}


def put_peft_tensors(method: Lora, base: Backend, tensors: dict[str, Tensor]) -> None:
    """The inverse: fill an adapter, its taken-over start too, from tensors of the right shapes."""
    A = tensors[base.peft_names["lora_A"]].flatten(1)
    B = tensors[base.peft_names["lora_B"]].flatten(1)
    if isinstance(method, QALora):
        A = A * (A.shape[1] / method.group_size)
    with torch.no_grad():
        r = method.lora_A.shape[0]
        if (
            method.taken_over is not None and A.shape[0] == 2 * r
        ):  # PEFT's own, unconverted, has no second half
            for factor, half in zip(method.taken_over, (A[r:], -B[:, r:]), strict=True):
                factor.copy_(half)
            A, B = A[:r], B[:, :r]
        method.lora_A.copy_(A)
        method.lora_B.copy_(B)
        if isinstance(method, Dora):
            method.lora_magnitude_vector.copy_(tensors[MAGNITUDE].flatten())


def peft_shapes(config: LoraConfig, base: Backend) -> dict[str, tuple[int, ...]]:
    """What a file must hold for a layer with these settings."""
    columns = base.in_features // group_size_of(config, base) if config.use_qalora else base.in_features
    return _shapes(base, config.r, columns, config.use_dora)


def _shapes(base: Backend, r: int, columns: int, has_magnitude: bool) -> dict[str, tuple[int, ...]]:
    kernel = base.kernel if columns == base.in_features else (columns,)
    ones = (1,) * (len(kernel) - 1)
    shapes = {
        base.peft_names["lora_A"]: (r, *kernel),
        base.peft_names["lora_B"]: (base.out_features, r, *ones),
    }
    if has_magnitude:
        shapes[MAGNITUDE] = (1, base.out_features, *ones) if ones else (base.out_features,)
    return shapes
