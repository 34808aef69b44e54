"""Words and sentences of texts in any script, as ROUGE counts them.

`rouge_score` takes runs of a-z and 0-9 as words, which drops every letter of other alphabets: two equal
Russian texts score 0, and two Korean ones that share a number score 1. Published English scores are made
that way, so English texts keep it to the bit (`ENGLISH`), but for a pair of texts of which it would drop a
tenth of the letters. Other texts are normalized (NFKC, case folding) and divided at the word boundaries of
Unicode (UAX #29, by the package `regex`), which fall between all characters in scripts that are written
without spaces, such as Chinese, Japanese and Thai (`UNICODE`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, cast
from unicodedata import normalize

import regex

from lora_hf.language_codes import SNOWBALL, primary_code

if TYPE_CHECKING:
    from nltk.tokenize.punkt import PunktSentenceTokenizer

TokenizerName = Literal["english", "unicode"]
ENGLISH: TokenizerName = "english"
UNICODE: TokenizerName = "unicode"
PORTER = "Porter"
OTHER_LETTERS = 0.01
"""Share of letters outside a-z from which references are not taken as English. DialogSum's 14,460 references
have none; an English text may hold a name with an accent."""
LOST_LETTERS = 0.1
"""Share of a text's letters outside a-z from which English words do not stand for it."""

_LETTER = regex.compile(r"\p{L}")
_OTHER_LETTER = regex.compile(r"[\p{L}\p{Nd}--[a-zA-Z0-9]]", regex.V1)
_BOUNDARY = regex.compile(r"(?w)\b", regex.V1)
_ENGLISH_BOUNDARY = regex.compile("(?<=[a-zA-Z0-9])(?![a-zA-Z0-9])|(?<![a-zA-Z0-9])(?=[a-zA-Z0-9])", regex.V1)
_WORD = regex.compile(r"[\p{L}\p{N}]")
# Ends of sentences that no space follows, or that Punkt does not know; and Greek's question mark.
_ENDS, _CLOSING = "。｡！？।॥۔؟։።፧။។", '」』”’）】»"'
_SENTENCE_END = regex.compile(rf"(?<=[{_ENDS}]+[{_CLOSING}]*|(?<=\p{{Greek}});)\s*(?![{_CLOSING}{_ENDS}]|$)")

# Two are missing on purpose: "No." is an answer in a dialogue, and "etc." mostly ends its sentence.
_ABBREVIATIONS = (
    "mr mrs ms dr prof st mt jr sr inc co ltd corp dept vs e.g i.e a.m p.m u.s u.k l.a d.c b.a m.a ph.d "
    "jan feb aug sept oct nov dec"
)
_SENTENCE_STARTERS = (
    "he she it they we you i the this that there but and then so"  # "at 5 p.m. He", "the U.S. The"
)
_CODES = {codes[0]: name for name, codes in SNOWBALL.items()}


