"""Give an encoder that changes its own attention its configured one back before each forward.

BigBird's encoder computes a batch that is too short for block-sparse attention with full attention, and
keeps full attention for every later batch. So its outputs depend on what the process saw before. Here they
depend on the batch alone. The type is set back before a forward and not after it, because gradient
checkpointing computes the layers again in the backward.
"""

import logging
from typing import Any

import torch
from torch import nn

SETTER, FIELD = "set_attention_type", "attention_type"


class AttentionType:
    """The attention type with which each forward of a module begins; it takes the place of its setter.

    Args:
        module: an encoder with `set_attention_type` and `attention_type`.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.first = getattr(getattr(module, "config", None), FIELD, None) or getattr(module, FIELD)
        self.is_running = False

    def __call__(self, value: str, **options: Any) -> None:
        """Set the type: for this forward if the module itself does it, for all later ones if another does.

        The setter creates attention modules, and puts the weights of the present ones into them. Those that
        it replaces are created without memory and without drawing random numbers.
        """
        if not self.is_running:
            self.first = value
        with torch.device("meta"):
            getattr(type(self.module), SETTER)(self.module, value, **options)

    def before(self, module: Any, args: Any) -> None:
        """Set the type back; a forward pre-hook."""
        self.is_running = False
        self(self.first)
        self.is_running = True

    def after(self, module: Any, args: Any, output: Any) -> None:
        """Note that the forward has ended; a forward hook."""
        self.is_running = False


class _FirstOnly(logging.Filter):
    """Let Transformers' warning that it changes the attention type pass once, and not at every batch."""

    seen = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("Attention type"):
            return True
        passes, self.seen = not self.seen, True
        return passes


def keep_attention_type(model: nn.Module) -> None:
    """Make every forward of an encoder that changes its attention type begin with the configured one.

    It is found by its attribute `attention_type` and its method `set_attention_type`. Other models, and those
    that are kept already, stay unchanged.
    """
    found = [
        name for name, module in model.named_modules() if hasattr(module, SETTER) and hasattr(module, FIELD)
    ]
    outermost = [
        name
        for name in found
        if not any(name.startswith(f"{one}." if one else "") for one in found if one != name)
    ]
    for module in map(model.get_submodule, outermost):
        if SETTER in vars(module):
            continue
        kept = AttentionType(module)
        vars(module)[SETTER] = kept
        module.register_forward_pre_hook(kept.before)
        module.register_forward_hook(kept.after, always_call=True)
        messages = logging.getLogger(type(module).__module__)
        if not any(isinstance(one, _FirstOnly) for one in messages.filters):
            messages.addFilter(_FirstOnly())
