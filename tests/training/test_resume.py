"""Going on after a kill: from the last whole checkpoint, to the bits that an unbroken run ends with."""

import errno
import logging
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import make_family
from support.models import make_t5
from support.resuming import KillAt, Killed, assert_equal, resume, trainer_of
from support.selection import slow_except
from support.tiny_trainer import Rows, StopAt, arguments, dropping, losses, make_trainer
from transformers import EarlyStoppingCallback, TrainerCallback

from lora_hf import LoraConfig, inject_adapters
from lora_hf.adapters.save import adapter_state
from lora_hf.errors import NotWritten, UserError
from lora_hf.files import PARTIAL
from lora_hf.training import LoraTrainer
from lora_hf.training.checkpoints import MANIFEST, last_checkpoint, set_aside
from lora_hf.training.signals import Interrupted, StopOnSignal

EVALUATED = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
SLOW = (pytest.mark.slow, pytest.mark.versions)
WORSE = {"learning_rate": 3e-3, "lr_scheduler_type": "constant"}
"""Labels are random: what the rows for training teach makes each evaluation worse than the one before."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> LoraTrainer:
    trainer = trainer_of(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer


def test_a_run_killed_after_its_last_step_takes_no_further_step(whole: LoraTrainer, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trainer_of(tmp_path / "run", KillAt(10)).train()
    resumed = resume(trainer_of(tmp_path / "run"), tmp_path / "run")
    assert resumed.state.global_step == 10
    assert_equal(resumed, whole)


def test_the_mean_loss_of_a_resumed_run_is_over_all_of_its_steps(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole").train()
    with pytest.raises(Killed):
        trainer_of(tmp_path / "run", KillAt(4)).train()
    resumed = trainer_of(tmp_path / "run")
    output = resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "run")))
    logged = resumed.state.log_history[-1]["train_loss"]
    found = [output.training_loss, output.metrics["train_loss"], logged]
    assert found == pytest.approx([whole.training_loss] * 3, rel=1e-6)


@pytest.mark.slow
@pytest.mark.versions
def test_worker_processes_change_no_step_before_or_after_a_resume(whole: LoraTrainer, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trainer_of(tmp_path / "run", KillAt(4), dataloader_num_workers=2).train()
    assert_equal(resume(trainer_of(tmp_path / "run", dataloader_num_workers=2), tmp_path / "run"), whole)


@pytest.mark.parametrize("killed", slow_except([8], [4, 8, 12]))
def test_early_stopping_continues_its_count_after_resuming(killed: int, tmp_path: Path) -> None:
    fields = EVALUATED | WORSE | {"max_steps": 40, "restore_callback_states_from_checkpoint": True}
    unbroken = trainer_of(tmp_path / "whole", EarlyStoppingCallback(2), **fields)
    unbroken.train()
    assert unbroken.state.global_step == 12
    with pytest.raises(Killed):
        trainer_of(tmp_path / "run", KillAt(killed), EarlyStoppingCallback(2), **fields).train()
    resumed = resume(trainer_of(tmp_path / "run", EarlyStoppingCallback(2), **fields), tmp_path / "run")
    assert resumed.state.global_step == 12
    assert Path(str(resumed.state.best_model_checkpoint)).name == "checkpoint-4"
    assert_equal(resumed, unbroken)


def test_an_evaluation_does_not_change_training(whole: LoraTrainer, tmp_path: Path) -> None:
    evaluated = trainer_of(tmp_path / "run", eval_strategy="steps", eval_steps=3)
    evaluated.train()
    assert losses(evaluated) == losses(whole)
    assert_equal(evaluated, whole)


@pytest.mark.parametrize(
    ("family", "targets", "shape"),
    [
        pytest.param("NllbMoe", ["q_proj", "v_proj"], {}, marks=SLOW),
        ("SwitchTransformers", ["q", "v"], {}),
        (
            "BigBirdPegasus",
            ["query", "q_proj"],
            {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1},
        ),
    ],
)
def test_evaluations_and_a_resume_change_no_step_of_a_model_that_keeps_what_it_saw(
    family: str, targets: list[str], shape: dict[str, Any], tmp_path: Path
) -> None:
    """Switch's routers draw noise; NLLB-MoE's take over the capacity of the last batch that was evaluated.

    BigBird's encoder keeps full attention after a batch of at most 14 tokens.
    """

    def trainer(name: str, *callbacks: TrainerCallback, **fields: Any) -> LoraTrainer:
        torch.manual_seed(5)
        model = make_family(family, **shape)
        inject_adapters(model, LoraConfig(r=4, lora_alpha=10, target_modules=targets))
        settings = arguments(tmp_path / name, max_steps=4, seed=3, **fields)
        return make_trainer(model, settings, callbacks=list(callbacks), eval_dataset=Rows(3, seed=9))

    whole = trainer("whole")
    whole.train()
    fields = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
    fields |= {"predict_with_generate": True, "generation_max_length": 4}
    with pytest.raises(Killed):
        trainer("run", KillAt(2), **fields).train()
    assert_equal(resume(trainer("run", **fields), tmp_path / "run"), whole)


class SignalInEvaluation(TrainerCallback):
    """SIGTERM at the first evaluation of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", slow_except([4], [4, 10], versions=True))
