"""PEFT's files as the world has them: names beyond the file, block indices, embeddings beside the adapter."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import EVERY, make_family
from support.models import logits, make_bart, make_t5, randomize, untie_head
from support.selection import slow_except
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM

from lora_hf import (
    LoraConfig,
    UserError,
    delete_adapter,
    disable_adapters,
    inject_adapters,
    load_adapter,
    merge_and_unload,
    save_adapter,
    set_adapter,
)
from lora_hf.adapters.embeddings import embedding_tensors
from lora_hf.adapters.load import put_adapter_state
from lora_hf.adapters.model_state import lora_layers, update_state
from lora_hf.adapters.save import adapter_state
from lora_hf.fast.int8 import quantize_for_generation

PLAIN = {"r": 4, "lora_alpha": 10, "target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's advice


def theirs(folder: Path, base: nn.Module | None = None, **fields: Any) -> nn.Module:
    model = peft.get_peft_model(make_t5() if base is None else base, peft.LoraConfig(**PLAIN | fields)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model


def edit(folder: Path, **fields: Any) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    raw: dict[str, Any] = json.loads(file.read_text()) | fields
    file.write_text(json.dumps(raw))
    return raw


MORE: list[dict[str, Any]] = [
    {"target_modules": ["q", "v", "wi", "q_proj", "v_proj"]},
    {"rank_pattern": {"wi": 2, "q": 2}},
    {"modules_to_save": ["layer_norm"]},  # by the end of the name: final_layer_norm too
    {"layers_to_transform": [0, 5]},
    {"layers_to_transform": [1], "layers_pattern": ["blocks", "block"], "rank_pattern": {"q": 2}},
    {"layers_to_transform": [0], "target_modules": ["v", "decoder.block.1.layer.0.SelfAttention.q"]},
    {"layers_to_transform": []},
    {"bias": "all"},
    {"r": 64},
]
ALSO: list[dict[str, Any]] = [
    {"alpha_pattern": {"q_proj": 16}},
    {"exclude_modules": ["lm_head_2"]},
    {"modules_to_save": ["lm_head", "classifier"]},
    {"layers_to_transform": [0], "layers_pattern": "block"},
    {"layers_to_transform": [1], "layers_pattern": []},
    {"layers_to_transform": 1, "layers_pattern": ""},
    {
        "layers_to_transform": [0],
        "layers_pattern": "block",
        "target_modules": ["v", "decoder.block.1.layer.0.SelfAttention.q"],
    },
    {"layers_to_transform": [], "layers_pattern": "block"},
    {"bias": "lora_only"},
    {"ensure_weight_tying": True},
]


@pytest.mark.parametrize("fields", slow_except(MORE, [*MORE, *ALSO], versions=True))
def test_a_config_that_says_more_than_the_file_holds_is_read_as_peft_reads_it(
    fields: dict, tmp_path: Path, batch: dict
) -> None:
    expected = logits(theirs(tmp_path, **fields), batch)
    model = load_adapter(make_t5(), tmp_path)
    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-5)
    save_adapter(model, tmp_path / "again")
    again = load_adapter(make_t5(), tmp_path / "again")
    assert torch.equal(logits(again, batch), logits(model, batch))
    reference = peft.PeftModel.from_pretrained(make_t5(), tmp_path / "again").eval()
    torch.testing.assert_close(logits(reference, batch), expected, rtol=0, atol=1e-5)


def test_a_config_of_another_architecture_or_a_tensor_too_many_is_still_an_error(tmp_path: Path) -> None:
    theirs(tmp_path)
    edit(tmp_path, target_modules=["q_proj", "v_proj"])
    with pytest.raises(UserError, match=r"target_modules: \['q_proj', 'v_proj'\] matched no layer"):
        load_adapter(make_t5(), tmp_path)
    edit(tmp_path, target_modules=["q", "wi"])  # the file has v
    with pytest.raises(UserError, match="12 unexpected: .*SelfAttention.v.lora_A"):
        load_adapter(make_t5(), tmp_path)
    edit(tmp_path, target_modules=["q", "v", "k"])
    with pytest.raises(UserError, match="12 missing: .*SelfAttention.k.lora_A"):
        load_adapter(make_t5(), tmp_path)
    with pytest.raises(UserError, match=r"\['wi'\] matched no layer"):  # training stays strict
        inject_adapters(make_t5(), LoraConfig(target_modules=("q", "wi")))


def test_trained_biases_are_refused_by_the_field(tmp_path: Path) -> None:
    theirs(tmp_path, make_bart(), target_modules=["q_proj"], bias="lora_only")
    with pytest.raises(UserError, match="bias='lora_only' is not implemented.*q_proj"):
        load_adapter(make_bart(), tmp_path)


def test_blocks_are_chosen_by_full_names_which_every_version_of_peft_reads_alike(
    tmp_path: Path, batch: dict
) -> None:
    model = inject_adapters(make_t5(), LoraConfig(r=4, lora_alpha=10, layers_to_transform=(1,)))
    randomize(model)
    save_adapter(model, tmp_path)
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    assert raw["target_modules"] == sorted(lora_layers(model)) and "layers_to_transform" not in raw
    reference = peft.PeftModel.from_pretrained(make_t5(), tmp_path).eval()
    torch.testing.assert_close(logits(reference, batch), logits(model, batch), rtol=0, atol=1e-5)
    assert torch.equal(logits(load_adapter(make_t5(), tmp_path), batch), logits(model, batch))


def test_a_file_of_a_version_that_counted_inner_numbers_is_read_so(
    tmp_path: Path, batch: dict, caplog: pytest.LogCaptureFixture
) -> None:
    inner = [
        name for name, _ in make_t5().named_modules() if name.endswith((".q", ".v")) and "layer.1" in name
    ]
    expected = logits(theirs(tmp_path, target_modules=inner), batch)
    edit(tmp_path, target_modules=["q", "v"], layers_to_transform=[1])  # as PEFT before 0.20 wrote it
    with caplog.at_level("INFO", "lora_hf"):
        model = load_adapter(make_t5(), tmp_path)
    assert "layers_to_transform=[1]" in caplog.text and "before 0.20" in caplog.text
    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-5)
    edit(tmp_path, layers_to_transform=[0])
    with pytest.raises(UserError, match="does not fit.*before 0.20 counted"):
        load_adapter(make_t5(), tmp_path)


def test_defaults_are_not_written_because_older_versions_of_peft_refuse_fields_they_do_not_know(
    tmp_path: Path,
) -> None:
    save_adapter(inject_adapters(make_t5(), LoraConfig(r=4, lora_alpha=10)), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 10,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["q", "v"],
        "task_type": "SEQ_2_SEQ_LM",
    }


def base_folder(folder: Path, is_tied: bool) -> Path:
    model = make_t5()
    if is_tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.shared.weight
    model.save_pretrained(folder)
    return folder


def resized(folder: Path, rows: int | None, seed: int = 0) -> Any:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    torch.manual_seed(seed)
    if rows:
        is_tied = model.lm_head.weight is model.shared.weight
        model.resize_token_embeddings(rows)
        if not is_tied:  # Transformers ties T5's head by accident
            untie_head(model)
    return model


sizes = pytest.mark.parametrize(
    ("is_tied", "rows"),
    slow_except([(False, 90), (True, 104)], product((False, True), (None, 90, 104)), versions=True),
)


@sizes
def test_embeddings_beside_peft_s_adapter_take_the_place_of_the_base_s(
    is_tied: bool, rows: int | None, tmp_path: Path, batch: dict
) -> None:
    base = base_folder(tmp_path / "base", is_tied)
    batch = {key: ids.clamp(max=80) for key, ids in batch.items()}
    model = theirs(tmp_path / "adapter", resized(base, rows))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert {"base_model.model.shared.weight", "base_model.model.lm_head.weight"} <= keys
    expected = logits(model, batch)
    other = resized(base, rows, seed=5)  # its new rows are drawn anew
    found = logits(load_adapter(other, tmp_path / "adapter"), batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (other.lm_head.weight is other.shared.weight) == is_tied
    with pytest.raises(UserError, match=r"embeddings of 97 tokens|resize_token_embeddings\((96|90|104)\)"):
        load_adapter(resized(base, 97), tmp_path / "adapter")


@sizes
def test_rows_that_were_added_to_the_vocabulary_are_saved_with_the_adapter(
    is_tied: bool, rows: int | None, tmp_path: Path
) -> None:
    base = base_folder(tmp_path / "base", is_tied)
    batch = {"input_ids": torch.arange(3, 90)[None], "labels": torch.arange(3, 20)[None]}
    if rows == 104:
        batch["input_ids"][0, :4] = torch.tensor([100, 101, 102, 103])
    model = inject_adapters(resized(base, rows), LoraConfig(r=4, lora_alpha=10))
    randomize(model)
    save_adapter(model, tmp_path / "adapter")
    expected = logits(model, batch)
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert any("shared" in key for key in keys) == (rows is not None)
    again = load_adapter(resized(base, rows, seed=5), tmp_path / "adapter")
    assert torch.equal(logits(again, batch), expected)
    save_adapter(again, tmp_path / "again")
    assert load_file(tmp_path / "again" / "adapter_model.safetensors").keys() == keys
    fresh = inject_adapters(resized(base, rows, seed=6), LoraConfig(r=4, lora_alpha=10))
    put_adapter_state(fresh, adapter_state(model))  # resuming from a checkpoint
    assert torch.equal(logits(fresh, batch), expected)
    reference = peft.PeftModel.from_pretrained(resized(base, rows, seed=7), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(reference, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", slow_except(("T5", "Bart", "FSMT", "T5Gemma"), EVERY, versions=True))
def test_rows_added_to_any_family_are_saved_with_the_adapter(family: str, tmp_path: Path) -> None:
    """T5Gemma's vocabulary is a field of its config's parts."""
    make_family(family).save_pretrained(tmp_path)
    kept, more = (AutoModelForSeq2SeqLM.from_pretrained(tmp_path) for _ in range(2))
    try:
        more.resize_token_embeddings(len(more.get_input_embeddings().weight) + 5)
    except (AttributeError, NotImplementedError, TypeError) as error:
        pytest.skip(f"Transformers cannot resize it: {error!r}")
    assert not embedding_tensors(kept) and embedding_tensors(more)


@pytest.mark.parametrize("family", ["BertBert", "T5Gemma2"])
def test_what_else_belongs_to_the_embeddings_is_read_with_them(
    family: str, tmp_path: Path, batch: dict
) -> None:
    """BERT's head has a bias, T5Gemma 2's embeddings have a vector for the end of an image."""
    batch = batch | {"labels": batch["input_ids"][:, :4].contiguous()}
    with torch.no_grad():
        base = make_family(family)
        for parameter in base.parameters():
            parameter.add_(0.1)
    names = ["query", "value", "q_proj", "v_proj"]
    model = theirs(tmp_path, base, target_modules=names, task_type=None)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    expected = logits(model, batch)
    found = logits(load_adapter(make_family(family), tmp_path), batch)
    reference = peft.PeftModel.from_pretrained(make_family(family), tmp_path).eval()
    torch.testing.assert_close(found, logits(reference, batch), rtol=0, atol=1e-5)
    assert not torch.allclose(found, expected)  # the file has the embeddings alone


def test_another_adapter_s_embeddings_are_not_replaced(tmp_path: Path, batch: dict) -> None:
    base = base_folder(tmp_path / "base", False)
    batch = {key: ids.clamp(max=80) for key, ids in batch.items()}
    for name in ("a", "b"):
        model = inject_adapters(resized(base, 104, seed=ord(name)), LoraConfig(r=4, lora_alpha=10))
        randomize(model)
        save_adapter(model, tmp_path / name)
    model = load_adapter(resized(base, 104), tmp_path / "a", "a")
    before = logits(model, batch)
    with pytest.raises(UserError, match=r"embeddings of its own.*\['a'\]"):
        load_adapter(model, tmp_path / "b", "b")
    set_adapter(model, "a")
    assert torch.equal(logits(model, batch), before)


def test_one_weight_cannot_become_two(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", True)
    theirs(tmp_path / "adapter", resized(base, 104))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.lm_head.weight"] = tensors["base_model.model.lm_head.weight"] + 1
    save_file(tensors, file)
    with pytest.raises(UserError, match="shared.weight differs from .*lm_head.weight.*one weight"):
        load_adapter(resized(base, 104), tmp_path / "adapter")


def by_peft(
    folder: Path, make: Any = make_t5, with_embeddings: bool = False, first: int = 5, **fields: Any
) -> Tensor:
    """Write an adapter of PEFT with random weights, and return its logits."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**({"task_type": "SEQ_2_SEQ_LM", "r": 2, "target_modules": ["q"]} | fields))
    model = peft.get_peft_model(make(), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder, save_embedding_layers=with_embeddings)
    return some_logits(model, first)


