"""A short training that a test can interrupt and resume in one process."""

from pathlib import Path
from typing import Any

import torch
from support.tiny_trainer import Rows, arguments, dropping, make_trainer
from transformers import TrainerCallback

from lora_hf.training import LoraTrainer
from lora_hf.training.checkpoints import last_checkpoint


class Killed(BaseException):
    """Stands for SIGKILL: no code of the package catches it."""


class KillAt(TrainerCallback):
    """Raise `Killed` once a checkpoint is saved at `step`, as if the process were killed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def trainer_of(folder: Path, *callbacks: TrainerCallback, **fields: Any) -> LoraTrainer:
    """Return a trainer of ten steps in an epoch of twelve; it saves every four steps and at the end."""
    fields = {"save_strategy": "steps", "save_steps": 4, "seed": 3} | fields
    return make_trainer(
        dropping(), arguments(folder, **fields), callbacks=list(callbacks), eval_dataset=Rows(6, seed=9)
    )


def resume(trainer: LoraTrainer, folder: Path) -> LoraTrainer:
    trainer.train(resume_from_checkpoint=str(last_checkpoint(folder)))
    return trainer


def assert_equal(ours: LoraTrainer, theirs: LoraTrainer) -> None:
    for (name, one), other in zip(
        ours.model.named_parameters(), theirs.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other[1]), name
