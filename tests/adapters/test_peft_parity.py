"""PEFT both ways: its files load here, ours load there, with equal logits and gradients.

On an encoder-decoder, two decoder-only models (one with GPT-2's transposed layers) and a vision model with a
convolution, all built from configs. Where PEFT is wrong, a test says how.
"""

import inspect
import json
from itertools import product
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from support.models import make_t5, randomize
from support.selection import slow_except
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from lora_hf import LoraConfig, inject_adapters, load_adapter, save_adapter
from lora_hf.adapters.inits import loftq
from lora_hf.adapters.model_state import lora_layers
from lora_hf.errors import UserError


def make_llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=1, **sizes)).eval()


def make_gpt2() -> nn.Module:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(
        GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False)
    ).eval()


def make_vit() -> nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_labels=5, **shape)).eval()


def ids(seed: int = 3) -> Tensor:
    return torch.randint(2, 60, (3, 9), generator=torch.Generator().manual_seed(seed))


KINDS: dict[str, tuple[Any, list[str], dict[str, Tensor]]] = {
    "t5": (make_t5, ["q", "wo"], {"input_ids": ids(), "labels": ids(4)}),
    "llama": (make_llama, ["q_proj", "down_proj"], {"input_ids": ids(), "labels": ids()}),
    "gpt2": (make_gpt2, ["c_attn", "mlp.c_proj"], {"input_ids": ids(), "labels": ids()}),
    "vit": (
        make_vit,
        ["projection"],  # the patches' convolution
        {"pixel_values": torch.randn(3, 3, 8, 8), "labels": torch.tensor([0, 3, 4])},
    ),
}
EMBEDDINGS = {"t5": ["encoder.embed_tokens"], "llama": ["embed_tokens"], "gpt2": ["wte"]}
PATTERN = {"rank_pattern": {"wo": 2, "down_proj": 2}, "alpha_pattern": {"q": 7, "q_proj": 7}}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "rslora of pissa": {"use_rslora": True, "init_lora_weights": "pissa"},
}
both = pytest.mark.parametrize(
    ("kind", "method"),
    slow_except(
        [
            *product(("t5",), VARIANTS),
            ("gpt2", "lora"),
            ("gpt2", "pissa"),
            ("llama", "dora"),
            ("vit", "dora"),
        ],
        [(k, m) for k in KINDS for m in VARIANTS if k != "vit" or m in ("lora", "rslora", "dora")],
        versions=True,
    ),
)  # PEFT takes no start from a convolution's weight


