"""The languages of a multilingual model: in its texts, in its labels, and where its generation begins.

mBART, NLLB, M2M100, PLBart and Seamless mark each text with a token of its language. Their tokenizers have a
source and a target language, which the config's `data.source_language` and `data.target_language` set.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch

from lora_hf.config import DataConfig
from lora_hf.errors import UserError, did_you_mean, few
from lora_hf.language_codes import primary_code
from lora_hf.models.exported import ExportedModel

logger = logging.getLogger(__name__)

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that have a name of their own and so are no language."""
FIXED = {"source_language": ("src_lang", "source_lang"), "target_language": ("tgt_lang", "target_lang")}
"""Attributes that hold the only language of a tokenizer for one pair of languages (FSMT, Marian)."""


class Frame(NamedTuple):
    """Special tokens that a tokenizer puts around a text: mBART `X </s> en_XX`, NLLB `eng_Latn X </s>`."""

    head: list[int]
    tail: list[int]


def languages(tokenizer: Any) -> dict[str, int]:
    """Return the token of each language by its code; empty for a tokenizer that marks none in its texts."""
    if by_code := getattr(tokenizer, "lang_code_to_token", None):
        return {code: tokenizer.get_lang_id(code) for code in by_code}
    if not hasattr(tokenizer, "_switch_to_target_mode") or not hasattr(tokenizer, "src_lang"):
        return {}
    named = {getattr(tokenizer, name) for name in NAMED}
    tokens = [token for token in tokenizer.all_special_tokens if token not in named]
    return {token.strip("_"): tokenizer.convert_tokens_to_ids(token) for token in tokens}


@contextmanager
def in_languages(tokenizer: Any, data: DataConfig) -> Iterator[None]:
    """Inside the block the tokenizer has the config's languages, and its own where the config names none.

    Without a target language of either, it is the source language where the tokenizer needs one.

    Raises:
        UserError: the tokenizer does not know a language.
    """
    check_languages(tokenizer, data)
    if not languages(tokenizer):
        yield
        return
    before = tokenizer.src_lang, tokenizer.tgt_lang
    try:
        if data.target_language:
            tokenizer.tgt_lang = data.target_language.strip("_")
        if source := data.source_language or tokenizer.src_lang:  # PLBart's has none of its own
            tokenizer.src_lang = source.strip("_")
        if tokenizer.tgt_lang is None and hasattr(tokenizer, "lang_code_to_token"):
            tokenizer.tgt_lang = tokenizer.src_lang  # M2M100 has no labels without a language
        yield
    finally:
        tokenizer.tgt_lang = before[1]
        tokenizer.src_lang = before[0]


def check_languages(tokenizer: Any, data: DataConfig) -> None:
    """Check that the tokenizer knows the config's languages.

    Raises:
        UserError: it knows others, or none.
    """
    known = languages(tokenizer)
    for field, names in FIXED.items():
        code = getattr(data, field)
        if code is None or code.strip("_") in known:
            continue
        wrong = f"data.{field}={code!r}: the model's tokenizer"
        if known:
            of_language = [mark for mark in known if primary_code(mark) == primary_code(code)]
            suggested = f" Did you mean {few(map(repr, of_language))}?" if of_language else ""
            near = suggested or did_you_mean(code, known) or f" Known are {few(map(repr, known))}."
            raise UserError(f"{wrong} does not know this language.{near}")
        own = next((value for name in names if (value := getattr(tokenizer, name, None))), None)
        if marks := getattr(tokenizer, "supported_language_codes", None):
            raise UserError(
                f"{wrong} takes the target language from the beginning of each source: leave out the field, "
                f"and begin data.prompt with one of {few(map(repr, marks))}"
            )
        if own is None:
            raise UserError(f"{wrong} has no languages: leave out the field, and name it in data.prompt")
        if code != own:
            raise UserError(f"{wrong} is for {own!r} alone: leave out the field, or use another model")


@contextmanager
def target_vocabulary(tokenizer: Any) -> Iterator[None]:
    """Inside the block a tokenizer with two vocabularies writes in that of the target.

    FSMT's tokenizer ignores `text_target`: it encodes every text by the source's vocabulary, and decodes by
    the target's.
    """
    if not hasattr(tokenizer, "tgt_vocab_size"):
        yield
        return
    before = tokenizer.encoder, tokenizer.src_lang
    tokenizer.encoder = {token: number for number, token in tokenizer.decoder.items()}
    tokenizer.src_lang = tokenizer.tgt_lang
    try:
        yield
    finally:
        tokenizer.encoder, tokenizer.src_lang = before


def frame(tokenizer: Any, is_target: bool = False) -> Frame:
    """Return the special tokens around a text, or around a target, in the tokenizer's present languages."""
    kind = "text_target" if is_target else "text"
    whole, text = (tokenizer(**{kind: "a"}, add_special_tokens=add).input_ids for add in (True, False))
    starts = range(len(whole) - len(text), -1, -1)
    at = next((at for at in starts if whole[at : at + len(text)] == text), len(whole))
    return Frame(whole[:at], whole[at + len(text) :])


def language_start(model: Any, tokenizer: Any, data: DataConfig) -> dict[str, int]:
    """Return how generation begins in the labels' language, as keywords of `generate`; empty without one.

    A language before the labels' text is the first token that is written (mBART-50, NLLB, M2M100, Seamless);
    one behind the text is what the decoder starts from, as these models shift it there (mBART, PLBart). An
    exported model has the start of its language in its generation settings. A warning names the language
    that is taken where neither the config nor the tokenizer has one of the labels.

    Raises:
        UserError: the tokenizer does not know a language, or the model was exported for another one.
    """
    if isinstance(model, ExportedModel):
        check_languages(tokenizer, data)
        model.check_language(data.target_language)
        return {}
    codes = {token: code for code, token in languages(tokenizer).items()}
    known = set(codes)
    if not known:
        return {}
    is_open = data.target_language is None and tokenizer.tgt_lang is None
    with in_languages(tokenizer, data):
        around = frame(tokenizer, is_target=True)
    if is_open:
        taken = [codes[token] for token in (*around.head, *around.tail) if token in known]
        _warn_once(
            f"data.target_language is not set: outputs are in {taken[0] if taken else None!r}, which the "
            "tokenizer has for sources. For another language set data.target_language, also in predict; "
            'an adapter records it as "target_language" in its lora_hf.json'
        )
    if found := [token for token in around.head if token in known]:
        return {"forced_bos_token_id": found[0]}
    for token in around.tail:
        if token in known:
            shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
            is_start = shift and shift(torch.tensor([[*around.head, *around.tail]]))[0, 0] == token
            return {"decoder_start_token_id" if is_start else "forced_bos_token_id": token}
    return {}


@cache  # each call that generates comes here
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def set_language(model: Any, tokenizer: Any, data: DataConfig) -> None:
    """Let the model's generation settings begin in the labels' language."""
    for name, token in language_start(model, tokenizer, data).items():
        setattr(model.generation_config, name, token)


def decode(tokenizer: Any, tokens: Any) -> list[str]:
    """Return the texts of generated tokens (rows, length), without special tokens and languages.

    M2M100's tokenizer does not count its languages among the special tokens.
    """
    if marks := set(languages(tokenizer).values()):
        tokens = [[token for token in map(int, row) if token not in marks] for row in tokens]
    texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return texts
