"""Storage formats of a base's frozen weights: one file per library, one line per format.

The key is `ModelConfig.storage`, which the fields of `model:` in the YAML choose. A format that quantizes
layer by layer brings its own `QuantizedWeight`, and `adapters.backends.quantized` does the rest; a library's
own layers have a backend of their own in `adapters/backends/`.
"""

from lora_hf.models.storage.base import StorageFormat
from lora_hf.models.storage.bitsandbytes import FourBit, Int8
from lora_hf.models.storage.hqq import HqqAffine
from lora_hf.models.storage.torchao import TorchaoInt8

STORAGE_FORMATS: dict[str, StorageFormat] = {
    "dense": StorageFormat(),
    "nf4": FourBit(),
    "fp4": FourBit(),
    "int8": Int8(),
    "affine4": HqqAffine(),
    "torchao_int8": TorchaoInt8(),
}

__all__ = ["STORAGE_FORMATS", "StorageFormat"]
