"""The README's Python is run, and its commands and files exist."""

import re
from pathlib import Path

import pytest
import yaml

from lora_hf.config.load import load_config
from lora_hf.models.load import ASSETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_runs_and_leaves_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code.replace("google/flan-t5-base", str(ASSETS)), "README.md", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_each_yaml_is_a_valid_config(tmp_path: Path) -> None:
    for number, text in enumerate(blocks("yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        assert load_config(file).lora.r == yaml.safe_load(text)["lora"]["r"]


def test_scripts_and_files_named_in_it_exist() -> None:
    named = set(re.findall(r"(?:scripts|docs|notebooks)/\w+\.\w+", README)) | {"CONTRIBUTING.md", "Makefile"}
    assert all((ROOT / name).is_file() for name in named), named
    targets = set(re.findall(r"^    make ([\w-]+)", README, re.MULTILINE))
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets == {"quickstart", "test", "bench", "reproduce"} and targets <= rules
