"""The config as a JSON schema, for editors: every field from where it is declared.

The sections come from their models, `training` from `Seq2SeqTrainingArguments` as it is installed here.
"""

import dataclasses
import math
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from lora_hf.config.fields import NUMBER
from lora_hf.config.schema import SECTIONS, RunConfig
from lora_hf.config.training import (
    BOUNDS,
    ELSEWHERE,
    LEFT_OFF,
    choices_of,
    plain_types,
    read_as,
    training_fields,
)
from lora_hf.config.variants import OF_THE_STUDY

Schema = dict[str, Any]
FILE = "schema.json"
"""Beside the shipped configs, which name it in their first line."""
WORDS = "^([Yy]es|YES|[Oo]n|ON|[Tt]rue|TRUE|[Nn]o|NO|[Oo]ff|OFF|[Ff]alse|FALSE)$"
"""What is read as true or false beside these: of YAML's two versions one reads them so, and one as text."""


BOUND_NAMES = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
LENGTHS = {"minLength": "minItems", "maxLength": "maxItems"}
"""Of a list."""


class Forgiving(GenerateJsonSchema):
    """Fields as `config.fields` reads them: `5e-4` is a number to one YAML and text to the other."""

    def float_schema(self, schema: Any) -> Schema:
        """A number, or one as text."""
        return {"anyOf": [super().float_schema(schema), {"type": "string", "pattern": f"^{NUMBER}$"}]}

    def bool_schema(self, schema: Any) -> Schema:
        """True or false, or a word for it."""
        return {"anyOf": [super().bool_schema(schema), {"type": "string", "pattern": WORDS}]}

    def field_title_should_be_set(self, schema: Any) -> bool:
        """No titles: they are the names once more."""
        return False


def config_schema() -> Schema:
    """The schema of a YAML: what `load_config` takes, but for what only fields together can say."""
    schema = RunConfig.model_json_schema(schema_generator=Forgiving)
    fields, parts = schema["properties"], schema["$defs"]
    parts["Training"] = training_schema()
    for holder in (fields, parts["ArmOverride"]["properties"]):
        holder["training"] = {"$ref": "#/$defs/Training"} | _described(holder["training"])
    for name in SECTIONS:  # `lora:` with every key below it commented out is null
        fields[name] = {"anyOf": [_without_default(fields[name]), {"type": "null"}]} | _described(
            fields[name]
        )
    varied = {name: {"$ref": f"#/properties/{name}"} for name in fields if name not in OF_THE_STUDY}
    parts["Variant"] = {"type": "object", "properties": varied, "additionalProperties": False}
    fields["variants"]["anyOf"][0]["additionalProperties"] = {"$ref": "#/$defs/Variant"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | _in_its_words(schema)


def _in_its_words(part: Any) -> Any:
    """Bounds under the schema's names: where a validator comes before them, Pydantic leaves its own."""
    if isinstance(part, list):
        return [_in_its_words(one) for one in part]
    if not isinstance(part, dict):
        return part
    lengths = LENGTHS if part.get("type") == "array" else {}
    return {(BOUND_NAMES | lengths).get(key, key): _in_its_words(value) for key, value in part.items()}


def training_schema() -> Schema:
    """The fields of `Seq2SeqTrainingArguments` that a config sets, with what they may hold."""
    fields = {name: _field(name) for name in training_fields() if name not in ELSEWHERE}
    return {"type": ["object", "null"], "properties": fields, "additionalProperties": False}


def _field(name: str) -> Schema:
    described = {"description": text} if (text := _help(name)) else {}
    if name in LEFT_OFF:
        return {"const": False} | described
    if choices := choices_of(name):
        return {"enum": choices} | described
    low, high = BOUNDS.get(name, (-math.inf, math.inf))
    bounds = {"minimum": low, "maximum": high}
    finite = {key: bound for key, bound in bounds.items() if math.isfinite(bound)}
    kinds = [TypeAdapter(read_as(kind)).json_schema(schema_generator=Forgiving) for kind in plain_types(name)]
    return ({"anyOf": kinds} if kinds else {}) | finite | described


def _help(name: str) -> str:
    """The first sentence of what the library says of a field."""
    from transformers import Seq2SeqTrainingArguments

    field = next(f for f in dataclasses.fields(Seq2SeqTrainingArguments) if f.name == name)
    text = " ".join(str(field.metadata.get("help") or "").split())
    return text.split(". ")[0].removesuffix(".")


def _described(field: Schema) -> Schema:
    return {"description": field["description"]} if "description" in field else {}


def _without_default(field: Schema) -> Schema:
    return {key: value for key, value in field.items() if key not in ("default", "description")}
