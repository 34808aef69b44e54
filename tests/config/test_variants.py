"""The variants of a study: laid over the common fields section by section, each with its own mistakes."""

from pathlib import Path

import pytest

from lora_hf.config import RunConfig
from lora_hf.config.load import load_config
from lora_hf.config.variants import laid_over, with_variant
from lora_hf.errors import UserError


def load(folder: Path, text: str, *overrides: str) -> RunConfig:
    (folder / "x.yaml").write_text(text)
    return load_config(folder / "x.yaml", overrides, is_study=True)


def test_a_section_is_merged_key_by_key_and_everything_else_is_replaced() -> None:
    data = {"method": "lora", "lora": {"r": 4, "rank_pattern": {"q": 2}}, "seed": 1}
    changes = {"lora": {"rank_pattern": {"v": 3}}, "seed": 2, "model": {"dtype": "auto"}}
    merged = {"method": "lora", "lora": {"r": 4, "rank_pattern": {"v": 3}}, "seed": 2}
    assert laid_over(data, changes) == merged | {"model": {"dtype": "auto"}}
    assert data["seed"] == 1 and data["lora"]["rank_pattern"] == {"q": 2}


def test_a_variant_is_the_config_with_its_fields_in_it(tmp_path: Path) -> None:
    text = "lora: {r: 4}\ntraining: {max_steps: 5, learning_rate: 1e-2}\nvariants:\n"
    text += "  a: {lora: {lora_alpha: 9}, training: {learning_rate: 5e-4}}\n  b: {method: full}\n"
    config = load(tmp_path, text, "variants.b.training.max_steps=2")
    a, b = (with_variant(config, name) for name in "ab")
    assert (a.method, a.lora.r, a.lora.lora_alpha) == ("lora", 4, 9)
    assert a.training == {"max_steps": 5, "learning_rate": 5e-4}  # 5e-4 is a number here too
    assert (b.method, b.training) == ("full", {"max_steps": 2, "learning_rate": 1e-2})


MISTAKES = [
    (
        "variants: {a: {lora: {rnk: 3}}}",
        "1: variants.a: unknown key 'lora.rnk' (value 3); did you mean 'lora.r'?",
    ),
    ("variants:\n  a: {lora: {r: x}}", "2: variants.a: lora.r='x' is not an integer"),
    (
        "variants: {a: {metod: full}}",
        "1: variants.a: unknown key 'metod' (value 'full'); did you mean 'method'?",
    ),
    ("variants: {a: 3}", "1: variants.a=3 is not a section of keys"),
    ("variants: {a: {training: 3}}", "1: variants.a: training=3 is not a section of keys"),
    ("variants: {a/b: {}}", "1: variants.a/b: 'a/b' must consist of 1 to 64 letters, digits, '_' and '-'"),
    (
        "variants: {a: {seeds: [1]}}",
        "1: variants.a: 'seeds' cannot vary; move it to the top level",
    ),
    (
        "variants: {a: {training: {learning_rat: 3}}}",
        "1: unknown key 'variants.a.training.learning_rat' (value 3); did you mean "
        "'variants.a.training.learning_rate'?",
    ),
    (
        "model: {load_in_4bit: true}\nvariants:\n  a: {lora: {r: 2}}\n  b: {method: full}",
        "4: variants.b: model.load_in_4bit=true cannot be trained in full (method='full'): use method: lora, "
        "or load_in_4bit: false",
    ),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=[expected[3:60] for _, expected in MISTAKES])
def test_a_mistake_in_a_variant_names_it_and_its_line(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    assert str(error.value) == f"{tmp_path / 'x.yaml'}:{expected}"


def test_a_single_run_of_a_study_s_config_ignores_its_variants(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("variants: {a: {model: {load_in_4bit: true}}}")
    run = load_config(tmp_path / "x.yaml", ["method=full"])
    assert run.for_run(run.method, run.seed, run.output_dir).variants == {}
