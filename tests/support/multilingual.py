"""Tokenizers of single characters that mark the languages of texts as the multilingual families do."""

from typing import Any

from support.letters import KNOWN
from transformers import MBart50Tokenizer, MBartTokenizer, NllbTokenizer, SeamlessM4TTokenizer
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

BEGIN = ["<s>", "<pad>", "</s>", "<unk>"]


def _unigram() -> list[tuple[str, float]]:
    codes = [*FAIRSEQ_LANGUAGE_CODES, "<mask>"]
    return [
        *((token, 0.0) for token in BEGIN),
        *((c, -3.0) for c in ["▁", *KNOWN]),
        *((c, 0.0) for c in codes),
    ]


def _bpe(begin: list[str] = BEGIN) -> dict[str, Any]:
    return {"vocab": {token: i for i, token in enumerate([*begin, "▁", *KNOWN])}, "merges": []}


def mbart() -> Any:
    """`X </s> en_XX`."""
    return MBartTokenizer(vocab=_unigram())


def mbart50() -> Any:
    """`en_XX X </s>`."""
    return MBart50Tokenizer(vocab=_unigram())


def nllb() -> Any:
    """`eng_Latn X </s>`."""
    return NllbTokenizer(**_bpe())


def seamless() -> Any:
    """`__eng__ X </s>`, targets `</s> __fra__ X </s>`."""
    codes = ["__eng__", "__fra__", "__deu__"]
    begin = ["<pad>", "<unk>", "<s>", "</s>"]
    return SeamlessM4TTokenizer(**_bpe(begin), additional_special_tokens=codes)


MULTILINGUAL = {
    "mbart": (mbart, ("ro_RO", "de_DE")),
    "mbart50": (mbart50, ("ro_RO", "de_DE")),
    "nllb": (nllb, ("ron_Latn", "deu_Latn")),
    "seamless": (seamless, ("eng", "deu")),
}
"""Function that makes each tokenizer, and two languages that are not its default."""