def test_an_interrupted_evaluation_is_repeated_after_resuming(step: int, tmp_path: Path) -> None:
    fields = EVALUATED | {"per_device_eval_batch_size": 2}
    unbroken = trainer_of(tmp_path / "whole", **fields)
    unbroken.train()
    stop = StopOnSignal()
    stopped = trainer_of(tmp_path / "run", SignalInEvaluation(step), stop, **fields)
    with pytest.raises(Interrupted):
        stopped.train()
    stop.restore()
    stopped._save_checkpoint(stopped.model, trial=None)  # as `fit` does
    resumed = resume(trainer_of(tmp_path / "run", **fields), tmp_path / "run")

    def evaluated(trainer: LoraTrainer) -> list[tuple[int, float]]:
        return [(e["step"], e["eval_loss"]) for e in trainer.state.log_history if "eval_loss" in e]

    assert evaluated(resumed) == evaluated(unbroken) and len(evaluated(resumed)) == 3
    names = [Path(str(t.state.best_model_checkpoint)).name for t in (resumed, unbroken)]
    assert names[0] == names[1]
    assert_equal(resumed, unbroken)


def test_a_kill_during_a_checkpoint_leaves_earlier_ones_intact(
    whole: LoraTrainer, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    run = tmp_path / "run"
    trainer = trainer_of(run)
    save_random_states = trainer._save_rng_state

    def half(folder: str) -> None:
        if trainer.state.global_step == 8:
            monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # a kill cleans nothing up
            raise Killed
        save_random_states(folder)

    monkeypatch.setattr(trainer, "_save_rng_state", half)
    with pytest.raises(Killed):
        trainer.train()
    monkeypatch.undo()
    assert sorted(p.name for p in run.iterdir()) == [f"{PARTIAL}checkpoints", "checkpoint-4"]
    assert (run / f"{PARTIAL}checkpoints" / "checkpoint-8" / "optimizer.pt").is_file()
    with caplog.at_level(logging.INFO, logger="lora_hf"):
        found = last_checkpoint(run)
        set_aside(run, found)
    assert found == run / "checkpoint-4" and [p.name for p in run.iterdir()] == ["checkpoint-4"]
    assert "half-written" in caplog.text
    assert_equal(resume(trainer_of(run), run), whole)


@pytest.mark.parametrize(
    "damage", slow_except(["flipped", "unsealed"], ["cut", "flipped", "missing", "unsealed"])
)
def test_an_incomplete_checkpoint_is_skipped_with_a_warning(
    damage: str, whole: LoraTrainer, tmp_path: Path, caplog: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole.args.output_dir, run)
    optimizer = run / "checkpoint-10" / "optimizer.pt"
    content = optimizer.read_bytes()
    if damage == "cut":
        optimizer.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        optimizer.write_bytes(content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:])
    elif damage == "missing":
        optimizer.unlink()
    else:
        (run / "checkpoint-10" / MANIFEST).unlink()
    with caplog.at_level(logging.WARNING, logger="lora_hf"):
        found = last_checkpoint(run)
        set_aside(run, found)
    assert found == run / "checkpoint-8"
    (line,) = caplog.messages
    assert "checkpoint-10" in line and "is incomplete or damaged and is skipped" in line
    assert {p.name for p in run.iterdir()} == {"checkpoint-4", "checkpoint-8", "broken-checkpoint-10"}
    assert_equal(resume(trainer_of(run), run), whole)
    assert last_checkpoint(run) == run / "checkpoint-10"


