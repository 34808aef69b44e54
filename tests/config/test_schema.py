"""The fields: what is taken, what is refused, and how one arm of a comparison is made."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from lora_hf.adapters.config import LoraConfig
from lora_hf.config.load import load_config
from lora_hf.config.schema import METHOD_CHOICES, SECTIONS, LoraSection, RunConfig, Section
from lora_hf.config.sweep import Range
from lora_hf.config.task import Task
from lora_hf.data.prompts import PROMPTS, fill_prompt, prompt_template
from lora_hf.errors import UserError


def sections(model: type[BaseModel] = Section) -> list[type[BaseModel]]:
    return [sub for sub in model.__subclasses__() if sub.__module__.startswith("lora_hf.config.")]


def test_every_section_is_frozen_and_forbids_unknown_keys() -> None:
    assert len(sections()) == 12
    for model in sections():
        assert model.model_config["frozen"] and model.model_config["extra"] == "forbid"


def test_every_field_has_its_doc() -> None:
    undocumented = [
        f"{m.__name__}.{n}" for m in sections() for n, f in m.model_fields.items() if not f.description
    ]
    named = "model lora bottleneck prompt_tuning data generation".split()  # each has a class with its doc
    assert undocumented == [f"RunConfig.{name}" for name in named]


def test_the_lora_section_maps_one_to_one_onto_the_adapters_config() -> None:
    ours, theirs = LoraSection().model_dump(), dataclasses.asdict(LoraConfig())
    assert ours == {name: theirs[name] for name in ours}
    assert LoraConfig(**LoraSection(r=4, lora_alpha=12, target_modules=["q", "wo"]).model_dump()).r == 4


def test_a_whole_lora_alpha_stays_an_integer_as_peft_writes_it() -> None:
    assert repr(LoraSection(lora_alpha=32.0).model_dump(mode="json")["lora_alpha"]) == "32"
    assert LoraSection(lora_alpha="1.5").lora_alpha == 1.5


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ({"lora": {"r": 1e3}}, 1000),
        ({"lora": {"lora_dropout": "5e-2"}}, 0.05),
        ({"model": {"load_in_4bit": "yes"}}, True),
        ({"model": {"revision": None}}, None),
        ({"lora": {"target_modules": ["q", "k"]}}, ("q", "k")),
        ({"lora": {"target_modules": r".*\.(q|v)"}}, r".*\.(q|v)"),
        ({"lora": {"init_lora_weights": "gaussian"}}, "gaussian"),
        ({"data": {"prompt": "{dialogue} :"}}, "{dialogue} :"),
    ],
)
def test_common_spellings_of_values_are_accepted(data: dict[str, Any], value: Any) -> None:
    ((section, fields),) = data.items()
    (name,) = fields
    assert getattr(getattr(RunConfig.model_validate(data), section), name) == value


@pytest.mark.parametrize(
    "data",
    [
        {"lora": {"r": True}},
        {"lora": {"r": "8"}},
        {"lora": {"r": 8.5}},
        {"lora": {"lora_alpha": float("nan")}},
        {"lora": {"lora_dropout": 1}},
        {"lora": {"target_modules": ["q", 5]}},
        {"lora": {"init_lora_weights": False}},
        {"model": {"model_name_or_path": ""}},
        {"seed": -1},
        {"seed": 2**32},
        {"seeds": []},
        {"seeds": [1, 1]},
        {"generation": {"num_beams": 0}},
        {"bottleneck": {"bottleneck_dim": 0}},
        {"bottleneck": {"non_linearity": "step"}},
        {"prompt_tuning": {"num_virtual_tokens": 0}},
        {"prompt_tuning": {"init": "zeros"}},
        {"method": "full", "model": {"load_in_4bit": True}},
    ],
)
def test_a_config_that_would_fail_later_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RunConfig.model_validate(data)


@pytest.mark.parametrize(
    "data",
    [
        {"data": {"on_bad_row": "x"}},
        {"data": {"dialog_column": "said", "max_source_length": "long"}},
        {"data": {"prompt": "no place"}},
        {"data": {"validation_share": 0.9, "test_share": 0.9}},
        {"model": {"load_in_4bit": True, "load_in_8bit": True}},
        {"model": {"revision": 3}},
        {"generation": {"num_beams": 0, "lengths": 3}},
        {"lora": {"r": "x", "alpha": 3}},
        {"bottleneck": {"bottleneck_dim": 0}},
        {"prompt_tuning": {"init": "zeros"}},
        {"task": {"metrics": ["x"]}},
        {"sweep": {"runs": "all"}},
        {"method": "x", "data": {"lr": 1}, "lora": 3},
    ],
    ids=str,
)
def test_a_section_made_in_python_is_refused_in_the_words_of_load_config(
    data: dict[str, Any],
) -> None:
    kinds = {name: field.annotation for name, field in RunConfig.model_fields.items()} | {"task": Task}
    with pytest.raises(UserError) as expected:
        load_config(data)
    (name, fields), *others = data.items()
    with pytest.raises(UserError) as error:
        RunConfig(**data) if others else kinds[name](**fields)
    assert str(error.value) == str(expected.value).replace("config: ", "")


def test_a_field_that_is_changed_or_missing_is_one_error() -> None:
    with pytest.raises(UserError, match="^seed: the fields of a RunConfig cannot be changed"):
        RunConfig().seed = 3
    with pytest.raises(UserError, match="^sweep.space.high is missing$"):
        Range(low=1)
    with pytest.raises(UserError, match="^sweep.space={low: 3, high: 1} holds an empty range"):
        Range(low=3, high=1)


IN_4_BITS = {"load_in_4bit": True}
LOFTQ = {"lora": {"init_lora_weights": "loftq"}, "model": IN_4_BITS}
# (fields, the field without effect, what it needs)
UNREAD: list[tuple[dict[str, Any], str, str]] = [
    ({"lora": {"loftq_iter": 5}}, "lora.loftq_iter=5", "lora.init_lora_weights: loftq"),
    ({"model": {"quantize_wo": True}}, "model.quantize_wo=true", "load_in_4bit: true or load_in_8bit: true"),
    ({"model": {"bnb_4bit_quant_type": "fp4"}}, "model.bnb_4bit_quant_type='fp4'", "load_in_4bit: true with"),
    (
        {"model": {"bnb_4bit_use_double_quant": False}},
        "model.bnb_4bit_use_double_quant=false",
        "quant_method",
    ),
    ({"model": {"bnb_4bit_compute_dtype": "float32"}}, "model.bnb_4bit_compute_dtype='float32'", "bnb"),
    ({"model": {"hqq_group_size": 32}}, "model.hqq_group_size=32", "quant_method: hqq"),
    ({"model": {"hqq_group_size": 32} | IN_4_BITS}, "model.hqq_group_size=32", "quant_method: hqq"),
    (
        {"model": {"bnb_4bit_quant_type": "fp4", "load_in_8bit": True}},
        "model.bnb_4bit_quant_type='fp4'",
        "bnb",
    ),
    ({"model": {"revision": "v1"}}, "model.revision='v1'", "model.revision=null"),
    ({"data": {"dataset_revision": "v1"}}, "data.dataset_revision='v1'", "data.dataset_revision=null"),
    ({"data": {"dataset_config": "en"}}, "data.dataset_config='en'", "data.dataset_config=null"),
    (
        {"method": "bottleneck", "lora": {"modules_to_save": ["lm_head"]}},
        "lora.modules_to_save=[lm_head]",
        "method: lora",
    ),
    (
        {"method": "prompt_tuning", "lora": {"modules_to_save": ["lm_head"]}},
        "lora.modules_to_save=[lm_head]",
        "method: lora",
    ),
    ({"variants": {"a": {"lora": {"loftq_iter": 5}}}}, "variants.a: lora.loftq_iter=5", "loftq"),
    ({"sweep": {"space": {"lora": {"loftq_iter": [2, 3]}}}}, "loftq_iter-2: lora.loftq_iter=2", "loftq"),
]


@pytest.mark.parametrize(("fields", "field", "needs"), UNREAD)
def test_a_field_that_no_run_reads_is_refused_with_what_it_needs(
    fields: dict[str, Any], field: str, needs: str
) -> None:
    with pytest.raises(UserError) as raised:
        load_config(fields)
    message = str(raised.value)
    assert f"{field} has no effect" in message and needs in message and "\n" not in message
    with pytest.raises(UserError) as raised:  # a config that Python code has created
        load_config(RunConfig(**fields))
    assert str(raised.value) == message


@pytest.mark.parametrize("fields", [*(fields for fields, _, _ in UNREAD), {"data": {"dataset_name": "."}}])
def test_a_recorded_config_with_a_field_that_no_run_reads_can_still_be_read(fields: dict[str, Any]) -> None:
    load_config(fields, is_recorded=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"lora": {"loftq_iter": 1}, "model": {"quantize_wo": False, "hqq_group_size": 64, "revision": None}},
        LOFTQ | {"lora": LOFTQ["lora"] | {"loftq_iter": 5}},
        {"lora": {"loftq_iter": 5}, "variants": {"loftq": LOFTQ, "plain": {}}},
        {
            "lora": {"loftq_iter": 5},
            "model": IN_4_BITS,
            "sweep": {"space": {"lora": {"init_lora_weights": ["loftq"]}}},
        },
        {"model": {"quantize_wo": True, "load_in_4bit": False}},
        {"model": {"quantize_wo": True}, "variants": {"qlora": {"model": IN_4_BITS}, "lora": {}}},
        {
            "model": {"bnb_4bit_quant_type": "fp4"} | IN_4_BITS,
            "variants": {"dense": {"model": {"load_in_4bit": False}}},
        },
        {"model": {"hqq_group_size": 32, "quant_method": "hqq"} | IN_4_BITS},
        {"model": {"model_name_or_path": "a/b", "revision": "v1"}},
        {"data": {"dataset_name": "a/b", "dataset_revision": "v1", "dataset_config": "en"}},
        {"method": "bottleneck", "lora": {"modules_to_save": ["lm_head"]}, "arms": {"full": {}}},
    ],
)
def test_a_field_that_some_run_reads_is_accepted(fields: dict[str, Any]) -> None:
    config = load_config(fields)
    assert load_config(config) == config


def test_a_section_whose_keys_are_all_commented_out_has_its_defaults() -> None:
    assert RunConfig.model_validate(dict.fromkeys(SECTIONS)) == RunConfig()


def test_a_run_of_a_comparison_has_its_own_training_fields() -> None:
    config = RunConfig.model_validate(
        {
            "training": {"learning_rate": 1e-3, "max_steps": 5},
            "arms": {"full": {"training": {"learning_rate": 1e-4}}},
            "seeds": [1, 2],
        }
    )
    arm = config.for_run("full", 2, "runs/x/full")
    assert arm.training == {"learning_rate": 1e-4, "max_steps": 5}
    assert (arm.method, arm.seed, arm.seeds, arm.arms, arm.output_dir) == ("full", 2, None, {}, "runs/x/full")
    assert config.for_run("lora", 1, "runs/x/lora").training == config.training
    assert RunConfig.model_validate(arm.model_dump(mode="json")) == arm


def test_full_fine_tuning_in_a_4bit_comparison_trains_dense_weights() -> None:
    config = RunConfig.model_validate({"model": {"load_in_4bit": True}})
    stored_in_4bit = {method: config.for_run(method, 1, "x").model.load_in_4bit for method in METHOD_CHOICES}
    assert stored_in_4bit == dict.fromkeys(METHOD_CHOICES, True) | {"full": False}


def test_a_prompt_takes_a_dialogue_with_braces() -> None:
    dialogue = "A: print({x}) {dialogue}?"
    assert fill_prompt(prompt_template("plain"), dialogue) == dialogue
    assert fill_prompt(prompt_template("{a} {dialogue}"), "B: {0}") == "{a} B: {0}"
    assert all(template.count("{dialogue}") == 1 for template in PROMPTS.values())


def test_the_config_imports_nothing_heavy() -> None:
    code = (
        "import sys, lora_hf.config; print({'torch', 'transformers', 'datasets', 'yaml'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
