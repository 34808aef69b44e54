"""LoRA+ (Hayou et al., arXiv:2402.12354): B at a higher learning rate than A.

    eta_B = ratio * eta_A        as the width grows, one rate for both trains either too slow or not stably

The groups of an optimizer that exists are split, so that weight decay, and every optimizer that the Trainer
knows, stay the Trainer's. A schedule multiplies the rate of each group and so keeps the ratio, and a
checkpoint holds both.
"""

from torch import nn
from torch.optim import Optimizer

from lora_hf.errors import UserError


def split_groups(optimizer: Optimizer, model: nn.Module, ratio: float) -> None:
    """Move every lora_B out of the optimizer's groups into ones of `ratio` times their rate, else the same.

    Args:
        optimizer: fresh, of the model's parameters.
        model: whose parameters it has.
        ratio: at least 1; the paper recommends 16.

    Raises:
        UserError: a ratio below 1, or no lora_B among the optimizer's parameters.
    """
    if not ratio >= 1:
        raise UserError(f"loraplus_lr_ratio={ratio!r} must be at least 1")
    matrices = {id(p) for name, p in model.named_parameters() if is_lora_B(name)}
    groups = [(group, [p for p in group["params"] if id(p) in matrices]) for group in optimizer.param_groups]
    if not any(fast for _, fast in groups):
        raise UserError(f"loraplus_lr_ratio={ratio:g} has no effect: the model trains no lora_B")
    for group, fast in groups:
        if fast:
            group["params"] = [p for p in group["params"] if id(p) not in matrices]
            optimizer.add_param_group({**group, "params": fast, "lr": group["lr"] * ratio})


def is_lora_B(parameter_name: str) -> bool:
    """Whether a dotted name ends in the matrix B of a layer or, under PEFT's name, of an embedding."""
    return any(part in ("lora_B", "lora_embedding_B") for part in parameter_name.split("."))
