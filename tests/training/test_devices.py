"""One GPU where several are seen; texts of an evaluation are written as the saved model writes them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from support.models import make_bart, make_t5
from support.selection import slow_except
from support.tiny_trainer import Rows, adapted, arguments, losses, make_trainer

from lora_hf import LoraTrainer
from lora_hf.training.devices import skip_unused_search


@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_process_that_sees_several_gpus_trains_on_one_and_says_how_to_use_all(
    by_keyword: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = arguments(tmp_path, per_device_train_batch_size=4)
    _ = args.device
    args._n_gpu = 2
    given = {"args": args} if by_keyword else {}
    trainer: Any = LoraTrainer(adapted(), *([] if by_keyword else [args]), **given, train_dataset=Rows())
    assert trainer.args.n_gpu == 1 and trainer._train_batch_size == 4  # DataParallel's is 8
    assert "2 GPUs are visible" in caplog.text and "torchrun --nproc_per_node 2" in caplog.text


@pytest.mark.parametrize(
    ("processes", "given", "make", "expected"),
    [
        (2, None, make_t5, False),
        (2, True, make_t5, True),
        (1, None, make_t5, None),
        (2, None, make_bart, None),  # drops whole layers at times
    ],
)
def test_ddp_searches_no_unused_weights_where_all_are_used(
    processes: int, given: bool | None, make: Any, expected: bool | None
) -> None:
    args = SimpleNamespace(world_size=processes, ddp_find_unused_parameters=given)
    skip_unused_search(args, make())
    assert args.ddp_find_unused_parameters is expected


@pytest.mark.parametrize("trains_all", slow_except([False], [False, True], versions=True))
def test_evaluations_write_texts_without_the_autocast_of_training(trains_all: bool, tmp_path: Path) -> None:
    seen: list[tuple[bool, bool, bool]] = []
    model: Any = make_t5().requires_grad_(True) if trains_all else adapted()

    def look(decoder: Any, args: Any, keywords: dict[str, Any]) -> None:
        generates = keywords.get("past_key_values") is not None
        seen.append((decoder.training, generates, torch.is_autocast_enabled("cpu")))

    model.decoder.register_forward_pre_hook(look, with_kwargs=True)
    options = {"eval_strategy": "steps", "eval_steps": 1, "predict_with_generate": True, "bf16": True}
    more = {"eval_dataset": Rows(4), "compute_metrics": lambda predictions: {}}
    trainer = make_trainer(model, arguments(tmp_path, max_steps=2, **options), **more)
    trainer.train()
    assert set(seen) == {(True, False, True), (False, True, False), (False, False, True)}
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)


def test_a_model_that_accelerate_has_spread_takes_the_plain_path_and_the_same_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    for is_spread in (False, True):
        model = adapted()
        if is_spread:
            for layer in [m for m in model.modules() if not list(m.children())]:
                add_hook_to_module(layer, AlignDevicesHook("cpu", io_same_device=True))
        trainer = make_trainer(model, arguments(tmp_path, max_steps=3))
        with caplog.at_level("DEBUG", "lora_hf"):
            trainer.train()
        assert ("fast path is off: accelerate has spread" in caplog.text) == is_spread
        runs.append(torch.tensor(losses(trainer)))
    torch.testing.assert_close(*runs, rtol=0, atol=1e-4)
