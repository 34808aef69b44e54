"""Prompt tuning: the base called with the prompt's embeddings before its own, and nothing else."""

import copy
import json

import pytest
import torch
from support.families import EVERY, SIX, make_family
from support.models import MODELS, make_t5
from support.new_weights import randomize
from support.selection import slow_except
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.baselines.checkpoint_io import new_weights, save_extras
from lora_hf.baselines.prompt_tuning import add_prompt
from lora_hf.errors import UserError
from lora_hf.training.registry import ADDED_WEIGHTS

N = 5


def prompted(kind):
    model = MODELS[kind][0]()
    torch.manual_seed(3)
    add_prompt(model, N, "vocab")
    randomize(model)
    return model


def reference_inputs(base, model, batch):
    """Return the base's inputs computed by hand: [P; E(ids)] and [1; mask]."""
    embedded = base.get_encoder().get_input_embeddings()(batch["input_ids"])
    (prompt,) = new_weights(model).values()
    ones = torch.ones(len(embedded), N, dtype=batch["attention_mask"].dtype)
    return {
        "inputs_embeds": torch.cat([prompt.detach().expand(len(embedded), N, -1), embedded], 1),
        "attention_mask": torch.cat([ones, batch["attention_mask"]], 1),
    }


@pytest.mark.parametrize("kind", MODELS)
def test_logits_and_loss_are_those_of_the_base_with_the_prompt_s_embeddings_before_its_own(kind, batch):
    base, model = MODELS[kind][0](), prompted(kind)
    with torch.no_grad():
        theirs = base(**reference_inputs(base, model, batch), labels=batch["labels"])
        ours = model(**batch)
        assert torch.equal(ours.logits, theirs.logits) and ours.loss == theirs.loss
        assert not torch.equal(ours.logits, base(**batch).logits)
        assert len(ours.encoder_last_hidden_state[0]) == N + 11
        del batch["attention_mask"]  # none is all ones
        ones = batch | {"attention_mask": torch.ones_like(batch["input_ids"])}
        torch.testing.assert_close(model(**batch).logits, model(**ones).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_base_s_over_the_same_encoding(kind, beams, batch):
    base, model = MODELS[kind][0](), prompted(kind)
    options = {"max_new_tokens": 9, "min_new_tokens": 9, "num_beams": beams, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    ours = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **options)
    inputs = reference_inputs(base, model, batch)
    with torch.no_grad():
        states = base.get_encoder()(**inputs).last_hidden_state
    encoded = BaseModelOutput(last_hidden_state=states)
    theirs = base.generate(encoder_outputs=encoded, attention_mask=inputs["attention_mask"], **options)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True))
    assert ours.logits[0].std() > 0.01


@pytest.mark.parametrize("kind", MODELS)
def test_only_the_prompt_learns_and_every_virtual_token_does(kind, batch):
    model = prompted(kind)
    model(**batch).loss.backward()
    (prompt,) = new_weights(model).values()
    assert [p for p in model.parameters() if p.requires_grad] == [prompt]
    assert all(p.grad is None for p in model.parameters() if p is not prompt)
    assert (prompt.grad.abs().sum(1) > 0).all()


SCALED = {"scale_embedding": True}


@pytest.mark.parametrize("family", slow_except(SIX, EVERY))
def test_a_prompt_of_a_token_s_embeddings_is_that_token_before_the_text(family):
    """With its scale and its place, in rows with padding too; and without virtual tokens nothing changes."""
    fields = SCALED if "scale_embedding" in EVERY[family] | make_family(family).config.to_dict() else {}
    base, model = make_family(family, **fields), make_family(family, **fields)
    add_prompt(model, 3, "vocab")
    (prompt,) = new_weights(model).values()
    table = base.get_input_embeddings().weight
    tokens = torch.tensor([(table == row).all(1).nonzero()[0].item() for row in prompt])
    ids = torch.tensor([[7, 9, 11, 13, 15], [8, 10, 12, base.config.pad_token_id or 0, 0]])
    ids[1, 3:] = ids[1, 3]
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    labels = torch.tensor([[5, 6, 7], [6, 7, 8]])
    ahead = torch.cat([tokens.expand(2, 3), ids], 1)
    more = torch.cat([mask.new_ones(2, 3), mask], 1)
    targets = {"labels": labels, "decoder_input_ids": labels}
    with torch.no_grad():
        expected = base(input_ids=ahead, attention_mask=more, **targets).logits
        ours = model(input_ids=ids, attention_mask=mask, **targets).logits
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        empty = make_family(family, **fields)
        add_prompt(empty, 0, "vocab")
        base.requires_grad_(False)  # PyTorch chooses some kernels by it, and they round differently
        plain = base(input_ids=ids, attention_mask=mask, **targets).logits
        assert torch.equal(empty(input_ids=ids, attention_mask=mask, **targets).logits, plain)
    assert (expected - plain).abs().max() > 1e-4


def test_a_prompt_of_before_prompts_were_scaled_is_used_as_it_was_trained(tmp_path):
    models = [make_family("MBart", **SCALED) for _ in range(3)]
    add_prompt(models[0], 2, "vocab")
    new = save_extras(models[0], tmp_path / "new")
    assert json.loads((new / MANIFEST_NAME).read_text())["settings"]["scaled"] is True
    add_prompt(models[1], 2, "vocab", scaled=False)
    old = save_extras(models[1], tmp_path / "old")
    assert "scaled" not in json.loads((old / MANIFEST_NAME).read_text())["settings"]
    load = ADDED_WEIGHTS["prompt_tuning"].load
    assert load(models[2], old).get_encoder().prompt.scale == 1
    assert load(make_family("MBart", **SCALED), new).get_encoder().prompt.scale == pytest.approx(32**0.5)


def test_the_weights_are_as_many_as_counted_by_hand():
    assert sum(p.numel() for p in new_weights(prompted("t5")).values()) == 5 * 32 == 160


def test_the_prompt_is_initialized_from_the_seed_by_vocabulary_or_uniformly():
    starts = []
    for seed, init in ((0, "vocab"), (0, "vocab"), (1, "vocab"), (0, "random")):
        model = make_t5()
        torch.manual_seed(seed)
        add_prompt(model, 50, init)
        starts.append(next(iter(new_weights(model).values())))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    is_token = (starts[0][:, None] == make_t5().shared.weight).all(-1)  # (50, vocabulary)
    assert is_token.any(1).all() and not is_token[:, :2].any()  # padding, end of text
    assert 0.45 < starts[3].abs().max() <= 0.5 and abs(starts[3].mean()) < 0.05


def test_a_copy_of_the_model_has_a_prompt_of_its_own(batch):
    model = prompted("t5")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(**batch).logits
        assert torch.equal(twin(**batch).logits, before)
        for weight in new_weights(twin).values():
            weight.zero_()
        assert torch.equal(model(**batch).logits, before)
        assert not torch.equal(twin(**batch).logits, before)


def test_a_bfloat16_base_keeps_its_dtype_and_the_prompt_is_float32(batch):
    model = make_t5().to(torch.bfloat16)
    add_prompt(model, N, "random")
    assert model(**batch).logits.dtype == torch.bfloat16
    assert {p.dtype for p in new_weights(model).values()} == {torch.float32}


def test_a_model_that_is_not_encoder_decoder_is_refused():
    plain = nn.Linear(2, 2)
    plain.config = type("Config", (), {})()
    with pytest.raises(UserError, match="Linear is not an encoder-decoder model"):
        add_prompt(plain, N, "vocab")
