"""LoraTrainer: the same losses as PEFT with Seq2SeqTrainer, right at any accumulation."""

import inspect
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support.models import MODELS, TOKENS, make_t5
from support.selection import slow_except
from support.tiny_trainer import (
    OursInOrder,
    PeftInOrder,
    Rows,
    adapted,
    arguments,
    losses,
    make_trainer,
    tokenizer,
)
from torch import nn
from torch.utils.data import IterableDataset
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import TrainerCallback

from lora_hf import (
    LoraConfig,
    LoraTrainer,
    UserError,
    delete_adapter,
    disable_adapters,
    inject_adapters,
    load_adapter,
    merge_adapters,
    save_adapter,
    set_adapter,
)
from lora_hf.adapters.model_state import update_state
from lora_hf.baselines.bottleneck import add_bottlenecks
from lora_hf.data.collate import check_padding_side


@pytest.mark.parametrize(
    ("fast_paths", "kind"),
    slow_except([(True, "t5")], product((False, True), MODELS), versions=[(False, "bart")]),
)
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


@pytest.mark.parametrize(
    ("smoothing", "kind"), slow_except([(0.1, "t5"), (0.0, "bart")], product((0.0, 0.1), MODELS))
)
def test_accumulating_four_batches_equals_one_batch_of_their_size(
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


def test_gradient_checkpointing_trains_a_frozen_base_with_the_same_losses(tmp_path: Path) -> None:
    runs = []
    for checkpointing in (False, True):
        args = arguments(tmp_path, gradient_checkpointing=checkpointing)
        trainer = make_trainer(adapted(), args, OursInOrder)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0][-1] < runs[0][0]
    torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=0, atol=1e-5)


def test_generation_and_rouge_run_at_each_evaluation(tmp_path: Path, caplog: Any) -> None:
    from lora_hf.evaluation.evaluate import ValidationScores

    args = arguments(
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        predict_with_generate=True,
        generation_max_length=9,
    )
    trainer = make_trainer(
        adapted(), args, eval_dataset=Rows(6), compute_metrics=ValidationScores(tokenizer())
    )
    with caplog.at_level("DEBUG", logger="lora_hf"):
        trainer.train()
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2 and all(0 <= entry["eval_rouge1"] <= 1 for entry in evaluated)
    assert sum("reference: " in message for message in caplog.messages) == 4


