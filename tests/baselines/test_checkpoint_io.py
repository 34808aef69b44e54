"""Both baselines alike: on disk and back, in generation, in the Trainer, and what is refused."""

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import MODELS, make_t5
from support.new_weights import randomize
from support.selection import slow_except
from support.tiny_trainer import StopAt, arguments, losses, make_trainer

from lora_hf import LoraConfig, inject_adapters
from lora_hf.adapters.model_state import update_state
from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.baselines import add_bottlenecks, add_prompt, load_extras, save_extras
from lora_hf.baselines.checkpoint_io import new_weights
from lora_hf.errors import UserError
from lora_hf.files import file_sha256
from lora_hf.training.checkpoints import last_checkpoint
from lora_hf.training.registry import saved_method

PutIn = Callable[[Any], None]
BASELINES: dict[str, tuple[Any, PutIn, int]] = {
    "bottleneck": (add_bottlenecks, partial(add_bottlenecks, bottleneck_dim=4, non_linearity="gelu"), 40),
    "prompt_tuning": (add_prompt, partial(add_prompt, num_virtual_tokens=5, init="vocab"), 1),
}
each = pytest.mark.parametrize("baseline", BASELINES)


def with_baseline(baseline: str, make: Callable[[], Any] = make_t5, seed: int = 5) -> Any:
    torch.manual_seed(seed)
    model = make()
    BASELINES[baseline][1](model)
    return model


@each
@pytest.mark.parametrize("kind", MODELS)
def test_saved_and_loaded_weights_give_equal_logits_and_equal_bytes(
    baseline: str, kind: str, tmp_path: Path, batch: dict
) -> None:
    make = MODELS[kind][0]
    model = with_baseline(baseline, make)
    randomize(model)
    folders = [save_extras(model, tmp_path / name, {"prompt": "plain"}) for name in "ab"]
    base, drawn = make(), torch.get_rng_state()
    again = load_extras(base, folders[0], BASELINES[baseline][0])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(p.requires_grad for p in again.parameters())
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    names = sorted(p.name for p in folders[0].iterdir())
    assert names == ["adapter_model.safetensors", "lora_hf.json"]
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names)
    manifest = json.loads((folders[0] / "lora_hf.json").read_text())
    assert manifest["method"] == baseline and manifest["prompt"] == "plain"
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    assert len(tensors) == BASELINES[baseline][2]


