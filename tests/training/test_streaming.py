"""Training on a split that is streamed: whole epochs, and going on to the bit."""

from itertools import product
from types import SimpleNamespace

import pytest
from support.resuming import KillAt, Killed, assert_equal, resume
from support.selection import slow_except
from support.tiny_trainer import Rows, arguments, dropping, make_trainer

from lora_hf.data import streaming as stream
from lora_hf.data.streaming import Source, StreamedDialogues
from lora_hf.errors import UserError


class FromRows(StreamedDialogues):
    """Rows of given token ids in the place of text."""

    def __init__(self, n):
        self.known = Rows(48).rows
        super().__init__(Source(lambda: iter(self.known), n, "", []), None, None)

    def _tokens(self, rows):
        counts = {"unknown": None, "unknown_in_prompt": None, "added_end": 0, "with_special": 0}
        return SimpleNamespace(rows=rows, target_lengths=[], truncation="", **counts)


def trainer_of(folder, *callbacks, n=48, **fields):
    """Eighteen steps, an epoch and a half, a checkpoint every seventh."""
    fields = {"save_strategy": "steps", "save_steps": 7, "seed": 3, "max_steps": 18} | fields
    return make_trainer(
        dropping(), arguments(folder, **fields), callbacks=list(callbacks), train_dataset=FromRows(n)
    )


@pytest.fixture(autouse=True)
def small_window(monkeypatch):
    monkeypatch.setattr(stream, "WINDOW", 16)


@pytest.mark.parametrize(("step", "n"), slow_except([(14, None)], product((7, 14), (48, None))))
def test_a_killed_streaming_run_resumes_bit_for_bit(tmp_path, step, n):
    whole = trainer_of(tmp_path / "whole", n=n)
    whole.train()
    with pytest.raises(Killed):
        trainer_of(tmp_path / "run", KillAt(step), n=n).train()
    resumed = resume(trainer_of(tmp_path / "run", n=n), tmp_path / "run")
    assert resumed.state.global_step == 18
    assert_equal(resumed, whole)


def test_epochs_are_counted_as_without_streaming(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=-1, num_train_epochs=2)
    trainer.train()
    assert trainer.state.global_step == 2 * 12 and trainer.state.epoch == 2


def test_each_row_is_trained_on_once_per_epoch(tmp_path):
    trainer = trainer_of(tmp_path)
    rows = [row for batch in trainer.get_train_dataloader() for row in batch["labels"]]
    assert len(rows) == 48
    known = sorted(row["labels"] for row in Rows(48).rows)
    assert sorted([int(i) for i in row if i != -100] for row in rows) == known


def test_an_incomplete_batch_is_dropped_on_request(tmp_path):
    fields = {"per_device_train_batch_size": 9, "max_steps": 5, "dataloader_drop_last": True}
    loader = trainer_of(tmp_path, **fields).get_train_dataloader()
    assert [len(batch["labels"]) for batch in loader] == [9] * 5
    with pytest.raises(UserError, match="dataloader_drop_last=true: no batch of 49 is full"):
        trainer_of(tmp_path, **fields | {"per_device_train_batch_size": 49}).train()


def test_settings_that_streaming_does_not_support_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="training.dataloader_num_workers: 0 .it is 2"):
        trainer_of(tmp_path, dataloader_num_workers=2).train()
    with pytest.raises(UserError, match="random or group_by_length .it is 'sequential'"):
        trainer_of(tmp_path, train_sampling_strategy="sequential").train()