def test_a_checkpoint_without_optimizer_state_is_not_resumed_from(tmp_path: Path, caplog: Any) -> None:
    trainer_of(tmp_path, save_only_model=True, max_steps=4).train()
    assert (tmp_path / "checkpoint-4" / MANIFEST).is_file() and last_checkpoint(tmp_path) is None
    assert "no random states" in caplog.text


def test_a_full_disk_during_a_checkpoint_is_one_error_and_keeps_earlier_ones(
    tmp_path: Path, monkeypatch: Any
) -> None:
    trainer = trainer_of(tmp_path)

    def full(folder: str) -> None:
        if trainer.state.global_step == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trainer, "_save_scaler", full)
    with pytest.raises(NotWritten, match="No space left on device: .*checkpoint-8"):
        trainer.train()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-4"]
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    fields = EVALUATED | WORSE | {"max_steps": 20, "save_total_limit": 2}
    trainer = trainer_of(tmp_path, **fields)
    trainer.train()
    best = Path(str(trainer.state.best_model_checkpoint))
    assert best.parent == tmp_path and best.name == "checkpoint-4"
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-20"}
    assert (best / "trainer_state.json").read_text().count(f"{tmp_path}/checkpoint-4") == 1


def test_a_worker_that_loads_data_leaves_a_signal_to_the_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop = StopOnSignal()
    monkeypatch.setattr("os.getpid", lambda: -1)  # as in a process that was forked from the training
    stop._handle(signal.SIGINT, None)
    assert stop.received is None and not caplog.text


def test_a_second_signal_stops_at_once_and_a_repeated_delivery_does_not(monkeypatch: Any) -> None:
    now = [10.0]
    monkeypatch.setattr("lora_hf.training.signals.time.monotonic", lambda: now[0])
    stop = StopOnSignal()
    stop._handle(signal.SIGTERM, None)
    now[0] += 0.1
    stop._handle(signal.SIGTERM, None)  # of another thread of a parent that was killed
    assert stop.received == signal.SIGTERM
    now[0] += 1
    with pytest.raises(Interrupted, match="second signal"):
        stop._handle(signal.SIGTERM, None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optim": "sgd"}, "'sgd', or with other weights that train .its state has no dampening, momentum"),
        ({"optim": "adafactor"}, "its state has no beta1"),
        ({"loraplus_lr_ratio": 4.0}, "different number of parameter groups"),
    ],
)
def test_a_checkpoint_of_another_optimizer_is_refused_before_a_step(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        trainer_of(tmp_path, KillAt(4)).train()
    own = {name: fields[name] for name in fields if name == "loraplus_lr_ratio"}
    args = arguments(tmp_path, seed=3, **{k: v for k, v in fields.items() if k not in own})
    trainer = make_trainer(dropping(), args, **own)
    with pytest.raises(UserError, match=f"checkpoint-4 was saved with another .*{words}"):
        resume(trainer, tmp_path)
    assert trainer.state.global_step in (0, 4)


def test_a_checkpoint_of_an_adapter_with_another_scale_is_refused_before_a_step(tmp_path: Path) -> None:
    def trainer_of(**fields: Any) -> LoraTrainer:
        config = {"r": 4, "lora_alpha": 10, "target_modules": ("q", "v")} | fields
        args = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
        return make_trainer(inject_adapters(make_t5(), LoraConfig(**config)), args)

    stopped = trainer_of()
    stopped.add_callback(StopAt(1))
    stopped.train()
    for name, was, now in (
        ("lora_alpha", 10, 40),
        ("alpha_pattern", {}, {"q": 40}),
        ("use_rslora", False, True),
    ):
        trainer = trainer_of(**{name: now})
        before = adapter_state(trainer.model)
        says = (
            f"adapter 'default' was saved with {name}={was}, and the model has {name}={now}: the update of "
        )
        with pytest.raises(UserError, match=re.escape(says)):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        assert trainer.state.global_step in (0, 1)
        assert all(torch.equal(t, before[name]) for name, t in adapter_state(trainer.model).items())
    same = trainer_of(lora_alpha=40, alpha_pattern={"q": 10, "v": 10.0})
    same.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert same.state.global_step == 2


def test_a_learning_rate_that_resuming_does_not_take_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        trainer_of(tmp_path, KillAt(8)).train()
    resume(trainer_of(tmp_path), tmp_path)
    assert "is not used" not in caplog.text
    resume(trainer_of(tmp_path, learning_rate=1.0), tmp_path)
    assert "learning_rate=1.0 is not used: the optimizer of" in caplog.text
    assert "continues with 0.005" in caplog.text