@each
def test_loading_is_strict_and_names_what_does_not_fit(baseline: str, tmp_path: Path) -> None:
    model = with_baseline(baseline)
    update_state(model, base_fingerprint="a" * 16)
    folder = save_extras(model, tmp_path)
    put_in = BASELINES[baseline][0]
    other = make_t5()
    update_state(other, base_fingerprint="b" * 16)
    with pytest.raises(UserError, match="fingerprint aaaa"):
        load_extras(other, folder, put_in)
    assert not new_weights(other)
    file, manifest = folder / "adapter_model.safetensors", json.loads((folder / "lora_hf.json").read_text())
    tensors = load_file(file)
    name = next(iter(tensors))
    for change, expected in (
        ({"extra": torch.zeros(1)}, "1 unexpected: extra"),
        ({name: torch.zeros(3, 2)}, rf"1 of another shape: {name} is \(3, 2\) here and"),
        ({name: None}, f"1 missing: {name}"),
    ):
        save_file({k: v for k, v in (tensors | change).items() if v is not None}, file)
        (folder / "lora_hf.json").write_text(json.dumps(manifest | {"weights_sha256": file_sha256(file)}))
        with pytest.raises(UserError, match=expected):
            load_extras(make_t5(), folder, put_in)
    for settings in ({}, {"settings": {"width": 3}}):
        wrong = {"weights_sha256": file_sha256(file)} | settings
        (folder / "lora_hf.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="lacks the settings of its method"):
            load_extras(make_t5(), folder, put_in)


def test_layers_at_other_places_than_this_version_has_them_come_with_the_remedy(tmp_path: Path) -> None:
    folder = save_extras(with_baseline("bottleneck"), tmp_path)
    file, manifest = folder / "adapter_model.safetensors", json.loads((folder / "lora_hf.json").read_text())
    save_file(
        {name.replace("SelfAttention.o.", "SelfAttention.v."): t for name, t in load_file(file).items()}, file
    )
    (folder / "lora_hf.json").write_text(json.dumps(manifest | {"weights_sha256": file_sha256(file)}))
    with pytest.raises(UserError) as raised:
        load_extras(make_t5(), folder, BASELINES["bottleneck"][0])
    message = str(raised.value)
    assert message.startswith(f"the adapter {folder} does not fit the model: 16 missing: decoder.block.0")
    assert "added the layers at other places in this model: train again with method: bottleneck" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("baseline", "kind", "beams"),
    slow_except(
        [
            ("bottleneck", "t5", 3),
            ("bottleneck", "bart", 1),
            ("prompt_tuning", "t5", 1),
            ("prompt_tuning", "bart", 3),
        ],
        product(BASELINES, MODELS, (1, 3)),
        versions=True,
    ),
)
def test_generation_with_the_cache_is_generation_without(
    baseline: str, kind: str, beams: int, batch: dict
) -> None:
    model = with_baseline(baseline, MODELS[kind][0])
    randomize(model)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "num_beams": beams, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}  # random models write little
    with_cache, without = (model.generate(**inputs, **options, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache.sequences, without.sequences) and len(without.logits) == 8
    torch.testing.assert_close(with_cache.logits, without.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("baseline", slow_except(["bottleneck"], BASELINES, versions=True))
def test_resuming_ends_bit_for_bit_where_an_unbroken_run_ends(baseline: str, tmp_path: Path) -> None:
    def trainer_of(folder: str, *callbacks: Any) -> Any:
        args = arguments(tmp_path / folder, max_steps=16, save_strategy="steps", save_steps=6)
        return make_trainer(with_baseline(baseline), args, callbacks=list(callbacks))

    whole = trainer_of("whole")
    whole.train()
    assert losses(whole)[-1] < losses(whole)[0]
    trainer_of("broken", StopAt(12)).train()
    checkpoint = last_checkpoint(tmp_path / "broken")
    assert not (checkpoint / "model.safetensors").exists()
    assert len(load_file(checkpoint / "adapter_model.safetensors")) == BASELINES[baseline][2]
    resumed = trainer_of("broken")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed)[-4:] == losses(whole)[-4:]
    for (name, ours), theirs in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@each
def test_gradient_checkpointing_gives_the_same_losses(baseline: str, tmp_path: Path) -> None:
    runs = []
    for checkpointing in (False, True):
        args = arguments(tmp_path, max_steps=5, gradient_checkpointing=checkpointing)
        trainer = make_trainer(with_baseline(baseline), args)
        trainer.train()
        runs.append(losses(trainer))
    torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("baseline", slow_except(["bottleneck"], BASELINES, versions=True))
def test_a_4_bit_base_trains(baseline: str, tmp_path: Path, batch: dict) -> None:
    from lora_hf.config import ModelConfig
    from lora_hf.models.load import load_model

    make_t5().save_pretrained(tmp_path / "base")
    config = ModelConfig(model_name_or_path=str(tmp_path / "base"), load_in_4bit=True)

    def base() -> Any:
        return load_model(config, torch.device("cpu"))

    model = with_baseline(baseline, base)
    trainer = make_trainer(model, arguments(tmp_path, max_steps=8, learning_rate=2e-2))
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    save_extras(model, tmp_path / "saved")
    again = load_extras(base(), tmp_path / "saved", BASELINES[baseline][0])
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)


def test_a_second_baseline_on_one_model_is_refused() -> None:
    model = with_baseline("prompt_tuning")
    with pytest.raises(UserError, match="already has the weights of method 'prompt_tuning'"):
        add_bottlenecks(model, 4, "gelu")


@each
def test_a_baseline_is_refused_on_a_model_with_adapters(baseline: str) -> None:
    model = inject_adapters(make_t5(), LoraConfig(target_modules=["o"]), "mine")
    trained = [p.requires_grad for p in model.parameters()]
    with pytest.raises(UserError, match=rf"method={baseline}: the model already has the adapters \['mine'\]"):
        BASELINES[baseline][1](model)
    assert not new_weights(model) and [p.requires_grad for p in model.parameters()] == trained


def test_a_manifest_of_an_unknown_method_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    for method in ("lorra", ["a"], None, 3):
        (tmp_path / "lora_hf.json").write_text(json.dumps({"method": method}))
        with pytest.raises(UserError, match=r"weights of method .*known are \['bottleneck', 'lora'"):
            saved_method(SavedAdapter(tmp_path))
