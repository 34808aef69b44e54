"""The time of generation: whose models are timed, and that a merged LoRA is the base's own structure."""

import pytest

from lora_hf.config import RunConfig
from lora_hf.errors import UserError
from lora_hf.models.load import load_model
from lora_hf.system import pick_device
from scripts.benchmarks import generation_time
from scripts.benchmarks.generation_time import generation_markdown, generation_times

CONFIG = RunConfig.model_validate(
    {
        "lora": {"r": 4},
        "data": {"max_test_samples": 3},
        "variants": {
            "base": {"method": "base"},
            "lora": {},
            "bottleneck": {"method": "bottleneck", "bottleneck": {"bottleneck_dim": 3}},
            "prompt_tuning": {"method": "prompt_tuning", "prompt_tuning": {"num_virtual_tokens": 2}},
        },
    }
)


@pytest.mark.slow
def test_base_lora_and_baselines_are_timed_and_a_merged_lora_adds_nothing():
    times = generation_times(CONFIG, ("lora", "bottleneck", "prompt_tuning"), new_tokens=3, rounds=2)
    weights = {name: of["added_weights"] for name, of in times.items()}
    assert weights == {
        "base": 0,
        "base again": 0,
        "lora": 6 * 2 * 4 * 256,
        "lora merged": 0,
        "bottleneck": 10 * (2 * 3 * 128 + 3 + 128),
        "prompt_tuning": 2 * 128,
    }
    assert times["base"]["ratio"] == 1 and all(of["seconds"] > 0 for of in times.values())
    lines = generation_markdown(times).splitlines()
    assert len(lines) == 8 and lines[5].startswith("| lora merged |") and lines[5].endswith("| 0 |")


def test_a_merged_lora_runs_the_very_modules_of_the_base():
    def modules(model):
        return [(name, type(module)) for name, module in model.named_modules()]

    models = generation_time._models(CONFIG, ["lora"])
    base = modules(load_model(CONFIG.model, pick_device()))
    assert modules(models["lora merged"]) == base != modules(models["lora"])


@pytest.mark.parametrize(("name", "expected"), [("loar", "Did you mean 'lora'"), ("base", "adds no weights")])
def test_a_variant_that_cannot_be_timed_is_named(name, expected):
    with pytest.raises(UserError, match=expected):
        generation_times(CONFIG, [name])
