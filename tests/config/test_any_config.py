"""Any config is either refused by a `UserError` or reads back as itself."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.properties import broken, examples, values

from lora_hf.config.load import SHIPPED, load_config, write_config
from lora_hf.config.problems import section_fields
from lora_hf.config.training_fields import ELSEWHERE, training_fields
from lora_hf.errors import UserError

NAMES = ("quickstart", "methods", "rank_study")
KEYS = [
    *section_fields(),
    *(f"training.{name}" for name in (*training_fields(), *ELSEWHERE)),
    "lora.rnk",
    "x.y",
]
LINES = [
    *("a: &a [1]\nb: *a", 'x: !!python/object/apply:os.system ["touch pwned"]', "<<: {r: 1}", "--- \n---"),
    *(
        "%YAML 9.9",
        "? [a]\n: b",
        "- - - -",
        "lora: {r: 8}\nlora: {r: 9}",
        "\t- a",
        "\x85",
        "x: !!binary aGk=",
    ),
    *("x: !!set {a}", "x: 2001-01-01", "x: 0o999", "'a': \"\\ud800\"", 'seed: "\\U0010ffff"'),
]


@st.composite
def changed(draw: st.DrawFn) -> str:
    """A shipped config with one to three of its fields at other values, of the field's own choices or any."""
    data: dict[str, Any] = copy.deepcopy(
        yaml.safe_load((SHIPPED / f"{draw(st.sampled_from(NAMES))}.yaml").read_text())
    )
    for key in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3)):
        *sections, name = key.split(".")
        section = data
        for part in sections:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        choices = training_fields().get(name, {}).get("enum", []) if sections == ["training"] else []
        section[name] = draw(st.sampled_from(choices) | values() if choices else values())
    return yaml.dump(data, allow_unicode=draw(st.booleans()), sort_keys=False)


def reads_back_or_is_refused(folder: Path, data: bytes) -> None:
    """Write a config and read it; one that is taken gives the same fields from its resolved form."""
    file, resolved = folder / "config.yaml", folder / "resolved.yaml"
    file.write_bytes(data)
    try:
        config = load_config(file)
    except UserError as error:
        assert str(error)
        return
    write_config(config, resolved)
    assert load_config(resolved).model_dump_json() == config.model_dump_json()


@examples(150)
@given(text=changed())
def test_a_field_at_any_value_is_taken_or_refused(tmp_path: Path, text: str) -> None:
    reads_back_or_is_refused(tmp_path, text.encode("utf-8", "surrogatepass"))


@examples(150)
@given(data=st.sampled_from(NAMES).flatmap(lambda name: broken((SHIPPED / f"{name}.yaml").read_bytes())))
def test_a_broken_text_is_taken_or_refused(tmp_path: Path, data: bytes) -> None:
    reads_back_or_is_refused(tmp_path, data)


@pytest.mark.parametrize("line", LINES)
def test_a_construct_of_yaml_that_no_config_needs_is_taken_or_refused(tmp_path: Path, line: str) -> None:
    lines = (SHIPPED / "quickstart.yaml").read_text().splitlines()
    text = "\n".join([*lines[:3], line, *lines[3:]])
    reads_back_or_is_refused(tmp_path, text.encode("utf-8", "surrogatepass"))
    assert not Path("pwned").exists()


@examples(60)
@given(key=st.sampled_from(KEYS), value=values())
def test_an_override_of_any_value_is_taken_or_refused(key: str, value: Any) -> None:
    try:
        load_config("quickstart", [f"{key}={value}"])
    except UserError as error:
        assert str(error)
