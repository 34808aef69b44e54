"""Check that a model is of a kind that the commands take: an encoder-decoder from text to text.

Transformers' own tables say it: `AutoModelForSeq2SeqLM` lists such models, and other Auto classes list the
rest. Nothing here names a model.
"""

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from lora_hf.errors import UserError

TEXT_TO_TEXT = "AutoModelForSeq2SeqLM"
GUIDES = {
    "AutoModelForSpeechSeq2Seq": "docs/other_models.md",
    "AutoModelForImageTextToText": "docs/other_models.md",
    "AutoModelForMaskedLM": "docs/other_models.md",
    "AutoModelForCausalLM": "notebooks/decoder_only.ipynb",
    "AutoModelForImageClassification": "notebooks/vision_vit.ipynb",
}
"""Auto class -> where the Python API is shown with such a model. Of several classes that list a model, the
first one here is named."""
GUIDE = "docs/other_models.md"
"""The same for models of all other classes."""
HALVES = {"AutoModelForTextEncoding": "an encoder", "AutoModelForCausalLM": "a decoder"}
"""Auto classes that load one half of an encoder-decoder -> the half."""
GENERAL = ("AutoModelForPreTraining", "AutoModelForTextEncoding", "AutoModel")
"""Auto classes that say the least about a model: named where no other lists it."""


def is_text_to_text(model_type: str) -> bool:
    """Return whether Transformers lists a `model_type` as an encoder-decoder from text to text.

    The same list has speech models that are not encoder-decoders.
    """
    listed = modeling_auto.AutoModelForSeq2SeqLM._model_mapping  # with what a program has registered
    if model_type not in listed._model_mapping and not listed._extra_content:
        return False  # its config need not be imported
    config = CONFIG_MAPPING[model_type]
    return config in listed and bool(getattr(config, "is_encoder_decoder", False))


def check_kind(settings: Mapping[str, Any], model: str) -> None:
    """Check that a base model is an encoder-decoder from text to text.

    A `model_type` that is missing, or that Transformers does not know, is left to Transformers' own error.

    Args:
        settings: the contents of config.json.
        model: the model as errors name it.

    Raises:
        UserError: it is another model of Transformers, or one half of an encoder-decoder, or a pair whose
            encoder is itself an encoder-decoder. The message says which, and, where it helps, where the
            Python API is shown with it.
    """
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return
    classes = settings.get("architectures")
    built = classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else ""
    if is_text_to_text(kind):
        _check_whole(kind, built, model)
        _check_encoder(settings, model)
        return
    auto = _auto_class(kind, built)
    loaded = f", which Transformers loads with {auto}" if auto else ""
    raise UserError(
        f"{model} is not an encoder-decoder from text to text, the only kind that the commands work with "
        f"({TEXT_TO_TEXT}: T5, BART, NLLB and others). Its config.json says model_type {kind!r}"
        f"{f' ({built})' if built else ''}{loaded}. Use the Python API instead ({GUIDES.get(auto, GUIDE)}): "
        "load the model with Transformers, add adapters with lora_hf.inject_adapters and train with "
        "lora_hf.LoraTrainer"
    )


def _check_whole(kind: str, built: str, model: str) -> None:
    """Refuse one half of an encoder-decoder, such as T5EncoderModel, whose other half would be random."""
    tables = _tables()
    half = next((h for auto, h in HALVES.items() if built and built == tables.get(auto, {}).get(kind)), None)
    if half:
        raise UserError(
            f"{model} is {half} alone (architectures: [{built!r}] in its config.json), and the commands work "
            f"with whole encoder-decoders: give a checkpoint of {tables[TEXT_TO_TEXT][kind]}, or train this "
            f"one with the Python API ({GUIDE})"
        )


def _check_encoder(settings: Mapping[str, Any], model: str) -> None:
    """Refuse a pair of models (`EncoderDecoderModel`) whose encoder has a decoder of its own."""
    encoder = settings.get("encoder")
    inner = encoder.get("model_type") if isinstance(encoder, dict) else None
    if isinstance(inner, str) and inner in CONFIG_MAPPING and is_text_to_text(inner):
        raise UserError(
            f"{model}: the encoder in its config.json is itself an encoder-decoder (model_type {inner!r}), "
            "and Transformers cannot run such a pair. Make the pair with an encoder, such as BERT, or use "
            f"the {inner} model alone"
        )


def _auto_class(kind: str, built: str) -> str:
    """Return the Auto class of a model: that of its architecture, or else of its type; empty for none."""
    tables = _tables()
    order = [*GUIDES, *(name for name in tables if name not in (*GUIDES, *GENERAL, TEXT_TO_TEXT)), *GENERAL]
    order = [name for name in order if name in tables]
    by_class = (name for name in order if built and _holds(tables[name].get(kind), built))
    return next(by_class, None) or next((name for name in order if kind in tables[name]), "")


def _holds(classes: Any, built: str) -> bool:
    return built in (classes if isinstance(classes, tuple | list) else (classes,))


def _tables() -> dict[str, Mapping[str, Any]]:
    """Return Transformers' tables: name of an Auto class -> model_type -> name of the model's class."""
    found = {}
    for name, auto in vars(modeling_auto).items():
        if name.startswith("AutoModel") and (table := getattr(auto, "_model_mapping", None)) is not None:
            found[name] = table._model_mapping
    return found
