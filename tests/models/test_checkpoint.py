"""Bases whose files are broken or do not fit their config.json: one error before the weights are loaded."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import FAMILIES, make_family
from support.models import CPU, MODELS, make_t5, saved
from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig

from lora_hf import UserError
from lora_hf.adapters.backends import type_name
from lora_hf.adapters.checkpoint_io import read_tensors
from lora_hf.config import ModelConfig, RunConfig
from lora_hf.data.readers import read_rows
from lora_hf.doctor.base import checkpoint
from lora_hf.doctor.base import tokenizer as doctor_tokenizer
from lora_hf.doctor.configs import targets
from lora_hf.models.load import ASSETS, load_model, load_tokenizer

GENERATION = "generation_config.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS = "model.safetensors"
LAST_SHARD = "model-00002-of-00002.safetensors"


def change_tensors(folder: Path, change: Callable[[dict], dict]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def change_settings(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | fields))

    return change


def without(*parts: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        change_tensors(
            folder, lambda old: {k: v.clone() for k, v in old.items() if not any(p in k for p in parts)}
        )

    return change


def with_values(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda folder: change_tensors(folder, lambda old: {k: change(k, v) for k, v in old.items()})


def spoil(part: str, value: float) -> Callable[[Path], None]:
    """Set one value of the tensors whose names contain `part`."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if part in name:
            tensor = tensor.clone()
            tensor.view(-1)[-1] = value
        return tensor

    return with_values(change)


