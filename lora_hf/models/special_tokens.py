"""The tokens without which an encoder-decoder model neither trains nor ends: padding, end, decoder start.

A checkpoint names them in its tokenizer, in config.json or in generation_config.json, and not always in all
of them: BERT's tokenizer has no end token, T5Gemma's config no decoder start.
"""

import logging
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from lora_hf.adapters.embeddings import embedding_rows
from lora_hf.errors import UserError
from lora_hf.families import UNKNOWN, family_of
from lora_hf.files import read_object
from lora_hf.models.languages import languages

TOKENIZER = ("tokenizer_config.json", "tokenizer.json")
logger = logging.getLogger(__name__)
CONFIG, GENERATION = "config.json", "generation_config.json"


def complete_tokenizer(tokenizer: Any, config: Any, folder: Path, model: str) -> None:
    """Name the tokens that a tokenizer lacks and its model's configuration has; set its target language.

    A tokenizer without an end token ends texts with its separator, if it has one. A checkpoint that writes
    one language (mBART's `decoder_start_token_id`, mBART-50's `forced_bos_token_id`) says the language of
    labels, where the tokenizer does not.

    Args:
        tokenizer: as loaded.
        config: its model's configuration.
        folder: the files of its model.
        model: the model as errors name it.

    Raises:
        UserError: no place names the padding, the end, or what the decoder starts from.
    """
    if not getattr(config, "is_encoder_decoder", False):
        return
    generation, written = generation_settings(folder), SimpleNamespace(**read_object(folder / CONFIG))
    separator = SimpleNamespace(eos_token_id=tokenizer.sep_token_id)
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, name) is None:  # a default of the config's class comes last
            token = _first(f"{name}_id", written, generation, separator, config)
            if token is not None and token < len(tokenizer):
                setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token))
    missing = [
        f'no {what} ("{name}" of tokenizer_config.json)'
        for what, name in (("padding token", "pad_token"), ("end token", "eos_token"))
        if getattr(tokenizer, name) is None
    ]
    if not missing and decoder_start(config, generation, tokenizer) is None:
        missing = ['no token that the decoder starts from ("decoder_start_token_id" of config.json)']
    if missing:
        raise UserError(
            f"{model}: its tokenizer, {CONFIG} and {GENERATION} name {' and '.join(missing)}; add it there"
        )
    codes = {token: code for code, token in languages(tokenizer).items()}
    begin = _first("forced_bos_token_id", generation, config), decoder_start(config, generation, tokenizer)
    spoken = [codes[token] for token in begin if token in codes]
    if spoken and tokenizer.tgt_lang is None:
        tokenizer.tgt_lang = spoken[0]


def generation_settings(folder: Path) -> GenerationConfig:
    """Return a checkpoint's generation_config.json; an empty one where there is none."""
    if not (folder / GENERATION).is_file():
        return GenerationConfig()
    return GenerationConfig.from_pretrained(folder)


def decoder_start(config: Any, generation: GenerationConfig, tokenizer: Any) -> int | None:
    """Return the token that the decoder starts from, or None if neither checkpoint nor family says it.

    Args:
        config: the model's configuration.
        generation: its generation settings.
        tokenizer: its tokenizer, complete; None without one.
    """
    if (token := _first("decoder_start_token_id", config, generation)) is not None:
        return token
    family = family_of(config)
    for kind in () if family is UNKNOWN else family.start:
        name = {"language": "eos"}.get(kind, kind)  # what ends the labels of a text without a language
        if (token := _first(f"{name}_token_id", tokenizer, config, generation)) is not None:
            return token
    return _first("bos_token_id", generation, config)  # as `generate` does


def complete_model(model: Any, folder: Path, name: str) -> None:
    """Write into a loaded model's configuration what it lacks and its tokenizer or its family says.

    Where its tokenizer ends texts, and so labels, with another token than its configuration says, this one
    counts as well, as in Transformers' Trainer: a trained model would not stop where its labels end. Its
    tokenizer's padding token is the one that fills rows of a batch.

    Args:
        model: as loaded, on any device.
        folder: the files of the model; without a tokenizer among them, the family alone is asked.
        name: the model as errors name it.
    """
    config, generation = model.config, model.generation_config
    names = ("decoder_start_token_id", "pad_token_id", "eos_token_id")
    is_complete = all(_first(field, config, generation) is not None for field in names)
    is_outline = model.device.type == "meta"  # of a model that is loaded next
    if is_complete and is_outline:
        return
    tokenizer: Any = None
    if any((folder / file).is_file() for file in TOKENIZER):  # without them, Transformers makes an empty one
        with suppress(Exception):  # whatever ails a tokenizer is reported where it is loaded
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            complete_tokenizer(tokenizer, config, folder, name)
    for field in ("pad_token_id", "eos_token_id"):
        if _first(field, config, generation) is None:
            setattr(config, field, getattr(tokenizer, field, None))
    if _first("decoder_start_token_id", config, generation) is None:
        config.decoder_start_token_id = decoder_start(config, generation, tokenizer)
    pad, rows = getattr(tokenizer, "pad_token_id", None), embedding_rows(model)
    if pad is not None and (rows is None or pad < rows):  # else the tokenizer does not fit, and is named
        generation.pad_token_id = pad  # fills the rows of texts that have ended, and must not be decoded
    own, known = getattr(tokenizer, "eos_token_id", None), generation.eos_token_id
    known = config.eos_token_id if known is None else known
    ids = known if isinstance(known, list) else [known]
    if own is not None and known is not None and own not in ids:
        generation.eos_token_id = [own, *ids]
        text = "%s: its tokenizer ends texts with the token %d, its config with %s: each ends what is written"
        if not is_outline:
            logger.warning(text, name, own, known)


def _first(name: str, *settings: Any) -> int | None:
    for one in settings:
        value = getattr(one, name, None)
        if value is not None:
            return int(value[0] if isinstance(value, list) else value)
    return None
