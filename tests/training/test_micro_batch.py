"""Out of memory: the batch is split and the steps stay the same, or an error names the remedy."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.selection import slow_except
from support.tiny_trainer import Rows, StopAt, arguments, dropping, losses, make_trainer, shallow

from lora_hf import LoraTrainer
from lora_hf.errors import UserError
from lora_hf.training.micro_batch import LOG_KEY, is_out_of_memory
from lora_hf.training.trainer import last_checkpoint

MICRO_BATCHING = {"auto_find_batch_size": True}
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Small(LoraTrainer):
    """Has no room for more than `room` rows, from a step on; says so when half of the gradients are there."""

    room, since = 5, 0
    taken: list[tuple[int, int]]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        n, step = len(inputs["labels"]), self.state.global_step
        if not hasattr(self, "taken"):
            self.taken = []
        if model.training:
            self.taken.append((step, n))
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training and step >= self.since and n > self.room:
            for name, parameter in model.named_parameters():
                if "decoder" in name and parameter.requires_grad:
                    parameter.grad = torch.full_like(parameter, 1e3)
            raise torch.OutOfMemoryError(CUDA)
        return loss


def trained(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


@pytest.mark.parametrize(
    ("make", "accumulation"), slow_except([(dropping, 1)], [(shallow, 2), (dropping, 1)], versions=True)
)
def test_micro_batches_take_the_same_steps_whenever_they_begin(
    make: Any, accumulation: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of one length, so that padding, and with it what dropout draws, is the same."""
    rows = Rows(70)
    for row in rows.rows:
        row.update(
            input_ids=(row["input_ids"] * 9)[:9], attention_mask=[1] * 9, labels=row["labels"][:2] + [1]
        )
    common = {"train_dataset": rows, "fast_paths": False}

    def trainer_of(size: int, passes: int, kind: type, **fields: Any) -> Any:
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": passes}
        return make_trainer(make(), arguments(tmp_path, max_steps=4, **sizes, **fields), kind, **common)

    begun = trainer_of(4, 4 * accumulation, LoraTrainer)
    begun.train()
    split = trainer_of(16, accumulation, Small, **MICRO_BATCHING)
    with caplog.at_level(logging.WARNING, "lora_hf"):
        split.train()
    assert torch.allclose(torch.tensor(losses(begun)), torch.tensor(losses(split)), rtol=0, atol=1e-5)
    torch.testing.assert_close(trained(begun), trained(split), rtol=0, atol=1e-5)
    assert [n for _, n in split.taken[:6]] == [16, 8, 4, 4, 4, 4]  # and never a larger batch afterwards
    assert max(n for _, n in split.taken[2:]) == 4 and split.state.global_step == 4
    said = "with 8 dialogues at a time; continuing with 4, as training.per_device_train_batch_size=4"
    assert said in caplog.text and f"gradient_accumulation_steps={4 * accumulation}:" in caplog.text


def test_running_out_of_memory_in_the_second_batch_of_a_step_repeats_the_step(tmp_path: Path) -> None:
    class Late(Small):
        since, seen = 2, 0

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.seen += 1
            self.room = 5 if self.seen >= 6 else 99  # steps of two batches: the third step's second
            return super().compute_loss(*args, **kwargs)

    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": 4}
    runs = []
    for kind, fields in ((LoraTrainer, {}), (Late, MICRO_BATCHING)):
        trainer = make_trainer(shallow(), arguments(tmp_path, **sizes, **fields), kind)
        trainer.train()
        runs.append((torch.tensor(losses(trainer)), trained(trainer)))
    assert trainer.taken[4:][:6] == [(2, 8), (2, 8), (2, 4), (2, 4), (2, 4), (2, 4)]
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.versions
def test_a_run_with_micro_batches_resumes_bit_for_bit(tmp_path: Path) -> None:
    def trainer_of(folder: str, kind: type, *callbacks: Any) -> Any:
        fields = {"save_strategy": "steps", "save_steps": 9, **MICRO_BATCHING}
        args = arguments(tmp_path / folder, max_steps=12, per_device_train_batch_size=6, **fields)
        return make_trainer(dropping(), args, kind, callbacks=list(callbacks))

    class FromThree(Small):
        since = 3

    whole = trainer_of("whole", FromThree)
    whole.train()
    trainer_of("broken", FromThree, StopAt(9)).train()
    resumed = trainer_of("broken", LoraTrainer)  # memory suffices again; the batches stay split
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "broken")))
    assert losses(resumed) == losses(whole) and torch.equal(trained(resumed), trained(whole))
    assert [entry[LOG_KEY] for entry in resumed.state.log_history if LOG_KEY in entry] == [3]


@pytest.mark.parametrize("compiles", [False, True])
def test_without_auto_find_batch_size_the_error_names_the_remedy(compiles: bool, tmp_path: Path) -> None:
    args = arguments(
        tmp_path, max_steps=4, per_device_train_batch_size=8, save_strategy="steps", save_steps=1
    )

    class FromTwo(Small):
        since, compiles_by_default = 2, compiles

    trainer = make_trainer(shallow(), args, FromTwo)
    first = "training.torch_compile: false .*; " if compiles else ""
    said = (
        rf"step 3: out of memory \(CUDA out of memory.*\); {first}training.auto_find_batch_size: true "
        ".*checkpoint-2$"
    )
    with pytest.raises(UserError, match=said):
        trainer.train()
    assert trainer.taken == [(0, 8), (1, 8), (2, 8)]


def test_one_dialogue_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    trainer = make_trainer(shallow(), arguments(tmp_path, **MICRO_BATCHING), Small)
    trainer.room = 0
    with pytest.raises(
        UserError, match="step 1: out of memory with one dialogue at a time; training.gradient"
    ):
        trainer.train()
    assert [n for _, n in trainer.taken] == [4, 2, 1]


@pytest.mark.parametrize("fields", [{}, MICRO_BATCHING])
def test_an_evaluation_that_runs_out_of_memory_is_an_error_with_a_remedy(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    class Trainer(LoraTrainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError(CUDA)

    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2, **fields)
    with pytest.raises(UserError, match="evaluation after step 2: out of memory .*generation.batch_size"):
        make_trainer(shallow(), args, Trainer, eval_dataset=Rows(4)).train()


@pytest.mark.parametrize("fields", [{}, MICRO_BATCHING])
def test_other_errors_are_not_caught(fields: dict[str, Any], tmp_path: Path) -> None:
    class Trainer(LoraTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="^shapes do not match$"):
        make_trainer(shallow(), arguments(tmp_path, **fields), Trainer).train()


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path, **MICRO_BATCHING)
    trainer = make_trainer(shallow(), args)
    monkeypatch.setattr(type(args), "world_size", 2)
    with pytest.raises(UserError, match="auto_find_batch_size=true works in a single process"):
        trainer.train()


def test_out_of_memory_errors_are_recognized() -> None:
    torch_cpu = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"
    for error in (torch.OutOfMemoryError(CUDA), MemoryError(), RuntimeError(torch_cpu), RuntimeError(CUDA)):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("out of memory."))
    assert not is_out_of_memory(RuntimeError(torch.ops.aten.add.Tensor))  # as torch raises some
