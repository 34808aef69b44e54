"""Backends, which read and write a frozen weight: one class per kind of layer, chosen by its exact type.

The key is the type's full name, so that looking one up imports no library. Subclasses are not matched: a
subclass may store its weight in another way, as `Linear4bit` does, which is a subclass of `nn.Linear`.
"""

from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

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
    "lora_hf.fast.int8.Int8Linear": Quantized,
}


def type_name(layer: nn.Module) -> str:
    """Return the layer's type, and the type of its weight if that is a tensor made of others.

    Such a weight (torchao's quantized tensors, DTensor) is in a layer of PyTorch's own, and is not dense.
    """
    weight = layer._parameters.get("weight")
    name = _full_name(type(layer))
    if weight is None or not is_traceable_wrapper_subclass(weight):
        return name
    return f"{name} over {_full_name(type(weight.data))}"


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def is_supported(layer: nn.Module) -> bool:
    """Return whether an adapter can be put on this kind of layer."""
    return type_name(layer) in BACKENDS


def is_linear(layer: nn.Module) -> bool:
    """Return whether the layer maps the last dimension of x, in any storage format; see `all-linear`."""
    backend = BACKENDS.get(_full_name(type(layer)))
    return backend is not None and backend.is_linear


def is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer stores its weight as (in, out), or did so before it was quantized.

    Transformers records the class of a layer that it replaces by a quantized one as `source_cls`.
    """
    kind: type = getattr(layer, "source_cls", type(layer))
    return BACKENDS.get(_full_name(kind)) is TransposedLinear


def backend_for(layer: nn.Module) -> Backend:
    """Return the backend of a layer.

    Raises:
        TypeError: there is none for this type.
    """
    if not is_supported(layer):
        raise TypeError(
            f"no adapter can be added to a layer of type {type_name(layer)}; supported are {sorted(BACKENDS)}"
        )
    return BACKENDS[type_name(layer)](layer)


__all__ = ["BACKENDS", "Backend", "backend_for", "is_linear", "is_supported", "is_transposed", "type_name"]
