"""Any config is either refused by a `UserError` or reads back as itself."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.properties import broken, examples, values
from support.selection import slow_except

from lora_hf.config.load import SHIPPED, load_config, write_config
from lora_hf.config.training_fields import training_fields
from lora_hf.errors import UserError
from scripts.tools.fuzzing.configs import CONFIGS, fields
from scripts.tools.fuzzing.junk import YAML_LINES

KEYS = [*fields(), "lora.rnk", "x.y"]


@cache
def shipped(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    return data


@st.composite
def changed(draw: st.DrawFn) -> str:
    """Draw a shipped config with one to three fields changed to one of their choices or to any value."""
    data = copy.deepcopy(shipped(draw(st.sampled_from(CONFIGS))))
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
    """Check that a config is refused by a `UserError`, or has the same fields when written and read again."""
    file, resolved = folder / "config.yaml", folder / "resolved.yaml"
    file.write_bytes(data)
    try:
        config = load_config(file)
    except UserError as error:
        assert str(error)
        return
    write_config(config, resolved)
    assert load_config(resolved).model_dump_json() == config.model_dump_json()


@pytest.mark.parametrize("n", slow_except([60], [60, 300]))
def test_a_field_with_any_value_is_accepted_or_refused(tmp_path: Path, n: int) -> None:
    @examples(n)
    @given(text=changed())
    def holds(text: str) -> None:
        reads_back_or_is_refused(tmp_path, text.encode("utf-8", "surrogatepass"))

    holds()


@pytest.mark.parametrize("n", slow_except([60], [60, 300]))
def test_a_damaged_config_is_accepted_or_refused(tmp_path: Path, n: int) -> None:
    damaged = st.sampled_from(CONFIGS).flatmap(lambda name: broken((SHIPPED / f"{name}.yaml").read_bytes()))

    @examples(n)
    @given(data=damaged)
    def holds(data: bytes) -> None:
        reads_back_or_is_refused(tmp_path, data)

    holds()


@pytest.mark.parametrize(  # the last is one of test_load_config.py's too
    "line", [*YAML_LINES[:-1], pytest.param(YAML_LINES[-1], marks=pytest.mark.slow)]
)
def test_yaml_that_no_config_needs_is_accepted_or_refused(tmp_path: Path, line: str) -> None:
    lines = (SHIPPED / "quickstart.yaml").read_text().splitlines()
    text = "\n".join([*lines[:3], line, *lines[3:]])
    reads_back_or_is_refused(tmp_path, text.encode("utf-8", "surrogatepass"))
    assert not Path("pwned").exists()


@examples(60)
@given(key=st.sampled_from(KEYS), value=values())
def test_an_override_with_any_value_is_accepted_or_refused(key: str, value: Any) -> None:
    try:
        load_config("quickstart", [f"{key}={value}"])
    except UserError as error:
        assert str(error)
