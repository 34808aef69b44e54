"""LoRA+: B's rate is the ratio times A's: in every optimizer, through schedule and resume, as in PEFT."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from support.models import make_bart, make_t5
from support.tiny_trainer import StopAt, adapted, arguments, losses, make_trainer
from torch import nn
from transformers.trainer_callback import TrainerCallback

from lora_hf import LoraConfig, UserError, inject_adapters, save_adapter
from lora_hf.training.checkpoints import last_checkpoint
from lora_hf.training.loraplus import split_groups

RATIO = 16.0


def rates(optimizer: Any, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Parameter name -> learning rate and weight decay of its group."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]]
    assert len({name for name, *_ in found}) == len(found)
    return {name: (lr, decay) for name, lr, decay in found}


@pytest.mark.parametrize("name", ["adamw_torch", "sgd", "adafactor", "adamw_bnb_8bit"])
def test_in_every_optimizer_b_has_the_ratio_times_the_rate_and_the_decay_stays(
    name: str, tmp_path: Path
) -> None:
    model = adapted()
    args = arguments(tmp_path, optim=name, learning_rate=2e-3, weight_decay=0.1)
    plain = rates(make_trainer(model, args).create_optimizer(), model)
    plus = rates(make_trainer(model, args, loraplus_lr_ratio=RATIO).create_optimizer(), model)
    assert plus.keys() == plain.keys() and {decay for _, decay in plus.values()} == {0.1}
    for parameter, (lr, decay) in plain.items():
        factor = RATIO if "lora_B" in parameter else 1.0
        assert plus[parameter] == (pytest.approx(lr * factor), decay) and lr == 2e-3


def test_one_step_of_gradient_descent_moves_b_ratio_times_as_far(tmp_path: Path, batch: dict) -> None:
    moved = []
    for ratio in (None, RATIO):
        model = adapted()
        trainer = make_trainer(model, arguments(tmp_path, optim="sgd"), loraplus_lr_ratio=ratio)
        with torch.no_grad():  # else A's gradient is zero
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.fill_(0.01)
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        optimizer = trainer.create_optimizer()
        model(**batch).loss.backward()
        optimizer.step()
        moved.append({name: dict(model.named_parameters())[name] - p for name, p in before.items()})
    for name, plain in moved[0].items():
        factor = RATIO if "lora_B" in name else 1.0
        torch.testing.assert_close(moved[1][name], plain * factor, rtol=1e-3, atol=1e-7)
        assert plain.abs().max() > 1e-6


def test_the_rates_are_those_of_peft(tmp_path: Path) -> None:
    ours = adapted(make=make_bart, targets=("q_proj", "v_proj", "fc1"))
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(make_bart(), tmp_path, is_trainable=True)
    optimizer = torch.optim.AdamW(
        [p for p in ours.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.1
    )
    split_groups(optimizer, ours, RATIO)
    reference = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=3e-4, loraplus_lr_ratio=RATIO, loraplus_weight_decay=0.1
    )
    found = {name.replace("adapters.default.", ""): v for name, v in rates(optimizer, ours).items()}
    expected = {
        name.removeprefix("base_model.model.").removesuffix(".default.weight"): v
        for name, v in rates(reference, theirs).items()
    }
    assert found == expected and len(found) == 2 * (2 * 3 + 2 * 5)


class Watch(TrainerCallback):
    """Remembers the rates of each step's groups."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append([group["lr"] for group in kwargs["optimizer"].param_groups])


@pytest.mark.slow
@pytest.mark.versions
def test_the_schedule_and_a_resume_keep_the_ratio(tmp_path: Path) -> None:
    def trainer_of(folder: str, *callbacks: Any) -> Any:
        args = arguments(tmp_path / folder, max_steps=12, warmup_steps=4, save_strategy="steps", save_steps=6)
        return make_trainer(adapted(), args, callbacks=list(callbacks), loraplus_lr_ratio=RATIO)

    watch = Watch()
    whole = trainer_of("whole", watch)
    whole.train()
    assert len(watch.seen) == 12 and len({tuple(rate) for rate in watch.seen}) > 6
    slow, fast = ([rate[i] for rate in watch.seen] for i in (0, -1))
    assert fast == pytest.approx([RATIO * rate for rate in slow])
    trainer_of("broken", StopAt(6)).train()
    again = Watch()
    resumed = trainer_of("broken", again)
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "broken")))
    assert again.seen == watch.seen[6:] and losses(resumed)[-6:] == losses(whole)[-6:]


def test_loraplus_without_b_or_with_a_ratio_below_one_is_refused(tmp_path: Path) -> None:
    for model in (make_t5(), inject_adapters(make_t5(), LoraConfig())):
        with pytest.raises(UserError, match="loraplus_lr_ratio=0.5 must be at least 1"):
            make_trainer(model, arguments(tmp_path), loraplus_lr_ratio=0.5).create_optimizer()
    with pytest.raises(UserError, match="loraplus_lr_ratio=16 has no effect: the model trains no lora_B"):
        make_trainer(make_t5().train(), arguments(tmp_path), loraplus_lr_ratio=RATIO).create_optimizer()


def test_loraplus_beside_an_optimizer_that_was_given_is_refused(tmp_path: Path) -> None:
    model = adapted()
    own = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    says = "^loraplus_lr_ratio=16.0 has no effect on the AdamW given as optimizers.*leave out one of them"
    with pytest.raises(UserError, match=says):
        make_trainer(model, arguments(tmp_path), loraplus_lr_ratio=RATIO, optimizers=(own, None))
