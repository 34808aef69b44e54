"""The config as a JSON schema, for editors.

The sections come from their models, `training` from `Seq2SeqTrainingArguments` as it is installed here.
"""

from typing import Any

from lora_hf.config.schema import SECTIONS, RunConfig
from lora_hf.config.training_fields import installed_fields, library_versions
from lora_hf.config.types import Forgiving
from lora_hf.config.variants import OF_THE_STUDY

Schema = dict[str, Any]

BOUND_NAMES = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
LENGTHS = {"minLength": "minItems", "maxLength": "maxItems"}
"""Bounds of a list."""


def config_schema() -> Schema:
    """Return the schema of a YAML: what `load_config` accepts, except for rules over several fields."""
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
    """Rename bounds to JSON schema's names: behind a validator, Pydantic leaves its own."""
    if isinstance(part, list):
        return [_in_its_words(one) for one in part]
    if not isinstance(part, dict):
        return part
    lengths = LENGTHS if part.get("type") == "array" else {}
    return {(BOUND_NAMES | lengths).get(key, key): _in_its_words(value) for key, value in part.items()}


def training_schema() -> Schema:
    """Return the section of the fields of `Seq2SeqTrainingArguments` that a config sets."""
    return {
        "$comment": library_versions(),
        "type": ["object", "null"],
        "properties": installed_fields(),
        "additionalProperties": False,
    }


def _described(field: Schema) -> Schema:
    return {"description": field["description"]} if "description" in field else {}


def _without_default(field: Schema) -> Schema:
    return {key: value for key, value in field.items() if key not in ("default", "description")}
