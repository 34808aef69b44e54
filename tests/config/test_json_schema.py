"""The JSON schema says what `load_config` says: of every shipped YAML, and of right and wrong values."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import transformers
import yaml

from lora_hf.config import RunConfig
from lora_hf.config.json_schema import config_schema
from lora_hf.config.load import SHIPPED, load_config
from lora_hf.config.problems import section_fields
from lora_hf.config.training_fields import SCHEMA_FILE, installed_fields
from lora_hf.config.yaml_reader import read_document
from lora_hf.errors import UserError

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
CONFIGS = sorted(SHIPPED.glob("*.yaml"))
SCHEMA = config_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def is_taken(data: Any, file: Path) -> bool:
    """Return the message of `load_config`; a schema cannot express combinations of fields."""
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        load_config(file)
    except UserError:
        return False
    return True


def without_training(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the sections that are declared in this package; Transformers declares `training`."""
    parts = {name: part for name, part in schema["$defs"].items() if name != "Training"}
    return schema | {"$defs": parts}


def test_the_shipped_file_is_the_generated_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    shipped = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert without_training(shipped) == without_training(SCHEMA), "lora-hf schema > configs/schema.json"
    pinned = re.search(r"(?m)^transformers==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"))
    assert pinned
    if transformers.__version__ != pinned[1]:
        pytest.skip(f"the shipped file's training fields are those of transformers {pinned[1]}")
    assert shipped == SCHEMA, "lora-hf schema > configs/schema.json"


def test_every_reference_in_the_schema_exists() -> None:
    named = set(re.findall(r'"\$ref": "#/([^"]*)"', json.dumps(SCHEMA)))
    assert named
    for path in named:
        part = SCHEMA
        for name in path.split("/"):
            part = part[name]
    assert '"$defs"' not in json.dumps(SCHEMA["$defs"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_names_the_schema_in_its_first_line_and_obeys_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named and (path.parent / named[1]).resolve() == SCHEMA_FILE.resolve()
    VALIDATOR.validate(read_document(path).data)
    VALIDATOR.validate(yaml.safe_load(path.read_text(encoding="utf-8")))  # by YAML 1.1 too


def test_every_field_is_in_the_schema_with_its_description() -> None:
    parts = SCHEMA["$defs"]
    assert list(SCHEMA["properties"]) == list(RunConfig.model_fields)
    training = parts["Training"]["properties"]
    assert training == installed_fields()
    fields = {name for name in section_fields() if "." in name}
    in_it = {
        f"{section}.{name}"
        for section, part in SCHEMA["properties"].items()
        for one in part.get("anyOf", ())
        if "$ref" in one and section != "training"
        for name in parts[one["$ref"].split("/")[-1]]["properties"]
    }
    assert in_it == fields
    assert "Rank" in parts["LoraSection"]["properties"]["r"]["description"]
    assert "learning rate" in training["learning_rate"]["description"]


@pytest.mark.parametrize(
    "data",
    [
        {"training": {"learning_rate": 5e-4}},
        {"training": {"learning_rate": "5e-4"}},
        {"training": {"learning_rate": "5E-4", "weight_decay": ".1", "max_steps": 300}},
        {"training": {"learning_rate": "fast"}},
        {"training": {"learning_rate": -1}},
        {"training": {"learning_rat": 1}},
        {"training": {"max_steps": 1e3}},
        {"training": {"max_steps": 2.5}},
        {"training": {"report_to": ["tensorboard", "wandb"]}},
        {"training": {"report_to": "mlflow"}},
        {"training": {"report_to": [3]}},
        {"training": {"debug": ["underflow_overflow"]}},
        {"training": {"debug": ["all"]}},
        {"training": {"debug": 3}},
        {"training": {"optim": "adamw_torch"}},
        {"training": {"optim": "adamm"}},
        {"training": {"fp16": True}},
        {"training": {"seed": 3}},
        {"training": None, "lora": None, "arms": None},
        {"training": 3},
        {"lora": {"r": 8, "lora_alpha": "1.6e1", "use_dora": "yes", "target_modules": "all-linear"}},
        {"lora": {"r": 0}},
        {"lora": {"r": True}},
        {"lora": {"r": "8"}},
        {"lora": {"alpha": 8}},
        {"lora": {"lora_dropout": 1}},
        {"lora": {"use_dora": "maybe"}},
        {"lora": {"init_lora_weights": "pissa"}},
        {"lora": {"init_lora_weights": "pizza"}},
        {"lora": {"target_modules": ["q", 3]}},
        {"lora": {"rank_pattern": {"wo": 4}, "layer_replication": {"encoder": [[0, 2], [1, 2]]}}},
        {"lora": {"rank_pattern": {"wo": "many"}}},
        {"lora": {"layer_replication": [[0, 2, 3]]}},
        {"method": "lora", "seed": 1, "seeds": [1, 2], "output_dir": "here", "overwrite": "on"},
        {"method": "lore"},
        {"seeds": []},
        {"seed": -1},
        {"arms": {"full": {"training": {"learning_rate": "1e-4"}}}},
        {"arms": {"full": {"training": None}}},
        {"arms": {"fool": {"training": {}}}},
        {"arms": {"full": {"lora": {}}}},
        {"arms": {"full": {"training": {"learning_rat": 1}}}},
        {"generation": {"num_beams": 0}},
        {"generation": {"max_new_tokens": None, "num_beams": 2, "length_penalty": "2e0"}},
        {"data": {"dataset_name": ""}},
        {"no_such_section": {}},
    ],
    ids=str,
)
def test_the_schema_accepts_what_the_config_accepts_and_nothing_else(
    data: dict[str, Any], tmp_path: Path
) -> None:
    assert VALIDATOR.is_valid(data) == is_taken(data, tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("variant", "is_right"),
    [
        ({}, True),
        ({"lora": {"use_dora": True}, "training": {"learning_rate": "3e-3"}, "method": "lora"}, True),
        ({"lora": {"use_doora": True}}, False),
        ({"seed": 3}, False),
        ({"training": {"learning_rat": 1}}, False),
        (3, False),
    ],
)
def test_a_variant_has_all_fields_but_those_of_a_study(variant: Any, is_right: bool) -> None:
    assert VALIDATOR.is_valid({"variants": {"one": variant}}) == is_right
