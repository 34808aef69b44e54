"""The NaN guard: a number that goes wrong ends training at its step; the checkpoint before it resumes."""

import json
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from support.inputs import FEW
from support.screen import screen_of
from support.selection import slow_except
from support.tiny_trainer import OursInOrder, Rows, arguments, losses, make_trainer, shallow
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from lora_hf import LoraTrainer, cli, terminal
from lora_hf.errors import UserError
from lora_hf.training.nan_guard import Diverged, NanGuard
from lora_hf.training.trainer import last_checkpoint

SAVING = {"save_strategy": "steps", "save_steps": 3}


class Spoiled(LoraTrainer):
    """Multiplies the loss of one batch."""

    batch, by = 7, float("nan")
    taken = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.taken += 1
        loss = super().compute_loss(*args, **kwargs)
        if self.taken != self.batch:
            return loss
        return (loss[0] * self.by, loss[1]) if isinstance(loss, tuple) else loss * self.by


@pytest.mark.parametrize(
    ("value", "accumulation"), slow_except([("nan", 1)], [("nan", 1), ("inf", 2)], versions=True)
)
def test_a_non_finite_loss_stops_training_before_weights_change(
    value: str, accumulation: int, tmp_path: Path
) -> None:
    class Trainer(Spoiled):
        batch, by = 7 * accumulation - (accumulation - 1), float(value)

    def trainer_of(folder: str, kind: type) -> Any:
        args = arguments(tmp_path / folder, gradient_accumulation_steps=accumulation, **SAVING)
        return make_trainer(shallow(), args, kind)

    whole, broken = trainer_of("whole", LoraTrainer), trainer_of("broken", Trainer)
    whole.train()
    with pytest.raises(UserError, match=f"^step 7: the loss is {value}; no weight was changed") as raised:
        broken.train()
    kept = tmp_path / "broken" / "checkpoint-6"
    assert "; choose a training.learning_rate below 0.005;" in str(raised.value)
    assert str(raised.value).endswith(f"the last good checkpoint is kept: {kept}")
    assert last_checkpoint(tmp_path / "broken") == kept
    assert all(tensor.isfinite().all() for tensor in broken.model.state_dict().values())
    resumed = trainer_of("broken", LoraTrainer)
    resumed.train(resume_from_checkpoint=str(kept))
    for (name, ours), theirs in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, the numbers of a step are read in the next one."""
    monkeypatch.setattr("lora_hf.training.nan_guard.LATE", ("cpu",))


class Weights(TrainerCallback):
    """Keeps copies of the weights, by the number of steps that were taken before."""

    def __init__(self) -> None:
        self.after: dict[int, list[torch.Tensor]] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.after[state.global_step] = [p.detach().clone() for p in model.parameters()]


def quiet(folder: Path, **fields: Any) -> Any:
    """Arguments of a training that logs nothing, since a log reads numbers, too."""
    return arguments(folder, logging_steps=50, optim="adamw_torch_fused", **fields)


@pytest.mark.parametrize(("step", "kept"), [(7, 6), (6, 3)])
def test_numbers_that_are_read_late_end_the_same_step_and_write_no_more(
    step: int, kept: int, late: None, tmp_path: Path
) -> None:
    weights = Weights()
    trainer = make_trainer(shallow(), quiet(tmp_path, **SAVING), Spoiled, callbacks=[weights])
    trainer.batch = step
    with pytest.raises(UserError, match=f"^step {step}: the loss is nan; no weight was changed by this step"):
        trainer.train()
    assert trainer.state.global_step == step  # one more than where numbers are read at once
    assert last_checkpoint(tmp_path) == tmp_path / f"checkpoint-{kept}"
    for ours, theirs in zip(trainer.model.parameters(), weights.after[step - 1], strict=True):
        assert torch.equal(ours, theirs)
    assert not hasattr(trainer.optimizer.optimizer, "found_inf")


def test_numbers_that_are_read_late_change_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = make_trainer(shallow(), quiet(tmp_path, max_steps=4))
    at_once.train()
    monkeypatch.setattr("lora_hf.training.nan_guard.LATE", ("cpu",))
    later = make_trainer(shallow(), quiet(tmp_path, max_steps=4))
    later.train()
    for ours, theirs in zip(later.model.parameters(), at_once.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_last_step_is_checked_too(late: None, tmp_path: Path) -> None:
    trainer = make_trainer(shallow(), quiet(tmp_path, max_steps=2), Spoiled)
    trainer.batch = 2
    with pytest.raises(UserError, match="^step 2: the loss is nan"):
        trainer.train()


class Unlabelled(Rows):
    """Rows of which some have no label token."""

    def __init__(self, without: int) -> None:
        super().__init__(8)
        for row in self.rows[:without]:
            row["labels"] = [-100] * len(row["labels"])


@pytest.mark.parametrize(
    "more", [{}, {"fast_paths": False}, {"label_smoothing_factor": 0.1}], ids=["fast", "plain", "smoothed"]
)
def test_a_batch_without_a_label_token_adds_nothing_to_its_step(more: dict[str, Any], tmp_path: Path) -> None:
    own = {name: value for name, value in more.items() if name == "fast_paths"}
    fields = {name: value for name, value in more.items() if name not in own} | {"max_steps": 2}
    found = []
    for size in (1, 4):
        args = arguments(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size, **fields
        )
        trainer = make_trainer(shallow(), args, OursInOrder, train_dataset=Unlabelled(1), **own)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_step_without_a_label_token_is_one_error(late: None, tmp_path: Path) -> None:
    for args in (arguments(tmp_path), quiet(tmp_path)):  # read at once, and late
        trainer = make_trainer(shallow(), args, train_dataset=Unlabelled(8))
        with pytest.raises(UserError, match="^step 1: the labels of all of its rows are -100.*leave rows"):
            trainer.train()


def test_a_non_finite_gradient_stops_training(tmp_path: Path) -> None:
    trainer = make_trainer(shallow(), arguments(tmp_path, max_grad_norm=0.0))
    next(p for p in trainer.model.parameters() if p.requires_grad).register_hook(lambda g: g / 0)
    said = r"step 1: the gradient norm is (nan|inf); nothing was trained yet: .* \(float32\)"
    with pytest.raises(UserError, match=said):
        trainer.train()


class Overflow(TrainerCallback):
    """The optimizer's first step takes one weight out of float32's range."""

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            weight = next(p for name, p in model.named_parameters() if "lora_B" in name)
            weight.data[0, 0] = float("inf")


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", save_steps=1)
    trainer = make_trainer(shallow(), args, callbacks=[Overflow()])
    with pytest.raises(
        UserError, match=r"after step 1: 1 trainable tensors hold NaN or infinity \(.*lora_B\)"
    ):
        trainer.train()
    assert trainer.state.global_step == 1 and not list(tmp_path.iterdir())


def test_non_finite_weights_are_not_written_without_checkpoints_either(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hold NaN or infinity"):
        make_trainer(shallow(), arguments(tmp_path, max_steps=1), callbacks=[Overflow()]).train()


def test_weights_that_left_their_range_are_reported_at_the_next_step(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_grad_norm=9)
    said = r"step 2: the loss is nan; trainable weights overflowed in the step before \(.*lora_B"
    with pytest.raises(UserError, match=said) as raised:
        make_trainer(shallow(), args, callbacks=[Overflow()]).train()
    assert "training.max_grad_norm: 1.0 (it is 9)" in str(raised.value)


def test_a_non_finite_evaluation_loss_stops_training(tmp_path: Path) -> None:
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=3, **SAVING)
    trainer = make_trainer(shallow(), args, Spoiled, eval_dataset=Rows(4))
    trainer.batch = 4  # the fourth loss is the evaluation's
    with pytest.raises(UserError, match="after step 3: eval_loss is nan"):
        trainer.train()
    assert last_checkpoint(tmp_path) is None


def test_one_batch_whose_evaluation_loss_is_not_finite_is_not_left_out(tmp_path: Path) -> None:
    """The Trainer takes the mean over the other batches."""
    model, batches = shallow(), list[int]()

    def spoil(module: Any, args: Any, outputs: Any) -> Any:
        batches.append(len(batches))
        outputs.loss = outputs.loss * (float("nan") if len(batches) == 2 else 1.0)
        return outputs

    trainer = make_trainer(model, arguments(tmp_path, per_device_eval_batch_size=4), eval_dataset=Rows(12))
    hook = model.register_forward_hook(spoil)
    assert isnan(trainer.evaluate()["eval_loss"]) and len(batches) == 3
    hook.remove()
    assert isfinite(trainer.evaluate()["eval_loss"])


def test_nan_in_the_base_is_named_as_the_cause(tmp_path: Path) -> None:
    model = shallow()
    with torch.no_grad():
        model.get_submodule("decoder.final_layer_norm").weight[3] = float("nan")
    said = r"step 1: the loss is nan; the base model itself holds NaN .*\(decoder.final_layer_norm.weight\)"
    with pytest.raises(UserError, match=said) as found:
        make_trainer(model, arguments(tmp_path)).train()
    assert not isinstance(found.value, Diverged)


def test_gradients_that_are_all_zero_stop_training(tmp_path: Path) -> None:
    model = shallow()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.zero_()  # B is zero at the start: neither can leave it
    args = arguments(tmp_path, gradient_checkpointing=True)
    with pytest.raises(UserError, match=r"step 1: all gradients are zero at a loss of \d.*A and B") as raised:
        make_trainer(model, args).train()
    assert "use_reentrant: true" in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"learning_rate": 0.0}, "choose a training.learning_rate above 0"),
        (
            {"learning_rate": 0.1},
            "nothing raises it to training.learning_rate=0.1: check training.lr_scheduler_type='linear' and",
        ),
    ],
)
def test_a_learning_rate_stuck_at_zero_stops_training(
    fields: dict[str, Any], remedy: str, tmp_path: Path
) -> None:
    model = shallow()
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=fields["learning_rate"])
    stuck = (optimizer, LambdaLR(optimizer, lambda step: 0.0)) if fields["learning_rate"] else (None, None)
    trainer = make_trainer(model, arguments(tmp_path, warmup_steps=2, **fields), optimizers=stuck)
    with pytest.raises(UserError, match=f"step 3: the learning rate is still 0; {remedy}"):
        trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("schedule", ["linear", "inverse_sqrt"])
def test_a_warm_up_from_zero_is_accepted(schedule: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=5, warmup_steps=3, lr_scheduler_type=schedule)
    trainer = make_trainer(shallow(), args)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates[0] == 0 < rates[1] and len(rates) == 5


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_finished_training_may_go_on_although_its_rate_ended_at_zero(done: int, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": done}
    make_trainer(shallow(), arguments(tmp_path, max_steps=done, **saving)).train()
    trainer = make_trainer(shallow(), arguments(tmp_path, max_steps=done + 3, **saving))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == done + 3


def test_a_rate_that_stays_zero_ends_a_training_that_was_resumed_too(tmp_path: Path) -> None:
    def stuck(steps: int) -> Any:
        model = shallow()
        optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        optimizers = optimizer, LambdaLR(optimizer, lambda step: 0.0)
        args = arguments(tmp_path, max_steps=steps, save_strategy="steps", save_steps=2)
        return make_trainer(model, args, optimizers=optimizers)

    stuck(2).train()
    with pytest.raises(UserError, match="step 4: the learning rate is still 0"):
        stuck(6).train(resume_from_checkpoint=True)


class Scaled:
    """A trainer, as the guard sees it, whose float16 scaler skips every step."""

    def __init__(self, step: int) -> None:
        self.state = type("State", (), {"global_step": step})
        self.accelerator = type("Accelerator", (), {"scaler": object()})
        self.optimizer = type("Optimizer", (), {"param_groups": [{"lr": 0.0}]})


def test_a_scaler_may_skip_steps_until_it_has_found_its_scale() -> None:
    guard = NanGuard(Scaled(0))

    def look(step: int) -> None:
        guard.trainer.state.global_step = step
        guard.losses = [torch.tensor(2.0)]
        guard.check_step(torch.tensor(float("inf")))

    for step in (0, 2, 16):
        look(step)
    with pytest.raises(UserError, match="step 18: the learning rate is still 0; every step was skipped"):
        look(17)


@pytest.fixture
def train(runs_in_this_process: list, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command: its status, and what it writes to standard error."""

    def run(*words: str) -> tuple[int, str]:
        status = cli.run(["train", "--config", "quickstart", *FEW, *words], debug=False)
        return status, capsys.readouterr().err

    return run


