"""Random values for the weights that a method has added."""

import torch
from torch import nn

from lora_hf.baselines.checkpoint_io import new_weights


def randomize(model: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in new_weights(model).values():
            weight.normal_(std=0.3)
