"""Replicated stacks, held against deeper models whose weights were copied in by hand."""

import re
from itertools import combinations
from pathlib import Path

import pytest
import torch
from conftest import T5_SHAPE, TOKENS, randomize, untie_head
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from lora_hf import (
    LoraConfig,
    count_parameters,
    inject_adapters,
    merge_adapters,
    merge_and_unload,
    unmerge_adapters,
)
from lora_hf.adapters.backends.bnb import keep_differentiable
from lora_hf.adapters.carried import lora_layers
from lora_hf.adapters.replicate import replicate_layers, unshare_layers
from lora_hf.adapters.stacks import find_stacks, replication
from lora_hf.errors import UserError

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
BART = (("attention_heads", 2), ("ffn_dim", 48))
CAUSAL = {**SMALL, "vocab_size": TOKENS, "num_key_value_heads": 1, "max_position_embeddings": 64}


def build(kind: str, encoder: int, decoder: int) -> nn.Module:
    """A model with weights in which the order of blocks shows; a model of one stack takes its own number."""
    torch.manual_seed(0)
    t5 = {**T5_SHAPE, "num_layers": encoder, "num_decoder_layers": decoder}
    bart = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in BART}
    bart |= {"encoder_layers": encoder, "decoder_layers": decoder}
    bart |= {"vocab_size": TOKENS, "d_model": 32, "max_position_embeddings": 64}
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"][:decoder]
    model = {
        "t5": lambda: T5ForConditionalGeneration(T5Config(**t5)),
        "mt5": lambda: MT5ForConditionalGeneration(MT5Config(**t5)),
        "umt5": lambda: UMT5ForConditionalGeneration(UMT5Config(**t5)),
        "bart": lambda: BartForConditionalGeneration(BartConfig(**bart)),
        "bert": lambda: BertForSequenceClassification(
            BertConfig(**SMALL, vocab_size=TOKENS, num_hidden_layers=encoder)
        ),
        "vit": lambda: ViTForImageClassification(
            ViTConfig(**SMALL, num_hidden_layers=encoder, image_size=8, patch_size=4)
        ),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**CAUSAL, num_hidden_layers=decoder)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=TOKENS, n_embd=32, n_layer=decoder, n_head=2, n_positions=64)
        ),
        "qwen2": lambda: Qwen2ForCausalLM(
            Qwen2Config(
                **CAUSAL,
                num_hidden_layers=decoder,
                use_sliding_window=True,
                sliding_window=3,
                layer_types=kinds,
            )
        ),
    }[kind]()
    if kind == "t5":
        untie_head(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


STACKS = {
    "t5": ("encoder.block.", "decoder.block."),
    "mt5": ("encoder.block.", "decoder.block."),
    "umt5": ("encoder.block.", "decoder.block."),
    "bart": ("model.encoder.layers.", "model.decoder.layers."),
    "bert": ("bert.encoder.layer.", None),
    "vit": ("vit.layers.", None),
    "llama": (None, "model.layers."),
    "gpt2": (None, "transformer.h."),
    "qwen2": (None, "model.layers."),
}
OVERLAP = [[0, 2], [1, 3]]  # blocks 0 1 1 2
CASES = [
    ("t5", {"encoder": OVERLAP}),
    ("t5", {"decoder": OVERLAP}),
    ("t5", {"encoder": [[1, 3]], "decoder": [[1, 3], [0, 2]]}),  # starts elsewhere, comes to 0 later
    ("t5", {"encoder": [[0, 1], [0, 1]], "decoder": [[2, 3]]}),
    ("mt5", {"encoder": [[1, 3], [0, 3]], "decoder": OVERLAP}),
    ("umt5", {"encoder": [[1, 3]], "decoder": [[1, 3], [0, 3]]}),
    ("bart", {"encoder": OVERLAP}),
    ("bart", {"encoder": [[2, 3]], "decoder": [[0, 3], [0, 3]]}),
    ("bert", OVERLAP),
    ("vit", {"encoder": OVERLAP}),
    ("llama", OVERLAP),
    ("gpt2", {"decoder": [[0, 3], [2, 3]]}),
    ("qwen2", [[0, 2], [0, 2]]),
]
GENERATING = [case for case in CASES if case[0] not in ("bert", "vit")]


def orders(kind: str, spec: dict | list) -> dict[str, list[int]]:
    """The old blocks in their new order, for both sides."""
    if isinstance(spec, list):
        spec = {"encoder" if STACKS[kind][0] else "decoder": spec}
    spans = {side: spec.get(side, [[0, 3]]) for side in ("encoder", "decoder")}
    return {side: [i for start, end in pairs for i in range(start, end)] for side, pairs in spans.items()}


def deeper(kind: str, spec: dict | list) -> nn.Module:
    """The reference: a plain model built with the new numbers of layers, its state filled block by block."""
    order = orders(kind, spec)
    state = build(kind, 3, 3).state_dict()
    filled = {}
    model = build(kind, len(order["encoder"]), len(order["decoder"]))
    for key in model.state_dict():
        source = key
        for prefix, side in zip(STACKS[kind], ("encoder", "decoder"), strict=True):
            if prefix and key.startswith(prefix) and not (kind != "umt5" and "attention_bias" in key):
                place = int(re.match(r"\d+", key[len(prefix) :])[0])
                source = key.replace(f"{prefix}{place}.", f"{prefix}{order[side][place]}.", 1)
        filled[key] = state[source]
    model.load_state_dict(filled)
    return model


def inputs(kind: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    return batch if STACKS[kind][0] and STACKS[kind][1] else {k: batch[k] for k in ("input_ids",)}


@torch.no_grad()
def logits(model: nn.Module, kind: str, batch: dict) -> torch.Tensor:
    return model(**inputs(kind, batch)).logits


def bytes_held(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def without_hint(config: object) -> dict:
    """A config's fields but for T5's added `decoder_layers`, which is no field of T5's."""
    fields = config.to_dict()
    return {k: v for k, v in fields.items() if k != "decoder_layers" or "encoder_layers" in fields}


@pytest.mark.parametrize(("kind", "spec"), CASES)
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


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize(("kind", "spec"), GENERATING)
def test_generation_with_the_cache_is_that_without_and_the_reference_s(
    kind: str, spec: dict, num_beams: int, batch: dict
) -> None:
    model = replicate_layers(build(kind, 3, 3), spec)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": num_beams, "do_sample": False}
    options |= {"pad_token_id": 0, "attention_mask": batch["attention_mask"].flip(1)}
    ids = (batch["input_ids"] * batch["attention_mask"]).flip(1)  # padded on the left, for decoders
    cached = model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    assert torch.equal(cached, deeper(kind, spec).generate(ids, use_cache=False, **options))


def test_layer_types_go_with_their_layers(batch: dict) -> None:
    model = replicate_layers(build("qwen2", 3, 3), [[1, 3], [1, 2]])
    full, sliding = "full_attention", "sliding_attention"
    assert model.config.layer_types == [sliding, full, sliding]
    model.config.validate()
    assert logits(model, "qwen2", batch).isfinite().all()


@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2"])
def test_copies_share_every_tensor_and_no_module(kind: str) -> None:
    model = build(kind, 3, 3)
    held, weights = bytes_held(model), count_parameters(model)[1]
    replicate_layers(model, {"decoder": [[0, 3], [0, 3], [1, 3]]})
    assert bytes_held(model) == held
    assert count_parameters(model)[1] == weights
    blocks = find_stacks(model)["decoder"].blocks
    for one, other in combinations(blocks, 2):
        assert not set(one.modules()) & set(other.modules())
    assert all(p is q for p, q in zip(blocks[1].parameters(), blocks[4].parameters(), strict=True))


def test_copies_share_the_config_whose_changes_they_are_to_see() -> None:
    model = replicate_layers(build("llama", 3, 3), OVERLAP)
    assert all(m.config is model.config for m in model.modules() if hasattr(m, "config"))


@pytest.mark.parametrize("spec", [OVERLAP, [[1, 3]], [[1, 3], [0, 2]], [[0, 1], [0, 1]]])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_the_first_block_alone_owns_t5_s_position_bias(side: str, spec: list) -> None:
    model = build("t5", 3, 3)
    table = getattr(model, side).block[0].layer[0].SelfAttention.relative_attention_bias
    replicate_layers(model, {side: spec})
    attentions = [block.layer[0].SelfAttention for block in getattr(model, side).block]
    assert attentions[0].relative_attention_bias is table
    assert [a.has_relative_attention_bias for a in attentions] == [True] + [False] * (len(attentions) - 1)
    assert not any(hasattr(a, "relative_attention_bias") for a in attentions[1:])


def test_hidden_states_are_those_of_every_layer_also_where_they_were_captured_before(batch: dict) -> None:
    model = build("t5", 3, 3)
    model(**batch, output_hidden_states=True)
    replicate_layers(model, {"encoder": OVERLAP, "decoder": [[0, 3], [0, 3]]})
    output = model(**batch, output_hidden_states=True)
    assert (len(output.encoder_hidden_states), len(output.decoder_hidden_states)) == (4 + 1, 6 + 1)


@pytest.mark.parametrize(("kind", "targets"), [("t5", ("q", "v")), ("bart", ("q_proj", "fc1"))])
def test_each_copy_trains_adapters_of_its_own_as_the_deeper_model_does(
    kind: str, targets: tuple, batch: dict
) -> None:
    spec = {"encoder": OVERLAP, "decoder": [[0, 3], [0, 3]]}
    config = LoraConfig(r=4, lora_alpha=10, target_modules=targets)
    base = build(kind, 3, 3)
    _, base_size = count_parameters(base)
    gradients = []
    for model in (replicate_layers(base, spec), deeper(kind, spec)):
        inject_adapters(model, config)
        randomize(model)
        model(**batch).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    ours, theirs = gradients
    assert list(ours) == list(theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])
    copies = [n for n in ours if re.search(r"decoder\.\w+\.0\.", n)]  # block 3 is block 0 again
    assert len(copies) == 2 * (4 if kind == "t5" else 3)
    for name in copies:
        assert not torch.allclose(ours[name], ours[re.sub(r"(decoder\.\w+)\.0\.", r"\1.3.", name)])
    trained, total = count_parameters(base)
    assert (trained, total) == (sum(g.numel() for g in ours.values()), base_size + trained)


@pytest.mark.parametrize(("kind", "spec"), CASES)
def test_unshared_it_is_exported_whole_and_plain_transformers_loads_it(
    kind: str, spec: dict, batch: dict, tmp_path: Path
) -> None:
    model = replicate_layers(build(kind, 3, 3), spec)
    before = logits(model, kind, batch)
    assert unshare_layers(model) is model
    assert bytes_held(model) == bytes_held(deeper(kind, spec))
    assert not hasattr(model, "lora_hf_replication")
    model.save_pretrained(tmp_path)
    loaded, found = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())
    assert torch.equal(logits(model, kind, batch), before)
    assert torch.equal(logits(loaded.eval(), kind, batch), before)
    if (kind, spec) in GENERATING:
        assert loaded.generate(batch["input_ids"], max_new_tokens=3).shape[1] > 1


def test_merging_adapters_of_copies_for_good_gives_each_its_own_weights(batch: dict, tmp_path: Path) -> None:
    model = replicate_layers(build("t5", 3, 3), {"encoder": OVERLAP, "decoder": OVERLAP})
    inject_adapters(model, LoraConfig(r=4, lora_alpha=10, target_modules=("q", "wo")))
    randomize(model)
    adapted = logits(model, "t5", batch)
    merge_and_unload(model).save_pretrained(tmp_path)
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded, "t5", batch), adapted, atol=1e-4, rtol=1e-4)