@dataclass(frozen=True)
class RougeTokenizer:
    """Divides texts into the words and sentences that ROUGE compares."""

    name: TokenizerName
    stemmer: str | None = None
    """The stemmer of `UNICODE`: one of Snowball's, or Porter's; `ENGLISH` has Porter's."""

    def for_pair(self, prediction: str, reference: str) -> "RougeTokenizer":
        """Return the tokenizer for two texts that are compared.

        It is this one, unless English words would leave out `LOST_LETTERS` or more of a text's letters: then
        the words of both are Unicode's, with Porter's stems. The rule sees this pair alone, so that the
        outputs of one model do not change how those of another are scored.
        """
        if self.name != ENGLISH or (prediction.isascii() and reference.isascii()):
            return self
        counts = map(_count_letters, (prediction, reference))
        is_lost = any(others and others >= LOST_LETTERS * letters for letters, others in counts)
        return RougeTokenizer(UNICODE, PORTER) if is_lost else self

    def tokenize(self, text: str) -> list[str]:
        """Return the stems of a text's words."""
        if self.name == ENGLISH:
            return _english(text, _porter())
        stem = _stem_of(self.stemmer)
        return [stem(word) if len(word) > 3 else word for word in unicode_words(text)]

    def parts(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield the parts of a text in order, each with the stem of its word; of no word, an empty one."""
        boundary = _ENGLISH_BOUNDARY if self.name == ENGLISH else _BOUNDARY
        for part in boundary.split(text):
            yield part, "".join(self.tokenize(part))

    def count_words(self, text: str) -> int:
        """Return the number of a text's words without computing their stems."""
        return len(_english(text, None) if self.name == ENGLISH else unicode_words(text))

    def split_sentences(self, text: str) -> str:
        """Put each sentence on its own line; only white space changes, and existing lines stay."""
        sentences = (sentence for line in text.split("\n") for sentence in _punkt().tokenize(line))
        if self.name == UNICODE:
            sentences = (part for sentence in sentences for part in _SENTENCE_END.split(sentence))
        return "\n".join(sentences)

    def __str__(self) -> str:
        stems = "Porter stems" if self.name == ENGLISH else f"{self.stemmer or 'no'} stems"
        return f"{self.name}, {stems}"


def choose_tokenizer(references: Iterable[str], language: str | None = None) -> RougeTokenizer:
    """Return the tokenizer for texts like these.

    Only references count: all models of a comparison have the same ones.

    Args:
        references: the texts to compare with.
        language: their language, if it is known: a code such as "de", "de_DE", "deu_Latn" or "__de__", or a
            name such as "german". It chooses the stemmer, and any but English chooses `UNICODE`. Without it,
            texts in which less than `OTHER_LETTERS` of the letters are outside a-z are taken as English.
    """
    code = primary_code(language)
    if code and code != "en":
        return RougeTokenizer(UNICODE, _CODES.get(code))
    letters = others = 0
    for text in references:
        of_text = _count_letters(text)
        letters, others = letters + of_text[0], others + of_text[1]
    if others and others >= OTHER_LETTERS * letters:
        return RougeTokenizer(UNICODE, PORTER if code else None)
    return RougeTokenizer(ENGLISH)


def _count_letters(text: str) -> tuple[int, int]:
    """Return the numbers of letters, and of letters and digits that no English word has.

    A letter and its mark are one letter.
    """
    if text.isascii():
        return sum(map(str.isalpha, text)), 0
    text = normalize("NFC", text)
    return len(_LETTER.findall(text)), len(_OTHER_LETTER.findall(text))


def unicode_words(text: str) -> list[str]:
    """Return the words of UAX #29 that hold a letter or a digit, normalized and case-folded."""
    parts = _BOUNDARY.split(normalize("NFKC", normalize("NFKC", text).casefold()))
    return [part for part in parts if _WORD.search(part)]


def has_words(text: str) -> bool:
    """Return whether a text has a letter or a digit, and so a word; one of signs alone has none."""
    return _WORD.search(text) is not None


_SPACELESS_LETTER = regex.compile(
    r"(?=\p{L})[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]", regex.V1
)
LONGEST_WORDS = 6
"""Mean letters of a word beyond which such texts are not divided by spaces; words of Chinese have two."""


def is_spaceless(texts: Iterable[str]) -> bool:
    """Return whether most letters are of scripts without spaces, and words are not divided by spaces."""
    text = " ".join(texts)
    letters = 0 if text.isascii() else len(_LETTER.findall(text))
    few_spaces = letters > LONGEST_WORDS * len(text.split())
    return few_spaces and len(_SPACELESS_LETTER.findall(text)) > 0.5 * letters


def spaced_words(text: str) -> list[str]:
    """Return the words between spaces; of a text in a script without spaces those of `unicode_words`."""
    return unicode_words(text) if not text.isascii() and _SPACELESS_LETTER.search(text) else text.split()


def _english(text: str, stemmer: SimpleNamespace | None) -> list[str]:
    from rouge_score.tokenize import tokenize

    words: list[str] = tokenize(normalize("NFC", text), stemmer)
    return words


@cache
def _porter() -> SimpleNamespace:
    """Return the Porter stemmer with a cache, which halves the time of scoring."""
    from nltk.stem.porter import PorterStemmer

    return SimpleNamespace(stem=cache(PorterStemmer().stem))


def _stem_of(stemmer: str | None) -> Callable[[str], str]:
    if stemmer == PORTER:
        return cast(Callable[[str], str], _porter().stem)
    return _snowball(stemmer) if stemmer else str


@cache
def _snowball(language: str) -> Callable[[str], str]:
    from nltk.stem.snowball import SnowballStemmer

    return cache(SnowballStemmer(language).stem)


@cache
def _punkt() -> "PunktSentenceTokenizer":
    """Return Punkt (Kiss and Strunk 2006) with abbreviations and sentence starters, without training."""
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    known = PunktParameters()
    known.abbrev_types.update(_ABBREVIATIONS.split())
    known.sent_starters.update(_SENTENCE_STARTERS.split())
    return PunktSentenceTokenizer(known)
