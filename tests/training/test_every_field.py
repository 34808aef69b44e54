"""Every field of `Seq2SeqTrainingArguments` changes the run, is refused, or is documented as without effect.

A release of Transformers that adds a field fails here until the field is in one of the tables.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_trainer import Rows, arguments, losses, make_trainer, shallow
from transformers import Seq2SeqTrainingArguments

from lora_hf.config.load import load_config
from lora_hf.config.training_fields import ELSEWHERE, FIXED, NO_EFFECT
from lora_hf.errors import UserError
from lora_hf.runs.run_dir import IGNORED

INSTALLED = [field.name for field in fields(Seq2SeqTrainingArguments) if field.init]
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}
GENERATED = {"predict_with_generate": True, "generation_max_length": 4}
BEST = EVALUATED | {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}
FIRST = BEST | {"greater_is_better": True}  # the loss falls: the first of two evaluations is the "best" one
# field: (value, the other fields that it needs to have an effect)
EFFECT: dict[str, tuple[Any, dict[str, Any]]] = {
    "per_device_train_batch_size": (6, {}),
    "num_train_epochs": (0.25, {"max_steps": -1}),
    "max_steps": (3, {}),
    "learning_rate": (1e-2, {}),
    "lr_scheduler_type": ("cosine", {}),
    "lr_scheduler_kwargs": ({"num_cycles": 3}, {"lr_scheduler_type": "cosine_with_restarts"}),
    "warmup_steps": (2, {}),
    "optim": ("adafactor", {}),
    "optim_args": ("momentum=0.9", {"optim": "sgd"}),
    "weight_decay": (0.5, {}),
    "adam_beta1": (0.5, {}),
    "adam_beta2": (0.5, {}),
    "adam_epsilon": (0.1, {}),
    "gradient_accumulation_steps": (2, {}),
    "max_grad_norm": (1e-4, {"optim": "sgd"}),
    "label_smoothing_factor": (0.1, {}),
    "bf16": (True, {}),
    "eval_strategy": ("epoch", {"num_train_epochs": 1, "max_steps": -1, "per_device_train_batch_size": 16}),
    "eval_steps": (1, EVALUATED),
    "eval_delay": (3, EVALUATED),
    "per_device_eval_batch_size": (4, EVALUATED),  # the loss is a mean of batches, weighted by their rows
    "eval_on_start": (True, {}),
    "prediction_loss_only": (True, EVALUATED | GENERATED),
    "save_strategy": ("epoch", {}),
    "save_steps": (1, {"save_strategy": "steps"}),
    "load_best_model_at_end": (True, FIRST | {"load_best_model_at_end": False}),
    "metric_for_best_model": ("eval_falling", BEST | GENERATED),
    # with a metric of the Trainer's caller: of the run's own metrics the direction is known
    "greater_is_better": (False, BEST | GENERATED | {"metric_for_best_model": "eval_falling"}),
    "data_seed": (7, {}),
    "dataloader_drop_last": (
        True,
        {"num_train_epochs": 1, "max_steps": -1, "per_device_train_batch_size": 20},
    ),
    "train_sampling_strategy": ("group_by_length", {}),
    "accelerator_config": ({"gradient_accumulation_kwargs": {"num_steps": 2}}, {}),
}
UNLESS = {
    "optim_target_modules": "needs GaLore or APOLLO, and is refused with any other optimizer",
    "fp16": "needs a GPU, and is refused without one",
}
# What a CPU can try in this process; the other fields of NO_EFFECT need devices, processes or accounts.
TRIED: dict[str, tuple[Any, dict[str, Any]]] = {
    "gradient_checkpointing": (True, {}),
    "use_cache": (True, {}),
    "torch_empty_cache_steps": (1, {}),
    "eval_accumulation_steps": (1, EVALUATED),
    "dataloader_pin_memory": (True, {}),
    "logging_strategy": ("epoch", {}),
    "logging_steps": (2, {}),
    "logging_first_step": (True, {}),
    "logging_nan_inf_filter": (True, {}),
    "include_num_input_tokens_seen": (True, {}),
    "log_level": ("error", {}),
    "skip_memory_metrics": (False, {}),
    "run_name": ("mine", {}),
    "save_only_model": (True, BEST),
    "save_total_limit": (1, BEST),
    "remove_unused_columns": (False, {}),
    "restore_callback_states_from_checkpoint": (True, BEST),
    "debug": ("underflow_overflow", {}),
}


def outcome(folder: Path, **settings: Any) -> dict[str, Any]:
    """Return what a short training leaves: losses, evaluations, checkpoints and the trained weights."""
    start = {"max_steps": 4, "per_device_train_batch_size": 4, "train_sampling_strategy": "random", "seed": 3}
    values = iter([2.0, 1.0, 0.0, 0.0])
    trainer = make_trainer(
        shallow(),
        arguments(folder, **(start | settings)),
        train_dataset=Rows(48),
        eval_dataset=Rows(6, seed=9),
        compute_metrics=lambda pairs: {"falling": next(values)},
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    kept = ("step", "eval_loss", "eval_falling")
    trained = [p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]
    return {
        "weights": torch.cat(trained).tolist(),
        "losses": losses(trainer),
        "evaluations": [{key: entry.get(key) for key in kept} for entry in log],
        "checkpoints": sorted(path.name for path in folder.glob("checkpoint-*")),
    }


def test_each_field_is_in_one_table() -> None:
    tables = [EFFECT, UNLESS, NO_EFFECT, FIXED, ELSEWHERE]
    found = {name: sum(name in table for table in tables) for name in INSTALLED}
    assert [name for name, count in found.items() if count != 1] == []
    assert TRIED.keys() <= NO_EFFECT.keys()


def test_fields_that_a_finished_run_ignores_are_documented_as_without_effect() -> None:
    ignored = [name for name in INSTALLED if name.startswith(IGNORED)]
    assert {"report_to", "logging_steps"} <= {*ignored} <= {*NO_EFFECT, *ELSEWHERE}


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, Any]]:
    return {}


def without(known: dict[str, dict[str, Any]], folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome of settings that several fields are compared with."""
    key = repr(sorted(settings.items()))
    if key not in known:
        known[key] = outcome(folder, **settings)
    return known[key]


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.parametrize("field", EFFECT)
def test_a_field_with_an_effect_changes_the_run(field: str, tmp_path: Path, known: dict[str, Any]) -> None:
    value, needed = EFFECT[field]
    changed = outcome(tmp_path / "with", **needed | {field: value})
    assert changed != without(known, tmp_path / "without", needed)


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.parametrize("field", TRIED)
def test_a_field_without_effect_leaves_weights_and_evaluations(
    field: str, tmp_path: Path, known: dict[str, Any]
) -> None:
    value, needed = TRIED[field]
    needed = needed | {"optim": "sgd", "learning_rate": 0.5}  # Adam makes steps of rounding errors
    here, there = (
        outcome(tmp_path / "with", **needed | {field: value}),
        without(known, tmp_path / "a", needed),
    )
    assert here["weights"] == pytest.approx(there["weights"], rel=0, abs=1e-5)
    assert here["evaluations"] == there["evaluations"]