def test_unsharing_waits_until_no_adapter_is_merged() -> None:
    model = replicate_layers(build("t5", 1, 1), {"encoder": [[0, 1], [0, 1]]})
    inject_adapters(model, LoraConfig(r=4))
    with pytest.raises(UserError, match="replicated and share their weights.*merge_and_unload"):
        merge_adapters(model)
    for layer in lora_layers(model).values():
        layer.merge(layer.active)
    with pytest.raises(RuntimeError, match="unmerge_adapters"):
        unshare_layers(model)
    unmerge_adapters(model)
    unshare_layers(model)


def test_four_bit_weights_are_shared_with_their_scales_and_unshared_with_them(batch: dict) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = build("t5", 2, 2)
    for block in model.decoder.block:
        attention = block.layer[0].SelfAttention
        layer = bnb.nn.Linear4bit(32, 24, bias=False, quant_type="nf4", compute_dtype=torch.float32)
        weight = {"data": attention.q.weight.data, "requires_grad": False, "module": layer}
        layer.weight = bnb.nn.Params4bit(**weight, quant_type="nf4")
        attention.q = layer.to("cpu")  # moving is what quantizes
    keep_differentiable(model)  # these layers are smaller than its repacking for inference takes
    replicate_layers(model, {"decoder": [[0, 2], [0, 2]]})
    first, copied = (model.decoder.block[i].layer[0].SelfAttention.q for i in (0, 2))
    assert copied is not first and copied.weight is first.weight
    assert copied.quant_state is first.quant_state is first.weight.quant_state
    before = logits(model, "t5", batch)
    unshare_layers(model)
    assert copied.weight.quant_state.absmax.data_ptr() != first.weight.quant_state.absmax.data_ptr()
    assert copied.weight.data_ptr() != first.weight.data_ptr()
    assert type(copied.weight) is type(first.weight) and copied.weight.quant_state is copied.quant_state
    assert torch.equal(logits(model, "t5", batch), before)


