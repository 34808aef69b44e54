"""The scalar types of the config's fields, and the base class of its sections."""

import os
import re
from contextlib import suppress
from importlib import import_module
from operator import index
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from lora_hf.errors import UserError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

_FLAGS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes; no file system accepts more
NUMBER = r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?"
"""A number as text, such as `5e-4`, which PyYAML reads as text."""

WORDS = "^([Yy]es|YES|[Oo]n|ON|[Tt]rue|TRUE|[Nn]o|NO|[Oo]ff|OFF|[Ff]alse|FALSE)$"
"""Text that is read as true or false: booleans in YAML 1.1, text in YAML 1.2."""


def _read_number(value: Any) -> Any:
    is_number = isinstance(value, str) and re.fullmatch(NUMBER, value.strip())
    return float(value) if is_number else value


def _read_integer(value: Any) -> Any:
    """Read `1e3`, a float in YAML, and an integer of NumPy or PyTorch as the integer it stands for."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if not isinstance(value, int):
        with suppress(TypeError):  # it has no integer value
            return index(value)
    return value


def _read_flag(value: Any) -> Any:
    return _FLAGS.get(value.lower(), value) if isinstance(value, str) else value


def _read_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_place(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds the character \\0, which no path can have")
    if re.match(r"\$\w|\$\{", value):
        raise ValueError(
            "begins with a variable, which a config does not expand: write the path (`~` is your home folder)"
        )
    path = os.fsencode(value)
    if len(path) > LONGEST_PATH or max(map(len, path.split(b"/"))) > LONGEST_NAME:
        raise ValueError(
            f"is too long for a path: at most {LONGEST_NAME} bytes per name and {LONGEST_PATH} in all"
        )
    return value


T = TypeVar("T")
Number = Annotated[float, BeforeValidator(_read_number), Field(allow_inf_nan=False)]
Integer = Annotated[int, BeforeValidator(_read_integer)]
Flag = Annotated[bool, BeforeValidator(_read_flag)]
Text = Annotated[str, Field(min_length=1)]
Place = Annotated[Text, AfterValidator(_check_place)]
Folder = Annotated[Place, AfterValidator(os.path.expanduser)]
Count = Annotated[Integer, Field(ge=1)]
Seed = Annotated[Integer, Field(ge=0, lt=2**32)]  # what numpy takes
Items = Annotated[tuple[T, ...], BeforeValidator(_read_list)]


class Explained(ModelMetaclass):
    """The type of the sections: a call with wrong fields raises a `UserError` in the words of `load_config`.

    `model_validate` raises Pydantic's own, for those who know more about the place of a mistake.
    """

    def __call__(cls, /, **fields: Any) -> Any:
        """Return the section with these fields."""
        try:
            return super().__call__(**fields)
        except ValidationError as error:
            problems = import_module("lora_hf.config.problems")  # which imports the sections, and YAML
            raise problems.of_call(cls, error, fields) from None


class Section(BaseModel, metaclass=Explained):
    """A part of the YAML."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to change a field.

        Raises:
            UserError: the message says how to get a changed copy.
        """
        if name.startswith("_"):  # a private attribute
            super().__setattr__(name, value)
            return
        raise UserError(
            f"{name}: the fields of a {type(self).__name__} cannot be changed; make another one, or a copy: "
            f"config.model_copy(update={{{name!r}: ...}})",
            name,
        )


class Forgiving(GenerateJsonSchema):
    """Generate the JSON schema of these types, including `5e-4` and `yes` as text."""

    def float_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of a number, or of text that holds one."""
        return {"anyOf": [super().float_schema(schema), {"type": "string", "pattern": f"^{NUMBER}$"}]}

    def bool_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of true or false, or of a word for it."""
        return {"anyOf": [super().bool_schema(schema), {"type": "string", "pattern": WORDS}]}

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave out titles, which only repeat the names."""
        return False
