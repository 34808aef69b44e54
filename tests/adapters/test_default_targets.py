"""`target_modules: auto`: the query and value projections of every stack, in every family."""

import json
import logging

import pytest
import torch
from support.families import EVERY, family_settings, make_family
from support.models import make_t5
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config

from lora_hf import families
from lora_hf.adapters import LoraConfig, inject_adapters, save_adapter
from lora_hf.adapters.default_targets import doubts, end_of, with_names
from lora_hf.adapters.model_state import adapter_configs, lora_layers
from lora_hf.adapters.targets import find_targets
from lora_hf.errors import UserError

AUTO = LoraConfig(r=2)
CROSS = ("EncDecAttention", "encoder_attn", "cross_attn", "cross_attention", "crossattention")


def outline(family):
    with torch.device("meta"):
        return AutoModelForSeq2SeqLM.from_config(family_settings(family))


def parents(model, stack, prefix=""):
    """Return the attentions of a stack by name: the modules below it that have an output projection."""
    part = model.get_encoder() if stack == "encoder" else model.get_decoder()
    names = {id(module): name for name, module in model.named_modules()}
    return {
        names[id(m)]
        for n, m in part.named_modules()
        if "attention" in type(m).__name__.lower() and any(c in dict(m.named_children()) for c in KEYS)
    }


KEYS = ("k", "k_proj", "key", "key_proj", "c_attn")


@pytest.mark.parametrize("family", EVERY)
def test_auto_puts_a_query_and_a_value_in_every_attention_and_nothing_elsewhere(family):
    model = outline(family)
    found = find_targets(model, AUTO)
    attentions = parents(model, "encoder") | parents(model, "decoder")
    attentions = {name for name in attentions if "vision" not in name}
    adapted = {}
    for name in found:
        parent, _, end = name.rpartition(".")
        adapted.setdefault(parent, []).append(end[0] if end[:2] != "c_" else "qv")
    assert adapted.keys() == attentions
    assert all(sorted(set("".join(ends))) == ["q", "v"] for ends in adapted.values())
    assert doubts(model, AUTO, found) == []


@pytest.mark.parametrize("family", EVERY)
def test_a_family_without_a_row_gets_the_same_targets(family, monkeypatch):
    model = outline(family)
    found = find_targets(model, AUTO)
    monkeypatch.setattr(families, "FAMILIES", {})
    assert find_targets(model, AUTO).keys() == found.keys()


def test_flan_t5_has_the_targets_it_always_had():
    assert with_names(outline("T5"), AUTO).target_modules == ("q", "v")


@pytest.mark.parametrize("family", ["SwitchTransformers", "NllbMoe", "T5Gemma2", "BertBert", "LED"])
def test_all_linear_leaves_out_what_stands_beside_the_language_model(family):
    model = outline(family)
    found = find_targets(model, LoraConfig(r=2, target_modules="all-linear"))
    beside = ("router", "vision_tower", "multi_modal_projector", "pooler", "_global")
    assert len(found) > 8 and not [name for name in found if any(part in name for part in beside)]


@pytest.mark.parametrize("family", ["LED", "T5Gemma2"])
def test_an_adapter_records_the_names_that_auto_stands_for(family, tmp_path):
    model = inject_adapters(make_family(family), AUTO)
    names = adapter_configs(model)["default"].target_modules
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == sorted(names)
    if family == "LED":
        assert names == ("query", "value", "q_proj", "v_proj")
    else:  # whose vision tower has layers of the same names
        assert all(name.endswith(("q_proj", "v_proj")) and "vision" not in name for name in names)


@pytest.mark.parametrize(
    ("family", "targets", "said"),
    [
        (
            "LED",
            ["q_proj", "v_proj"],
            "no layer of the encoder gets an adapter; target_modules: auto is query",
        ),
        (
            "LED",
            ["query", "query_global", "q_proj"],
            "2 of 8 adapters are in query_global, which text does not",
        ),
        ("BigBirdPegasus", ["query"], "no layer of the decoder gets an adapter"),
        ("T5Gemma2", ["q_proj", "v_proj"], "2 of 10 adapters are in vision_tower, which text does not"),
        ("SwitchTransformers", ["classifier"], None),
        ("LED", [".*decoder.*q_proj"], None),
        ("Bart", ["encoder_attn.q_proj"], None),
    ],
)
def test_targets_that_miss_a_stack_or_hit_a_tower_are_a_warning(family, targets, said, caplog):
    targets = targets[0] if "*" in targets[0] else targets
    with caplog.at_level(logging.WARNING, logger="lora_hf"):
        inject_adapters(make_family(family), LoraConfig(r=2, target_modules=targets))
    assert said in caplog.text if said else not caplog.text


@pytest.mark.parametrize(
    ("family", "targets", "says"),
    [
        ("Bart", ["q", "v"], "is q_proj, v_proj."),
        ("Bart", "q", "is q_proj, v_proj."),
        ("BertGpt2", ["q_proj", "v_proj"], "is c_attn, q_attn, query, value."),
        ("ProphetNet", ["q_proj"], "is query_proj, value_proj."),
        ("T5", ["qq", "v"], "is q, v. Did you mean 'q'?"),
        (
            "T5",
            "q",
            "is q, v. A text is a regular expression for whole names: write a list, [q], for their ends.",
        ),
    ],
)
def test_targets_of_another_family_are_an_error_that_names_this_ones_default(family, targets, says):
    with pytest.raises(UserError) as error:
        find_targets(outline(family), LoraConfig(target_modules=targets))
    assert str(error.value).endswith(f" The default of this model, target_modules: auto, {says}")


@pytest.mark.parametrize("targets", [("q", "v"), "auto"])
def test_a_module_with_the_config_of_the_model_inside_takes_adapters(targets):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_t5()
            self.config = self.inner.config

    plain = inject_adapters(make_t5(), LoraConfig(r=2, target_modules=targets))
    around = inject_adapters(Around(), LoraConfig(r=2, target_modules=targets))
    assert [f"inner.{name}" for name in lora_layers(plain)] == list(lora_layers(around))


def test_auto_reads_a_decoder_only_model_and_refuses_one_without_attention():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=2, n_embd=32, n_head=2))
    assert {end_of(name) for name in find_targets(model, AUTO)} == {"c_attn"}
    with pytest.raises(UserError, match=r"target_modules='auto' found no query.*layers end in \['0'\]"):
        find_targets(nn.Sequential(nn.Linear(2, 3)), LoraConfig())
