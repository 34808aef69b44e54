"""The direction of a `translation: {de: ..., en: ...}`: from which language into which.

`data.source_language` and `data.target_language` decide. Without them the order in the file does, where it
means something: parquet, arrow, `save_to_disk` and the Hub sort the languages by the alphabet.
"""

from typing import Any

from lora_hf.config import DataConfig
from lora_hf.errors import UserError, listed

TRANSLATION = "translation"


def languages_in(head: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the languages of the first rows in the order of their first appearance."""
    found = [row[TRANSLATION] for row in head if isinstance(row.get(TRANSLATION), dict)]
    return tuple(dict.fromkeys(language for one in found for language in one))


def common_order(head: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the languages in the order in which all first rows have them; empty if the rows differ."""
    orders = {tuple(row[TRANSLATION]) for row in head if isinstance(row.get(TRANSLATION), dict)}
    return orders.pop() if len(orders) == 1 else ()


def direction(
    languages: tuple[str, ...], config: DataConfig, source: str, order: tuple[str, ...]
) -> tuple[str, str]:
    """Return the source's language and the target's.

    Args:
        languages: those of the rows.
        config: the codes, if it gives them.
        source: what messages call the rows.
        order: the languages with the source first; empty where their order means nothing.

    Raises:
        UserError: neither the codes nor the order decide; the message names the fields that do.
    """
    codes = {field: getattr(config, field) for field in ("source_language", "target_language")}
    codes = {field: code for field, code in codes.items() if code is not None}
    if not codes and len(order) == 2:
        return order[0], order[1]
    if codes:
        found = {field: _of_code(code, languages) for field, code in codes.items()}
        first, second = found.get("source_language"), found.get("target_language")
        others = [language for language in languages if language not in (first, second)]
        if None not in found.values() and len(languages) == 2 and len(found) == 1:
            first, second = first or others[0], second or others[0]
        if first is not None and second is not None and first != second:
            return first, second
    why = " and ".join(f"data.{field}={code!r}" for field, code in codes.items())
    reason = f"{why} does not say which is the source" if why else "nothing says which is the source"
    last, first = languages[-1], languages[0]
    raise UserError(
        f"{source}: {TRANSLATION} has the languages {listed(list(languages))}, and {reason}; set "
        f"data.dialogue_column: {TRANSLATION}.{last} and data.summary_column: {TRANSLATION}.{first}, "
        "or the other way round"
    )


def _of_code(code: str, languages: tuple[str, ...]) -> str | None:
    """Return the only language that a tokenizer's code stands for: `deu_Latn` and `de_DE` are `de`."""
    if code in languages:
        return code
    same = [language for language in languages if _two_letters(language) == _two_letters(code)]
    return same[0] if len(same) == 1 else None


def _two_letters(code: str) -> str:
    """Return the language of a code without its script and country, by ISO 639-1 where it is in there."""
    language = code.strip("_").replace("-", "_").partition("_")[0].lower()
    if len(language) != 3:
        return language
    from nltk.langnames import iso639short

    return str(iso639short.get(language, language))
