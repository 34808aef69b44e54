"""Settings of one adapter, under PEFT's names: the one declaration of each field.

A field has its type, default, bounds and documentation here; the `lora:` section of the YAML and its JSON
schema are derived from them (`lora_hf.config.lora`). This module imports neither torch nor pydantic.

Regular expressions come from files of others, and some need exponential time. They are matched by the package
`regex`, which can be given a timeout; `re`, which PEFT uses, decides whether they are expressions at all.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import regex

from lora_hf.errors import NOT_REGULAR, UserError

ALL_LINEAR = "all-linear"
AUTO = "auto"
Spans = tuple[tuple[int, int], ...]
INITIALIZATIONS = ("kaiming", "gaussian", "lookup", "pissa", "olora", "loftq")
"""Values of `init_lora_weights` besides True and `pissa_niter_N`."""

COUNT = "a whole number of at least 1"
FLAG = "True or False"
NAMES = "a list of layer names, such as ['q', 'v'], or one regular expression"


def setting(default: Any, must_be: str = "", **metadata: Any) -> Any:
    """Declare a field.

    Args:
        default: its default.
        must_be: the values it takes, in words, for the error message; a field without is checked elsewhere.
        metadata: bounds of its numbers (`ge`, `gt`, `lt`); `each`, what the values of a dict must be;
            `choices`, the values that a YAML may hold; `method`, the key of `ADAPTER_METHODS` it selects.
    """
    made = {"default_factory": dict} if default == {} else {"default": default}
    return field(**made, metadata={"must_be": must_be, **metadata})


_FIELD_OF_METHOD = {
    "qalora_group_size": "use_qalora",
    "vera_d_initial": "use_vera",
    "projection_prng_key": "use_vera",
    "save_projection": "use_vera",
}
"""Field -> the method that alone uses it."""
_UNUSED_WITH = {
    "use_vera": {
        "lora_alpha": (8,),
        "alpha_pattern": ({},),
        "rank_pattern": ({},),
        "use_rslora": (False,),
        "init_lora_weights": (True, "kaiming"),
        "layer_replication": (None,),
    }
}
"""Method -> fields that have no meaning for it, nor a place in PEFT's files, and the values they may have."""