def test_int8_weights_which_their_first_forward_takes_away_are_refused() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = build("llama", 2, 2)
    model.model.layers[0].mlp.up_proj = bnb.nn.Linear8bitLt(32, 48, bias=False, has_fp16_weights=False)
    with pytest.raises(UserError, match="int8 layers .* in 4 bits or dense"):
        replicate_layers(model, [[0, 2], [0, 2]])


def test_the_spans_stay_readable_on_the_model_and_the_same_spec_again_does_nothing() -> None:
    model = build("llama", 3, 3)
    assert replication(model) == {}
    replicate_layers(model, OVERLAP)
    assert model.lora_hf_replication == replication(model) == {"decoder": ((0, 2), (1, 3))}
    inject_adapters(model, LoraConfig(r=4, target_modules=("q_proj",)))
    blocks = list(model.model.layers)
    replicate_layers(model, {"decoder": ((0, 2), (1, 3))})
    assert list(model.model.layers) == blocks
    with pytest.raises(UserError, match=re.escape("replicated already, by {decoder: [[0, 2], [1, 3]]}")):
        replicate_layers(model, [[0, 2]])


def test_a_model_with_adapters_is_refused_as_it_is() -> None:
    model = inject_adapters(build("t5", 2, 2), LoraConfig(r=4))
    with pytest.raises(UserError, match="^lora.layer_replication={encoder: .*replicate its layers first"):
        replicate_layers(model, {"encoder": [[0, 2], [0, 2]]})


