"""Which runs are compiled without being asked for it, and the lengths that compiled blocks see."""

from typing import Any

import pytest
import torch
from support.models import randomize
from support.tiny_trainer import adapted
from transformers import LEDConfig

from lora_hf.config import RunConfig
from lora_hf.models.positions import positions_of
from lora_hf.training import compiling
from lora_hf.training.compiling import compiles_by_default, padded_to_buckets

GPU = torch.device("cuda")
LONG = {"max_steps": 2_000}


class Stream:
    """Rows that are not counted."""

    def __len__(self) -> int:
        raise TypeError


@pytest.mark.parametrize(
    ("training", "other", "capability", "rows", "reason"),
    [
        (LONG, {}, (8, 0), [], None),
        (LONG, {}, (9, 0), Stream(), None),
        ({"num_train_epochs": 4, "gradient_accumulation_steps": 2}, {}, (8, 6), range(8_000), None),
        ({"num_train_epochs": 4, "gradient_accumulation_steps": 2}, {}, (8, 6), range(7_984), "1,996 steps"),
        ({}, {}, (8, 0), Stream(), "unknown length"),
        (LONG, {}, (7, 5), [], "capability is 7.5, below 8.0"),
        (LONG, {"fast_paths": False}, (8, 0), [], "fast_paths is false"),
        (LONG | {"gradient_checkpointing": True}, {}, (8, 0), [], "recomputed activations"),
        (LONG, {"model": {"load_in_4bit": True}}, (8, 0), [], "quantized weights were not tried"),
        (LONG | {"fp16": True}, {}, (8, 0), [], "keeps float16 from overflowing"),
        (LONG | {"torch_compile": False}, {}, (8, 0), [], ""),
        (LONG | {"torch_compile_mode": "reduce-overhead"}, {}, (8, 0), [], ""),
    ],
)
def test_long_runs_on_gpus_with_bfloat16_are_compiled(
    training: dict[str, Any],
    other: dict[str, Any],
    capability: tuple[int, int],
    rows: Any,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(compiling, "_has_triton", lambda: True)
    model = {"model_name_or_path": "google/flan-t5-base"} | other.pop("model", {})
    config = RunConfig.model_validate(
        {"method": "lora", "output_dir": "unused", "model": model, "training": training} | other
    )
    with caplog.at_level("DEBUG", "lora_hf"):
        assert compiles_by_default(config, rows, GPU) is (reason is None)
        said = caplog.text
        assert not compiles_by_default(config, rows, torch.device("cpu")) and caplog.text == said
    if reason is None:
        assert "blocks are compiled, which" in said and "torch_compile: false turns it off" in said
    else:
        assert (reason in said) if reason else not said


@pytest.mark.parametrize("given", ["all", "no mask", "decoder inputs"])
def test_padding_to_buckets_changes_neither_loss_nor_gradients(given: str) -> None:
    model = adapted()
    randomize(model)
    lengths = torch.tensor([[33], [20], [7]])
    ids = torch.randint(3, 60, (3, 33), generator=torch.Generator().manual_seed(0))
    labels = ids[:, :11].masked_fill(torch.arange(11) >= torch.tensor([[11], [4], [9]]), -100)
    batch = {"input_ids": ids, "attention_mask": (torch.arange(33) < lengths).long(), "labels": labels}
    if given == "no mask":
        del batch["attention_mask"]
    if given == "decoder inputs":
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    padded = padded_to_buckets(batch, 0)
    assert padded["input_ids"].shape == padded["attention_mask"].shape == (3, 64)
    assert padded["labels"].shape == (3, 16) and (padded["labels"][:, 11:] == -100).all()
    assert not padded["attention_mask"][:, 33:].any()
    weights = [p for p in model.parameters() if p.requires_grad]
    losses = [model(**each).loss for each in (batch, padded)]
    found = [torch.autograd.grad(loss, weights) for loss in losses]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_a_batch_is_not_padded_beyond_the_model_s_positions_nor_one_of_other_inputs() -> None:
    ids = torch.ones(2, 33, dtype=torch.long)
    led = LEDConfig(
        max_encoder_position_embeddings=40, max_decoder_position_embeddings=36, attention_window=8
    )
    padded = padded_to_buckets({"input_ids": ids, "labels": ids}, 0, positions_of(led))
    assert padded["input_ids"].shape == (2, 40) and padded["labels"].shape == (2, 36)
    sounds = {"input_features": torch.zeros(2, 5, 5), "labels": ids}
    assert padded_to_buckets(sounds, 0) is sounds
