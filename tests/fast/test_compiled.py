"""Compiled blocks: few graphs whatever the lengths, the same steps, and evaluations that are not compiled."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MODELS, make_t5, randomize
from torch._dynamo.utils import counters
from training.tiny_trainer import Rows, adapted, arguments, losses, make_trainer

from lora_hf import LoraConfig, inject_adapters
from lora_hf.fast.compiled import blocks_of, compiled


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def batch(length: int, labels: int, rows: int = 3) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 60, (rows, length))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.randint(3, 60, (rows, labels)),
    }


def gradients(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    loss = model(**inputs, use_cache=False).loss
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


@pytest.mark.parametrize("use_dora", [False, True])
def test_four_graphs_serve_every_length_and_give_the_same_gradients(use_dora: bool) -> None:
    model = inject_adapters(make_t5(), LoraConfig(r=4, use_dora=use_dora)).train()
    randomize(model)
    batches = [batch(*lengths) for lengths in ((7, 5), (19, 3), (11, 9), (4, 4))]
    expected = [gradients(model, each) for each in batches]
    with compiled(model, "eager") as n:
        found = [gradients(model, each) for each in batches]
    assert n == len(model.encoder.block) + len(model.decoder.block)
    assert counters["stats"]["unique_graphs"] == 4 and not counters["graph_break"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_outside_of_the_block_nothing_is_compiled_and_no_name_has_changed() -> None:
    model = adapted()
    names, forward = list(model.state_dict()), type(model.encoder.block[0]).forward
    with pytest.raises(ValueError), compiled(model, "eager"):
        assert list(model.state_dict()) == names
        raise ValueError
    gradients(model, batch(5, 3))
    assert not counters["stats"] and type(model.encoder.block[0]).forward is forward


@pytest.mark.parametrize("name", MODELS)
def test_a_model_s_blocks_are_those_that_it_names(name: str) -> None:
    model = MODELS[name][0]()
    assert {type(block).__name__ for block in blocks_of(model)} <= set(model._no_split_modules)
    assert len(blocks_of(model)) > 1


def test_what_names_no_blocks_is_compiled_whole() -> None:
    class Own(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    model = Own()
    with compiled(model, "eager") as n:
        model(torch.ones(1, 2))
    assert n == 1 and counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("more", [{}, {"label_smoothing_factor": 0.1}, {"gradient_checkpointing": True}])
def test_a_training_takes_the_same_steps_and_its_evaluations_are_not_compiled(
    more: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    for torch_compile in (False, True):
        args = arguments(
            tmp_path,
            max_steps=6,
            torch_compile=torch_compile,
            torch_compile_backend="eager" if torch_compile else None,
            eval_strategy="steps",
            eval_steps=3,
            predict_with_generate=True,
            generation_max_length=6,
            **more,
        )
        with caplog.at_level("INFO", "lora_hf"):
            trainer = make_trainer(adapted(), args, eval_dataset=Rows(6, seed=9))
            trainer.train()
        evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        runs.append(torch.tensor([*losses(trainer), *evaluated]))
    torch.testing.assert_close(*runs, rtol=0, atol=1e-4)
    assert "torch_compile: 4 blocks" in caplog.text
    # what has one row or one token is a graph of its own; so is, in older Transformers, what is recomputed
    assert counters["stats"]["unique_graphs"] <= (12 if "gradient_checkpointing" in more else 8)


def test_without_fast_paths_it_is_accelerate_that_compiles_the_model_whole(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=1, torch_compile=True, torch_compile_backend="eager")
    trainer = make_trainer(adapted(), args, fast_paths=False)
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "OptimizedModule"
    assert type(make_trainer(adapted(), args).model_wrapped).__name__ != "OptimizedModule"
