"""How a frozen weight is stored: one class a kind of layer, chosen by the layer's exact type.

The key is the type's full name, so that no library is imported to look one up. Subclasses are not
matched: a subclass may store its weight in another way, as `Linear4bit` does below `nn.Linear`.
"""

from typing import Any

from torch import nn

from lora_hf.adapters.backends.base import Backend
from lora_hf.adapters.backends.bnb import Linear4bit
from lora_hf.adapters.backends.dense import DenseLinear

BACKENDS: dict[str, Any] = {
    "torch.nn.modules.linear.Linear": DenseLinear,
    "bitsandbytes.nn.modules.Linear4bit": Linear4bit,
}


def type_name(layer: nn.Module) -> str:
    """The key of a layer in `BACKENDS`."""
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def is_supported(layer: nn.Module) -> bool:
    """Whether an adapter can sit on this kind of layer."""
    return type_name(layer) in BACKENDS


def backend_for(layer: nn.Module) -> Backend:
    """The backend of a layer.

    Raises:
        TypeError: no backend is registered for this type.
    """
    if not is_supported(layer):
        raise TypeError(f"no adapter can sit on a {type_name(layer)}; known are {sorted(BACKENDS)}")
    backend: Backend = BACKENDS[type_name(layer)](layer)
    return backend


__all__ = ["BACKENDS", "Backend", "backend_for", "is_supported", "type_name"]