def test_a_layer_with_an_adapter_is_not_one_to_copy_and_the_reverse(tmp_path: Path) -> None:
    by_peft(tmp_path / "low", target_modules=["q", "lm_head"])
    by_peft(tmp_path / "copy", modules_to_save=["lm_head"])
    model = load_adapter(make_t5(), tmp_path / "low", "low")
    with pytest.raises(UserError, match=r"modules_to_save: lm_head has an adapter on it already \(low\)"):
        load_adapter(model, tmp_path / "copy", "copy")
    model = load_adapter(make_t5(), tmp_path / "copy", "copy")
    with pytest.raises(UserError, match=r"lm_head is copied by another adapter's modules_to_save \(copy\)"):
        load_adapter(model, tmp_path / "low", "low")


def test_an_adapter_does_not_get_the_embeddings_of_the_one_before_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> Any:
        model = make_t5()
        model.get_input_embeddings().weight.data += 0.5
        return model

    by_peft(tmp_path / "own", make, with_embeddings=True)
    by_peft(tmp_path / "plain")
    model = load_adapter(make_t5(), tmp_path / "own", "own")
    assert not caplog.text
    with pytest.raises(UserError, match="those of another adapter have replaced: load it on a base of its"):
        load_adapter(model, tmp_path / "plain", "plain")
    load_adapter(model, tmp_path / "own", "again")
    with disable_adapters(model):
        assert "the model without adapters is not its base" in caplog.text
    for name in ("own", "again"):
        delete_adapter(model, name)
    assert caplog.text.count("the model without adapters is not its base") == 1
    with pytest.raises(UserError, match="those of another adapter have replaced"):
        load_adapter(model, tmp_path / "plain", "plain")