def logits_and_gradients(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return output.logits.detach(), gradients


def plain(name: str) -> str:
    """A parameter's name without what either project puts in its path."""
    for part in ("base_model.model.", ".base_layer", ".default", ".adapters", ".weight"):
        name = name.replace(part, "")
    return name.replace("lora_embedding_", "lora_")


def assert_same(ours: nn.Module, theirs: nn.Module, batch: dict[str, Tensor], gradients: bool = True) -> None:
    theirs.eval()
    our_logits, our_gradients = logits_and_gradients(ours, batch)
    their_logits, their_gradients = logits_and_gradients(theirs, batch)
    torch.testing.assert_close(our_logits, their_logits, rtol=0, atol=1e-5)
    if gradients:
        reference = {plain(name): g for name, g in their_gradients.items()}
        mine = {plain(name): g for name, g in our_gradients.items()}
        assert mine.keys() == reference.keys() and mine
        for name, gradient in reference.items():
            torch.testing.assert_close(mine[name].view_as(gradient), gradient, rtol=1e-4, atol=1e-4, msg=name)


def ours_of(kind: str, **fields: Any) -> nn.Module:
    make, targets, _ = KINDS[kind]
    config = {"r": 3, "lora_alpha": 5, "target_modules": targets, **fields}
    model = inject_adapters(make(), LoraConfig(**config))
    move(model)
    return model


def move(model: nn.Module) -> None:
    """Trained-looking weights: small steps from the start, as a PiSSA file is read relative to it."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def theirs_of(kind: str, **fields: Any) -> nn.Module:
    make, targets, _ = KINDS[kind]
    config = {"r": 3, "lora_alpha": 5, "target_modules": targets, **fields}
    if kind == "gpt2":
        config["fan_in_fan_out"] = True
    model = peft.get_peft_model(make(), peft.LoraConfig(**config))
    move(model)
    return model


@both
def test_peft_reads_ours(kind: str, method: str, tmp_path: Path) -> None:
    make, _, batch = KINDS[kind]
    ours = ours_of(kind, **VARIANTS[method])
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path, is_trainable=True)
    is_converted = "pissa" in method or method == "olora"  # there the trained half is twice as wide
    assert_same(ours, theirs, batch, gradients=not is_converted)
    if is_converted:
        again = load_adapter(make(), tmp_path, trainable=True)
        assert_same(again, theirs, batch)
        rank = load_file(tmp_path / "adapter_model.safetensors").popitem()[1].shape
        assert 6 in rank


@both
def test_we_read_peft_s(kind: str, method: str, tmp_path: Path) -> None:
    if (kind, method) == ("gpt2", "olora"):
        pytest.skip("PEFT's own factors have the wrong sides; tested below")
    make, _, batch = KINDS[kind]
    theirs = theirs_of(kind, **VARIANTS[method])
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(make(), tmp_path, trainable=True)
    assert_same(ours, theirs, batch)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_patterns_excluded_layers_and_chosen_blocks_mean_the_same(kind: str, tmp_path: Path) -> None:
    make, targets, batch = KINDS[kind]
    own = {"t5": ("wo", "q"), "llama": ("down_proj", "q_proj")}[kind]
    fields = {
        "rank_pattern": {own[0]: 2},
        "alpha_pattern": {own[1]: 7},
        "layers_to_transform": [1],
        "exclude_modules": ["decoder.block.1.layer.1.EncDecAttention.q"] if kind == "t5" else [],
    }
    ours = ours_of(kind, **fields)
    save_adapter(ours, tmp_path / "ours")
    assert_same(ours, peft.PeftModel.from_pretrained(make(), tmp_path / "ours", is_trainable=True), batch)
    theirs = theirs_of(kind, **fields)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(load_adapter(make(), tmp_path / "theirs", trainable=True), theirs, batch)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_embeddings(kind: str, method: str, tmp_path: Path) -> None:
    make, _, batch = KINDS[kind]
    fields = {**VARIANTS[method], "target_modules": EMBEDDINGS[kind]}
    ours = ours_of(kind, **fields)
    save_adapter(ours, tmp_path / "ours")
    assert_same(ours, peft.PeftModel.from_pretrained(make(), tmp_path / "ours", is_trainable=True), batch)
    theirs = theirs_of(kind, **fields)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(load_adapter(make(), tmp_path / "theirs", trainable=True), theirs, batch)


@pytest.mark.parametrize(("kind", "name"), [("vit", "classifier"), ("t5", "lm_head"), ("llama", "lm_head")])
def test_modules_to_save(kind: str, name: str, tmp_path: Path) -> None:
    make, _, batch = KINDS[kind]
    ours = ours_of(kind, modules_to_save=[name])
    save_adapter(ours, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "ours", is_trainable=True)
    assert_same(ours, theirs, batch, gradients=False)
    theirs = theirs_of(kind, modules_to_save=[name])
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(load_adapter(make(), tmp_path / "theirs", trainable=True), theirs, batch, gradients=False)


def test_all_linear_is_written_as_names_and_never_the_head(tmp_path: Path) -> None:
    ours = ours_of("t5", target_modules="all-linear")
    assert {name.rsplit(".", 1)[-1] for name in lora_layers(ours)} == set("k o q v wi_0 wi_1 wo".split())
    save_adapter(ours, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert written == "k o q v wi_0 wi_1 wo".split()
    theirs = peft.PeftModel.from_pretrained(make_t5(), tmp_path, is_trainable=True)
    assert_same(ours, theirs, KINDS["t5"][2])


@pytest.mark.parametrize("scaling", [0.5, 1.0, 2.0, 4.0])
def test_peft_s_loftq_ignores_the_scale_and_ours_does_not(scaling: float) -> None:
    """Its start is right at alpha = r alone: at 2 r it adds what it should take away (peft#1982)."""
    import bitsandbytes as bnb
    from peft.utils import loftq_utils

    namespace = dict(vars(loftq_utils))  # its own code, but for the device: it asks for a GPU
    exec(inspect.getsource(loftq_utils.loftq_init).replace('"cuda"', '"cpu"'), namespace)
    torch.manual_seed(0)
    W = torch.randn(64, 64)
    Q, A, B = namespace["loftq_init"](W, num_bits=4, reduced_rank=8, num_iter=1)

    def quantize(weight: Tensor) -> Tensor:
        packed = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=False, quant_type="nf4")
        packed = packed.to("cpu")
        return bnb.functional.dequantize_4bit(packed.data, packed.quant_state)

    torch.testing.assert_close(quantize(W), Q)
    start = loftq(W, 8, scaling, quantize, iterations=1)
    before, theirs, ours = (
        (W - M).norm().item() for M in (Q, Q + scaling * B @ A, Q + scaling * start.lora_B @ start.lora_A)
    )
    assert ours < 0.85 * before
    assert theirs == pytest.approx(ours, rel=1e-4) if scaling == 1 else theirs > 1.03 * ours
    assert scaling < 2 or theirs > 0.999 * before


def test_peft_s_olora_decomposes_gpt2_s_weight_without_transposing_it(tmp_path: Path) -> None:
    """Its factors have the sides exchanged; loading such a file is an error that names the shapes."""
    theirs_of("gpt2", init_lora_weights="olora").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"c_attn.lora_A.weight is \(3, 72\) here and \(3, 24\) in the model"):
        load_adapter(make_gpt2(), tmp_path)


