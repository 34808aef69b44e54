"""The output head: untied on request with the same outputs, and untied heads that stay so."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import EVERY, FAMILIES, make_family
from support.models import CPU, make_t5
from support.selection import slow_except
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from lora_hf import (
    LoraConfig,
    UserError,
    inject_adapters,
    load_adapter,
    merge_and_unload,
    save_adapter,
    untie_head,
)
from lora_hf.config import ModelConfig
from lora_hf.doctor.base import head
from lora_hf.models.load import load_model

IDS = torch.arange(4, 24).view(2, 10)
PLAIN_T5 = {"feed_forward_proj": "relu"}  # T5 1.0, which scales the decoder's output
DECODER_TIED = ("Marian unshared", "T5Gemma", "BertGpt2")
"""Families whose head is tied to the decoder's embeddings alone."""


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, decoder_input_ids=IDS[:, :5]).logits


def saved_family(family: str, folder: Path) -> ModelConfig:
    made = make_family(family, **(PLAIN_T5 if family == "T5" else {}))
    with torch.no_grad():  # large enough that a scale or another head would be seen
        for parameter in made.parameters():
            if parameter.dim() > 1:  # T5Gemma 2's projector is built as zeros, which loading refuses
                parameter.mul_(2.0) if parameter.any() else parameter.normal_()
    made.save_pretrained(folder)
    return ModelConfig(model_name_or_path=str(folder), untie_head=True)


def train_a_step(model: Any) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()(input_ids=IDS, labels=IDS[:, :5].contiguous()).loss.backward()
    with torch.no_grad():
        for parameter in trained:
            parameter -= 0.5 * parameter.grad
    model.eval()


@pytest.mark.parametrize(
    "family", slow_except(("T5", "BertGpt2"), [*FAMILIES, *DECODER_TIED], versions=["Bart"])
)
def test_an_untied_head_gives_the_same_logits_trains_alone_and_stays_untied(
    family: str, tmp_path: Path
) -> None:
    """Setting `tie_word_embeddings: false` drops T5's scale of d_model**-0.5, or makes the head random."""
    config = saved_family(family, tmp_path / "base")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    before, base = logits(plain), load_model(config, CPU)
    assert torch.equal(logits(base), before)
    base.tie_weights()
    embeddings = base.get_input_embeddings().weight
    own = base.get_output_embeddings().weight
    names = [name for name, parameter in base.named_parameters(remove_duplicate=False) if parameter is own]
    assert len(names) == 1 and torch.equal(logits(base), before)

    head = next(name for name, module in base.named_modules() if module is base.get_output_embeddings())
    model = inject_adapters(base, LoraConfig(r=2, target_modules=[], modules_to_save=[head]))
    copied = embeddings.detach().clone()
    train_a_step(model)
    trained = logits(model)
    assert torch.equal(embeddings, copied) and not torch.equal(trained, before)
    save_adapter(model, tmp_path / "adapter", extra={"base_store": config.storage_fields()})
    assert torch.equal(logits(load_adapter(load_model(config, CPU), tmp_path / "adapter")), trained)

    merge_and_unload(model).save_pretrained(tmp_path / "merged")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(again), trained, atol=1e-5)
    ours = load_model(ModelConfig(model_name_or_path=str(tmp_path / "merged")), CPU)
    assert torch.allclose(logits(ours), trained, atol=1e-5)
    ours.tie_weights()
    assert torch.allclose(logits(ours), trained, atol=1e-5)


@pytest.mark.parametrize(
    ("own_head", "family"),
    slow_except(
        [(False, "UMT5"), (True, "Marian unshared"), (False, "BertGpt2"), (True, "T5Gemma")],
        product((False, True), EVERY),
        versions=product((False, True), ("UMT5", *DECODER_TIED)),
    ),
)
def test_a_loaded_model_gives_transformers_logits_and_keeps_its_ties_in_memory_and_on_disk(
    family: str, own_head: bool, tmp_path: Path
) -> None:
    """A head may be tied to the decoder's embeddings alone, and UMT5 scales by `tie_word_embeddings`."""
    config = saved_family(family, tmp_path / "base").model_copy(update={"untie_head": False})
    if own_head:
        give_own_head(tmp_path / "base")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    expected, model = logits(plain), load_model(config, CPU)
    assert torch.equal(logits(model), expected)
    before = parameters_by_name(plain)
    model.tie_weights()
    assert parameters_by_name(model) == before and torch.equal(logits(model), expected)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")
    assert parameters_by_name(again) == before and torch.equal(logits(again), expected)


