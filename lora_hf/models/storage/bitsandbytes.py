"""bitsandbytes, as Transformers loads it: NF4 and FP4 (QLoRA, arXiv:2305.14314), int8 (arXiv:2208.07339)."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING as MODEL_CLASSES
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from lora_hf.adapters.weight_readers import casts_to_weight
from lora_hf.config import ModelConfig
from lora_hf.errors import UserError
from lora_hf.families import INT8, family_of
from lora_hf.models.checkpoint import load_checkpoint
from lora_hf.models.storage.base import StorageFormat
from lora_hf.system import resolve_dtype


class BitsAndBytes(StorageFormat):
    """Loading that the formats of bitsandbytes share."""

    def settings(self, config: ModelConfig, device: torch.device, casts: bool) -> BitsAndBytesConfig:
        """Return the `quantization_config` of `from_pretrained`.

        Args:
            config: the settings of the format.
            device: where the model goes.
            casts: whether a layer that is quantized has its input cast to its weight's dtype.
        """
        raise NotImplementedError

    def load(self, name: str, config: ModelConfig, device: torch.device, options: dict[str, Any]) -> Any:
        architecture = AutoConfig.from_pretrained(name, trust_remote_code=False)
        settings = self.settings(config, device, config.quantize_wo or has_cast_input(architecture))
        quantization = {"quantization_config": settings, "device_map": {"": device}}
        with nothing_kept_dense(architecture) if config.quantize_wo else nullcontext():
            return load_checkpoint(name, config.as_written, **options, **quantization)


class FourBit(BitsAndBytes):
    """NF4 or FP4, as `bnb_4bit_quant_type` has it.

    T5 casts the input of `wo` to `wo.weight.dtype` unless that is int8. Packed 4-bit weights are uint8, and
    activations rounded to uint8 give garbage (a cosine of 0.06 with the dense model's logits, not 0.98):
    where `wo` is quantized, the same bits are kept as int8. In T5 that is on request; Transformers quantizes
    that of Switch and LongT5.
    """

    def settings(self, config: ModelConfig, device: torch.device, casts: bool) -> BitsAndBytesConfig:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=config.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=resolve_dtype(config.bnb_4bit_compute_dtype, device),
            bnb_4bit_quant_storage=torch.int8 if casts else torch.uint8,
        )

    def bytes_per_weight(self, config: ModelConfig) -> float:
        scale = 4.0  # bytes per block of 64 weights
        if config.bnb_4bit_use_double_quant:
            scale = 1 + 4 / 256  # a byte, and a float32 per 256 of these
        return 0.5 + scale / 64


class Int8(BitsAndBytes):
    """int8, one scale per output row."""

    def check_model(self, model: Any, config: ModelConfig) -> None:
        self._check_family(model.config)

    def load(self, name: str, config: ModelConfig, device: torch.device, options: dict[str, Any]) -> Any:
        self._check_family(AutoConfig.from_pretrained(name, trust_remote_code=False))
        return super().load(name, config, device, options)

    def _check_family(self, settings: PretrainedConfig) -> None:
        if reason := family_of(settings).impossible.get(INT8):
            raise UserError(
                f"model.load_in_8bit=true does not work with {settings.model_type}: {reason}; add "
                "model.quant_method: torchao, or use model.load_in_4bit: true"
            )

    def settings(self, config: ModelConfig, device: torch.device, casts: bool) -> BitsAndBytesConfig:
        # It warns per layer and step that activations are rounded to float16 on their way to int8.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)

    def bytes_per_weight(self, config: ModelConfig) -> float:
        return 1.0


def has_cast_input(architecture: PretrainedConfig) -> bool:
    """Return whether a model casts the input of a layer that is quantized to the dtype of its weight."""
    with torch.device("meta"):
        model: Any = AutoModelForSeq2SeqLM.from_config(architecture, trust_remote_code=False)
    kept = set(model._keep_in_fp32_modules or ())
    return any(set(casts_to_weight(module)) - kept for module in model.modules())


@contextmanager
def nothing_kept_dense(architecture: PretrainedConfig) -> Iterator[None]:
    """Empty the `_keep_in_fp32_modules` (T5's: `wo`) of an architecture's class while a model of it loads.

    Transformers quantizes none of these and has no argument to change that. The list is a class attribute
    that the encoder and decoder stacks read too, so it is emptied where it is defined.
    """
    model_class: Any = MODEL_CLASSES.get(type(architecture), PreTrainedModel)
    owner: Any = next(c for c in model_class.__mro__ if "_keep_in_fp32_modules" in vars(c))
    kept, owner._keep_in_fp32_modules = owner._keep_in_fp32_modules, None
    try:
        yield
    finally:
        owner._keep_in_fp32_modules = kept