def test_peft_is_wrong_about_qalora_s_factor() -> None:
    """Its forward is the mean of a group times the number of groups; the paper's sums the group."""
    from peft.tuners.lora.variants import QALoraLinearVariant

    torch.manual_seed(0)
    x, A, B, group = torch.randn(2, 64), torch.randn(4, 64 // 16), torch.randn(8, 4), 16

    class Stub:
        in_features, training = 64, False
        lora_A, lora_B = {"a": nn.Linear(4, 4, bias=False)}, {"a": nn.Linear(4, 8, bias=False)}
        lora_dropout, scaling, qalora_group_size = {"a": nn.Identity()}, {"a": 1.0}, {"a": group}

    Stub.lora_A["a"].weight.data, Stub.lora_B["a"].weight.data = A, B
    theirs = QALoraLinearVariant.forward(Stub, "a", x, torch.zeros(2, 8))
    summed = x.unflatten(1, (-1, group)).sum(-1) @ A.T @ B.T
    torch.testing.assert_close(theirs, summed * (64 / group) / group)
    assert not torch.allclose(theirs, summed)


def test_qalora_files_are_converted_when_read_and_written(tmp_path: Path) -> None:
    ours = ours_of("t5", target_modules=["q"], use_qalora=True, qalora_group_size=8)
    save_adapter(ours, tmp_path)
    layer = next(iter(lora_layers(ours).values())).adapters["default"]
    key = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"
    torch.testing.assert_close(load_file(tmp_path / "adapter_model.safetensors")[key], layer.lora_A * 8 / 4)
    again = load_adapter(make_t5(), tmp_path, trainable=True)
    assert_same(again, ours, KINDS["t5"][2])


def test_peft_drops_a_convolution_s_dilation_and_cannot_merge_groups(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 3, dilation=2, padding=2))

    x = torch.randn(1, 4, 9, 9)
    ours = inject_adapters(make(), LoraConfig(r=2, target_modules=["0", "1"]))
    randomize(ours)
    save_adapter(ours, tmp_path)
    reference = ours(x)
    again = load_adapter(make(), tmp_path)
    torch.testing.assert_close(again(x), reference)
    fields = {"r": 2, "lora_alpha": 8}
    dilated = peft.get_peft_model(make(), peft.LoraConfig(**fields, target_modules=["1"]))
    with pytest.raises(RuntimeError, match="size of tensor"):
        dilated(x)
    grouped = peft.get_peft_model(make(), peft.LoraConfig(**fields, target_modules=["0"]))
    with pytest.raises(NotImplementedError, match="groups > 1"):
        grouped.merge_and_unload()


def test_peft_s_loftq_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    save_adapter(ours_of("t5"), tmp_path)
    (tmp_path / "lora_hf.json").unlink()
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "loftq"}))
    with pytest.raises(UserError, match="LoftQ.*backbone"):
        load_adapter(make_t5(), tmp_path)
