"""LoraTrainer: the same losses as PEFT with Seq2SeqTrainer, right at any accumulation, exact on resume."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from conftest import MODELS, TOKENS, make_t5, randomize
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import (
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.trainer_callback import TrainerCallback

from lora_hf import LoraConfig, LoraTrainer, inject_adapters, load_adapter, save_adapter
from lora_hf.training.checkpoints import last_checkpoint

CONFIG = LoraConfig(r=4, lora_alpha=10)


class Rows(torch.utils.data.Dataset):
    """Token ids of many lengths."""

    def __init__(self, n: int = 48, seed: int = 0) -> None:
        draw = random.Random(seed)
        self.rows = [
            {
                "input_ids": (ids := [draw.randrange(3, TOKENS) for _ in range(draw.randrange(3, 24))]),
                "attention_mask": [1] * len(ids),
                "labels": ids[: draw.randrange(2, 12)] + [1],
            }
            for _ in range(n)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        return self.rows[i]


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{i}": i for i in range(TOKENS)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")),
        pad_token="w0",
        eos_token="w1",
        unk_token="w2",
    )


def arguments(folder: Path, **fields: Any) -> Seq2SeqTrainingArguments:
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 10,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return Seq2SeqTrainingArguments(output_dir=str(folder), **(defaults | fields))


def make_trainer(
    model: nn.Module, args: Seq2SeqTrainingArguments, kind: type = LoraTrainer, **more: Any
) -> Any:
    collator = DataCollatorForSeq2Seq(tokenizer())
    more = {"train_dataset": Rows()} | more
    return kind(model, args, data_collator=collator, processing_class=tokenizer(), **more)


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def adapted(seed: int = 5, make: Any = make_t5, targets: tuple[str, ...] = ("q", "v")) -> nn.Module:
    torch.manual_seed(seed)
    return inject_adapters(make(), LoraConfig(r=4, lora_alpha=10, target_modules=targets))


class PeftInOrder(Seq2SeqTrainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class OursInOrder(LoraTrainer):
    _get_train_sampler = PeftInOrder._get_train_sampler


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("fast_paths", [False, True])
def test_fifty_steps_follow_peft_with_seq2seq_trainer(kind: str, fast_paths: bool, tmp_path: Path) -> None:
    make, targets = MODELS[kind]
    ours = adapted(make=make, targets=targets)
    save_adapter(ours, tmp_path / "start")
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "start", is_trainable=True)
    runs = []
    for model, trainer_kind, more in (
        (ours, OursInOrder, {"fast_paths": fast_paths}),
        (theirs, PeftInOrder, {}),
    ):
        args = arguments(tmp_path / "out", max_steps=50, learning_rate=2e-2)
        trainer = make_trainer(model, args, trainer_kind, **more)
        trainer.train()
        runs.append(losses(trainer))
    assert len(runs[0]) == 50 and all(
        p.abs().max() > 0.05 for n, p in ours.named_parameters() if "lora_B" in n
    )
    torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulating_four_batches_gives_what_one_four_times_as_large_gives(
    kind: str, smoothing: float, tmp_path: Path
) -> None:
    make, targets = MODELS[kind]
    runs, weights = [], []
    for size, accumulation in ((16, 1), (4, 4)):
        model = adapted(make=make, targets=targets)
        args = arguments(
            tmp_path,
            max_steps=6,
            per_device_train_batch_size=size,
            label_smoothing_factor=smoothing,
            gradient_accumulation_steps=accumulation,
        )
        trainer = make_trainer(model, args, OursInOrder)
        trainer.train()
        runs.append(losses(trainer))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=0, atol=1e-4)
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=2e-4)


def test_the_evaluation_loss_is_the_mean_over_all_label_tokens(tmp_path: Path) -> None:
    model, rows = adapted(), Rows(7, seed=4)
    trainer = make_trainer(model, arguments(tmp_path, per_device_eval_batch_size=7), eval_dataset=rows)
    collated = DataCollatorForSeq2Seq(tokenizer())([rows[i] for i in range(7)])
    with torch.no_grad():
        logits = model.eval()(**collated).logits
    expected = nn.functional.cross_entropy(
        logits.flatten(0, 1), collated["labels"].flatten(), ignore_index=-100
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("fast_paths", [False, True])
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


def test_the_best_checkpoint_s_adapter_is_in_the_model_at_the_end(tmp_path: Path) -> None:
    model = adapted()
    args = arguments(
        tmp_path,
        max_steps=12,
        learning_rate=2.0,
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
    )
    trainer = make_trainer(model, args, eval_dataset=Rows(8, seed=9))
    trainer.train()
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated[-1] > min(evaluated) + 0.01  # such a rate diverges: the last is not the best
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(evaluated), abs=1e-6)
    best = load_file(Path(trainer.state.best_model_checkpoint) / "adapter_model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q"
    torch.testing.assert_close(
        model.get_submodule(name).adapters["default"].lora_B, best[f"base_model.model.{name}.lora_B.weight"]
    )


def test_gradient_checkpointing_trains_a_frozen_base_with_the_same_losses(tmp_path: Path) -> None:
    runs = []
    for checkpointing in (False, True):
        args = arguments(tmp_path, gradient_checkpointing=checkpointing)
        trainer = make_trainer(adapted(), args, OursInOrder)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0][-1] < runs[0][0]
    torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=0, atol=1e-5)


def test_the_untied_head_survives_training_saving_reloading_and_merging(tmp_path: Path, batch: dict) -> None:
    from lora_hf import merge_and_unload
    from lora_hf.config import ModelConfig
    from lora_hf.modeling import load_model

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
    from lora_hf.modeling import load_model

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


def test_generation_and_rouge_run_at_each_evaluation(tmp_path: Path, caplog: Any) -> None:
    from lora_hf.evaluation.scoring import ValidationRouge

    args = arguments(
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        predict_with_generate=True,
        generation_max_length=9,
    )
    trainer = make_trainer(
        adapted(), args, eval_dataset=Rows(6), compute_metrics=ValidationRouge(tokenizer())
    )
    with caplog.at_level("INFO", logger="lora_hf"):
        trainer.train()
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2 and all(0 <= entry["eval_rouge1"] <= 1 for entry in evaluated)
    assert sum("reference: " in message for message in caplog.messages) == 4


def test_trackers_named_by_report_to_get_the_losses(tmp_path: Path) -> None:
    received: list[dict] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            received.append(logs)

    make_trainer(adapted(), arguments(tmp_path, max_steps=3), callbacks=[Tracker()]).train()
    assert sum("loss" in logs for logs in received) == 3


def test_no_optimizer_state_is_kept_for_frozen_weights(tmp_path: Path) -> None:
    trainer = make_trainer(adapted(), arguments(tmp_path, max_steps=1))
    trainer.train()
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(held) == 24 and all(p.requires_grad for p in held)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_fast_paths_take_the_same_steps(
    bf16: bool, smoothing: float, checkpointing: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    for fast_paths in (False, True):
        args = arguments(
            tmp_path,
            max_steps=8,
            bf16=bf16,
            label_smoothing_factor=smoothing,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
            gradient_accumulation_steps=2,
            eval_strategy="steps",
            eval_steps=4,
        )
        trainer = make_trainer(adapted(), args, eval_dataset=Rows(6, seed=9), fast_paths=fast_paths)
        trainer.train()
        evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        runs.append(torch.tensor([*losses(trainer), *evaluated]))
    torch.testing.assert_close(*runs, rtol=0, atol=2e-2 if bf16 else 1e-4)
    assert len(runs[0]) == 10 and not trainer.has_fast_loss


@pytest.mark.parametrize("use_dora", [False, True])
def test_float32_weights_under_bfloat16_autocast_with_adapter_dropout(use_dora: bool, tmp_path: Path) -> None:
    trained = []
    for fast_paths in (False, True):
        config = LoraConfig(r=4, lora_dropout=0.1, use_dora=use_dora, target_modules="all-linear")
        model = inject_adapters(make_t5(), config)
        trainer = make_trainer(model, arguments(tmp_path, max_steps=4, bf16=True), fast_paths=fast_paths)
        trainer.train()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        trained.append(losses(trainer))
    assert trained[0] == pytest.approx(trained[1], abs=0.1)  # the masks are others


def test_a_collator_that_makes_decoder_inputs(tmp_path: Path) -> None:
    runs = []
    for gives_model in (False, True):
        model = adapted()
        trainer = make_trainer(model, arguments(tmp_path, max_steps=4))
        if gives_model:
            trainer.data_collator = DataCollatorForSeq2Seq(tokenizer(), model=model)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == runs[1]


def test_a_search_that_is_asked_for_in_a_configuration(tmp_path: Path) -> None:
    outputs = []
    for fast_paths in (False, True):
        model = adapted()
        randomize(model)
        trainer = make_trainer(model, arguments(tmp_path, predict_with_generate=True), fast_paths=fast_paths)
        searched = GenerationConfig(
            num_beams=3, max_length=12, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0
        )
        outputs.append(trainer.predict(Rows(9, seed=9), generation_config=searched).predictions)
    assert np.array_equal(*outputs) and len(outputs[0]) == 9


def test_a_model_without_fast_paths_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = adapted(make=MODELS["bart"][0], targets=("q_proj",))
    with caplog.at_level("INFO", "lora_hf"):
        make_trainer(model, arguments(tmp_path, max_steps=1), fast_paths=True).train()
    assert "no fast paths: they are written for t5, mt5, umt5, and this is bart" in caplog.text


@pytest.mark.parametrize("beams", [1, 2])
def test_the_validation_s_summaries_are_the_same_by_the_fast_paths(beams: int, tmp_path: Path) -> None:
    outputs = []
    for fast_paths in (False, True):
        args = arguments(
            tmp_path, predict_with_generate=True, generation_max_length=12, generation_num_beams=beams
        )
        model = adapted()
        randomize(model)
        trainer = make_trainer(model, args, fast_paths=fast_paths)
        calls: list[int] = []
        model.decoder.register_forward_pre_hook(
            lambda m, a, kw, calls=calls: calls.append(
                "PackedLinear" in {type(x).__name__ for x in m.modules()}
            ),
            with_kwargs=True,
        )
        output = trainer.predict(Rows(9, seed=9))
        assert set(calls) == {fast_paths}
        outputs.append((output.predictions, output.metrics["test_loss"]))
    assert np.array_equal(outputs[0][0], outputs[1][0])
    assert len(np.unique(outputs[0][0])) > 5
    assert outputs[0][1] == pytest.approx(outputs[1][1], abs=1e-5)
