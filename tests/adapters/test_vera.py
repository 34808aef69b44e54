"""VeRA: PEFT's files both ways, shared matrices, and everything that other adapters can do."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from support.models import logits, make_t5
from torch import Tensor, nn

from lora_hf import (
    LoraConfig,
    UserError,
    adapter_rows,
    count_parameters,
    inject_adapters,
    load_adapter,
    merge_and_unload,
    save_adapter,
    set_adapter,
    spectra,
)
from lora_hf.adapters.load import put_adapter_state
from lora_hf.adapters.model_state import lora_layers
from lora_hf.adapters.save import adapter_state
from lora_hf.config.load import load_config

TARGETS = ["q", "wo", "wi_0"]  # (24, 32), (32, 48) and (48, 32): the shared matrices are (6, 48) and (48, 6)
CONFIG = LoraConfig(r=6, target_modules=TARGETS, use_vera=True, projection_prng_key=7)


def move(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def ours(**fields: object) -> nn.Module:
    config = {"r": 6, "target_modules": TARGETS, "projection_prng_key": 7, **fields}
    return move(inject_adapters(make_t5(), LoraConfig(use_vera=True, **config)))


def theirs(**fields: object) -> nn.Module:
    config = {"r": 6, "target_modules": TARGETS, "projection_prng_key": 7, **fields}
    return move(peft.get_peft_model(make_t5(), peft.VeraConfig(**config)))


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vectors' gradients, by layer and vector, whichever project named them."""
    model.zero_grad()
    model(**batch).loss.backward()
    named = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    parts = ("base_model.model.", ".adapters.default", ".default")
    for part in parts:
        named = {name.replace(part, ""): gradient for name, gradient in named.items()}
    return named


def assert_same(one: nn.Module, other: nn.Module, batch: dict[str, Tensor]) -> None:
    torch.testing.assert_close(logits(one, batch), logits(other, batch), rtol=0, atol=1e-5)
    mine, reference = gradients(one, batch), gradients(other, batch)
    assert mine.keys() == reference.keys() and mine
    for name, gradient in reference.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore:Specified to not")
@pytest.mark.parametrize("save_projection", [True, False])
def test_peft_reads_ours_and_we_read_peft_s(save_projection: bool, tmp_path: Path, batch: dict) -> None:
    fields = {"save_projection": save_projection, "layers_to_transform": [0, 1]}
    model = ours(**fields, exclude_modules=["encoder.block.0.layer.1.DenseReluDense.wi_0"])
    save_adapter(model, tmp_path / "ours")
    reference = peft.PeftModel.from_pretrained(make_t5(), tmp_path / "ours", is_trainable=True).eval()
    assert_same(model, reference, batch)
    model = theirs(**fields)
    model.save_pretrained(tmp_path / "theirs")
    again = load_adapter(make_t5(), tmp_path / "theirs", trainable=True)
    assert_same(again, model, batch)
    for folder in ("ours", "theirs"):
        names = load_file(tmp_path / folder / "adapter_model.safetensors").keys()
        assert ({"base_model.vera_A", "base_model.vera_B"} <= names) == save_projection


def test_matrices_equal_peft_s_and_the_initial_output_is_the_base_s(batch: dict) -> None:
    model = inject_adapters(make_t5(), CONFIG)
    reference = peft.get_peft_model(
        make_t5(), peft.VeraConfig(r=6, target_modules=TARGETS, projection_prng_key=7)
    )
    method = next(iter(lora_layers(model).values())).adapters["default"]
    assert torch.equal(method.vera_A, reference.base_model.vera_A["default"])
    assert torch.equal(method.vera_B, reference.base_model.vera_B["default"])
    assert torch.equal(logits(model, batch), logits(make_t5(), batch))


