"""Replicated stacks, held against deeper models whose weights were copied in by hand."""

import re
from collections.abc import Callable

import pytest
import torch
from support.deeper_models import (
    CASES,
    GENERATING,
    OVERLAP,
    SMALL,
    build,
    deeper,
    logits,
)
from support.families import make_family
from support.matrix_models import randomized
from support.models import TOKENS
from support.selection import slow_except
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
)

from lora_hf import (
    LoraConfig,
    inject_adapters,
)
from lora_hf.adapters.layer_replication import find_stacks, replicate_layers, unshare_layers
from lora_hf.adapters.model_state import model_state
from lora_hf.errors import UserError


def without_hint(config: object) -> dict:
    """A config's fields but for T5's added `decoder_layers`, which is no field of T5's."""
    fields = config.to_dict()
    return {k: v for k, v in fields.items() if k != "decoder_layers" or "encoder_layers" in fields}


@pytest.mark.parametrize(
    ("kind", "spec"), slow_except([*CASES[:4], CASES[5], CASES[7], CASES[9], *CASES[-5:]], CASES)
)
def test_a_replicated_model_is_the_deeper_one_filled_by_hand(kind: str, spec: dict, batch: dict) -> None:
    model, reference = build(kind, 3, 3), deeper(kind, spec)
    before = logits(model, kind, batch)
    assert replicate_layers(model, spec) is model
    assert torch.equal(logits(model, kind, batch), logits(reference, kind, batch))
    assert not torch.allclose(logits(model, kind, batch), before, atol=1e-3)
    assert list(model.state_dict()) == list(reference.state_dict())
    pairs = zip(model.modules(), reference.modules(), strict=True)
    for ours, theirs in ((m.config, r.config) for m, r in pairs if hasattr(m, "config")):
        assert without_hint(ours) == without_hint(theirs)


@pytest.fixture(scope="module")
def writes_alike() -> Callable[[str, Tensor, dict], bool]:
    """Return whether Transformers' own model of a kind generates the same with and without its cache."""
    known: dict[str, bool] = {}

    def ask(kind: str, ids: Tensor, options: dict) -> bool:
        if kind not in known:
            one = options | {"num_beams": 1, "output_logits": True, "return_dict_in_generate": True}
            own = [build(kind, 3, 3).generate(ids, use_cache=cache, **one).logits for cache in (True, False)]
            known[kind] = torch.allclose(torch.stack(own[0]), torch.stack(own[1]), atol=1e-4)
        return known[kind]

    return ask


@pytest.mark.parametrize(
    ("kind", "spec", "num_beams"),
    slow_except(
        [(*GENERATING[at], beams) for at, beams in ((1, 1), (2, 2), (6, 2), (7, 1), (-2, 2))],
        [(*case, beams) for case in GENERATING for beams in (1, 2)],
        versions=True,
    ),
)
def test_generation_with_and_without_the_cache_equals_the_reference(
    kind: str, spec: dict, num_beams: int, batch: dict, writes_alike: Callable[[str, Tensor, dict], bool]
) -> None:
    model = replicate_layers(build(kind, 3, 3), spec)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": num_beams, "do_sample": False}
    options |= {"pad_token_id": 0, "attention_mask": batch["attention_mask"].flip(1)}
    ids = (batch["input_ids"] * batch["attention_mask"]).flip(1)  # padded on the left, for decoders
    reference = deeper(kind, spec)
    cached = model.generate(ids, use_cache=True, **options)
    if writes_alike(kind, ids, options):  # UMT5 of Transformers 5.17 and ProphetNet do not
        assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
        assert torch.equal(cached, reference.generate(ids, use_cache=False, **options))
        return
    try:
        expected = reference.generate(ids, use_cache=True, **options)
    except IndexError:
        pytest.skip(f"this Transformers' own {kind} of other depths cannot use its cache (UMT5 in 5.17)")
    assert torch.equal(cached, expected)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("LED", {"attention_window": [4, 16]}),  # one value for each block
        ("BigBirdPegasus", {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}),
        ("T5Gemma2", {}),  # whose tower for images is not its encoder
    ],
)
def test_a_replicated_model_is_the_one_that_its_config_describes(family: str, fields: dict) -> None:
    model = randomized(make_family(family, **fields)).eval()
    unshare_layers(replicate_layers(model, {"encoder": [[0, 1], [0, 2]]}))
    again = type(model)(type(model.config).from_dict(model.config.to_dict())).eval()
    again.load_state_dict(model.state_dict())
    ids = torch.arange(48)[None] % 40 + 4
    with torch.no_grad():
        found, expected = (m(input_ids=ids, decoder_input_ids=ids[:, :5]).logits for m in (again, model))
    assert torch.allclose(found, expected, atol=1e-5)
    # of BigBird's random attention, which is by place too, and random in training alone
    seeds, of_config = ([m.seed for m in x.modules() if hasattr(m, "seed")] for x in (model, again))
    assert seeds == of_config


