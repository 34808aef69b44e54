"""`save_pretrained` of an adapted model: merged weights under plain names, or refused with the remedy."""

import copy
import gc
import io
import weakref
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.models import MODELS, make_t5, randomize, saved
from support.packages import import_or_skip
from support.selection import slow_except
from transformers import AutoModelForSeq2SeqLM

from lora_hf import (
    LoraConfig,
    UserError,
    delete_adapter,
    disable_adapters,
    inject_adapters,
    load_model,
    merge_adapters,
    merge_and_unload,
    unmerge_adapters,
)
from lora_hf.adapters.backends.bitsandbytes import keep_differentiable
from lora_hf.baselines.bottleneck import add_bottlenecks
from lora_hf.baselines.prompt_tuning import add_prompt

NOT_MERGED = r"save_pretrained: the adapters \['default'\] are not merged.* save_adapter.* merge_adapters"


def adapted(kind: str = "t5", **fields: Any) -> Any:
    make, targets = MODELS[kind]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=list(targets), **fields)
    model = inject_adapters(make(), config)
    randomize(model)
    return model.eval()


def logits(model: Any, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def loaded(folder: Path) -> Any:
    """Return the folder's model; every tensor must be in it, and no other."""
    model, found = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    return model.eval()


HEAD = {"modules_to_save": ["lm_head"]}


@pytest.mark.parametrize(
    ("kind", "fields"),
    slow_except(
        [("t5", HEAD), ("mt5", {}), ("bart", {"use_dora": True})],
        [("t5", HEAD), *product(MODELS, ({}, {"use_dora": True}))],  # the others' heads are tied
        versions=True,
    ),
)
def test_a_merged_model_is_saved_as_the_plain_one(
    kind: str, fields: dict, batch: dict, tmp_path: Path
) -> None:
    model = adapted(kind, **fields)
    before = logits(model, batch)
    merge_adapters(model)
    merged = logits(model, batch)
    names, kept = list(model.state_dict()), copy.deepcopy(model.state_dict())
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(loaded(tmp_path), batch), merged)
    assert not any("base_layer" in name for name in load_file(tmp_path / "model.safetensors"))
    assert list(model.state_dict()) == names and torch.equal(logits(model, batch), merged)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    unmerge_adapters(model)
    assert torch.equal(logits(model, batch), before)


def test_a_4_bit_model_that_was_merged_in_place_is_saved_in_4_bits(batch: dict, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = saved(tmp_path / "base").model_copy(update={"load_in_4bit": True})
    model = load_model(config, torch.device("cpu"))
    randomize(inject_adapters(model, LoraConfig(r=4, target_modules=["q", "v"])))
    merge_adapters(model, "requantized")
    model.save_pretrained(tmp_path / "model")
    again = loaded(tmp_path / "model")
    keep_differentiable(again)  # the packed layout of AVX512 has no room for layers this small
    assert again.is_loaded_in_4bit and torch.allclose(logits(again, batch), logits(model, batch), atol=1e-5)


def test_a_compiled_model_is_saved_as_the_plain_one(batch: dict, tmp_path: Path) -> None:
    model: Any = torch.compile(adapted())
    with pytest.raises(UserError, match=NOT_MERGED):
        model.save_pretrained(tmp_path / "model")
    merge_adapters(model)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(loaded(tmp_path / "model"), batch), logits(model._orig_mod, batch))


@pytest.mark.parametrize("merge", [merge_adapters, merge_and_unload])
@pytest.mark.parametrize("is_before", [True, False])
def test_blocks_that_were_compiled_one_by_one_have_plain_names(
    is_before: bool, merge: Any, batch: dict, tmp_path: Path
) -> None:
    def compiled(model: Any) -> Any:
        model.encoder.block[1] = torch.compile(model.encoder.block[1], backend="eager")
        return model

    model = inject_adapters(compiled(make_t5()), LoraConfig(r=4)) if is_before else compiled(adapted())
    randomize(model)
    model = merge(model) or model
    model.save_pretrained(tmp_path / "own", state_dict=model.state_dict())
    model.save_pretrained(tmp_path / "model")
    expected = logits(model, batch)
    for folder in ("own", "model"):
        assert torch.equal(logits(loaded(tmp_path / folder), batch), expected)
    assert isinstance(model.encoder.block[1], torch._dynamo.OptimizedModule)


def test_a_state_dict_that_the_caller_gathered_gets_plain_names(batch: dict, tmp_path: Path) -> None:
    model = adapted(modules_to_save=["lm_head"])
    merge_adapters(model)
    for number, (args, kwargs) in enumerate(
        [((), {"state_dict": model.state_dict()}), ((True, model.state_dict()), {})]
    ):
        model.save_pretrained(folder := tmp_path / str(number), *args, **kwargs)
        assert torch.equal(logits(loaded(folder), batch), logits(model, batch))


