"""Weights of a base that are broken or do not fit its config.json: one error before they are loaded."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from support.broken_bases import (
    LAST_SHARD,
    POINTER,
    WEIGHTS,
    all_of,
    assert_refused,
    change_settings,
    change_tensors,
    cut,
    error_of,
    index,
    missing_shard,
    move,
    pointer_shard,
    remove,
    rename,
    shards,
    without,
    write,
)
from support.families import FAMILIES, make_family
from support.models import CPU, MODELS, saved
from support.selection import slow_except
from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig

from lora_hf import UserError
from lora_hf.adapters.backends import type_name
from lora_hf.config import ModelConfig, RunConfig
from lora_hf.doctor.configs import targets
from lora_hf.models import checkpoint
from lora_hf.models.load import check_base, load_model

TORCHAO = {"load_in_8bit": True, "quant_method": "torchao"}


@pytest.mark.parametrize(
    ("quantized", "kind"),
    slow_except(
        [({}, "mt5"), ({"load_in_4bit": True}, "bart"), (TORCHAO, "t5")],
        product(({}, {"load_in_4bit": True}, TORCHAO), MODELS),
        versions=True,
    ),
)
def test_missing_blocks_are_named_in_every_storage_format(kind: str, quantized: dict, tmp_path: Path) -> None:
    config = saved(tmp_path, kind).model_copy(update=quantized)
    without("decoder.block.1.", "decoder.layers.1.")(tmp_path)
    assert "its weights do not fit its config.json: " in (message := error_of(config))
    assert "missing: " in message and "decoder." in message and "unexpected" not in message


BROKEN = {
    "more blocks": (
        change_settings(num_layers=3),
        "9 missing: encoder.block.2.layer.0.SelfAttention.k.weight,",
    ),
    "fewer blocks": (change_settings(num_decoder_layers=1), "14 unexpected: decoder.block.1.layer.0"),
    "wider": (
        change_settings(d_ff=64),
        "12 of another shape: .*wi_0.weight is .48, 32. in the weights and .64, 32.",
    ),
    "vocabulary": (
        change_settings(vocab_size=90),
        r"2 of another shape: lm_head.weight is \(96, 32\).*set each vocab_size of 90 in config.json to 96$",
    ),
    "no embeddings": (
        without("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
        "1 missing: shared.weight, although it is not tied to the head",
    ),
    "no head": (without("lm_head"), "1 missing: lm_head.weight, although it is not tied"),
    "cut": (cut, "model.safetensors cannot be read, because it is incomplete or damaged; download"),
    "empty": (write(WEIGHTS, ""), "model.safetensors cannot be read, because it is incomplete or damaged"),
    "a shard is missing": (missing_shard, f"lacks {LAST_SHARD}, which model.safetensors.index.json names"),
    "a shard is a pointer": (pointer_shard, f"{LAST_SHARD} is a Git LFS pointer.*run `git lfs pull`"),
    "a pointer": (write(WEIGHTS, POINTER), "model.safetensors is a Git LFS pointer.*run `git lfs pull`"),
    "an index without metadata": (
        index(metadata=None),
        'has no object "metadata": add "metadata": {} to',
    ),
    "an index of nothing": (index(weight_map={}), "has no weight_map from tensors to files: download"),
    "a pickle": (
        move("pytorch_model.bin"),
        r"no weights in safetensors .* it holds pytorch_model.bin. Load it with .*save_pretrained",
    ),
    "TensorFlow": (move("tf_model.h5"), "it holds tf_model.h5. Convert them with Transformers 4"),
    "an adapter's weights": (
        move("adapter_model.safetensors"),
        "belong to an adapter: give the model that",
    ),
    "another name": (
        move("weights.safetensors"),
        "weights.safetensors. .*rename the file to model.saf",
    ),
    "a link to nothing": (
        all_of(remove(WEIGHTS), lambda folder: (folder / WEIGHTS).symlink_to("blob")),
        "model.safetensors is a folder, or a link to a file that is gone: download the model again",
    ),
    "no index": (
        move("model-00001-of-00002.safetensors"),
        "parts without their model.safetensors.index",
    ),
    "a wrapper's names": (rename("module._orig_mod.{}".format), "names begin with 'module._orig_mod.', as a"),
    "the names of another class": (rename("model.{}".format), "tensors' names begin with 'model.'"),
    "adapters inside": (
        rename(lambda name: name.replace("q.weight", "q.base_layer.weight")),
        "saved with adapters in it, as 'decoder.*q.base_layer.weight' shows.*merge_and_unload",
    ),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_base_is_one_error_with_the_remedy(
    change: Callable[[Path], None], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert_refused(saved(tmp_path), tmp_path, change, words, caplog)


def test_an_untied_base_whose_embeddings_are_saved_under_another_path_is_read(tmp_path: Path) -> None:
    model = make_family("T5Gemma2", tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    config = ModelConfig(model_name_or_path=str(tmp_path))
    loaded = load_model(config, torch.device("cpu"))
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_base_that_asks_for_attentions_is_loaded_without_and_can_be_saved(tmp_path: Path) -> None:
    """Transformers loads it with a kind of attention that returns none, and then refuses to save it."""
    config = saved(tmp_path / "base")
    change_settings(output_attentions=True, output_hidden_states=True)(tmp_path / "base")
    load_model(config, torch.device("cpu")).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).is_file()


def test_a_checkpoint_is_checked_again_only_when_a_file_of_its_folder_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, load = [], checkpoint.load_checkpoint
    monkeypatch.setattr(
        checkpoint, "load_checkpoint", lambda *given, **options: checks.append(1) or load(*given, **options)
    )
    config = saved(tmp_path)
    for number, expected in ((None, 1), (None, 1), (0.2, 2), (0.3, 3)):  # of the same size, the last one
        if number:
            change_settings(dropout_rate=number)(tmp_path)
        assert check_base(config, str(tmp_path)) is None and len(checks) == expected
    without("encoder.block.1.")(tmp_path)
    for expected in (4, 5):  # a fault is found each time
        with pytest.raises(UserError, match="missing: encoder.block.1"):
            check_base(config, str(tmp_path))
        assert len(checks) == expected


MARKS = ("version", "embed_positions._float_tensor")


@pytest.mark.parametrize("family", slow_except(("T5", "Bart", "Marian"), FAMILIES, versions=True))
def test_what_a_family_leaves_out_of_its_checkpoints_is_not_missing(family: str, tmp_path: Path) -> None:
    """Tied tensors and buffers: Marian's positions, BART's final_logits_bias, heads that are embeddings."""
    make_family(family).save_pretrained(tmp_path)
    without("final_logits_bias", "embed_tokens", "encoder.version")(tmp_path)
    load_model(ModelConfig(model_name_or_path=str(tmp_path)), CPU)


@pytest.mark.parametrize("family", ["M2M100", "MBart"])
def test_what_a_model_computes_itself_is_no_fault_in_its_file(family: str, tmp_path: Path) -> None:
    """Older files have positions that the model makes, and marks of fairseq, from which they were made."""
    model = make_family(family)
    model.save_pretrained(tmp_path)
    computed = {name: x.clone() for name, x in model.named_buffers() if x.is_floating_point()}
    marks = {f"model.{side}.{end}": torch.ones(1) for side in ("encoder", "decoder") for end in MARKS}
    change_tensors(tmp_path, lambda old: {k: v.clone() for k, v in (computed | marks | old).items()})
    loaded = load_model(ModelConfig(model_name_or_path=str(tmp_path)), CPU)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_shards_and_the_head_of_another_task_are_no_fault(tmp_path: Path) -> None:
    config = saved(tmp_path, "bart")
    change_tensors(
        tmp_path, lambda old: old | {"classification_head.dense.weight": next(iter(old.values())).clone()}
    )
    load_model(config, CPU)
    config = saved(tmp_path / "t5")
    whole = load_model(config, CPU).state_dict()
    shards(tmp_path / "t5")
    assert not (tmp_path / "t5" / "model.safetensors").exists()
    torch.testing.assert_close(load_model(config, CPU).state_dict(), whole, rtol=0, atol=0)


@pytest.mark.parametrize("bits", slow_except([4], [4, 8], versions=True))
def test_weights_that_are_stored_quantized_load_as_they_are_and_in_no_other_format(
    bits: int, tmp_path: Path
) -> None:
    dense, folder = saved(tmp_path / "dense"), tmp_path / "quantized"
    quantized = AutoModelForSeq2SeqLM.from_pretrained(
        dense.model_name_or_path,
        quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}),
        device_map={"": "cpu"},
    )
    quantized.save_pretrained(folder)
    config = ModelConfig(model_name_or_path=str(folder))
    for fields in ({}, {f"load_in_{bits}bit": True}):
        model = load_model(config.model_copy(update=fields), CPU)
        assert type_name(model.encoder.block[0].layer[0].SelfAttention.q).startswith("bitsandbytes")
    other = config.model_copy(update={f"load_in_{12 - bits}bit": True})
    with pytest.raises(UserError, match=f"are stored in {bits} bits already, by bitsandbytes; leave out"):
        load_model(other, CPU)
    with pytest.raises(
        UserError, match=f"are stored in {bits} bits and cannot all be trained; use method lora"
    ):
        load_model(config, CPU, train_all=True)
    with pytest.raises(
        UserError, match=f"are stored in {bits} bits and cannot all be trained; use method lora"
    ):
        list(targets(RunConfig(method="full", model=config)))
    without("wo.weight")(folder)
    with pytest.raises(UserError, match="missing: .*wo.weight"):
        load_model(config, CPU)
