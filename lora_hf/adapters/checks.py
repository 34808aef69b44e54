"""What each field of a `LoraConfig` may hold: one line a field."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from lora_hf.errors import NOT_REGULAR, UserError

Holds = Callable[[Any], bool]
Rule = tuple[Holds, str]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return _number(value) and isinstance(value, int)


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _names(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_text, value))


def _optional(rule: Rule) -> Rule:
    return lambda value: value is None or rule[0](value), rule[1]


def _pattern(values: str) -> Rule:
    return (
        lambda value: isinstance(value, dict) and all(map(_text, value)),
        f"is no dict of layer names to {values}",
    )


COUNT: Rule = (lambda value: _whole(value) and value >= 1, "is not a whole number of at least 1")
POSITIVE: Rule = (lambda value: _number(value) and 0 < value < float("inf"), "is not a finite number above 0")
RATE: Rule = (lambda value: _number(value) and 0 <= value < 1, "is not a number in [0, 1)")
FLAG: Rule = (lambda value: isinstance(value, bool), "is neither True nor False")
TARGETS: Rule = (
    lambda value: isinstance(value, str) or _names(value),
    "is no list of layer names, such as ['q', 'v'], nor one regular expression",
)
INDICES: Rule = (
    lambda value: isinstance(value, tuple) and value != () and all(_whole(i) and i >= 0 for i in value),
    "is no list of blocks, counted from 0; None takes all",
)
RULES: dict[str, Rule] = {
    "r": COUNT,
    "lora_alpha": POSITIVE,
    "lora_dropout": RATE,
    "target_modules": TARGETS,
    "exclude_modules": TARGETS,
    "layers_to_transform": _optional(INDICES),
    "rank_pattern": _pattern("ranks"),
    "alpha_pattern": _pattern("alphas"),
    "modules_to_save": (_names, "is no list of layer names, such as ['lm_head']"),
    "use_rslora": FLAG,
    "use_dora": FLAG,
    "use_qalora": FLAG,
    "qalora_group_size": _optional(COUNT),
    "init_lora_weights": (lambda value: isinstance(value, (bool, str)), "is neither True nor a start's name"),
    "loftq_iter": COUNT,
}
PATTERN_RULES = {"rank_pattern": COUNT, "alpha_pattern": POSITIVE}


def check_fields(fields: Mapping[str, Any]) -> None:
    """Refuse the first field whose value is of another kind, or out of its range.

    Raises:
        UserError: it names the field and the value.
    """
    for name, rule in RULES.items():
        _check(name, fields[name], rule)
    for name, rule in PATTERN_RULES.items():
        for key, value in fields[name].items():
            _check(f"{name}[{key!r}]", value, rule)
            _check_expression(name, key)
    for name in ("target_modules", "exclude_modules"):
        if isinstance(fields[name], str):
            _check_expression(name, fields[name])


def _check(name: str, value: Any, rule: Rule) -> None:
    holds, otherwise = rule
    if not holds(value):
        written = list(value) if isinstance(value, tuple) else value
        raise UserError(f"lora.{name}={written!r} {otherwise}")


def _check_expression(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except NOT_REGULAR as error:
        raise UserError(f"lora.{name}={pattern!r} is not a regular expression: {error}") from None