def zero_second_half(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def as_integers(dtype: torch.dtype) -> Callable[[Path], None]:
    return with_values(lambda name, x: x.mul(100).to(dtype) if x.ndim > 1 and "block" in name else x)


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


def shards(folder: Path) -> None:
    make_t5().save_pretrained(folder, max_shard_size="120KB")
    (folder / WEIGHTS).unlink()
    assert (folder / LAST_SHARD).is_file()


def index(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shards(folder)
        file = folder / "model.safetensors.index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def rename(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda folder: change_tensors(folder, lambda old: {change(k): v.clone() for k, v in old.items()})


def move(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / WEIGHTS).rename(folder / name) and None


def all_of(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def zeros(*parts: str) -> Callable[[Path], None]:
    return with_values(lambda name, x: torch.zeros_like(x) if any(part in name for part in parts) else x)


def missing_shard(folder: Path) -> None:
    shards(folder)
    (folder / LAST_SHARD).unlink()


def pointer_shard(folder: Path) -> None:
    shards(folder)
    (folder / LAST_SHARD).write_text(POINTER)


def error_of(config: ModelConfig) -> str:
    """Return the error of loading, which the doctor gives too, in the same words."""
    with pytest.raises(UserError) as loading:
        load_model(config, CPU)
    with pytest.raises(UserError) as checking:
        list(checkpoint(config))
    assert str(checking.value) == str(loading.value)
    return str(loading.value)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "quantized", [{}, {"load_in_4bit": True}, {"load_in_8bit": True, "quant_method": "torchao"}]
)
def test_missing_blocks_are_named_in_every_storage_format(kind: str, quantized: dict, tmp_path: Path) -> None:
    config = saved(tmp_path, kind).model_copy(update=quantized)
    without("decoder.block.1.", "decoder.layers.1.")(tmp_path)
    assert "its weights do not fit its config.json: " in (message := error_of(config))
    assert "missing: " in message and "decoder." in message and "unexpected" not in message


NOT_FINITE = (
    r"encoder.block.1.layer.0.SelfAttention.q.weight has values that are not finite .*: "
    "download the model again"
)
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
    "vocabulary": (change_settings(vocab_size=90), r"2 of another shape: lm_head.weight is \(96, 32\)"),
    "no head": (without("lm_head"), "1 missing: lm_head.weight, although it is not tied"),
    "cut": (cut, "model.safetensors cannot be read, because it is incomplete or damaged; download"),
    "empty": (write(WEIGHTS, ""), "model.safetensors cannot be read, because it is incomplete or damaged"),
    "a shard is missing": (missing_shard, f"lacks {LAST_SHARD}, which model.safetensors.index.json names"),
    "a shard is a pointer": (pointer_shard, f"{LAST_SHARD} is a Git LFS pointer.*run `git lfs pull`"),
    "a pointer": (write(WEIGHTS, POINTER), "model.safetensors is a Git LFS pointer.*run `git lfs pull`"),
    "config.json is a pointer": (write("config.json", POINTER), "config.json is a Git LFS pointer"),
    "AWQ": (
        change_settings(quantization_config={"quant_method": "awq", "bits": 4}),
        "quant_method 'awq', but only weights quantized by bitsandbytes can be loaded; give the checkpoint",
    ),
    "bitsandbytes over dense weights": (
        change_settings(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "have 4 bits, but they are dense: remove that entry, and set model.load_in_4bit: true",
    ),
    "int8 without its config": (
        as_integers(torch.int8),
        r"decoder.block.0.*weight is stored as integers \(I8\), but config.json has no quantization_config.*"
        "give the checkpoint before quantization",
    ),
    "packed bytes without their config": (as_integers(torch.uint8), r"stored as integers \(U8\)"),
    "NaN": (spoil("encoder.block.1.layer.0.SelfAttention.q", float("nan")), NOT_FINITE),
    "infinity": (spoil("encoder.block.1.layer.0.SelfAttention.q", float("inf")), NOT_FINITE),
    "NaN in a norm": (
        spoil("encoder.final_layer_norm", float("nan")),
        "encoder.final_layer_norm.weight has values that are not finite",
    ),
    "half of the file is zero": (
        zero_second_half,
        r"encoder.block.*weight \(.*\) is all zeros.*: download the model again",
    ),
    "config.json is a list": (
        write("config.json", "[]"),
        "config.json does not hold a JSON object: down",
    ),
    "config.json is cut": (write("config.json", '{"model_type": '), "config.json is not readable as JSON"),
    "generation_config.json is null": (
        write(GENERATION, "null"),
        "generation_config.json does not hold a JSON object: download the model again",
    ),
    "special_tokens_map.json is a list": (
        write("special_tokens_map.json", "[]"),
        "does not hold a JSON object",
    ),
    "an index without metadata": (
        index(metadata=None),
        'has no object "metadata": add "metadata": {} to',
    ),
    "an index of nothing": (index(weight_map={}), "has no weight_map from tensors to files: download"),
    "an unknown dtype": (
        change_settings(dtype="foo"),
        "config.json .*: dtype='foo' is not a type of",
    ),
    "no heads": (
        change_settings(num_heads=0, d_ff=-3),
        ".*d_ff=-3 must be positive; num_heads=0 must be",
    ),
    "no distance": (
        change_settings(relative_attention_max_distance=0),
        "relative_attention_max_distance=0 in its config.json must be above 16, half of relative_att",
    ),
    "a distance as in the first half": (
        change_settings(relative_attention_max_distance=16),
        "relative_attention_max_distance=16 in its config.json must be above 16",
    ),
    "two distances": (
        change_settings(relative_attention_num_buckets=2),
        "relative_attention_num_buckets=2 in its config.json must be at least 4",
    ),
    "no start": (
        all_of(change_settings(decoder_start_token_id=None, pad_token_id=None), remove(GENERATION)),
        "because it has no pad_token_id and no decoder_start_token_id: add it to its config.json",
    ),
    "no end": (
        all_of(change_settings(eos_token_id=None), remove(GENERATION)),
        "because it has no eos_token_id: add it to its config.json",
    ),
    "a start beyond the vocabulary": (
        change_settings(decoder_start_token_id=96),
        "decoder_start_token_id=96 in its config.json must be the number of a token, from 0 to 95",
    ),
    "an end beyond the vocabulary": (
        write(GENERATION, '{"decoder_start_token_id": 0, "eos_token_id": [1, 96]}'),
        r"eos_token_id=\[1, 96\] in its generation_config.json must be the number of a token",
    ),
    "bitsandbytes in no bits": (
        change_settings(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": False}),
        "sets neither load_in_4bit nor load_in_8bit: if the weights are dense, remove that entry",
    ),
    "quantization that is a list": (
        change_settings(quantization_config=[4]),
        r"quantization_config=\[4\] in its config.json must be an object",
    ),
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
    "zero embeddings": (zeros("shared"), "shared.weight .* is all zeros, as after an incomplete download"),
    "most outputs are zeros": (zeros("SelfAttention.o", "wo"), "8 of 10 output projections are all zeros"),
    "a wrong type": (change_settings(d_ff="wide"), "cannot be loaded: .*'d_ff' expected int, got str"),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_base_is_one_error_with_the_remedy(
    change: Callable[[Path], None], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = saved(tmp_path)
    change(tmp_path)
    with caplog.at_level(logging.WARNING):
        message = error_of(config)
    assert re.search(words, message)
    assert "LOAD REPORT" not in caplog.text


REPAIRED = {
    "the start is nowhere": all_of(change_settings(decoder_start_token_id=None), remove(GENERATION)),
    "the start is in config.json alone": write(GENERATION, '{"eos_token_id": 1, "pad_token_id": 0}'),
    "the start is in generation_config.json alone": change_settings(decoder_start_token_id=None),
    "the padding is in generation_config.json alone": change_settings(pad_token_id=None),
    "T5's base_model_prefix before each name": rename("transformer.{}".format),
    "outputs as tuples": change_settings(return_dict=False),
    "not an encoder-decoder": change_settings(is_encoder_decoder=False),
}


@pytest.mark.parametrize("change", REPAIRED.values(), ids=REPAIRED)
def test_what_one_file_of_a_base_lacks_or_says_wrong_changes_nothing(
    change: Callable[[Path], None], tmp_path: Path, batch: dict
) -> None:
    config = saved(tmp_path)
    whole = load_model(config, CPU)
    change(tmp_path)
    model = load_model(config, CPU)
    assert torch.equal(model(**batch).loss, whole(**batch).loss)
    written = [one.generate(batch["input_ids"], max_new_tokens=4) for one in (model, whole)]
    assert torch.equal(*written)


def test_zeros_in_the_outputs_of_added_blocks_are_a_warning_that_names_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocks that are added so that the model computes the same at first begin so (LLaMA Pro)."""
    config = saved(tmp_path)
    zeros("block.1.layer.0.SelfAttention.o", "encoder.block.1.layer.1.DenseReluDense.wo")(tmp_path)
    load_model(config, CPU)
    words = "3 output projections are all zeros .decoder.block.1.layer.0.SelfAttention.o.weight, .*were added"
    assert re.search(words, caplog.text)
    assert re.search(words, next(checkpoint(config)).title)


@pytest.mark.parametrize("quantized", [{"load_in_4bit": True}, {"load_in_8bit": True}])
@pytest.mark.parametrize("change", [spoil("SelfAttention.q", float("nan")), zero_second_half])
def test_damaged_weights_are_named_although_they_are_quantized_while_they_are_loaded(
    change: Callable[[Path], None], quantized: dict, tmp_path: Path
) -> None:
    config = saved(tmp_path).model_copy(update=quantized)
    change(tmp_path)
    assert "download the model again" in error_of(config)


def test_a_weight_beyond_the_range_of_float16_is_distinguished_from_a_damaged_one(tmp_path: Path) -> None:
    config = saved(tmp_path).model_copy(update={"dtype": "float16"})
    spoil("SelfAttention.q", 1e5)(tmp_path)
    with pytest.raises(UserError, match=r"or, if .*65,504.* model.dtype: float32"):
        load_model(config, CPU)
    load_model(config.model_copy(update={"dtype": "float32"}), CPU)


def test_the_doctor_leaves_the_values_of_a_large_checkpoint_to_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = saved(tmp_path)
    spoil("SelfAttention.q", float("nan"))(tmp_path)
    monkeypatch.setattr("lora_hf.doctor.base.VALUES_READ", 1000)
    assert "their values are checked when a run loads them" in next(checkpoint(config)).title


@pytest.mark.parametrize("family", [*FAMILIES, "T5Gemma2"])
def test_no_family_initializes_a_whole_matrix_to_zero(family: str, tmp_path: Path) -> None:
    """Legitimate zeros: rows of padding, biases, BART's final_logits_bias of one row, T5Gemma 2's images."""
    make_family(family).save_pretrained(tmp_path)
    config = ModelConfig(model_name_or_path=str(tmp_path))
    load_model(config, CPU)
    assert all(finding.state == "ok" for finding in checkpoint(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_leaves_out_of_its_checkpoints_is_not_missing(family: str, tmp_path: Path) -> None:
    """Tied tensors and buffers: Marian's positions, BART's final_logits_bias, heads that are embeddings."""
    make_family(family).save_pretrained(tmp_path)
    without("final_logits_bias", "embed_tokens", "encoder.version")(tmp_path)
    load_model(ModelConfig(model_name_or_path=str(tmp_path)), CPU)


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


@pytest.mark.parametrize("bits", [4, 8])
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


def change_tokenizer(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | fields))

    return change


TOKENIZERS = {
    "no tokenizer_config.json": (
        remove("tokenizer_config.json"),
        r"cannot be loaded \(TypeError: .*holds tokenizer.json, but no tokenizer_config.json, which names",
    ),
    "a list": (write("tokenizer_config.json", "[]"), "tokenizer_config.json does not hold a JSON object"),
    "an empty object": (
        write("tokenizer.json", "{}"),
        r"\(KeyError: 'added_tokens'\). The folder holds",
    ),
    "a number for a token": (change_tokenizer(eos_token=3), "Special token eos_token has to be either str"),
    "a text for a length": (
        change_tokenizer(model_max_length="512"),
        "model_max_length='512' must be a num",
    ),
    "the class of another family": (
        change_tokenizer(tokenizer_class="BertTokenizer"),
        r"the tokenizer has 1,603 tokens, but the model has embeddings for 1,600; beyond them are '\[CLS\]'",
    ),
    "a smaller model": (change_settings(vocab_size=200), "but the model has embeddings for 200; beyond them"),
}


@pytest.mark.parametrize(("change", "words"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_broken_tokenizer_is_one_error_with_the_remedy(
    change: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(ASSETS, tmp_path / "base")
    change(folder)
    config = ModelConfig(model_name_or_path=str(folder))
    with pytest.raises(UserError, match=words) as loading:
        load_tokenizer(config)
    with pytest.raises(UserError) as checking:
        list(doctor_tokenizer(config, folder))
    assert str(checking.value) == str(loading.value)


def test_a_mask_token_beyond_the_embeddings_is_no_fault(tmp_path: Path) -> None:
    """A published BART has 50,264 embeddings and a tokenizer of 50,265 tokens, the last `<mask>`."""
    folder = shutil.copytree(ASSETS, tmp_path / "base")
    change_tokenizer(mask_token="<mask>")(folder)
    assert len(load_tokenizer(ModelConfig(model_name_or_path=str(folder)))) == 1601


def test_a_pointer_in_the_place_of_a_tokenizer_an_adapter_or_data_is_named(tmp_path: Path) -> None:
    folder = shutil.copytree(ASSETS, tmp_path / "base")
    (folder / "tokenizer.json").write_text(POINTER)
    with pytest.raises(UserError, match=r"tokenizer.json is a Git LFS pointer.*run `git lfs pull`"):
        load_tokenizer(ModelConfig(model_name_or_path=str(folder)))
    for name, read in (
        ("adapter_model.safetensors", read_tensors),
        ("a.jsonl", read_rows),
        ("a.csv", read_rows),
    ):
        (tmp_path / name).write_text(POINTER)
        with pytest.raises(UserError, match=f"{name} is a Git LFS pointer.*run `git lfs pull`"):
            read(tmp_path / name)