def test_embeddings_of_an_adapter_that_was_merged_are_the_model_s_own(tmp_path: Path) -> None:
    def make() -> Any:
        model = make_t5()
        model.get_input_embeddings().weight.data += 0.5
        return model

    by_peft(tmp_path / "own", make, with_embeddings=True)
    merged = merge_and_unload(load_adapter(make_t5(), tmp_path / "own"))
    save_adapter(inject_adapters(merged, LoraConfig(r=2)), tmp_path / "second")
    assert not any("shared" in key for key in load_file(tmp_path / "second/adapter_model.safetensors"))
    delete_adapter(merged, "default")
    load_adapter(merged, tmp_path / "second")


def test_an_adapter_with_copies_of_all_embeddings_is_loaded_beside_one_with_its_own(tmp_path: Path) -> None:
    model = make_t5()
    untie_head(model)
    update_state(model, has_own_embeddings=True)
    randomize(inject_adapters(model, LoraConfig(r=2, modules_to_save=("shared", "lm_head")), "copies"))
    written = some_logits(model)
    save_adapter(model, tmp_path, "copies")
    delete_adapter(model, "copies")
    load_adapter(model, tmp_path / "copies", "copies")
    assert torch.allclose(some_logits(model), written, atol=1e-6)


def some_logits(model: Any, first: int = 5) -> Tensor:
    ids = torch.arange(first, min(first + 10, 104))[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids, labels=ids[:, :4]).logits