@dataclass(frozen=True)
class LoraConfig:
    """Settings of one adapter (LoRA: Hu et al., arXiv:2106.09685, and its descendants).

    Raises:
        UserError: a value outside its range, or fields that exclude each other.
    """

    r: int = setting(8, COUNT, ge=1)
    """Rank of the update B A: each adapted layer trains r * (in + out) weights."""
    lora_alpha: float = setting(8, "a finite number above 0", gt=0)
    """The update is scaled by lora_alpha / r."""
    lora_dropout: float = setting(0.0, "a number in [0, 1)", ge=0, lt=1)
    """Probability with which an input element of the adapter is zeroed in training."""
    target_modules: tuple[str, ...] | str = setting(AUTO, NAMES)
    """Layer names (whole or a `.suffix`), a regular expression that the full name matches, all-linear, or
    auto: the query and value projections of every attention, as the model's family names them."""
    exclude_modules: tuple[str, ...] | str = setting((), NAMES)
    """Names or one regular expression, removed from the targets."""
    layers_to_transform: tuple[int, ...] | None = setting(
        None, "a list of block indices, counted from 0; None selects all blocks", ge=0
    )
    """Only these of the stacked blocks, counted from 0 in each stack; null selects all."""
    rank_pattern: dict[str, int] = setting({}, "a dict of layer names to ranks", each=COUNT, ge=1)
    """By layer name (or its end, or a regular expression): another r. The first match in alphabetical order
    counts, which is the order on disk."""
    alpha_pattern: dict[str, float] = setting(
        {}, "a dict of layer names to alphas", each="a finite number above 0", gt=0
    )
    """By layer name: another lora_alpha."""
    modules_to_save: tuple[str, ...] = setting((), "a list of layer names, such as ['lm_head']")
    """Layers that are copied, trained as a whole and saved with the adapter."""
    use_rslora: bool = setting(False, FLAG)
    """Scale by lora_alpha / sqrt(r) (rsLoRA, arXiv:2312.03732)."""
    use_dora: bool = setting(False, FLAG, method="dora")
    """Learn the norm of each output row apart from its direction (DoRA, arXiv:2402.09353)."""
    use_qalora: bool = setting(False, FLAG, method="qalora")
    """One column of A per quantization group, for an exact merge into affine 4 bits (QA-LoRA,
    arXiv:2309.14717)."""
    use_lora_fa: bool = setting(False, FLAG, method="lora_fa")
    """Freeze A and train only B (LoRA-FA, arXiv:2308.03303)."""
    use_vera: bool = setting(False, FLAG, method="vera")
    """Train two vectors per layer around random A and B that all layers share (VeRA, arXiv:2310.11454); it
    has no scale, so lora_alpha must be left out."""
    vera_d_initial: float = setting(0.1, "a finite number above 0", gt=0)
    """Initial value of VeRA's vector d; b is zero at first."""
    projection_prng_key: int = setting(0, "a whole number from 0 to 2^63 - 1", ge=0, lt=2**63)
    """Random seed of VeRA's A and B."""
    save_projection: bool = setting(True, FLAG)
    """Save VeRA's A and B with the adapter; without them, loading draws them again."""
    qalora_group_size: int | None = setting(None, COUNT + "; None takes that of the storage format", ge=1)
    """Inputs per group; null takes the group size of the storage format."""
    init_lora_weights: bool | str = setting(
        True,
        "True or the name of an initialization",
        choices=(True, "gaussian", "pissa", "pissa_niter_4", "pissa_niter_16", "olora", "loftq"),
    )
    """Initial A and B: true (uniform A, B zero), gaussian (normal A, B zero), or from the weight: pissa
    (arXiv:2404.02948), olora (arXiv:2406.01775), loftq (arXiv:2310.08659)."""
    loftq_iter: int = setting(1, COUNT, ge=1)
    """T, the alternations of LoftQ."""
    layer_replication: dict[str, Spans] | Spans | None = setting(None, ge=0)
    """{encoder: [[0, 4], [2, 6]]}: the stack rebuilt from these blocks [start, end) (arXiv:2312.15166)."""

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"):
            object.__setattr__(self, name, _as_tuple(getattr(self, name)))
        self._check_values()
        for name in ("rank_pattern", "alpha_pattern"):  # in the order on disk: the first match counts
            object.__setattr__(self, name, dict(sorted(getattr(self, name).items())))
        self._check_together()

    def _check_values(self) -> None:
        for one in fields(self):
            value, hint, data = getattr(self, one.name), _HINTS[one.name], one.metadata
            if data["must_be"] and not _fits(value, hint, {} if "each" in data else data):
                written = list(value) if isinstance(value, tuple) else value
                raise UserError(f"{one.name}={written!r} must be {data['must_be']}", one.name)
            if "each" in data:
                for key, part in value.items():
                    place = f"{one.name}[{key!r}]"
                    if not _fits(part, get_args(hint)[1], data):
                        raise UserError(f"{place}={part!r} must be {data['each']}", place)
                    _check_expression(place, key)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), str):
                _check_expression(name, value)
        init = self.init_lora_weights
        is_niter = re.fullmatch(r"pissa_niter_\d+", str(init))
        if init is not True and init not in INITIALIZATIONS and not is_niter:
            known = [True, *INITIALIZATIONS, "pissa_niter_N"]
            raise UserError(f"init_lora_weights={init!r} must be one of {known}", "init_lora_weights")

    def _check_together(self) -> None:
        if not self.target_modules and not self.modules_to_save:
            raise UserError(
                "target_modules is empty: name at least one layer, for example [q, v]", "target_modules"
            )
        chosen = _selected_methods(self)
        if len(chosen) > 1:
            others = " and ".join(f"{name}=True" for name in list(chosen)[1:])
            first = next(iter(chosen))
            raise UserError(f"{first}=True and {others} exclude each other: choose one method", first)
        for name, method in _FIELD_OF_METHOD.items():
            value = getattr(self, name)
            if value != type(self).__dataclass_fields__[name].default and not getattr(self, method):
                raise UserError(f"{name}={value!r} has no effect without {method}: true", name)
        for method in chosen:
            for name, values in _UNUSED_WITH.get(method, {}).items():
                if (value := getattr(self, name)) not in values:
                    raise UserError(
                        f"{name}={value!r} has no effect with {method}=True; leave it out, or set it to its "
                        f"default, {values[0]!r}",
                        name,
                    )
        if self.use_qalora and self.init_lora_weights == "loftq":
            raise UserError(
                "init_lora_weights='loftq' and use_qalora=True exclude each other: use pissa, or true",
                "init_lora_weights",
            )
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            if self.target_modules not in (ALL_LINEAR, AUTO):
                raise UserError(
                    f"layers_to_transform={list(self.layers_to_transform)} requires target_modules to be a "
                    f"list, {ALL_LINEAR!r} or {AUTO!r}; put the indices into {self.target_modules!r}",
                    "layers_to_transform",
                )

    @property
    def method(self) -> str:
        """Key in `ADAPTER_METHODS` of the method that these adapters use."""
        return next(iter(_selected_methods(self).values()), "lora")

    def at(self, layer_name: str) -> "LoraConfig":
        """Return the settings of one layer: its own rank and alpha where a pattern names it."""
        if not self.rank_pattern and not self.alpha_pattern:  # of any layer; a copy would be checked again
            return self
        r = next((v for key, v in self.rank_pattern.items() if pattern_matches(key, layer_name)), self.r)
        alphas = (v for key, v in self.alpha_pattern.items() if pattern_matches(key, layer_name))
        return replace(self, r=r, lora_alpha=next(alphas, self.lora_alpha), rank_pattern={}, alpha_pattern={})


