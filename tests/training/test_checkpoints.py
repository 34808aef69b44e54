"""Training resumes from checkpoints bit for bit, loads the best one, and leaves an untied head untied."""

import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from support.models import TOKENS, make_t5
from support.selection import slow_except
from support.tiny_trainer import CONFIG, Rows, StopAt, adapted, arguments, losses, make_trainer
from torch import nn
from transformers import DataCollatorForSeq2Seq, T5ForConditionalGeneration

from lora_hf import (
    LoraTrainer,
    ModelConfig,
    inject_adapters,
    load,
    load_adapter,
    load_model,
    load_tokenizer,
    save_adapter,
)
from lora_hf.errors import UserError
from lora_hf.training.checkpoints import MANIFEST, last_checkpoint, newest_checkpoint, seal


@pytest.mark.parametrize(
    ("strategy", "full", "fast_paths"),  # every pair of values
    slow_except(
        [("group_by_length", False, True)],
        [
            ("random", False, False),
            ("random", True, True),
            ("group_by_length", False, True),
            ("group_by_length", True, False),
        ],
    ),
)
def test_resuming_in_the_second_epoch_ends_bit_for_bit_where_an_unbroken_run_ends(
    strategy: str, full: bool, fast_paths: bool, tmp_path: Path
) -> None:
    def dropout_t5() -> nn.Module:
        model = make_t5()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        return model.train() if full else adapted(make=lambda: model)

    def trainer_of(folder: str, *callbacks: Any) -> LoraTrainer:
        args = arguments(
            tmp_path / folder,
            max_steps=30,
            save_strategy="steps",
            save_steps=9,
            train_sampling_strategy=strategy,
            seed=3,
        )
        return make_trainer(dropout_t5(), args, callbacks=list(callbacks), fast_paths=fast_paths)

    whole = trainer_of("whole")
    whole.train()
    trainer_of("broken", StopAt(18)).train()  # 12 steps an epoch: in the middle of the second
    resumed = trainer_of("broken")
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "broken")))
    assert losses(resumed)[-12:] == losses(whole)[-12:]
    for (name, ours), theirs in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_checkpoints_hold_the_adapters_only_and_peft_reads_them(tmp_path: Path, batch: dict) -> None:
    model = adapted()
    trainer = make_trainer(model, arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=4))
    trainer.train()
    checkpoint = tmp_path / "checkpoint-4"
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    assert len(tensors) == 24 and all(".lora_" in key for key in tensors)
    assert not (checkpoint / "model.safetensors").exists()
    theirs = peft.PeftModel.from_pretrained(make_t5(), checkpoint).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch).logits, model.eval()(**batch).logits, rtol=0, atol=1e-5)


def test_the_tokenizer_is_written_beside_the_adapter_and_loaded_with_it(tmp_path: Path) -> None:
    tokenizer, model = load_tokenizer(ModelConfig()), load_model(ModelConfig(), torch.device("cpu"))
    model.resize_token_embeddings(len(tokenizer) + 8)  # as T5, whose embeddings have rows to spare
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    model = inject_adapters(T5ForConditionalGeneration.from_pretrained(tmp_path / "base"), CONFIG)
    tokenizer.add_tokens(["<turn>"])
    args = arguments(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    collate = DataCollatorForSeq2Seq(tokenizer)
    trainer = LoraTrainer(model, args, collate, Rows(4), processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "given"))
    trainer.processing_class = None  # that of the collator, as in Transformers' Trainer
    trainer.save_model(str(tmp_path / "of collator"))
    for name in ("given", "of collator", "checkpoint-1"):
        own = load(tmp_path / name).tokenizer_of("default")
        assert own("<turn>").input_ids[0] == len(tokenizer) - 1, name


@pytest.mark.parametrize(
    "save_steps",  # at each evaluation, and at every second one
    slow_except([4], [2, 4], versions=True),
)
def test_the_best_checkpoint_s_adapter_is_in_the_model_at_the_end(
    save_steps: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lora_hf"), "propagate", True)
    caplog.set_level("INFO")
    model = adapted()
    args = arguments(
        tmp_path,
        max_steps=12,
        learning_rate=2e-2,
        save_strategy="steps",
        save_steps=save_steps,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        greater_is_better=True,  # training lowers the loss: the last checkpoint is surely not this best one
    )
    trainer = make_trainer(model, args, eval_dataset=Rows(8, seed=9))
    trainer.train()
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated[-1] < max(evaluated) - 0.05
    step = 2 * (1 + evaluated.index(max(evaluated)))
    assert f"the weights of step {step} of 12 are kept: the best loss, {max(evaluated):.4g}" in caplog.text
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(evaluated), abs=1e-6)
    best = load_file(Path(trainer.state.best_model_checkpoint) / "adapter_model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q"
    torch.testing.assert_close(
        model.get_submodule(name).adapters["default"].lora_B, best[f"base_model.model.{name}.lora_B.weight"]
    )


def test_the_untied_head_survives_training_saving_reloading_and_merging(tmp_path: Path, batch: dict) -> None:
    from lora_hf import merge_and_unload
    from lora_hf.config import ModelConfig
    from lora_hf.models.load import load_model

    make_t5().save_pretrained(tmp_path / "base")
    config = ModelConfig(model_name_or_path=str(tmp_path / "base"))
    device = torch.device("cpu")
    model = load_model(config, device)
    head = model.lm_head.weight.detach().clone()
    make_trainer(inject_adapters(model, CONFIG), arguments(tmp_path, max_steps=4)).train()
    model.tie_weights()
    model.resize_token_embeddings(TOKENS)
    assert torch.equal(model.lm_head.weight, head) and not torch.equal(model.shared.weight, head)
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(load_model(config, device), tmp_path / "adapter")
    merge_and_unload(again).save_pretrained(tmp_path / "merged")
    merged = load_model(ModelConfig(model_name_or_path=str(tmp_path / "merged")), device)
    assert torch.equal(merged.lm_head.weight, head)
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, model.eval()(**batch).logits, rtol=0, atol=1e-5)


def test_a_model_trained_whole_keeps_its_head_and_loads_as_a_plain_one(tmp_path: Path, batch: dict) -> None:
    from transformers import AutoModelForSeq2SeqLM

    from lora_hf.config import ModelConfig
    from lora_hf.models.load import load_model

    make_t5().save_pretrained(tmp_path / "base")
    model = load_model(
        ModelConfig(model_name_or_path=str(tmp_path / "base")), torch.device("cpu"), train_all=True
    )
    args = arguments(tmp_path / "out", max_steps=4, save_strategy="steps", save_steps=2)
    make_trainer(model, args).train()
    model.save_pretrained(tmp_path / "trained")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "trained").eval()
    assert not torch.equal(plain.lm_head.weight, plain.shared.weight)
    with torch.no_grad():
        assert torch.equal(plain(**batch).logits, model.eval()(**batch).logits)


def test_foreign_files_among_checkpoints_do_not_stop_a_run(tmp_path: Path) -> None:
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-\u00b2"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-1/rng_state.pth").write_text("x")
    seal(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-2" / MANIFEST).write_text("[" * 200_000)
    (tmp_path / "broken-checkpoint-2").write_text("a file")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert (tmp_path / "broken-checkpoint-2" / MANIFEST).is_file()


def test_a_file_in_the_place_of_checkpoints_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("x")
    with pytest.raises(UserError, match="checkpoints is a file"):
        newest_checkpoint(tmp_path / "checkpoints")
