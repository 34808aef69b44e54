"""The `lora:` section, derived from the fields of `lora_hf.adapters.config.LoraConfig`.

Types, defaults, bounds and documentation are declared there, once. Here a number may also be written as text,
a flag as a word and a tuple as a list, as in the other sections; what only fields together can say is checked
by making the `LoraConfig`.
"""

import ast
import inspect
import re
from dataclasses import MISSING, fields
from itertools import pairwise
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, create_model, model_validator

from lora_hf.adapters.config import ALL_LINEAR, LoraConfig, Spans
from lora_hf.config.types import Flag, Integer, Items, Number, Section, Text


class _LoraSection(Section):
    """Adapters (LoRA and its descendants); names and defaults are PEFT's."""

    def to_config(self) -> LoraConfig:
        """Return the settings of the adapter."""
        return LoraConfig(**self.model_dump())

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        self.to_config()
        return self


def _whole(value: float) -> float:
    """Write 32, not 32.0, as PEFT does in adapter_config.json."""
    return int(value) if float(value).is_integer() else value


def _check_names(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise ValueError("is not a list of layer names, such as [q, v], or one regular expression")
    if isinstance(value, str):
        if value != ALL_LINEAR and re.sub(r"[\s_-]", "", value.lower()) == "alllinear":
            raise ValueError(f"does not name layers; write {ALL_LINEAR}")
        if re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)+,?", value):
            listed = ", ".join(part.strip() for part in value.split(",") if part.strip())
            raise ValueError(f"is one regular expression, which matches no layer; write [{listed}]")
    return value


def _check_spans(value: Any) -> Any:
    def is_spans(spans: Any) -> bool:
        return isinstance(spans, (list, tuple)) and all(
            isinstance(span, (list, tuple)) and [type(i) for i in span] == [int, int] and min(span) >= 0
            for span in spans
        )

    stacks = value if isinstance(value, dict) else {} if value is None else {"one": value}
    if not all(isinstance(name, str) and name and is_spans(spans) for name, spans in stacks.items()):
        raise ValueError(
            "must be spans of blocks such as [[0, 4], [2, 6]], or such a list for each stack by its name: "
            "{encoder: [[0, 4], [2, 6]]}"
        )
    return value


def _section_type(hint: Any, bounds: dict[str, Any], is_whole: bool) -> Any:
    """Return the pydantic type of a field that is annotated with `hint`."""
    parts = get_args(hint)
    if hint == tuple[str, ...] | str:
        return Annotated[Items[str] | str, BeforeValidator(_check_names)]
    if hint == dict[str, Spans] | Spans | None:
        by_stack = _section_type(dict[str, Spans], bounds, is_whole)
        return Annotated[
            by_stack | _section_type(Spans, bounds, is_whole) | None, BeforeValidator(_check_spans)
        ]
    if get_origin(hint) is UnionType:
        return Union[tuple(_section_type(part, bounds, is_whole) for part in parts)]  # noqa: UP007
    if get_origin(hint) is tuple:
        part: Any = _section_type(parts[0], bounds, is_whole)
        items = Items[part]
        return items if parts[-1] is ... else Annotated[items, Field(min_length=2, max_length=2)]
    if get_origin(hint) is dict:
        values: Any = _section_type(parts[1], bounds, is_whole)
        return dict[Text, values]
    if hint is float and is_whole:
        serializer = PlainSerializer(_whole, return_type=int | float)
        return Annotated[Number, Field(**bounds), AfterValidator(_whole), serializer]
    plain = {int: Integer, float: Number, bool: Flag, str: Text, NoneType: None}[hint]
    return Annotated[plain, Field(**bounds)] if bounds and hint in (int, float) else plain


def _documentation() -> dict[str, str]:
    """Return the text under each field of `LoraConfig`."""
    (body,) = ast.parse(inspect.getsource(LoraConfig)).body
    assert isinstance(body, ast.ClassDef)
    return {
        one.target.id: " ".join(text.value.value.split())
        for one, text in pairwise(body.body)
        if isinstance(one, ast.AnnAssign)
        and isinstance(one.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _section_fields() -> dict[str, Any]:
    """Return name -> (type, field), as `create_model` takes them."""
    hints, documentation, made = get_type_hints(LoraConfig), _documentation(), {}
    for one in fields(LoraConfig):
        bounds = {key: one.metadata[key] for key in ("ge", "gt", "lt") if key in one.metadata}
        hint, default = hints[one.name], {} if one.default is MISSING else one.default
        choices = one.metadata.get("choices")
        is_whole = default == {} or isinstance(default, int)
        kind = Literal[choices] if choices else _section_type(hint, bounds, is_whole)
        made[one.name] = (kind, Field(default, description=documentation[one.name]))
    return made


if TYPE_CHECKING:

    class LoraSection(_LoraSection, LoraConfig):
        """The section with the fields of `LoraConfig`."""

else:
    LoraSection = create_model(
        "LoraSection", __base__=_LoraSection, __doc__=_LoraSection.__doc__, **_section_fields()
    )
