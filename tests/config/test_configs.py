"""Every shipped config loads, is short, says how to run it, and round-trips."""

import re
from pathlib import Path

import pytest

from lora_hf.config import RunConfig
from lora_hf.config.load import load_config, write_config
from lora_hf.config.lora import LoraSection

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SECTIONS = [
    "method",
    "model",
    "lora",
    "data",
    "training",
    "generation",
    "retention",
    "arms",
    "variants",
    "sweep",
    "output_dir",
    "seed",
    "seeds",
]
RECIPE = {
    "r": 32,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": ("q", "v"),
    "init_lora_weights": True,
}


def test_all_documented_configs_exist() -> None:
    methods = ("lora", "full", "base", "qlora")
    names = {f"flan_t5_{size}_dialogsum_{method}" for size in ("small", "base") for method in methods}
    assert {"quickstart", "methods", *names} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_loads_and_its_resolved_form_is_the_same_run(path: Path, tmp_path: Path) -> None:
    config = load_config(path, is_study=True)
    assert config.output_dir == f"runs/{path.stem}"
    write_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_short_ordered_and_opens_with_its_command(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 110
    assert f"--config configs/{path.name}" in lines[1]  # after the schema's name
    keys = [match[1] for line in lines if (match := re.match(r"(\w+):", line))]
    assert keys == [section for section in SECTIONS if section in keys]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_override_in_the_opening_comment_is_valid(path: Path) -> None:
    overrides = re.findall(r"\s([a-z_.]+=\S+)", path.read_text(encoding="utf-8").split("\nmethod")[0])
    assert overrides and load_config(path, overrides) != load_config(path)


@pytest.mark.parametrize("path", [p for p in CONFIGS if "flan_t5" in p.stem], ids=lambda path: path.stem)
def test_a_flan_t5_config_s_fields_agree_with_its_name(path: Path) -> None:
    *_, size, data, kind = path.stem.split("_")
    config: RunConfig = load_config(path)
    assert config.model.model_name_or_path == f"google/flan-t5-{size}"
    assert re.fullmatch(r"[0-9a-f]{40}", config.model.revision or "")
    assert config.data.dataset_name == f"knkarthick/{data}"
    assert config.method == kind.removeprefix("q")
    assert config.model.load_in_4bit == (kind == "qlora")
    assert config.method != "lora" or config.lora == LoraSection(**RECIPE)
    assert bool(config.training) == (kind != "base")