def test_embeddings_that_peft_saves_beside_a_copy_of_the_head_are_read(tmp_path: Path) -> None:
    theirs = by_peft(tmp_path, with_embeddings=True, modules_to_save=["lm_head"])
    assert any("original_module" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.allclose(some_logits(load_adapter(make_t5(), tmp_path)), theirs, atol=1e-5)


def test_embeddings_that_peft_resized_beside_a_copy_of_them_are_read(tmp_path: Path) -> None:
    """In PEFT the stacks call the original with its added rows, and nothing calls the copy."""

    def wider() -> nn.Module:
        model = make_t5()
        model.resize_token_embeddings(104, mean_resizing=False)
        return model

    theirs = by_peft(tmp_path, wider, True, 95, modules_to_save=["shared", "lm_head"])
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert "base_model.model.shared.original_module.weight" in keys
    torch.manual_seed(7)  # other rows
    assert torch.allclose(some_logits(load_adapter(wider(), tmp_path), 95), theirs, atol=1e-5)
    with pytest.raises(UserError, match=r"resize it first, by model.resize_token_embeddings\(104\)"):
        load_adapter(make_t5(), tmp_path)


@pytest.mark.parametrize("scale", [1, 3])
def test_a_head_beside_an_adapter_is_quantized_where_the_base_s_is(scale: int, tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = make_t5()
        model.lm_head.weight.data.mul_(scale)  # 1: as the base has it
        return model

    theirs = by_peft(tmp_path, make, True)
    model = make_t5()
    quantize_for_generation(model)
    found = some_logits(load_adapter(model, tmp_path))
    assert (found - theirs).norm() < 0.05 * theirs.norm()


def test_a_copy_of_a_layer_in_int8_for_generation_is_refused_with_what_works(
    tmp_path: Path,
) -> None:
    by_peft(tmp_path, modules_to_save=["lm_head"])
    model = make_t5()
    quantize_for_generation(model)
    with pytest.raises(UserError, match="lm_head is quantized, .*; leave out the quantization, or merge the"):
        load_adapter(model, tmp_path)


def untied_bart() -> nn.Module:
    model = make_bart()
    untie_head(model)
    return model


@pytest.mark.parametrize("make", [make_t5, untied_bart])
def test_a_copy_of_shared_is_read_as_peft_does_which_the_model_never_calls(make: Any, tmp_path: Path) -> None:
    theirs = by_peft(tmp_path, make, modules_to_save=["shared"], target_modules=r".*(q|q_proj)")
    (key,) = [key for key in load_file(tmp_path / "adapter_model.safetensors") if "shared" in key]
    assert not torch.equal(
        load_file(tmp_path / "adapter_model.safetensors")[key], make().get_input_embeddings().weight
    )
    assert torch.allclose(some_logits(load_adapter(make(), tmp_path)), theirs, atol=1e-5)


@pytest.mark.parametrize("make", [make_t5, untied_bart, make_bart])
@pytest.mark.parametrize("targets", [["q", "q_proj", "shared"], r".*(q|q_proj|shared)"])
def test_an_adapter_of_shared_is_read_as_peft_does_which_the_model_never_calls(
    make: Any, targets: Any, tmp_path: Path
) -> None:
    theirs = by_peft(tmp_path / "peft", make, target_modules=targets)
    ours = load_adapter(make(), tmp_path / "peft")
    assert torch.allclose(some_logits(ours), theirs, atol=1e-5)
    save_adapter(ours, tmp_path / "again")
    for read in (load_adapter, peft.PeftModel.from_pretrained):
        assert torch.allclose(some_logits(read(make(), tmp_path / "again")), theirs, atol=1e-5)


def test_a_layer_that_peft_copied_as_a_whole_although_it_is_a_target_is_read_so(tmp_path: Path) -> None:
    fields = {"target_modules": ["q", "lm_head"], "modules_to_save": ["lm_head"]}
    theirs = by_peft(tmp_path / "peft", make_t5, **fields)
    ours = load_adapter(make_t5(), tmp_path / "peft")
    assert torch.allclose(some_logits(ours), theirs, atol=1e-5)
    save_adapter(ours, tmp_path / "again")
    for read in (load_adapter, peft.PeftModel.from_pretrained):
        assert torch.allclose(some_logits(read(make_t5(), tmp_path / "again")), theirs, atol=1e-5)


@pytest.mark.parametrize("make", [make_t5, untied_bart])
def test_embeddings_that_an_adapter_trains_in_all_places_have_this_effect_in_peft_too(
    make: Any, tmp_path: Path
) -> None:
    config = LoraConfig(r=2, target_modules=r".*(q|q_proj)", modules_to_save=["shared", "lm_head"])
    model = inject_adapters(make(), config)
    randomize(model)
    ours = some_logits(model)
    save_adapter(model, tmp_path)
    assert torch.allclose(some_logits(peft.PeftModel.from_pretrained(make(), tmp_path)), ours, atol=1e-5)
    again = load_adapter(make(), tmp_path, trainable=True)
    assert torch.equal(some_logits(again), ours)
    assert again.get_input_embeddings().weight.requires_grad  # a copy of the adapter's, as before
    set_adapter(again, [])
    assert torch.equal(some_logits(again), some_logits(make()))
    file = tmp_path / "lora_hf.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"modules_to_save": "shared"}))
    with pytest.raises(UserError, match="modules_to_save='shared' is not a list of names"):
        load_adapter(make(), tmp_path)


@pytest.mark.parametrize("field", ["modules_to_save", "target_modules"])
def test_a_layer_that_peft_trains_once_for_each_place_is_refused(field: str, tmp_path: Path) -> None:
    by_peft(tmp_path, **{field: ["embed_tokens"]})
    model = make_t5()
    says = rf"{field} names .*embed_tokens, .* one layer with shared.* with lora_hf.*{field}: \[shared"
    with pytest.raises(UserError, match=says):
        load_adapter(model, tmp_path)
    assert not any(hasattr(module, "adapters") for module in model.modules())


@pytest.mark.parametrize("name", ["embed_tokens", "encoder.embed_tokens", "decoder.embed_tokens"])
def test_a_copy_of_the_embeddings_by_another_of_their_names_is_read_again(name: str, tmp_path: Path) -> None:
    model = inject_adapters(make_t5(), LoraConfig(r=2, target_modules=["q"], modules_to_save=[name]))
    randomize(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    ours = some_logits(model)
    save_adapter(model, tmp_path)
    assert not torch.allclose(ours, some_logits(make_t5()), atol=0.1)
    assert torch.equal(some_logits(load_adapter(make_t5(), tmp_path)), ours)
    assert torch.allclose(some_logits(peft.PeftModel.from_pretrained(make_t5(), tmp_path)), ours, atol=1e-5)
