"""What one adapter is: the fields a person sets, under PEFT's names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lora_hf.adapters.inits import init_for
from lora_hf.errors import NOT_REGULAR, UserError

ALL_LINEAR = "all-linear"
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class LoraConfig:
    """Settings of one adapter (LoRA: Hu et al., arXiv:2106.09685, and its descendants).

    Args:
        r: rank of the update B A; each target trains r * (in_features + out_features) weights.
        lora_alpha: the update is scaled by lora_alpha / r.
        lora_dropout: probability with which an input element of A is zeroed in training.
        target_modules: names of the layers that get an adapter. A list matches whole names or their
            last parts (`q` matches `...SelfAttention.q`); a string is a regular expression that must
            match the full name, or `all-linear`: every linear layer but the output head.
        exclude_modules: names or one regular expression, as above, taken out of the targets.
        layers_to_transform: of the model's stacked blocks, only those with these indices.
        rank_pattern: layer name (or the end of one, or a regular expression) -> its own r; of several
            that match, the first in alphabetical order, which is the order on disk, PEFT's too.
        alpha_pattern: the same -> its own lora_alpha.
        modules_to_save: layers that are copied, trained whole and saved with the adapter.
        use_rslora: scale by lora_alpha / sqrt(r) (arXiv:2312.03732).
        use_dora: learn each output row's norm apart from its direction (arXiv:2402.09353).
        use_qalora: one column of A per quantization group, so that merging is exact (arXiv:2309.14717).
        qalora_group_size: inputs a group; None takes the store's own.
        init_lora_weights: True starts A with Kaiming's uniform distribution, `gaussian` with
            a normal one of deviation 1/r, B at zero. `pissa` (arXiv:2404.02948), `pissa_niter_N` (by a
            randomized SVD of N iterations), `olora` (arXiv:2406.01775) and `loftq` (arXiv:2310.08659) start
            from the weight. The start is the base model, but with the last four on a quantized store.
        loftq_iter: T, the alternations of LoftQ.
        layer_replication: `{encoder: [[0, 4], [2, 6]]}`: the stack made of these blocks [start, end);
            a bare list where the model has one stack (arXiv:2312.15166, as PEFT's).

    Raises:
        UserError: a value outside its range, or fields that exclude each other.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | str = ("q", "v")
    exclude_modules: tuple[str, ...] | str = ()
    layers_to_transform: tuple[int, ...] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    use_rslora: bool = False
    use_dora: bool = False
    use_qalora: bool = False
    qalora_group_size: int | None = None
    init_lora_weights: bool | str = True
    loftq_iter: int = 1
    layer_replication: dict[str, Spans] | Spans | None = None

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"):
            object.__setattr__(self, name, _as_tuple(getattr(self, name)))
        check_fields(vars(self))
        for name in (
            "rank_pattern",
            "alpha_pattern",
        ):  # as JSON files have them: the first that matches counts
            object.__setattr__(self, name, dict(sorted(getattr(self, name).items())))
        init_for(self.init_lora_weights, self.loftq_iter)  # refuses one that is none
        if not self.target_modules and not self.modules_to_save:
            raise UserError("lora.target_modules is empty: name at least one layer, for example [q, v]")
        self._check_together()

    def _check_together(self) -> None:
        if self.use_dora and self.use_qalora:
            raise UserError(
                "lora.use_qalora=True and lora.use_dora=True exclude each other: a row's norm cannot be "
                "folded into zero points; set one of them to false"
            )
        if self.qalora_group_size is not None and not self.use_qalora:
            raise UserError(
                f"lora.qalora_group_size={self.qalora_group_size} has no effect without use_qalora: true"
            )
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            if self.target_modules != ALL_LINEAR:
                raise UserError(
                    f"lora.layers_to_transform={list(self.layers_to_transform)} goes with a list of "
                    f"target_modules or {ALL_LINEAR!r}; put the indices into {self.target_modules!r}"
                )

    @property
    def method(self) -> str:
        """The key of what these adapters add, in `ADAPTER_METHODS`."""
        return "dora" if self.use_dora else "qalora" if self.use_qalora else "lora"

    def at(self, layer_name: str) -> "LoraConfig":
        """The settings of one layer: its own rank and alpha, where a pattern names it."""
        r = next((v for key, v in self.rank_pattern.items() if pattern_matches(key, layer_name)), self.r)
        alphas = (v for key, v in self.alpha_pattern.items() if pattern_matches(key, layer_name))
        return replace(self, r=r, lora_alpha=next(alphas, self.lora_alpha), rank_pattern={}, alpha_pattern={})


def pattern_matches(key: str, layer_name: str) -> bool:
    """Whether a key of `rank_pattern` or `alpha_pattern` names a layer: as a whole or as its last parts."""
    return re.fullmatch(rf"(.*\.)?({key})", layer_name) is not None


def name_matches(entries: tuple[str, ...] | str, layer_name: str) -> list[str]:
    """The entries that match a dotted name: of a list those that end it, a string as a regular expression."""
    if isinstance(entries, str):
        return [entries] if re.fullmatch(entries, layer_name) else []
    return [entry for entry in entries if layer_name == entry or layer_name.endswith("." + entry)]


def _as_tuple(value: Any) -> Any:
    """A list as a tuple and one index as several; what is neither is left to the checks."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    return tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else value


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
