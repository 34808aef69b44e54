"""The `sweep:` section: its grid, its names, its changes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from lora_hf.config.load import load_config
from lora_hf.config.sweep import SweepSection, changes_of, grid
from lora_hf.config.variants import with_grid, with_variant
from lora_hf.errors import UserError

SCALING = {"plain": {"lora.use_rslora": False}, "root": {"lora.use_rslora": True, "lora.lora_alpha": 8}}


def section(**space: Any) -> SweepSection:
    return SweepSection.model_validate({"space": space})


def test_every_combination_has_a_name_and_its_changes() -> None:
    sweep = section(lora={"r": [2, 4]}, scaling=SCALING)
    points = grid(sweep)
    assert list(points) == ["r-2_scaling-plain", "r-2_scaling-root", "r-4_scaling-plain", "r-4_scaling-root"]
    assert points["r-4_scaling-root"] == {"lora.r": 4, "scaling": "root"}
    assert changes_of(sweep, points["r-4_scaling-root"]) == {
        "lora": {"r": 4, "use_rslora": True, "lora_alpha": 8}
    }


def test_dotted_and_nested_fields_are_one() -> None:
    inner = section(lora={"r": [2]}, x={"a": {"lora": {"lora_alpha": 3}}})
    assert changes_of(inner, {"lora.r": 2, "x": "a"}) == {"lora": {"r": 2, "lora_alpha": 3}}
    nested = section(lora={"r": [2, 4]}, training={"learning_rate": [1e-3]})
    assert nested == section(**{"lora.r": [2, 4], "training.learning_rate": [1e-3]})
    assert list(grid(nested)) == ["r-2_learning_rate-0_001", "r-4_learning_rate-0_001"]


def test_a_point_is_the_common_config_with_its_changes(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("lora: {r: 16, lora_alpha: 5}\nsweep: {space: {lora: {r: [1, 2]}}}\n")
    swept = with_grid(load_config(file, ["sweep.space.seed_like={a: {seed: 1}}"], is_study=False))
    assert list(swept.variants) == ["r-1_seed_like-a", "r-2_seed_like-a"]
    one = with_variant(load_config(file).model_copy(update={"variants": {"x": {"lora": {"r": 2}}}}), "x")
    assert (one.lora.r, one.lora.lora_alpha) == (2, 5)
    assert one.for_run("lora", 1, "out").sweep == SweepSection()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{lora: {r: [4, x]}}", "sweep.space: lora.r='x' is not an integer"),
        ("{lora: {rank: [4]}}", "unknown key 'lora.rank'"),
        ("{lora: {r: 4}}", "must give lora.r a list"),
        ("{lora: {r: []}}", "must give lora.r a list"),
        ("{scale: {a: 3}}", "must give scale a list"),
        ("{training: {learning_rate: {low: 1e-4, high: 1e-2}}}", "set sweep.trials"),
        ("{lora.r: {low: 1.9, high: 8.5, integer: true}}", "between 1.9 and 8.5: give whole bounds"),
        ("{training: {learning_rate: {low: 1e-2, high: 1e-4}}}", "low must be below high"),
        ("{training: {learning_rate: {low: 0, high: 1, log: true}}}", "above 0 with log"),
        ("{output_dir: [a, b]}", "'output_dir' cannot vary"),
        ("{lora: {r: [4, 8]}, x: {a: {lora.r: 2}}}", "sets lora.r on the axes 'lora.r' and 'x'"),
        ("{x: {a: {lora: {r: 2}}}, y: {b: {lora.r: 4}}}", "sets lora.r on the axes 'x' and 'y'"),
        ("{lora.rank_pattern: [{q: 1}], x: {a: {lora.rank_pattern.q: 2}}}", "'lora.rank_pattern' and 'x'"),
        ("{lora: {r: [4]}, lora.r: [8]}", "gives lora.r twice"),
    ],
)
def test_a_mistake_in_a_sweep_names_its_field(tmp_path: Path, written: str, expected: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(f"method: lora\nsweep: {{space: {written}}}\n")
    with pytest.raises(UserError) as error:
        load_config(file, is_study=True)
    assert expected in str(error.value)


RANKS = "sweep:\n  space:\n    lora: {r: [1, 2]}\n"
AXES = [
    (
        RANKS + "    training:\n      lr_scheduler_type: [linear,\n        cosin]",
        "6: sweep.space: training.lr_scheduler_type='cosin' is not",
    ),
    (
        RANKS + "    training.learning_rat:\n      [1]",
        "5: sweep.space: unknown key 'training.learning_rat' (value 1); did you mean",
    ),
    (
        RANKS + "    generation.num_beams:\n      [1,\n      x]",
        "6: sweep.space: generation.num_beams='x' is not",
    ),
    (
        RANKS + "    x:\n      a: {training.eval_steps: 5}",
        "5: sweep.space: x.a: training.eval_steps=5 has no effect without training.eval_strategy: steps",
    ),
    (
        "generation: {num_beams: 4, length_penalty: 2}\nsweep: {space: {generation.num_beams: [1, 4]}}",
        "2: sweep.space: run num_beams-1: generation.length_penalty=2.0 has no effect with generation.",
    ),
    (
        "training: {max_steps: 5}\nsweep: {space: {training: {num_train_epochs: [3]}}}",
        "2: sweep.space: training.num_train_epochs=3 has no effect, because training.max_steps=5",
    ),
    (
        "training: {max_steps: 5}\nvariants: {a: {training: {num_train_epochs: 3}}}",
        "2: variants.a: training.num_train_epochs=3 has no effect, because training.max_steps=5",
    ),
]


@pytest.mark.parametrize(("text", "expected"), AXES, ids=[expected[3:50] for _, expected in AXES])
def test_the_values_of_every_axis_are_checked_before_a_run(tmp_path: Path, text: str, expected: str) -> None:
    """Each mistake once, whatever the other axes have, at the line of the value."""
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(file, is_study=True)
    assert str(error.value).startswith(f"{file}:{expected}") and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("axis", "ends"), [("lora.r", "low: 1, high: 64"), ("training.max_steps", "low: 2, high: 3, log: true")]
)
def test_a_range_of_fractions_for_a_whole_number_names_the_remedy(
    tmp_path: Path, axis: str, ends: str
) -> None:
    file = tmp_path / "s.yaml"
    text = "sweep:\n  trials: 2\n  space:\n    generation.num_beams: [1, 4]\n    {}: {{{}}}\n"
    text += "training: {{eval_strategy: epoch}}\n"
    file.write_text(text.format(axis, ends))
    with pytest.raises(UserError) as error:
        load_config(file, is_study=True)
    assert f"{file}:5: sweep.space.{axis} takes whole numbers only" in str(error.value)
    assert "add integer: true to the range" in str(error.value)
    file.write_text(text.format(axis, f"{ends}, integer: true"))
    assert load_config(file, is_study=True).sweep.trials == 2


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, "sweep.trials=2 judges each trial by the rouge1 of its last evaluation"),
        ({}, "set training.eval_strategy to steps or epoch"),
        (
            {"eval_strategy": "epoch", "prediction_loss_only": True},
            "set training.prediction_loss_only to",
        ),
        ({"eval_strategy": "steps", "eval_steps": 9, "max_steps": 8}, "to at most training.max_steps=8"),
    ],
)
def test_a_search_without_the_score_that_judges_its_trials_is_refused(
    training: dict[str, Any], expected: str
) -> None:
    """Otherwise the base and the first trial are trained before it is found."""
    sweep = {"trials": 2, "space": {"lora.r": [2, 4]}}
    with pytest.raises(UserError) as error:
        load_config({"sweep": sweep, "training": training}, is_study=True)
    assert expected in str(error.value)
    sweep["space"] = {"training.max_steps": [2, 4]}  # other steps are no evaluations
    with pytest.raises(UserError, match="eval_strategy to steps or epoch"):
        load_config({"sweep": sweep}, is_study=True)
    by_axis = {"trials": 2, "space": {"training.eval_strategy": ["steps", "epoch"]}}
    assert load_config({"sweep": by_axis}, is_study=True).sweep.trials == 2
