"""The contract of a storage format, and the formats that quantize a dense model layer by layer."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from lora_hf.adapters.backends.quantized import QuantizedLinear, QuantizedWeight
from lora_hf.adapters.default_targets import bare, output_head
from lora_hf.adapters.save_pretrained import guard_save_pretrained
from lora_hf.config import ModelConfig
from lora_hf.errors import UserError
from lora_hf.models.checkpoint import load_checkpoint
from lora_hf.system import reveal


class StorageFormat:
    """Floating-point weights, and what every other format is asked.

    Attributes:
        package: the package that quantizes, which is the extra of the same name; None if none is needed.
        quant_method: the value of `model.quant_method` that the package stands for.
        is_plain: whether `save_pretrained` of Transformers writes a folder that Transformers loads again.
    """

    package: ClassVar[str | None] = None
    quant_method: ClassVar[str] = ""
    is_plain: ClassVar[bool] = True

    def check_package(self) -> None:
        """Find the package, also if a command has hidden it from Transformers (`cli.HIDDEN`).

        Raises:
            UserError: it is not installed.
        """
        if self.package is not None and not reveal(self.package):
            raise UserError(
                f"model.quant_method={self.quant_method!r} needs the package {self.package}, which is an "
                f"extra: pip install 'lora_hf[{self.package}]'"
            )

    def check_model(self, model: Any, config: ModelConfig) -> None:
        """Check from the shapes alone that the layers of a dense model can be stored.

        Raises:
            UserError: a layer does not fit.
        """

    def load(self, name: str, config: ModelConfig, device: torch.device, options: dict[str, Any]) -> Any:
        """Load the model onto `device`.

        Args:
            name: the folder of the model.
            config: the settings of the format.
            device: where the model goes.
            options: keyword arguments of `from_pretrained`.

        Raises:
            UserError: a layer does not fit, or a package is missing.
        """
        return load_checkpoint(name, config.as_written, **options).to(device)

    def bytes_per_weight(self, config: ModelConfig) -> float | None:
        """Bytes of a quantized weight with its share of the scales; None if it keeps the model's dtype."""
        return None

    def group_size(self, config: ModelConfig) -> int | None:
        """Number of inputs that share a zero point, which QA-LoRA takes over; None if there are none."""
        return None


class LayerwiseFormat(StorageFormat):
    """A format of `QuantizedLinear` layers, each made from a dense layer; the output head stays dense."""

    is_plain = False  # Transformers has no such layer

    @abstractmethod
    def quantize(self, weight: torch.Tensor, config: ModelConfig) -> QuantizedWeight:
        """Quantize W (out, in) on its own device.

        Raises:
            UserError: the package is missing.
        """

    def convert(self, layer: nn.Linear, config: ModelConfig) -> QuantizedLinear:
        """Quantize a layer; its bias stays."""
        return QuantizedLinear(self.quantize(layer.weight.detach(), config), layer.bias)

    def load(self, name: str, config: ModelConfig, device: torch.device, options: dict[str, Any]) -> Any:
        """Load on the CPU and move one layer at a time, so that `device` never holds the dense model."""
        self.check_package()
        model = load_checkpoint(name, config.as_written, **options)
        self.check_model(model, config)
        layers = quantized_layers(model, config)
        while layers:  # emptied on the way, or it would keep every dense weight
            path = next(iter(layers))
            model.set_submodule(path, self.convert(layers.pop(path).to(device), config))
        guard_save_pretrained(model)
        return model.to(device)


def check_quantize_wo(model: Any, config: ModelConfig) -> None:
    """Check that `quantize_wo` has something to quantize.

    Args:
        model: dense; one without memory is enough.
        config: the settings of the format.

    Raises:
        UserError: it is set, and Transformers keeps no linear layer of this model dense.
    """
    if config.quantize_wo and config.is_quantized:
        without = config.model_copy(update={"quantize_wo": False})
        if quantized_layers(model, config).keys() == quantized_layers(model, without).keys():
            raise UserError(
                f"model.quantize_wo=true has no effect on a {type(model).__name__}: it is for the layers wo "
                "of T5, mT5 and UMT5, which Transformers leaves dense. Remove it"
            )


def quantized_layers(model: Any, config: ModelConfig) -> dict[str, nn.Linear]:
    """Return the linear layers to quantize by name: not the head, nor what the model keeps in float32."""
    kept = set() if config.quantize_wo else set(model._keep_in_fp32_modules or ())
    found = output_head(model)
    head = found and bare(found)
    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and layer is not head and kept.isdisjoint(name.split("."))
    }
