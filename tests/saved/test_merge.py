"""`lora-hf merge` on a quantized base: a choice, with the error of each, and a plain folder."""

import json
import re
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import randomize
from support.selection import slow_except
from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig

from lora_hf import LoraConfig, inject_adapters, save_adapter
from lora_hf.adapters.checkpoint_io import read_dtypes
from lora_hf.config import ModelConfig
from lora_hf.doctor import of_adapter
from lora_hf.errors import UserError
from lora_hf.models.load import ASSETS, load_model
from lora_hf.saved.find_adapter import find_adapter, load_with_base
from lora_hf.saved.merge import merge
from lora_hf.system import pick_device

STORES = {
    "nf4": {},
    "affine4": {"quant_method": "hqq"},
    "int8": {"load_in_4bit": False, "load_in_8bit": True},
    "torchao_int8": {"load_in_4bit": False, "load_in_8bit": True, "quant_method": "torchao"},
}


def trained_on(base: str | ModelConfig, folder: Path, **fields: Any) -> Path:
    """Save an adapter as a run does, on the embedded model in a storage format, or on another base."""
    config = base if isinstance(base, ModelConfig) else ModelConfig(**({"load_in_4bit": True} | STORES[base]))
    model = inject_adapters(
        load_model(config, pick_device()), LoraConfig(**({"r": 4, "lora_alpha": 10} | fields))
    )
    randomize(model)
    extra = {"prompt": "summarize_dialogue", "max_source_length": 128, "base_store": config.storage_fields()}
    return save_adapter(model, folder, extra=extra)


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        return model.cpu()(input_ids=ids, labels=ids[:, :9]).logits


@pytest.mark.slow
@pytest.mark.parametrize("store", slow_except(["affine4"], STORES))
def test_an_adapter_brings_its_base_as_it_was_stored(store: str, tmp_path: Path) -> None:
    saved = find_adapter(str(trained_on(store, tmp_path)))
    model, _ = load_with_base(saved)
    kinds = {type(m).__name__ for m in model.modules()}
    assert kinds & {"Linear4bit", "QuantizedLinear", "Linear8bitLt"} and saved.manifest["base_store"]


def test_an_unknown_choice_is_refused_before_the_base_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    says = r"--onto 'dequantised' must be one of \['checkpoint', .*\. Did you mean 'dequantized'\?"
    with pytest.raises(UserError, match=says):
        merge(str(trained_on("nf4", tmp_path / "adapter")), folder, "./no-such-base", "dequantised")


@pytest.mark.slow
@pytest.mark.parametrize("store", slow_except(["nf4"], STORES))
def test_without_a_choice_the_error_tells_each_way_and_nothing_is_written(store: str, tmp_path: Path) -> None:
    adapter = trained_on(store, tmp_path / "adapter")
    ways = ["checkpoint", "dequantized"] + (["requantized"] if store in ("nf4", "int8") else [])
    choices = " or ".join(ways)
    errors = ".*".join(rf"{way} \d\.\de-?\d+" for way in ways)
    with pytest.raises(UserError, match=f"--onto is missing: .* --onto {choices} .*{errors}"):
        merge(str(adapter), tmp_path / "merged", None, None)
    assert not (tmp_path / "merged").exists()


def test_layers_that_transformers_keeps_dense_are_not_offered_in_the_base_s_format(tmp_path: Path) -> None:
    base = ModelConfig(load_in_4bit=True, quantize_wo=True)
    adapter = trained_on(base, tmp_path / "adapter")
    with pytest.raises(UserError, match="--onto checkpoint or dequantized .*relative error"):
        merge(str(adapter), tmp_path / "merged", None, "requantized")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("store", "onto"),
    slow_except(
        [("nf4", "requantized")],
        [*product(("nf4", "affine4", "torchao_int8"), ("dequantized",)), ("nf4", "requantized")],
    ),
)
def test_the_folder_is_plain_transformers_and_as_far_from_the_trained_model_as_told(
    store: str, onto: str, tmp_path: Path
) -> None:
    adapter = trained_on(store, tmp_path / "adapter")
    errors = merge(str(adapter), tmp_path / "merged", None, onto)
    trained = logits(load_with_base(find_adapter(str(adapter)))[0])
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    error = ((logits(plain) - trained).norm() / trained.norm()).item()
    assert errors["dequantized"] < 1e-5 < errors["requantized" if store == "nf4" else "checkpoint"]
    assert error == pytest.approx(errors[onto], rel=2) or max(error, errors[onto]) < 1e-5
    assert not any("lora" in name for name, _ in plain.named_parameters())
    modes = {oct(file.stat().st_mode) for file in (tmp_path / "merged").iterdir()}
    assert len(modes) == 1  # safetensors writes a file that only its owner may read


