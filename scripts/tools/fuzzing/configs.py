"""Broken configs, from changed texts or fields of shipped ones, passed to `train`."""

import copy
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml

from lora_hf import cli
from lora_hf.config.load import SHIPPED
from lora_hf.config.problems import section_fields
from lora_hf.config.training_fields import ELSEWHERE, training_fields
from scripts.tools.fuzzing.junk import VALUES, YAML_LINES, break_bytes
from scripts.tools.fuzzing.trial import OUT

SMALL = [
    *("data.max_train_samples=8", "data.max_eval_samples=2", "data.max_test_samples=2"),
    *("generation.max_new_tokens=2", "training.max_steps=1", f"output_dir={OUT}"),
]
"""Overrides that keep a valid run short."""
CONFIGS = ("quickstart", "methods", "rank_study")
"""Shipped configs that are changed."""


def make(random: Random, folder: Path) -> list[str]:
    """Write a broken config and return the command line that reads it."""
    text = (SHIPPED / f"{random.choice(CONFIGS)}.yaml").read_text()
    if random.random() < 0.35:
        data = break_bytes(random, text.encode())
    elif random.random() < 0.2:
        lines = text.splitlines()
        lines.insert(random.randrange(len(lines)), random.choice(YAML_LINES))
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
    else:
        data = _changed(random, yaml.safe_load(text)).encode("utf-8", "surrogatepass")
    file = folder / "config.yaml"
    file.write_bytes(data)
    words = [] if random.random() < 0.9 else [f"{random.choice(fields())}={random.choice(VALUES)}"]
    return ["train", "--config", str(file), *SMALL, *(word.replace("\0", "") for word in words)]


def run(words: list[str]) -> int:
    """Run the command and return its exit status."""
    return cli.run(words, debug=False)


@cache
def fields() -> list[str]:
    """Return every field of a config, with its section: `lora.r`, `training.learning_rate`."""
    return [*section_fields(), *(f"training.{name}" for name in (*training_fields(), *ELSEWHERE))]


def _changed(random: Random, data: dict[str, Any]) -> str:
    data = copy.deepcopy(data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        path = random.choice(fields()).split(".")
        section = data
        for part in path[:-1]:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        section[_name(random, path[-1])] = _value(random, path)
    return yaml.dump(data, allow_unicode=random.random() < 0.5, sort_keys=False)


def _name(random: Random, name: str) -> Any:
    if random.random() < 0.9:
        return name
    at = random.randrange(len(name))
    return random.choice((name[:at] + name[at + 1 :], name.upper(), f"{name}_", 7, None, True, "", "a.b"))


def _value(random: Random, path: list[str]) -> Any:
    """Return an arbitrary value, or one of the field's choices."""
    is_training = path[0] == "training" and len(path) == 2
    choices = training_fields().get(path[-1], {}).get("enum", []) if is_training else []
    if choices and random.random() < 0.5:
        return random.choice(choices)
    return random.choice(VALUES)