_HINTS = get_type_hints(LoraConfig)


def _selected_methods(config: LoraConfig) -> dict[str, str]:
    """Return the fields that select a method and are set, with the method's key."""
    selecting = {one.name: one.metadata["method"] for one in fields(config) if "method" in one.metadata}
    return {name: method for name, method in selecting.items() if getattr(config, name)}


def pattern_matches(key: str, layer_name: str, timeout: float | None = None) -> bool:
    """Return whether a key of `rank_pattern` or `alpha_pattern` matches a whole layer name or its end."""
    return regex.fullmatch(rf"(.*\.)?({key})", layer_name, timeout=timeout) is not None


def name_matches(entries: tuple[str, ...] | str, layer_name: str) -> list[str]:
    """Return the entries that match a dotted name: list entries that end it, or one regular expression."""
    if isinstance(entries, str):
        return [entries] if regex.fullmatch(entries, layer_name) else []
    return [entry for entry in entries if layer_name == entry or layer_name.endswith("." + entry)]


def _as_tuple(value: Any) -> Any:
    """Return a list as a tuple and one index as a tuple of one; anything else unchanged, for the checks."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    return tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else value


def _fits(value: Any, hint: Any, bounds: Mapping[str, Any]) -> bool:
    """Return whether a value has an annotated type, its numbers within the bounds and its texts not empty."""
    parts = get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_fits(value, part, bounds) for part in parts)
    if get_origin(hint) is tuple:
        no_indices = parts[0] is int and value == ()  # an empty list of names is possible, of indices not
        parts_fit = isinstance(value, tuple) and all(v != "" and _fits(v, parts[0], bounds) for v in value)
        return parts_fit and not no_indices
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(isinstance(key, str) and key for key in value)
    if hint in (NoneType, bool):
        return isinstance(value, hint)
    if hint is str:
        return isinstance(value, str)
    is_number = isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    return (
        is_number
        and bounds.get("ge", value) <= value < bounds.get("lt", float("inf"))
        and ("gt" not in bounds or value > bounds["gt"])
    )


def _check_expression(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except NOT_REGULAR as error:
        raise UserError(f"{name}={pattern!r} is not a regular expression: {error}", name) from None