def test_the_config_file_is_peft_s(tmp_path: Path) -> None:
    save_adapter(ours(vera_d_initial=0.2, lora_dropout=0.3), tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    known = peft.VeraConfig.from_pretrained(tmp_path)  # unknown keys would be a warning
    assert written["peft_type"] == "VERA" and "lora_alpha" not in written
    assert (known.d_initial, known.vera_dropout, known.projection_prng_key) == (0.2, 0.3, 7)
    assert load_adapter(make_t5(), tmp_path).lora_hf_state.adapters["default"].method == "vera"


def test_all_layers_share_one_pair_that_never_trains() -> None:
    model = inject_adapters(make_t5(), CONFIG)
    methods = [layer.adapters["default"] for layer in lora_layers(model).values()]
    assert len({id(method.vera_A) for method in methods}) == 1
    base = sum(p.numel() for p in make_t5().parameters())
    trainable = sum(layer.base.out_features + 6 for layer in lora_layers(model).values())
    assert count_parameters(model) == (trainable, base + trainable + 2 * 6 * 48)
    model.double()
    assert len({id(method.vera_A) for method in methods}) == 1 and methods[0].vera_A.dtype == torch.float64
    set_adapter(model, "default")
    assert not methods[0].vera_A.requires_grad


def test_a_checkpoint_is_restored_even_from_another_seed(batch: dict) -> None:
    model = ours()
    other = inject_adapters(make_t5(), LoraConfig(r=6, target_modules=TARGETS, use_vera=True))
    put_adapter_state(other, adapter_state(model))
    assert torch.equal(logits(other, batch), logits(model, batch))


def test_it_merges_mixes_and_has_a_spectrum(batch: dict) -> None:
    model = ours()
    alone = logits(model, batch)
    assert all(len(values) == 6 for values in spectra(model).values())
    inject_adapters(model, LoraConfig(r=2), "other")
    with adapter_rows(model, ["default", "other", None], frozen=True):
        mixed = logits(model, batch)
    torch.testing.assert_close(mixed[0], alone[0], rtol=1e-4, atol=1e-4)
    set_adapter(model, "default")
    torch.testing.assert_close(logits(merge_and_unload(model), batch), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank_pattern": {"q": 2}}, r"rank_pattern=\{'q': 2\} has no effect with use_vera"),
        ({"use_rslora": True}, "use_rslora=True has no effect with use_vera"),
        ({"lora_alpha": 16}, "lora_alpha=16 has no effect with use_vera"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication=.* has no effect with use_vera"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' has no effect with use_vera"),
        ({"target_modules": ["shared"]}, "use_vera=True needs linear layers; remove the Embedding"),
        ({"use_dora": True}, "use_dora=True and use_vera=True exclude each other"),
        ({"projection_prng_key": -1}, "projection_prng_key=-1 must be a whole number from 0"),
        ({"projection_prng_key": 2**70}, f"projection_prng_key={2**70} must be a whole number from 0"),
        ({"use_vera": False, "vera_d_initial": 0.2}, "vera_d_initial=0.2 has no effect without use_vera"),
        ({"use_vera": False, "save_projection": False}, "save_projection=False has no effect without"),
    ],
)
def test_unsupported_settings_are_refused_by_name(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        inject_adapters(make_t5(), LoraConfig(**{"r": 6, "use_vera": True, **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"use_vera": True, "lora_alpha": 16},
        {"use_vera": True, "init_lora_weights": "pissa"},
        {"use_vera": True, "use_rslora": True},
        {"use_vera": True, "rank_pattern": {"q": 2}},
        {"use_qalora": True, "init_lora_weights": "loftq"},
    ],
)
def test_fields_that_exclude_each_other_are_found_before_a_model_is_loaded(fields: dict) -> None:
    config = {"model": {"model_name_or_path": "/nowhere"}, "lora": fields}
    with pytest.raises(UserError, match="lora.[a-z_]*=.* (has no effect with|exclude each other)"):
        load_config(config)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_adapter(ours(), tmp_path)
    (tmp_path / "lora_hf.json").unlink()
    file = tmp_path / "adapter_config.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps(raw | {"save_projection": False}))
    with pytest.raises(UserError, match="2 unexpected: base_model.vera_A, base_model.vera_B"):
        load_adapter(make_t5(), tmp_path)
    file.write_text(json.dumps(raw | {"a_new_field": 3}))
    with pytest.raises(UserError, match="not implemented: a_new_field=3"):
        load_adapter(make_t5(), tmp_path)