def give_own_head(folder: Path) -> None:
    """Add a head with weights of its own to a checkpoint, in the form of the published ones.

    The configs of T5's relatives read `tie_word_embeddings: false` and set it to true.
    """
    model = untie_head(AutoModelForSeq2SeqLM.from_pretrained(folder))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(-0.5)
    model.save_pretrained(folder)
    untied = model.config.to_dict() | {"tie_word_embeddings": False}
    if type(model.config).from_dict(untied).tie_word_embeddings:
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))


def parameters_by_name(model: Any) -> dict[str, int]:
    """Return the place of each parameter's tensor among all: equal numbers are tied."""
    order: dict[int, int] = {}
    return {
        name: order.setdefault(id(parameter), len(order))
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


@pytest.mark.parametrize("field", ["target_modules", "modules_to_save"])
def test_the_error_of_a_tied_head_names_the_field_that_unties_it(field: str, tmp_path: Path) -> None:
    config = saved_family("T5", tmp_path)
    lora = LoraConfig(**({"target_modules": []} | {field: ["shared"]}))
    with pytest.raises(UserError, match=r"model.untie_head: true, or lora_hf.untie_head\(model\)"):
        inject_adapters(load_model(config.model_copy(update={"untie_head": False}), CPU), lora)
    model = inject_adapters(load_model(config, CPU), lora)
    with torch.no_grad():
        scale = sum(p.square().sum() for p in model.parameters() if p.requires_grad)
    assert scale > 0


def check_trained_and_read_again(model: Any, folder: Path) -> None:
    """Train one step of an untied BERT pair, and compare what its saved adapter computes."""
    before = logits(model)
    train_a_step(model)
    save_adapter(model, folder)
    again = load_adapter(untie_head(make_family("BertBert")), folder)
    assert not torch.equal(logits(model), before) and torch.equal(logits(again), logits(model))


def test_an_untied_head_takes_adapters_although_its_bias_has_a_second_place(tmp_path: Path) -> None:
    """BERT's head has its bias in common with the module around it."""
    model = untie_head(make_family("BertBert"))
    plain = LoraConfig(r=2, target_modules=["decoder.cls.predictions.decoder"])
    inject_adapters(model, plain)
    check_trained_and_read_again(model, tmp_path / "adapter")
    expected = logits(model)
    merge_and_unload(model).save_pretrained(tmp_path / "merged")
    read = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(read), expected, rtol=0, atol=1e-5)


def test_a_head_of_its_own_is_left_as_it_is_and_the_fields_are_kept_with_the_adapter() -> None:
    model = make_t5()
    head = model.lm_head.weight
    assert untie_head(model) is model and model.lm_head.weight is head
    assert ModelConfig(untie_head=True).storage_fields() == {"untie_head": True}
    assert ModelConfig().storage_fields() == ModelConfig(quantize_wo=True).storage_fields() == {}
    quantized = ModelConfig(untie_head=True, load_in_4bit=True)
    assert quantized.storage_fields() == {"untie_head": True, "load_in_4bit": True}


def test_loading_says_what_the_doctor_says_of_a_head_that_was_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_family("MT5").save_pretrained(tmp_path)  # built from a config, it is tied
    load_model(ModelConfig(model_name_or_path=str(tmp_path)), CPU)
    (finding,) = head(tmp_path)
    assert finding.state == "fault" and finding.title in caplog.text and finding.remedy in caplog.text


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="a T5EncoderModel has no output head"):
        from transformers import T5EncoderModel

        untie_head(T5EncoderModel(make_t5().config))


def test_bert_s_head_is_copied_with_the_module_around_it_which_has_its_bias_too(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=[], modules_to_save=["cls"])
    with pytest.raises(UserError, match="predictions.decoder is also that of .*word_embeddings.*untie_head"):
        inject_adapters(make_family("BertBert"), replace(config, modules_to_save=["predictions.decoder"]))
    with pytest.raises(
        UserError, match="weight of decoder.cls is also that of .*word_embeddings.*untie_head"
    ):
        inject_adapters(make_family("BertBert"), config)
    model = untie_head(make_family("BertBert"))
    with pytest.raises(UserError, match="name decoder.cls.predictions in its place"):
        inject_adapters(model, replace(config, modules_to_save=["predictions.decoder"]))
    inject_adapters(model, config)
    check_trained_and_read_again(model, tmp_path / "adapter")
