"""Weights of replicated blocks: shared, trained by each copy, after unsharing and after merging."""

import re
from itertools import combinations
from pathlib import Path

import pytest
import torch
from support.deeper_models import (
    CASES,
    GENERATING,
    OVERLAP,
    build,
    bytes_held,
    deeper,
    logits,
)
from support.models import randomize
from support.selection import slow_except
from transformers import (
    T5ForConditionalGeneration,
)

from lora_hf import (
    LoraConfig,
    count_parameters,
    inject_adapters,
    merge_adapters,
    merge_and_unload,
    unmerge_adapters,
)
from lora_hf.adapters.backends.bitsandbytes import keep_differentiable
from lora_hf.adapters.layer_replication import find_stacks, replicate_layers, unshare_layers
from lora_hf.adapters.model_state import lora_layers, model_state
from lora_hf.errors import UserError


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


def test_copies_share_the_config_and_see_its_changes() -> None:
    model = replicate_layers(build("llama", 3, 3), OVERLAP)
    assert all(m.config is model.config for m in model.modules() if hasattr(m, "config"))


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


@pytest.mark.parametrize(
    ("kind", "spec"), slow_except([CASES[1], CASES[7], CASES[9], CASES[13]], CASES, versions=True)
)
def test_unshared_it_is_exported_whole_and_plain_transformers_loads_it(
    kind: str, spec: dict, batch: dict, tmp_path: Path
) -> None:
    model = replicate_layers(build(kind, 3, 3), spec)
    before = logits(model, kind, batch)
    assert unshare_layers(model) is model
    assert bytes_held(model) == bytes_held(deeper(kind, spec))
    assert not model_state(model).replication
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