WRONG = [
    ("t5", {"encoder": [[0, 9]]}, "the encoder has 3 layers; write spans"),
    ("t5", {"encoder": [[0, 2], [-1, 2]]}, "[-1, 2] is no span"),
    ("t5", {"decoder": [[2, 2]]}, "[2, 2] is no span of layers; the decoder has 3 layers"),
    ("t5", {"encoder": [[0, 3]], "decoder": [[2, 1]]}, "0 <= start < end <= 3"),
    ("t5", {"decoder": [[0, "2"]]}, "is no span"),
    ("t5", {"decoder": [[False, True]]}, "is no span"),
    ("t5", {"decoder": []}, "no span for the decoder; the decoder has 3 layers"),
    ("t5", {"decoder": [[0, 1, 2]]}, "pairs [start, end)"),
    ("t5", {"decoder": [3]}, "decoder (3 layers)"),
    ("t5", {"decodr": [[0, 1]]}, "it has encoder (3 layers), decoder (3 layers). Did you mean 'decoder'?"),
    ("t5", [[0, 2], [1, 3]], "name the one meant, {encoder: ...}"),
    ("llama", {"encoder": [[0, 1]]}, "no stack 'encoder', it has decoder (3 layers)"),
    ("vit", {"decoder": [[0, 1]]}, "no stack 'decoder', it has encoder (3 layers)"),
    ("llama", [[0, 4]], "the decoder has 3 layers"),
]


@pytest.mark.parametrize(("kind", "spec", "words"), WRONG)
def test_what_the_model_does_not_have_is_named_with_a_remedy_and_changes_nothing(
    kind: str, spec: dict, words: str
) -> None:
    model = build(kind, 3, 3)
    before = list(model.named_modules())
    with pytest.raises(UserError) as error:
        replicate_layers(model, spec)
    written = str(spec).replace("{'", "{").replace("':", ":").replace(", 'decoder", ", decoder")
    assert str(error.value).startswith(f"lora.layer_replication={written}: ")
    assert words in str(error.value)
    assert list(model.named_modules()) == before


def test_a_model_without_blocks_has_nothing_to_replicate() -> None:
    with pytest.raises(UserError, match="Sequential has no stack of equal layers"):
        replicate_layers(nn.Sequential(nn.Linear(2, 2)), [[0, 1]])


def test_two_stacks_of_one_side_go_by_their_paths() -> None:
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


def test_peft_s_own_replication_knows_no_t5() -> None:
    import peft

    config = peft.LoraConfig(target_modules=["q"], layer_replication=[(0, 2), (1, 3)])
    with pytest.raises(ValueError, match="Could not locate the layers attribute"):
        peft.get_peft_model(build("t5", 3, 3), config)


def test_peft_makes_the_same_of_a_model_that_it_knows(batch: dict) -> None:
    import peft

    config = peft.LoraConfig(target_modules=["q_proj"], layer_replication=OVERLAP)
    theirs = peft.get_peft_model(build("llama", 3, 3), config).eval()
    ours = replicate_layers(build("llama", 3, 3), OVERLAP)
    assert torch.equal(logits(ours, "llama", batch), logits(theirs, "llama", batch))
