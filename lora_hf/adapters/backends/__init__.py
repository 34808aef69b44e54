"""How a frozen weight is stored: one class a kind of layer, chosen by the layer's exact type.

The key is the type's full name, so that no library is imported to look one up. Subclasses are not
matched: a subclass may store its weight in another way, as `Linear4bit` does below `nn.Linear`.
"""

from torch import nn

from lora_hf.adapters.backends.base import Backend
from lora_hf.adapters.backends.bitsandbytes import Linear4bit, Linear8bit
from lora_hf.adapters.backends.conv import Conv2d
from lora_hf.adapters.backends.dense import DenseLinear, TransposedLinear
from lora_hf.adapters.backends.embedding import Embedding
from lora_hf.adapters.backends.quantized import Quantized

BACKENDS: dict[str, type[Backend]] = {
    "torch.nn.modules.linear.Linear": DenseLinear,
    "transformers.pytorch_utils.Conv1D": TransposedLinear,
    "torch.nn.modules.conv.Conv2d": Conv2d,
    "torch.nn.modules.sparse.Embedding": Embedding,
    "bitsandbytes.nn.modules.Linear4bit": Linear4bit,
    "bitsandbytes.nn.modules.Linear8bitLt": Linear8bit,
    "lora_hf.adapters.backends.quantized.QuantizedLinear": Quantized,
}


def type_name(layer: nn.Module) -> str:
    """The key of a layer in `BACKENDS`."""
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def is_supported(layer: nn.Module) -> bool:
    """Whether an adapter can sit on this kind of layer."""
    return type_name(layer) in BACKENDS


def is_linear(layer: nn.Module) -> bool:
    """Whether it maps the last dimension of x, in whatever store: what `all-linear` means."""
    return is_supported(layer) and BACKENDS[type_name(layer)].is_linear


def backend_for(layer: nn.Module) -> Backend:
    """The backend of a layer.

    Raises:
        TypeError: no backend is registered for this type.
    """
    if not is_supported(layer):
        raise TypeError(
            f"no adapter can be added to a layer of type {type_name(layer)}; supported are {sorted(BACKENDS)}"
        )
    return BACKENDS[type_name(layer)](layer)


__all__ = ["BACKENDS", "Backend", "backend_for", "is_linear", "is_supported", "type_name"]