def _disabled(model: Any) -> None:
    model.block = disable_adapters(model)  # which is left when nothing refers to it
    model.block.__enter__()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda model: inject_adapters(model, LoraConfig(r=2), "b"),
            r"from \['default'\] to \['b', 'default'\]",
        ),
        (merge_adapters, r"adapters \['default'\] are merged and cannot train"),
        (
            lambda model: set_adapter(model, "other"),
            r"in use have changed .* from \['default'\] to \['other'\]",
        ),
        (_disabled, "are disabled and cannot train"),
    ],
    ids=["injected", "merged", "another active", "disabled"],
)
def test_adapters_that_a_callback_changes_end_the_training(change: Any, says: str, tmp_path: Path) -> None:
    class Changes(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                change(model)

    model = adapted()
    if "other" in says:
        inject_adapters(model, LoraConfig(r=2), "other")
        set_adapter(model, "default")
    with pytest.raises(UserError, match=says):
        make_trainer(model, arguments(tmp_path, max_steps=4), callbacks=[Changes()]).train()


def test_a_callback_may_use_another_adapter_between_two_steps(tmp_path: Path) -> None:
    def last_loss(change: Any) -> float:
        class Looks(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kw: Any) -> None:
                with disable_adapters(model):
                    change(model, "other")
                    change(model, "default")

        model = inject_adapters(adapted(), LoraConfig(r=2), "other")
        set_adapter(model, "default")
        trainer = make_trainer(model, arguments(tmp_path, max_steps=3), callbacks=[Looks()])
        trainer.train()
        return losses(trainer)[-1]

    assert last_loss(set_adapter) == last_loss(lambda *_: None)


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


def with_bottlenecks(model: Any) -> Any:
    add_bottlenecks(model, 4, "relu")
    return model


def _loaded(folder: Path) -> nn.Module:
    save_adapter(adapted(), folder / "saved")
    return load_adapter(make_t5(), folder / "saved")


def _deleted(folder: Path) -> nn.Module:
    model = inject_adapters(adapted(), LoraConfig(r=2, target_modules=("k",)), "second")
    delete_adapter(model, "second")
    return model


def _not_active(folder: Path) -> nn.Module:
    model = adapted()
    set_adapter(model, [])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def _without_weight(folder: Path) -> nn.Module:
    model = adapted()
    set_adapter(model, {"default": 0.0})
    return model


def _merged(folder: Path) -> nn.Module:
    model = adapted()
    merge_adapters(model)
    return model


def _merged_beside_a_copy(folder: Path) -> nn.Module:
    config = LoraConfig(r=2, target_modules=("q",), modules_to_save=("lm_head",))
    model = inject_adapters(make_t5(), config)
    merge_adapters(model)
    return model


IDLE = {
    "frozen base": (lambda folder: make_t5().requires_grad_(False), "all parameters of the model are frozen"),
    "loaded": (_loaded, "adapters ['default'] are frozen; call set_adapter(model, 'default')"),
    "active one deleted": (_deleted, "adapters ['default'] are frozen; call set_adapter(model, 'default')"),
    "not active": (_not_active, "adapters ['default'] are not active"),
    "without weight": (
        _without_weight,
        "adapters ['default'] are active with the weight 0; call set_adapter",
    ),
    "merged": (_merged, "adapters ['default'] are merged and cannot train; call unmerge_adapters"),
    "merged, a copy trains": (_merged_beside_a_copy, "adapters ['default'] are merged and cannot train"),
}


@pytest.mark.parametrize("kind", IDLE)
def test_a_training_that_would_change_nothing_is_one_error_before_its_first_step(
    kind: str, tmp_path: Path
) -> None:
    make, says = IDLE[kind]
    model, steps = make(tmp_path), []
    before = {name: p.clone() for name, p in model.named_parameters()}

    class Count(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            steps.append(1)

    trainer = make_trainer(model, arguments(tmp_path / "out", save_strategy="epoch"), callbacks=[Count()])
    with pytest.raises(UserError, match=re.escape(says)):
        trainer.train()
    assert not steps and not list(tmp_path.glob("out/*"))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def _norms(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or "final_layer_norm" in name)
    return model


@pytest.mark.parametrize("make", [adapted, lambda: with_bottlenecks(make_t5())])
def test_weights_that_would_train_and_not_be_saved_are_one_error_before_the_first_step(
    make: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(_norms(make()), arguments(tmp_path, max_steps=1))
    says = (
        "^2 weights would train, but are not saved with the .*: decoder.final_layer_norm.weight, enc.*freeze"
    )
    with pytest.raises(UserError, match=says):
        trainer.train()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_loss_function_that_is_given_is_the_one_that_trains(accumulated: int, tmp_path: Path) -> None:
    def triple(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs.logits.flatten(0, 1)
        return 3 * nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum") / num_items_in_batch

    args = {"max_steps": 1, "gradient_accumulation_steps": accumulated}
    found = []
    for given in ({}, {"compute_loss_func": triple}):
        trainer = make_trainer(adapted(), arguments(tmp_path, **args), OursInOrder, **given)
        trainer.train()
        found += losses(trainer)
    assert found[1] == pytest.approx(3 * found[0], rel=1e-5)


class Around(nn.Module):
    """A script's own module around a T5."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_t5()

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
        outputs = self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        return outputs.loss, outputs.logits


class Doubled(T5ForConditionalGeneration):
    """A T5 with a loss of its own."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
        outputs = super().forward(input_ids, attention_mask, labels=labels)
        return 2 * outputs.loss, outputs.logits


def _without_return_dict() -> Any:
    model = make_t5()
    model.config.return_dict = False
    return model


def _doubled() -> Any:
    model = make_t5()
    model.__class__ = Doubled
    return model


TUPLES = {
    "own module": (Around, 1),
    "return_dict": (_without_return_dict, 1),
    "own forward": (_doubled, 2),
}


@pytest.mark.parametrize("kind", TUPLES)
def test_a_model_that_returns_tuples_trains_by_its_own_loss(kind: str, tmp_path: Path) -> None:
    make, factor = TUPLES[kind]
    writes, found = kind == "return_dict", []
    for model in (adapted(), adapted(make=make)):
        args = arguments(tmp_path, max_steps=2, predict_with_generate=writes, generation_max_length=4)
        trainer = make_trainer(model, args, eval_dataset=Rows(4, seed=9))
        evaluated = trainer.evaluate()["eval_loss"]
        trainer.train()
        found.append([evaluated, *losses(trainer)[: 3 - factor]])  # twice the loss, other later steps
    assert found[1] == pytest.approx([factor * loss for loss in found[0]], rel=1e-5)


class WithoutLabels(Rows):
    def __getitem__(self, i: int) -> dict[str, list[int]]:
        return {name: ids for name, ids in super().__getitem__(i).items() if name != "labels"}


def test_rows_without_labels_get_texts_and_no_scores(tmp_path: Path) -> None:
    trainer = make_trainer(adapted(), arguments(tmp_path, predict_with_generate=True))
    found = trainer.predict(WithoutLabels(5))
    texts = trainer.predict(Rows(5)).predictions
    assert (found.predictions[:, : texts.shape[1]] == texts).all()
    assert found.label_ids is None and "test_loss" not in found.metrics
    with pytest.raises(UserError, match="the rows have no labels"):
        trainer.evaluate(WithoutLabels(5))
    trainer = make_trainer(adapted(), arguments(tmp_path))
    with pytest.raises(UserError, match="predict_with_generate=True in args .it is False"):
        trainer.predict(WithoutLabels(5))


@pytest.mark.parametrize("generates", [False, True])
def test_evaluation_rows_whose_labels_are_all_masked_are_counted(
    generates: bool, tmp_path: Path, caplog: Any
) -> None:
    rows = Rows(9)
    for row in rows.rows[1:]:
        row["labels"] = [-100, -100]
    args = arguments(tmp_path, predict_with_generate=generates, per_device_eval_batch_size=4)
    trainer = make_trainer(adapted(), args, eval_dataset=rows)
    says = "rows in batches whose labels are all -100: leave rows without labels out of the dataset"
    if "isfinite" in inspect.getsource(Trainer.evaluation_loop):
        first = trainer.evaluate(rows.rows[:4])["eval_loss"]
        assert trainer.evaluate()["eval_loss"] == first
        assert f"eval_loss has nothing of 5 {says}" in caplog.text
    else:  # older versions of Transformers take the mean of all batches
        with pytest.raises(UserError, match=f"eval_loss is nan, because of 5 {says}"):
            trainer.evaluate()
    assert len(trainer.predict(rows.rows[1:]).label_ids) == 8
    assert f"test_loss is nan, because of 8 {says}" in caplog.text
    with pytest.raises(UserError, match=f"eval_loss is nan, because of 8 {says}"):
        trainer.evaluate(rows.rows[1:])


def test_a_batch_without_labels_is_one_error(tmp_path: Path) -> None:
    trainer = make_trainer(adapted(), arguments(tmp_path, max_steps=1), train_dataset=WithoutLabels(8))
    with pytest.raises(
        UserError, match="a batch has no labels, only .*input_ids.*: add the token ids of the"
    ):
        trainer.train()


class Edited(Rows):
    """Rows with other labels or inputs."""

    def __init__(self, name: str, ids: list[int]) -> None:
        super().__init__(8)
        for row in self.rows:
            row[name] = [*row[name][:4], *ids] if ids else []
            row["attention_mask"] = [1] * len(row["input_ids"])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            Edited("labels", [TOKENS]),
            f"labels of a batch hold the token {TOKENS}, and the model has {TOKENS}",
        ),
        (Edited("input_ids", [99]), "input_ids of a batch hold the token 99.*resize_token_embeddings"),
        (Edited("labels", []), "a batch has labels without a token"),
    ],
    ids=["label", "input", "empty"],
)
def test_tokens_that_the_model_does_not_have_are_one_error(rows: Edited, says: str, tmp_path: Path) -> None:
    trainer = make_trainer(adapted(), arguments(tmp_path, max_steps=1), train_dataset=rows)
    with pytest.raises(UserError, match=says):
        trainer.train()


@pytest.mark.parametrize(("ending", "is_padded"), [([1, 0, 0], True), ([1], False)])
def test_labels_that_end_in_padding_tokens_are_warned_of(
    ending: list[int], is_padded: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(
        adapted(), arguments(tmp_path, max_steps=2), train_dataset=Edited("labels", ending)
    )
    trainer.train()
    text = "the labels of 4 of 4 rows of the first batch end in the padding token 0"
    assert caplog.text.count(text) == is_padded


def test_a_collator_whose_tokenizer_pads_on_the_left_is_refused(tmp_path: Path) -> None:
    """As Gemma's tokenizers do: the decoder would read the padding before the labels."""
    trainer = make_trainer(adapted(), arguments(tmp_path, max_steps=1))
    trainer.data_collator.tokenizer.padding_side = "left"
    with pytest.raises(
        UserError, match="data_collator pads on the left.*set tokenizer.padding_side = 'right'"
    ):
        trainer.train()


@pytest.mark.parametrize(
    ("labels", "is_warned"),
    [
        ([[-100, -100, 7, 1], [7, 8, 9, 1]], True),
        ([[-100, 7, 8, 1], [-100, 8, 9, 1]], False),  # the first token is not learned
        ([[7, 1, -100, -100], [7, 8, 9, 1]], False),
        ([[-100, 7, 1, -100], [-100, -100, 9, 1]], False),
    ],
)
def test_labels_that_seem_padded_on_the_left_are_warned_of(
    labels: list[list[int]], is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    check_padding_side(make_t5(), None, {"labels": torch.tensor(labels)})
    assert ("padded on the left" in caplog.text) is is_warned


def test_embeddings_that_are_saved_beside_an_adapter_may_train(tmp_path: Path) -> None:
    make_t5().save_pretrained(tmp_path / "base")
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(100)
    inject_adapters(model, LoraConfig(r=2))
    model.shared.weight.requires_grad_(True)
    trainer = make_trainer(model, arguments(tmp_path / "out", max_steps=1))
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert torch.equal(saved["base_model.model.shared.weight"], model.shared.weight)


def test_adapters_that_were_cast_to_bfloat16_come_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(adapted().to(torch.bfloat16), arguments(tmp_path, max_steps=1)).train()
    assert "the weights that train are in bfloat16, in which small updates are lost" in caplog.text
    caplog.clear()
    model = inject_adapters(make_t5().to(torch.bfloat16), LoraConfig(r=2))
    make_trainer(model, arguments(tmp_path, max_steps=1)).train()
    assert "small updates" not in caplog.text


class NoRows(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize("rows", [[], NoRows()], ids=["list", "stream"])
def test_a_dataset_without_rows_is_one_error_that_names_it(rows: Any, tmp_path: Path) -> None:
    trainer = make_trainer(adapted(), arguments(tmp_path, max_steps=1))
    trainer.train_dataset = rows
    with pytest.raises(UserError, match="^train_dataset has no rows"):
        trainer.train()


@pytest.mark.parametrize("fields", [{"max_steps": 0}, {"max_steps": -1, "num_train_epochs": 0}], ids=str)
def test_a_training_without_steps_is_one_error(fields: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are no step, so nothing was trained"):
        make_trainer(adapted(), arguments(tmp_path, **fields)).train()


def test_a_callback_that_stops_before_the_first_step_is_named(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = True

    trainer = make_trainer(adapted(), arguments(tmp_path, max_steps=2), callbacks=[Stop()])
    with pytest.raises(UserError, match="^a callback stopped the training before its first step"):
        trainer.train()


@pytest.mark.parametrize("given", [None, TrainingArguments])
def test_arguments_of_a_plain_trainer_are_refused(given: Any, tmp_path: Path) -> None:
    kind = "NoneType" if given is None else given.__name__
    with pytest.raises(UserError, match=f"needs a transformers.Seq2SeqTrainingArguments, not {kind};"):
        LoraTrainer(adapted(), given and given(str(tmp_path), report_to="none", use_cpu=True))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tokenizer", "Use processing_class instead."),
        ("compute_metric", "Did you mean 'compute_metrics'?"),
        ("learning_rate", "It is a field of args"),
        ("peft_config", "Use inject_adapters"),
    ],
)
def test_arguments_that_the_trainer_does_not_have_are_refused_with_what_takes_their_place(
    name: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(f"LoraTrainer has no argument {name!r}. {hint}")):
        make_trainer(adapted(), arguments(tmp_path), **{name: None})


def test_disabled_adapters_are_not_trained(tmp_path: Path) -> None:
    model = adapted()
    trainer = make_trainer(model, arguments(tmp_path))
    with disable_adapters(model), pytest.raises(UserError, match="are disabled and cannot train; leave"):
        trainer.train()
    trainer.train()
    assert len(losses(trainer)) == 10


def test_the_card_of_an_adapter_says_that_it_is_one(tmp_path: Path) -> None:
    """`push_to_hub` writes it; the Hub offers to load what it names."""
    trainer = make_trainer(adapted(), arguments(tmp_path))
    for _ in range(2):
        trainer.create_model_card(finetuned_from="anna/base")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", "anna/base", "adapter")
    assert "lora" in data.tags


def test_an_adapter_on_a_model_that_was_trained_whole_is_not_one_of_its_base(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_t5()
    model.name_or_path = "anna/base"
    update_state(model, base_fingerprint="b" * 16)
    make_trainer(model, arguments(tmp_path, max_steps=1)).train()
    inject_adapters(model, LoraConfig(r=2))
    assert "not those of its base's files any more" in caplog.text
    manifest = json.loads((save_adapter(model, tmp_path) / "lora_hf.json").read_text())
    assert manifest["base_fingerprint"] is manifest["base_model_name_or_path"] is None


def test_of_two_adapters_the_active_one_trains_alone(tmp_path: Path) -> None:
    model = inject_adapters(adapted(), LoraConfig(r=2, target_modules=("k",)), "second")
    set_adapter(model, "default")
    make_trainer(model, arguments(tmp_path, max_steps=2)).train()
    moved = {n for n, p in model.named_parameters() if "lora_B" in n and p.abs().max() > 0}
    assert moved and all(".default." in name for name in moved)


@pytest.mark.parametrize(
    "wrap", [pytest.param(partial(torch.compile, backend="eager"), marks=pytest.mark.slow), nn.DataParallel]
)
def test_a_wrapped_model_is_trained_and_evaluated_alike_and_its_checkpoint_has_plain_names(
    wrap: Any, tmp_path: Path
) -> None:
    runs, evaluations, checkpoints = [], [], []
    for name, model in (("plain", adapted()), ("wrapped", wrap(adapted()))):
        args = arguments(tmp_path / name, max_steps=2, save_strategy="steps", save_steps=2)
        trainer = make_trainer(model, args, OursInOrder, eval_dataset=Rows(8, seed=1))
        trainer.train()
        runs.append(losses(trainer))
        evaluations.append(trainer.evaluate()["eval_loss"])
        checkpoints.append(load_file(tmp_path / name / "checkpoint-2" / "adapter_model.safetensors"))
    torch.testing.assert_close(torch.tensor(runs[1]), torch.tensor(runs[0]))
    assert evaluations[1] == pytest.approx(evaluations[0], abs=1e-5)
    assert set(checkpoints[1]) == set(checkpoints[0])


def test_an_optimizer_made_before_the_adapters_is_one_error(tmp_path: Path) -> None:
    model = make_t5()
    optimizer = torch.optim.AdamW(model.parameters())
    inject_adapters(model, LoraConfig(r=4))
    trainer = make_trainer(model, arguments(tmp_path, max_steps=2), optimizers=(optimizer, None))
    with pytest.raises(UserError, match=r"optimizers: .* holds none of the weights that train"):
        trainer.train()
    made_after = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    make_trainer(model, arguments(tmp_path, max_steps=1), optimizers=(made_after, None)).train()


def test_an_optimizer_that_leaves_out_weights_that_train_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = inject_adapters(make_t5(), LoraConfig(r=4))
    made_before = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    make_trainer(model, arguments(tmp_path, max_steps=1), optimizers=(made_before, None)).train()
    assert "leaves out" not in caplog.text
    inject_adapters(model, LoraConfig(r=4, target_modules=["k"]), "second")
    set_adapter(model, ["default", "second"])
    make_trainer(model, arguments(tmp_path, max_steps=1), optimizers=(made_before, None)).train()
    assert re.search(r"AdamW that was given leaves out 12 of 36 tensors .*\.second\.", caplog.text)
