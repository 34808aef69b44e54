"""The loss from hidden states without holding all logits, a step's largest tensor.

The logits of a chunk of tokens give its share of the loss and of the gradient of the hidden states, and are
freed. This works because the output head is frozen: only its input needs a gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_hf.adapters.functional import device_path, product_in

CHUNK, CHUNK_GPU = 128, 1024
"""Tokens per chunk: 16 MiB of float32 logits at T5's vocabulary, and twice 125 MiB on a GPU."""
IGNORED = -100


def chunked_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over the labels that are not -100, in float32; 0 if all of them are.

    Args:
        hidden: (..., d_model), the input of the head.
        head: (vocabulary, d_model), frozen.
        labels: (...), token ids.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, head, labels)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """L = mean(logsumexp(z) - z_label) with z = H h, H the head; dL/dh = (softmax(z) - onehot(label)) H / n.

    The forward pass computes the gradient too, while a chunk's logits are there; backward only scales it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        rows, targets = hidden.detach().flatten(0, -2), labels.flatten()
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        total, is_label = torch.zeros((), dtype=dtype, device=hidden.device), targets != IGNORED
        count = is_label.sum().clamp_(min=1)
        gradient, on_cpu = torch.empty_like(rows), device_path(hidden) == "cpu"
        size, of_chunk = (CHUNK, _chunk) if on_cpu else (CHUNK_GPU, _chunk_gpu)
        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            index = targets[chunk].clamp(min=0)[:, None]
            loss, gradient[chunk] = of_chunk(rows[chunk], head, is_label[chunk], index, dtype)
            total += loss
        ctx.save_for_backward(gradient.div_(count).view_as(hidden))
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None


def _chunk(
    part: Tensor, head: Tensor, is_label: Tensor, index: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses, and the gradient of their sum (tokens, d_model).

    Args:
        part: (tokens, d_model).
        head: (vocabulary, d_model).
        is_label: (tokens,), False where there is nothing to predict.
        index: (tokens, 1), the labels.
        dtype: of the logits.
    """
    logits = F.linear(part.to(head.dtype), head).to(dtype)
    log_sum = logits.logsumexp(-1, keepdim=True)
    loss = ((log_sum - logits.gather(1, index)).squeeze(1) * is_label).sum()
    errors = logits.sub_(log_sum).exp_()  # softmax, less 1 at the label
    errors.scatter_add_(1, index, torch.full_like(index, -1, dtype=dtype))
    errors.mul_(is_label[:, None])
    # (tokens, vocabulary) @ (vocabulary, d_model)
    return loss, torch.mm(errors.to(head.dtype), head)


def _chunk_gpu(
    part: Tensor, head: Tensor, is_label: Tensor, index: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return what `_chunk` does, with fewer passes over the logits.

    The product writes them in float32, and softmax is rounded to the product's dtype as it is computed.
    """
    device = part.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.dtype
    with torch.autocast(device, enabled=False):
        head = head.to(narrow)
        logs = product_in(part.to(narrow), head.T, dtype).log_softmax(-1)
        of_label = logs.gather(1, index)
        loss = -(of_label.squeeze(1) * is_label).sum()
        errors = torch.exp(logs, out=torch.empty_like(logs, dtype=narrow))
        errors.scatter_(1, index, of_label.exp().sub_(1).to(narrow))
        return loss, torch.mm(errors, head).mul_(is_label[:, None])