@pytest.mark.parametrize(
    ("bits", "onto"), slow_except([(4, "requantized")], product((4, 8), ("dequantized", "requantized")))
)
def test_an_adapter_of_a_base_that_is_stored_quantized_is_merged(
    bits: int, onto: str, tmp_path: Path
) -> None:
    """Transformers fails to save such a model, and its weights before quantization are not in its files."""
    quantization = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    quantized = AutoModelForSeq2SeqLM.from_pretrained(
        ASSETS, quantization_config=quantization, device_map={"": "cpu"}
    )
    quantized.save_pretrained(tmp_path / "base")
    for file in ASSETS.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "base")
    fields = {f"load_in_{bits}bit": True} if onto == "dequantized" else {}  # not needed, and allowed
    config = ModelConfig(model_name_or_path=str(tmp_path / "base"), **fields)
    adapter = trained_on(config, tmp_path / "adapter")
    with pytest.raises(UserError, match="--onto is missing: .* --onto dequantized or requantized .*"):
        merge(str(adapter), tmp_path / "merged", None, None)
    errors = merge(str(adapter), tmp_path / "merged", None, onto)
    assert list(errors) == ["dequantized", "requantized"]
    trained = logits(load_with_base(find_adapter(str(adapter)))[0])
    merged = load_model(ModelConfig(model_name_or_path=str(tmp_path / "merged")), pick_device())
    error = ((logits(merged) - trained).norm() / trained.norm()).item()
    assert error == pytest.approx(errors[onto], rel=2) or max(error, errors[onto]) < 1e-5


def test_a_manifest_that_says_no_store_is_named(tmp_path: Path) -> None:
    adapter = trained_on("nf4", tmp_path / "adapter")
    manifest = json.loads((adapter / "lora_hf.json").read_text())
    for wrong in ({"load_in_4bit": "perhaps"}, {"bits": 3}, "nf4"):
        (adapter / "lora_hf.json").write_text(json.dumps(manifest | {"base_store": wrong}))
        with pytest.raises(UserError, match=rf"lora_hf.json.*base_store={re.escape(repr(wrong))}"):
            load_with_base(find_adapter(str(adapter)))


@pytest.mark.slow
def test_qalora_takes_its_groups_from_the_store_and_comes_back(tmp_path: Path) -> None:
    adapter = trained_on("affine4", tmp_path / "adapter", use_qalora=True)
    assert json.loads((adapter / "adapter_config.json").read_text())["qalora_group_size"] == 64
    errors = merge(str(adapter), tmp_path / "merged", None, "dequantized")
    assert errors["dequantized"] < 1e-5 < errors["checkpoint"]


def test_the_merged_weights_have_the_dtype_of_the_checkpoint_or_the_one_asked_for(tmp_path: Path) -> None:
    base = AutoModelForSeq2SeqLM.from_pretrained(ASSETS, dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    for file in ASSETS.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "base")
    adapter = str(trained_on(ModelConfig(model_name_or_path=str(tmp_path / "base")), tmp_path / "adapter"))
    for asked, written in ((None, "BF16"), ("float32", "F32")):
        folder = tmp_path / written
        merge(adapter, folder, None, None, dtype=asked)
        assert set(read_dtypes(folder / "model.safetensors").values()) == {written}
    with pytest.raises(
        UserError, match=r"--dtype 'bf16' must be one of \['float32', 'bfloat16', 'float16'\]"
    ):
        merge(adapter, tmp_path / "other", None, None, dtype="bf16")


def test_memory_that_runs_out_while_merging_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*args: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("lora_hf.saved.merge.merge_and_unload", out_of_memory)
    adapter = trained_on(ModelConfig(), tmp_path / "adapter")
    with pytest.raises(
        UserError, match=r"merging .*adapter: out of memory \(no room\); --dtype bfloat16 takes"
    ):
        merge(str(adapter), tmp_path / "merged", None, None)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("store", slow_except(["affine4"], ["affine4", "nf4"]))
def test_a_base_that_is_quantized_to_other_values_is_noticed(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = trained_on(store, tmp_path / "adapter")
    file = adapter / "lora_hf.json"
    manifest = json.loads(file.read_text())
    load_with_base(find_adapter(str(adapter)))
    assert "quantized to other values" not in caplog.text
    file.write_text(json.dumps(manifest | {"base_codes_sha256": "0" * 64}))
    load_with_base(find_adapter(str(adapter)))
    assert "was trained on a base that was quantized to other values than this one" in caplog.text


@pytest.mark.slow
def test_an_adapter_of_other_columns_is_merged_and_examined(tmp_path: Path) -> None:
    """Merging is measured on the package's own dialogues, whose columns are `dialogue` and `summary`."""
    extra = {"dialogue_column": "chat", "summary_column": "note.short", "id_column": "nr", "explode": "notes"}
    model = inject_adapters(load_model(ModelConfig(), pick_device()), LoraConfig(r=4))
    randomize(model)
    adapter = save_adapter(model, tmp_path / "adapter", extra=extra)
    assert merge(str(adapter), tmp_path / "merged", None, None)["merged"] < 1e-5
    faults = [finding.title for finding in of_adapter(str(adapter)) if finding.state == "fault"]
    assert not faults