def test_a_model_whose_adapters_are_not_merged_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    model = adapted()
    with pytest.raises(UserError, match=NOT_MERGED):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=NOT_MERGED):
        again = copy.deepcopy(model)
        again.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="no longer exists: keep it in a variable"):
        copy.deepcopy(model).save_pretrained(tmp_path / "model")
    with disable_adapters(model), pytest.raises(UserError, match="adapters are disabled"):
        model.save_pretrained(tmp_path / "model")
    merge_adapters(model)
    unmerge_adapters(model)
    with pytest.raises(UserError, match=NOT_MERGED):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("add", "settings"), [(add_bottlenecks, (4, "relu")), (add_prompt, (3, "vocab"))])
def test_a_model_with_the_weights_of_a_baseline_is_refused(
    add: Callable[..., Any], settings: tuple[Any, ...], tmp_path: Path
) -> None:
    model = make_t5()
    add(model, *settings)
    with pytest.raises(UserError, match="save_pretrained: the model has the weights of method"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [(adapted, NOT_MERGED), (lambda: with_bottlenecks(make_t5()), "block.0.* which no plain model has")],
)
def test_a_part_of_a_changed_model_is_refused(change: Callable[[], Any], says: str, tmp_path: Path) -> None:
    model = change()
    with pytest.raises(UserError, match=says):
        model.encoder.save_pretrained(tmp_path / "part")
    assert not (tmp_path / "part").exists() or not list((tmp_path / "part").glob("*.safetensors"))


@pytest.mark.parametrize("fields", [{}, {"modules_to_save": ["shared"]}], ids=str)
def test_a_part_of_a_merged_model_is_saved_as_the_plain_part(fields: dict, tmp_path: Path) -> None:
    model = adapted(**fields)
    merge_adapters(model)
    names = list(model.state_dict())
    model.encoder.save_pretrained(tmp_path)
    written, plain = load_file(tmp_path / "model.safetensors"), plain_merged(model).encoder.state_dict()
    assert written.keys() == plain.keys() and all(torch.equal(written[name], plain[name]) for name in plain)
    assert list(model.state_dict()) == names
    unmerge_adapters(model)
    with pytest.raises(UserError, match=NOT_MERGED):
        again = copy.deepcopy(model)
        again.encoder.save_pretrained(tmp_path / "copy")
    merge_and_unload(model)
    assert "save_pretrained" not in vars(model.encoder)


def plain_merged(model: Any) -> Any:
    """Return a plain copy of a merged model."""
    again = copy.deepcopy(model)
    unmerge_adapters(again)
    return merge_and_unload(again)


def with_bottlenecks(model: Any) -> Any:
    add_bottlenecks(model, 4, "relu")
    return model


def test_a_part_is_saved_with_merged_weights_and_a_model_with_such_a_part_refused(tmp_path: Path) -> None:
    model: Any = make_t5()
    inject_adapters(model.encoder, LoraConfig(r=4, lora_alpha=6, target_modules=["q"]))
    with pytest.raises(UserError, match=r"save_pretrained: encoder.block.0.*LoraLayer"):
        model.save_pretrained(tmp_path / "whole")
    merge_adapters(model.encoder)
    model.encoder.save_pretrained(tmp_path / "part")
    assert not any("base_layer" in name for name in load_file(tmp_path / "part" / "model.safetensors"))
    merge_and_unload(model.encoder)
    model.save_pretrained(tmp_path / "whole")
    assert loaded(tmp_path / "whole")


@pytest.mark.parametrize(
    ("package", "fields"),
    [
        ("hqq", {"load_in_4bit": True, "quant_method": "hqq", "hqq_group_size": 8}),
        ("torchao", {"load_in_8bit": True, "quant_method": "torchao"}),
    ],
)
def test_a_base_that_transformers_cannot_load_again_is_refused(
    package: str, fields: dict, batch: dict, tmp_path: Path
) -> None:
    import_or_skip(package)
    config = saved(tmp_path / "base").model_copy(update=fields)
    model = load_model(config, torch.device("cpu"))
    with pytest.raises(UserError, match="save_pretrained: the base is stored as .*: load the model without"):
        model.save_pretrained(tmp_path / "model")
    randomize(inject_adapters(model, LoraConfig(r=4, target_modules=["q", "v"])))
    with pytest.raises(UserError, match=r"stored as .*: save the adapters .*merge_and_unload.*'dequantized'"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    merge_and_unload(model, "dequantized").save_pretrained(tmp_path / "model")
    assert torch.equal(logits(loaded(tmp_path / "model"), batch), logits(model, batch))


@pytest.mark.parametrize("end", [merge_and_unload, lambda model: delete_adapter(model, "default")])
def test_a_model_without_its_adapters_has_the_method_of_its_class_again(
    end: Callable[[Any], Any], batch: dict, tmp_path: Path
) -> None:
    model = adapted()
    end(model)
    assert "save_pretrained" not in vars(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(loaded(tmp_path), batch), logits(model, batch))


def test_the_method_follows_a_pickled_model_and_does_not_keep_a_model_alive(tmp_path: Path) -> None:
    model = adapted()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    with pytest.raises(UserError, match=NOT_MERGED):
        again.save_pretrained(tmp_path / "model")
    reference = weakref.ref(again)
    gc.disable()
    try:
        del again
        assert reference() is None
    finally:
        gc.enable()
