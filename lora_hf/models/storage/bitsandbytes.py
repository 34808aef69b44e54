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

from lora_hf.adapters.backends.bitsandbytes import quantized_dtype
from lora_hf.adapters.weight_readers import casts_to_weight
from lora_hf.config import ModelConfig
from lora_hf.config.model import NAME_FIELD
from lora_hf.config.problems import shown
from lora_hf.errors import UserError
from lora_hf.families import INT8, family_of
from lora_hf.models.checkpoint import load_checkpoint, stored_bits
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


STORED = {
    "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_use_double_quant": False,
    "bnb_4bit_compute_dtype": "float32",
}
"""Fields that 4-bit weights are stored with -> their values where config.json does not have them."""


def check_stored(config: ModelConfig, settings: dict[str, Any]) -> str:
    """Check that a base is not asked for in another format than the one in which its files store it.

    A field that has its default counts as not given, because configs are recorded in full. What an adapter
    records of its base is not refused, because nobody can change it.

    Args:
        config: the model and its storage format.
        settings: contents of the base's config.json.

    Returns:
        A sentence about fields that are not those of the stored weights; empty without such fields, if the
        weights are dense, or if `config` asks for no format.

    Raises:
        UserError: the format or a field of it differs; as `stored_bits`.
    """
    bits = stored_bits(settings, config.as_written)
    if bits is None or not config.is_quantized:
        return ""
    if config.storage not in {4: ("nf4", "fp4"), 8: ("int8",)}[bits]:
        raise UserError(
            f"{config.as_written}: its weights are stored in {bits} bits already, by bitsandbytes; "
            "leave out model.load_in_4bit, model.load_in_8bit and model.quant_method"
        )
    stored = settings["quantization_config"]
    held = {name: stored.get(name) or value for name, value in STORED.items()} if bits == 4 else {}
    held = {name: str(x).removeprefix("torch.") if "dtype" in name else x for name, x in held.items()}
    other = {name: value for name, value in held.items() if getattr(config, name) not in (value, "auto")}
    for name, value in other.items():
        asked = getattr(config, name)
        if asked != ModelConfig.model_fields[name].default and config.name_field == NAME_FIELD:
            raise UserError(
                f"model.{name}={shown(asked)} has no effect on {config.as_written}, whose weights are stored "
                f"with {shown(value)} already: remove model.{name}, or give the checkpoint before "
                "quantization"
            )
    if not other:
        return ""
    fields = ", ".join(f"{name}={shown(value)}" for name, value in other.items())
    return (
        f"{config.as_written}: its weights are stored in {bits} bits already and are used as they are, with "
        f"{fields}; model.load_in_{bits}bit=true changes nothing"
    )


def load_stored(
    name: str, config: ModelConfig, device: torch.device, options: dict[str, Any], has_kept: bool
) -> Any:
    """Load a model whose files are quantized by bitsandbytes, as `StorageFormat.load` does.

    Args:
        name: the folder of the model.
        config: the model, for errors.
        device: where the model goes.
        options: keyword arguments of `from_pretrained`.
        has_kept: whether the layers that Transformers leaves dense are quantized in the files.

    Returns:
        The model, its dense parts in the dtype of `options` if `config` names one, else in that of the files.
        A weight to whose dtype activations are cast is in int8, in the same bits.

    Raises:
        UserError: as `load_checkpoint`.
    """
    architecture = AutoConfig.from_pretrained(name, trust_remote_code=False)
    with nothing_kept_dense(architecture) if has_kept else nullcontext():
        model = load_checkpoint(name, config.as_written, **options, device_map={"": device})
    for module in model.modules():
        for child in casts_to_weight(module):
            weight = getattr(module, child).weight
            if quantized_dtype(weight) not in (None, torch.int8):
                weight.data = weight.data.view(torch.int8).reshape(-1, 1)
                weight.quant_storage = torch.int8
    if config.dtype != "auto":
        _cast_dense(model, options["dtype"])
    return model


def _cast_dense(model: Any, dtype: torch.dtype) -> None:
    """Cast what is not quantized, which Transformers leaves in the dtype of the files.

    As it does with a dense checkpoint, T5's `wo` stays in float32 where the others are in float16.
    """
    kept = set(model._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()
    for name, weight in model.named_parameters():
        if (
            weight.is_floating_point()
            and quantized_dtype(weight) is None
            and kept.isdisjoint(name.split("."))
        ):
            weight.data = weight.data.to(dtype)


def storage_of(model: Any, config: ModelConfig) -> str:
    """Return the storage format of a loaded model: a key of `STORAGE_FORMATS`.

    Args:
        model: as `load_model` returns it.
        config: what it was loaded by, which asks for nothing where the files are quantized already.
    """
    stored = getattr(model.config, "quantization_config", None)
    if config.is_quantized or stored is None:
        return config.storage
    return "int8" if stored.load_in_8bit else str(stored.bnb_4bit_quant_type)


def keeps_dense(architecture: PretrainedConfig) -> set[str]:
    """Return the names of layers that Transformers leaves dense in an architecture: T5's `wo`."""
    model_class: Any = MODEL_CLASSES.get(type(architecture), PreTrainedModel)
    return set(model_class._keep_in_fp32_modules or ())


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