def test_a_run_that_diverges_ends_with_one_line_and_its_checkpoint(tmp_path: Path, train: Any) -> None:
    run = tmp_path / "run"
    status, err = train(
        f"output_dir={run}",
        *("training.max_steps=6", "training.save_strategy=steps", "training.save_steps=1"),
        *("training.learning_rate=1e30", "training.lr_scheduler_type=constant"),
    )
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and "Traceback" not in err
    assert "step 2: all gradients are zero at a loss of" in errors[0]
    assert "weights too large (up to 1e+30, at training.learning_rate=1e+30)" in errors[0]
    kept = last_checkpoint(run / "checkpoints")
    assert kept is not None and kept.name == "checkpoint-1" and errors[0].endswith(str(kept))
    assert all(t.isfinite().all() for t in load_file(kept / "adapter_model.safetensors").values())
    assert not (run / "adapter").exists() and not (run / "training.json").exists()
    assert json.loads((run / "diverged.json").read_text())["error"] in errors[0]  # for a search


def test_the_error_begins_on_a_new_line_after_a_progress_bar(
    tmp_path: Path, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "new_console", lambda: Console(stderr=True, force_terminal=True, width=99))
    words = ["training.learning_rate=5e-324", "training.warmup_steps=4"]  # half of the rate is 0
    words += ["training.max_steps=4", "training.disable_tqdm=false"]
    status, err = train(*words, f"output_dir={tmp_path / 'run'}")
    assert status == 2 and "2/4" in err
    shown = screen_of(err, 99)
    assert sum(line.startswith("error: step 3: the learning rate") for line in shown) == 1
    assert not any("━" in line for line in shown)


def test_a_healthy_run_is_not_stopped(tmp_path: Path) -> None:
    trainer = make_trainer(shallow(), arguments(tmp_path, logging_nan_inf_filter=False))
    trainer.train()
    assert len(losses(trainer)) == 10 and trainer.nan_guard.losses == []