@pytest.mark.parametrize("field", [*FIXED, *ELSEWHERE])
def test_a_refused_field_is_one_error_with_its_value(field: str) -> None:
    value = FIXED[field][0] if field in FIXED else None
    other = {True: False, False: True}.get(value, "x") if not isinstance(value, list) else ["loss"]
    with pytest.raises(UserError, match=rf"^config: training\.{field}=") as raised:
        load_config({"training": {field: other}})
    assert "\n" not in str(raised.value)


COSINE = {"lr_scheduler_type": "cosine"}
KEEPS_BEST = {"load_best_model_at_end": True, "eval_strategy": "epoch"}
PLATEAU = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"eval_steps": 5}, "eval_steps=5 has no effect without training.eval_strategy: steps"),
    ({"eval_steps": 5, "eval_strategy": "epoch"}, ""),
    ({"save_steps": 5}, "save_steps=5 has no effect without training.save_strategy: steps"),
    ({"eval_delay": 3}, "eval_delay=3 has no effect without training.eval_strategy: steps or epoch"),
    ({"metric_for_best_model": "rouge1"}, "='rouge1' has no effect without training.load_best_model_at_end"),
    ({"greater_is_better": False}, "=false has no effect without training.load_best_model_at_end: true"),
    ({"greater_is_better": None, "eval_delay": 0, "save_steps": 500, "hub_private_repo": False}, ""),
    ({"metric_for_best_model": "rouge1", "load_best_model_at_end": False}, ""),
    (
        {"metric_for_best_model": "loss", "lr_scheduler_type": "reduce_lr_on_plateau"}
        | {"eval_strategy": "epoch"},
        "",
    ),
    (
        KEEPS_BEST | {"metric_for_best_model": "rouge1", "greater_is_better": False},
        "greater_is_better=false would keep the worst checkpoint: a higher training.metric_for_best_model",
    ),
    (
        KEEPS_BEST | {"metric_for_best_model": "eval_rougeLsum", "greater_is_better": False},
        "greater_is_better=false would keep the worst checkpoint",
    ),
    (KEEPS_BEST | {"greater_is_better": True}, "a lower training.metric_for_best_model='loss' is better"),
    (KEEPS_BEST | {"metric_for_best_model": "rouge1", "greater_is_better": True}, ""),
    (KEEPS_BEST | {"metric_for_best_model": "words", "greater_is_better": False}, ""),
    (KEEPS_BEST | {"greater_is_better": False}, ""),
    (
        PLATEAU | {"metric_for_best_model": "rouge1"},
        "='reduce_lr_on_plateau' would lower the rate while training.metric_for_best_model='rouge1' improves",
    ),
    (
        PLATEAU | {"metric_for_best_model": "rouge1", "lr_scheduler_kwargs": {"mode": "min"}},
        "add training.lr_scheduler_kwargs: {mode: max}",
    ),
    (PLATEAU | {"lr_scheduler_kwargs": {"mode": "max"}}, "add training.lr_scheduler_kwargs: {mode: min}"),
    (PLATEAU | {"metric_for_best_model": "rouge1", "lr_scheduler_kwargs": {"mode": "max"}}, ""),
    (PLATEAU | {"metric_for_best_model": "rouge1", "lr_scheduler_kwargs": '{"mode": "max"}'}, ""),
    (PLATEAU, ""),
    (
        {"load_best_model_at_end": True, "save_strategy": "no"},
        "load_best_model_at_end=true needs training.eval_strategy: evaluations decide which checkpoint",
    ),
    (
        {"load_best_model_at_end": True, "save_strategy": "no", "eval_strategy": "epoch"},
        "evaluation: set training.save_strategy: epoch, or training.load_best_model_at_end: false",
    ),
    (
        KEEPS_BEST | {"save_strategy": "steps", "save_steps": 2},
        "evaluation: set training.eval_strategy: steps and training.eval_steps: 2, or training",
    ),
    (
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4},
        "evaluation: set training.save_strategy: steps and training.save_steps: 4, or training.load_best",
    ),
    (
        BEST | {"save_steps": 3},
        "which is not a round multiple of 2; set training.save_steps to a multiple of training.eval_steps",
    ),
    (KEEPS_BEST | {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 100}, ""),
    (KEEPS_BEST | {"save_strategy": "best", "metric_for_best_model": "loss"}, ""),
    (
        {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 60}
        | {"eval_strategy": "steps", "eval_steps": 30, "max_steps": 20},
        "eval_steps=30 is beyond training.max_steps=20, so no checkpoint would be the best",
    ),
    ({"eval_strategy": "steps", "eval_steps": 30, "max_steps": 20}, ""),  # a short trial of a config
    ({"save_strategy": "steps", "save_steps": 0}, "save_steps=0 must be above 0; for no checkpoints, use"),
    ({"eval_strategy": "steps", "eval_steps": 0}, "eval_steps=0 must be above 0; for no evaluations, use"),
    ({"adam_beta1": 1}, "adam_beta1=1 must be below 1: at 1 the average never changes"),
    ({"adam_beta1": -1}, "adam_beta1=-1 must be at least 0"),
    ({"label_smoothing_factor": 1.0}, "label_smoothing_factor=1.0 must be below 1: at 1 the references have"),
    ({"hub_model_id": "a/b"}, "hub_model_id='a/b' has no effect without training.push_to_hub: true"),
    ({"fsdp_config": {"min_num_params": 1}}, "has no effect without training.fsdp: true"),
    (
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        "has no effect without training.gradient_checkpointing: true",
    ),
    ({"dataloader_persistent_workers": True}, "=true has no effect without training.dataloader_num_workers"),
    ({"dataloader_prefetch_factor": 2}, "=2 has no effect without training.dataloader_num_workers: above 0"),
    ({"dataloader_prefetch_factor": 0, "dataloader_num_workers": 1}, "=0 must be at least 1"),
    ({"dataloader_prefetch_factor": -1, "dataloader_num_workers": 1}, "=-1 must be at least 1"),
    ({"include_num_input_tokens_seen": "sometimes"}, "='sometimes' is not true, false or one of no, all,"),
    ({"include_num_input_tokens_seen": "non_padding"}, ""),
    ({"deepspeed": {}}, "deepspeed={} is empty: give"),
    ({"report_to": ["none", "tensorboard"]}, "=[none, tensorboard] names none or all beside"),
    ({"report_to": ["none"]}, ""),
    ({"adam_epsilon": 0}, "adam_epsilon=0 makes 0/0 of a gradient of 0"),
    ({"learning_rate": 0}, "learning_rate=0 trains nothing: choose a rate above 0"),
    (
        {"lr_scheduler_kwargs": {"foo": 1}},
        "={foo: 1} does not fit training.lr_scheduler_type='linear': get_l",
    ),
    (
        {"lr_scheduler_type": "cosine_with_min_lr"},
        "='cosine_with_min_lr' needs training.lr_scheduler_kwargs: One of min_lr or min_lr_rate",
    ),
    (
        {"eval_strategy": "steps", "eval_delay": 5, "max_steps": 4},
        "eval_delay=5 is beyond training.max_steps=4, so nothing would be evaluated",
    ),
    ({"eval_strategy": "steps", "eval_delay": 4, "max_steps": 4}, ""),
    (
        {"eval_strategy": "epoch", "eval_delay": 5},
        "eval_delay=5 is beyond training.num_train_epochs=3, so nothing would be evaluated",
    ),
    ({"eval_strategy": "epoch", "eval_delay": 5, "max_steps": 100}, ""),
    (
        COSINE | {"lr_scheduler_kwargs": {"num_cycles": "x"}},
        "num_cycles: x} gives no learning rate at a later",
    ),
    (COSINE | {"lr_scheduler_kwargs": {"num_cycles": 0.75}}, ""),
    (
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "two"}},
        "power: two} gives no learning rate at a later step",
    ),
    (
        {"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 0}},
        "timescale: 0} gives no learning rate at a later step (ZeroDivisionError",
    ),
    ({"activation_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}, ""),
]


@pytest.mark.parametrize(("settings", "says"), REFUSED, ids=str)
def test_what_would_do_nothing_or_fail_later_is_refused_when_the_config_is_read(
    settings: dict[str, Any], says: str
) -> None:
    if not settings.keys() <= Seq2SeqTrainingArguments.__dataclass_fields__.keys():
        pytest.skip("a field of newer versions of Transformers")
    if not says:
        load_config({"training": settings})
        return
    with pytest.raises(UserError) as raised:
        load_config({"training": settings})
    assert says in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("field", FIXED)
def test_the_value_that_a_fixed_field_has_may_be_written_down(field: str) -> None:
    assert load_config({"training": {field: FIXED[field][0]}}).training == {field: FIXED[field][0]}


def test_a_beta_of_zero_is_written_as_an_integer_too(tmp_path: Path) -> None:
    training = load_config({"training": {"adam_beta1": 0}}).training
    optimizer = make_trainer(shallow(), arguments(tmp_path, **training)).create_optimizer()
    assert optimizer.param_groups[0]["betas"] == (0.0, 0.999)
