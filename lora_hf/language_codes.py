"""Languages as texts are scored by: a code of ISO 639, as a tokenizer writes it, or an English name."""

import re

from lora_hf.errors import UserError, did_you_mean

SNOWBALL = {
    "arabic": ("ar", "ara", "arb"),
    "danish": ("da", "dan"),
    "dutch": ("nl", "nld", "dut"),
    "finnish": ("fi", "fin"),
    "french": ("fr", "fra", "fre"),
    "german": ("de", "deu", "ger"),
    "hungarian": ("hu", "hun"),
    "italian": ("it", "ita"),
    "norwegian": ("nb", "nn", "no", "nob", "nno", "nor"),
    "portuguese": ("pt", "por"),
    "romanian": ("ro", "ron", "rum"),
    "russian": ("ru", "rus"),
    "spanish": ("es", "spa"),
    "swedish": ("sv", "swe"),
}
"""The languages for which NLTK has a Snowball stemmer, and their codes of ISO 639."""
_NAMES = {name: codes[0] for name, codes in SNOWBALL.items()} | {
    "english": "en", "chinese": "zh", "mandarin": "zh", "cantonese": "yue", "japanese": "ja", "korean":
    "ko", "thai": "th", "lao": "lo", "khmer": "km", "burmese": "my", "greek": "el", "turkish": "tr",
    "polish": "pl", "czech": "cs", "slovak": "sk", "bulgarian": "bg", "ukrainian": "uk", "serbian":
    "sr", "croatian": "hr", "hebrew": "he", "hindi": "hi", "bengali": "bn", "urdu": "ur", "tamil": "ta",
    "telugu": "te", "persian": "fa", "farsi": "fa", "vietnamese": "vi", "indonesian": "id", "malay":
    "ms", "swahili": "sw", "catalan": "ca", "basque": "eu", "galician": "gl", "irish": "ga", "welsh":
    "cy", "icelandic": "is", "estonian": "et", "latvian": "lv", "lithuanian": "lt", "yoruba": "yo",
    "hausa": "ha", "igbo": "ig", "zulu": "zu", "amharic": "am", "georgian": "ka", "armenian": "hy",
    "kazakh": "kk", "nepali": "ne", "marathi": "mr",
}  # fmt: skip
_TWO_LETTERS = frozenset(
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de "
    "dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id "
    "ie ig ii ik io is it iu iw ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt "
    "lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt "
    "qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn "
    "to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu".split()
)


_SAME = {code: codes[0] for codes in SNOWBALL.values() for code in codes} | {
    "eng": "en", "zho": "zh", "chi": "zh", "cmn": "zh", "jpn": "ja", "kor": "ko", "tha": "th", "lao": "lo",
    "khm": "km", "mya": "my", "bur": "my",
}  # fmt: skip


def primary_code(language: str | None) -> str | None:
    """Return the language itself of a code: `de` of `de_DE`, `__de__`, `deu_Latn` and `German`."""
    if not language:
        return None
    first = re.split(r"[_-]", language.strip().strip("_").casefold())[0]
    return _NAMES.get(first, _SAME.get(first, first))


def check_language(language: str | None) -> str | None:
    """Return the language, which must be a code of ISO 639 or a known English name.

    Raises:
        UserError: it is neither.
    """
    code = primary_code(language)
    if code is None or code in _TWO_LETTERS or re.fullmatch("[a-z]{3}", code):
        return language
    raise UserError(
        f"language={language!r} is neither a code of ISO 639, such as de or deu_Latn, nor a known name."
        f"{did_you_mean(code, _NAMES)}"
    )