def test_layer_types_are_replicated_with_their_layers(batch: dict) -> None:
    model = replicate_layers(build("qwen2", 3, 3), [[1, 3], [1, 2]])
    full, sliding = "full_attention", "sliding_attention"
    assert model.config.layer_types == [sliding, full, sliding]
    model.config.validate()
    assert logits(model, "qwen2", batch).isfinite().all()


@pytest.mark.parametrize("spec", [OVERLAP, [[1, 3]], [[1, 3], [0, 2]], [[0, 1], [0, 1]]])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_only_the_first_block_has_t5_s_position_bias(side: str, spec: list) -> None:
    model = build("t5", 3, 3)
    table = getattr(model, side).block[0].layer[0].SelfAttention.relative_attention_bias
    replicate_layers(model, {side: spec})
    attentions = [block.layer[0].SelfAttention for block in getattr(model, side).block]
    assert attentions[0].relative_attention_bias is table
    assert [a.has_relative_attention_bias for a in attentions] == [True] + [False] * (len(attentions) - 1)
    assert not any(hasattr(a, "relative_attention_bias") for a in attentions[1:])


def test_hidden_states_of_every_layer_are_returned_even_if_captured_before(batch: dict) -> None:
    model = build("t5", 3, 3)
    model(**batch, output_hidden_states=True)
    replicate_layers(model, {"encoder": OVERLAP, "decoder": [[0, 3], [0, 3]]})
    output = model(**batch, output_hidden_states=True)
    assert (len(output.encoder_hidden_states), len(output.decoder_hidden_states)) == (4 + 1, 6 + 1)


def test_the_spans_stay_readable_on_the_model_and_the_same_spec_again_does_nothing() -> None:
    model = build("llama", 3, 3)
    assert model_state(model).replication == {}
    replicate_layers(model, OVERLAP)
    assert model_state(model).replication == {"decoder": ((0, 2), (1, 3))}
    inject_adapters(model, LoraConfig(r=4, target_modules=("q_proj",)))
    blocks = list(model.model.layers)
    replicate_layers(model, {"decoder": ((0, 2), (1, 3))})
    assert list(model.model.layers) == blocks
    with pytest.raises(UserError, match=re.escape("replicated already, by {decoder: [[0, 2], [1, 3]]}")):
        replicate_layers(model, [[0, 2]])


def test_two_stacks_of_one_side_are_distinguished_by_their_paths() -> None:
    tower = {**SMALL, "num_hidden_layers": 2, "projection_dim": 8}
    text = {**tower, "vocab_size": TOKENS}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**tower, "image_size": 8, "patch_size": 4}))
    names = list(find_stacks(model))
    assert len(names) == 2 and all(name.endswith("encoder.layers") for name in names)
    replicate_layers(model, {names[0]: [[0, 2], [0, 2]]})
    depths = [len(stack.blocks) for stack in find_stacks(model).values()]
    assert depths == [4, 2]
    assert (model.config.text_config.num_hidden_layers, model.config.vision_config.num_hidden_layers) == (
        4,
        2,
    )


def test_replication_equals_peft_s_on_a_model_that_peft_supports(batch: dict) -> None:
    import peft

    config = peft.LoraConfig(target_modules=["q_proj"], layer_replication=OVERLAP)
    theirs = peft.get_peft_model(build("llama", 3, 3), config).eval()
    ours = replicate_layers(build("llama", 3, 3), OVERLAP)
    assert torch.equal(logits(ours, "llama", batch), logits(theirs, "llama", batch))
