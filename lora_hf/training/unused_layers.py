"""Adapters that a training does not use: an error at its first step, or a warning at its end.

A model can read the weight of a layer and not call the layer, in ways that its source does not show
(`adapters/weight_readers.py` finds the usual ones). The adapter then has no effect. The first backward pass
shows it for certain: the adapter has no gradient, and the layer's weight was read. A layer that was neither
called nor read may be one that some steps do not need, such as an expert. It is reported if none did.
"""

import logging
from typing import Any

from lora_hf.adapters.layer import LoraLayer
from lora_hf.adapters.model_state import lora_layers
from lora_hf.distributed import AgreedError
from lora_hf.errors import few

logger = logging.getLogger(__name__)


class UnusedLayers:
    """Follows the layers with trainable adapters until each has had a gradient.

    Args:
        model: is about to train.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.is_first = model, True
        self.waiting = {name: layer for name, layer in lora_layers(model).items() if _trainable(layer)}
        self.count = len(self.waiting)
        for layer in self.waiting.values():
            layer.weight_was_read = False

    def check_step(self) -> None:
        """Look at the gradients after the backward passes of a step.

        Raises:
            UserError: at the first step, if the model reads the weights of layers that it does not call.
        """
        if not self.waiting or all(p.grad is None for p in self.model.parameters()):
            return  # DeepSpeed keeps the gradients to itself
        self.waiting = {
            name: layer
            for name, layer in self.waiting.items()
            if all(p.grad is None for p in _trainable(layer))
        }
        read = [name for name, layer in self.waiting.items() if layer.weight_was_read]
        if self.is_first and read:
            raise AgreedError(
                f"target_modules: the adapters on {few(read)} have no effect, because the model reads the "
                "weights of these layers itself and does not call the layers; leave them out, or name them "
                "in exclude_modules",
                "target_modules",
            )
        self.is_first = False

    def report(self) -> None:
        """Warn of the layers that no step has used."""
        if self.waiting and not self.is_first:
            logger.warning(
                "%d of %d layers with adapters were not used in this training, and their adapters have no "
                "effect: %s. Leave them out of target_modules, unless other inputs need them",
                *(len(self.waiting), self.count, few(self.waiting)),
            )


def _trainable(layer: LoraLayer) -> list[Any]:
    return [p for p in layer.adapters.parameters() if p.requires_grad]
