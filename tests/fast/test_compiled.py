"""Compiled blocks: few graphs whatever the lengths, the same steps, and evaluations that are not compiled."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import MODELS, make_t5, randomize
from support.tiny_trainer import Rows, adapted, all_losses, arguments, make_trainer, shallow
from torch._dynamo.utils import counters
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_hf import LoraConfig, inject_adapters
from lora_hf.adapters.functional import fast_branches
from lora_hf.errors import UserError
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


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [False, True])
def test_four_graphs_serve_every_length_and_give_the_same_gradients(use_dora: bool) -> None:
    model = inject_adapters(make_t5(), LoraConfig(r=4, use_dora=use_dora)).train()
    randomize(model)
    batches = [batch(*lengths) for lengths in ((7, 5), (19, 3), (11, 9), (4, 4))]
    expected = [gradients(model, each) for each in batches]
    with compiled(model, "EAGER"):
        found = [gradients(model, each) for each in batches]
    assert counters["stats"]["unique_graphs"] == 4 and not counters["graph_break"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_compiled_blocks_keep_less_for_the_backward_pass_than_the_reference_path() -> None:
    """So memory that is planned by the reference path (`lora_hf.planning.plan`) is enough for them."""
    model, inputs = shallow().train(), batch(64, 32, 8)
    with fast_branches(False):
        reference = kept_bytes(model, inputs)
        with compiled(model, "aot_eager_decomp_partition"):  # the partition that inductor makes
            assert kept_bytes(model, inputs) < reference


def kept_bytes(model: Any, inputs: dict[str, Any]) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, beside the weights."""
    weights = {tensor.untyped_storage()._cdata for tensor in model.state_dict().values()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


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


def test_a_model_without_named_blocks_is_compiled_whole(caplog: pytest.LogCaptureFixture) -> None:
    class Own(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    model = Own()
    with caplog.at_level("DEBUG", "lora_hf"), compiled(model, "eager"):
        model(torch.ones(1, 2))
    assert counters["stats"]["unique_graphs"] == 1
    assert "torch_compile: the model, which names no blocks" in caplog.text


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.parametrize("more", [{}, {"label_smoothing_factor": 0.1}])
def test_a_training_takes_the_same_steps_and_its_evaluations_are_not_compiled(
    more: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lora_hf.training.trainer.PADDED_ON", ("cpu",))  # as on a GPU
    monkeypatch.setattr("torch.compiler.cudagraph_mark_step_begin", lambda: None)
    runs, lengths = [], set()

    def look(model: Any, args: Any, inputs: dict[str, Any]) -> None:
        if model.training:
            lengths.add((inputs["input_ids"].shape[1], inputs["decoder_input_ids"].shape[1]))

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
        with caplog.at_level("DEBUG", "lora_hf"):
            trainer = make_trainer(shallow(), args, eval_dataset=Rows(6, seed=9))
            if torch_compile and not more:
                trainer.model.register_forward_pre_hook(look, with_kwargs=True)
            trainer.train()
        runs.append(all_losses(trainer))
    assert more or lengths == {(32, 16)}
    torch.testing.assert_close(*runs, rtol=0, atol=1e-4)
    assert "torch_compile: 2 blocks" in caplog.text
    assert 2 <= counters["stats"]["unique_graphs"] <= 4  # what has one row or one token is a graph of its own
    assert counters["stats"]["calls_captured"] > 150


def small(folder: Path, **more: Any) -> Any:
    return arguments(folder, max_steps=1, torch_compile=True, **({"torch_compile_backend": "eager"} | more))


class Block(GradientCheckpointingLayer):
    """As Transformers' own blocks: to torch all of them are one function."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class OneBlock(torch.nn.Module):
    _no_split_modules = ["Block"]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = Block(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


@pytest.mark.slow
@pytest.mark.versions
def test_many_configurations_in_one_process_are_all_compiled() -> None:
    for graphs in range(1, 13):  # torch's own limit is 8
        model = OneBlock(1 + graphs)
        with compiled(model, "eager"):
            model(torch.ones(3, 1 + graphs))
        assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.versions
def test_a_backend_that_cannot_compile_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no compiler is here")

    monkeypatch.setattr("torch._dynamo.backends.registry._COMPILER_FNS", {"eager": broken})
    block, x = OneBlock(3), torch.ones(2, 3)
    with compiled(block, "eager", falls_back=True):  # nobody asked for it
        assert torch.equal(block(x), block.block.layer(x))
    trainer = make_trainer(adapted(), small(tmp_path))
    with pytest.raises(UserError, match="training.torch_compile: .*no compiler is here"):
        trainer.train()
    assert all(block._compiled_call_impl is None for block in blocks_of(trainer.model))


@pytest.mark.parametrize(
    ("more", "expected", "graphs"),
    [
        pytest.param(
            {"gradient_checkpointing": True},
            "the model as a whole: recomputed activations break the graph",
            None,
            marks=pytest.mark.slow,
        ),
        ({"torch_compile_backend": "no"}, "", 0),
    ],
)
def test_the_log_says_what_is_not_compiled(
    more: dict[str, Any], expected: str, graphs: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", "lora_hf"):
        make_trainer(shallow(), small(tmp_path, **more)).train()
    assert expected in caplog.text and "blocks" not in caplog.text
    assert graphs is None or counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
def test_without_fast_paths_it_is_accelerate_that_compiles_the_model_whole(tmp_path: Path) -> None:
    whole = make_trainer(shallow(), small(tmp_path), fast_paths=False)
    in_blocks = make_trainer(shallow(), small(tmp_path))  # of the same process, and made after it
    in_blocks.train()
    in_blocks.predict(Rows(3))
    assert type(in_blocks.model_wrapped).__name__ != "OptimizedModule"
    whole.train()
    assert type(whole.model_wrapped).__name__ == "OptimizedModule"
