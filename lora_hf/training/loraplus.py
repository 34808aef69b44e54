"""LoRA+ (Hayou et al., arXiv:2402.12354): a higher learning rate for B than for A.

    eta_B = ratio * eta_A        with one rate for both, wide models train either too slowly or unstably

The groups of an existing optimizer are split, so that weight decay, and every optimizer that the Trainer
supports, work as usual. A schedule multiplies the rate of each group, which keeps the ratio, and a checkpoint
holds both.
"""

from torch import nn
from torch.optim import Optimizer

from lora_hf.errors import UserError


def split_groups(optimizer: Optimizer, model: nn.Module, ratio: float) -> None:
    """Move every lora_B into groups of its own with `ratio` times the learning rate and equal other settings.

    Args:
        optimizer: a new optimizer of the model's parameters.
        model: the model.
        ratio: at least 1; the paper recommends 16.

    Raises:
        UserError: a ratio below 1, or no lora_B among the optimizer's parameters.
    """
    if not ratio >= 1:
        raise UserError(f"loraplus_lr_ratio={ratio!r} must be at least 1", "loraplus_lr_ratio")
    matrices = {id(p) for name, p in model.named_parameters() if is_lora_B(name)}
    groups = [(group, [p for p in group["params"] if id(p) in matrices]) for group in optimizer.param_groups]
    if not any(fast for _, fast in groups):
        raise UserError(
            f"loraplus_lr_ratio={ratio:g} has no effect: the model trains no lora_B", "loraplus_lr_ratio"
        )
    for group, fast in groups:
        if fast:
            group["params"] = [p for p in group["params"] if id(p) not in matrices]
            optimizer.add_param_group({**group, "params": fast, "lr": group["lr"] * ratio})


def is_lora_B(parameter_name: str) -> bool:
    """Return whether a dotted name contains the matrix B of a layer or, in PEFT's terms, of an embedding."""
    return any(part in ("lora_B", "lora_embedding_B") for part in parameter_name.split("."))
