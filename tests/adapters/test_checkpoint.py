"""Adapters on disk: PEFT's format both ways, equal bytes, and strict loading."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import CordaConfig
from safetensors.torch import load_file, save_file
from support.models import MODELS, make_bart, make_t5, randomize
from torch import nn
from transformers import (
    BartForSequenceClassification,
    BartModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    T5ForConditionalGeneration,
)

from lora_hf import LoraConfig, inject_adapters, load_adapter, merge_adapters, save_adapter
from lora_hf.adapters.base_revision import _are_equal
from lora_hf.adapters.model_state import lora_layers, update_state
from lora_hf.errors import UserError
from lora_hf.files import checkpoint_fingerprint

CONFIG = LoraConfig(r=4, lora_alpha=10)


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def saved(directory: Path, config: LoraConfig = CONFIG, make=make_t5) -> nn.Module:
    torch.manual_seed(5)
    model = inject_adapters(make(), config)
    randomize(model)
    save_adapter(model, directory)
    return model


def test_adapters_beside_the_one_that_is_loaded_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PEFT and `LoraTrainer.save_model` write adapters with a name of their own into folders below."""
    saved(tmp_path)
    load_adapter(make_t5(), tmp_path)
    assert not caplog.text
    saved(tmp_path / "second")
    load_adapter(make_t5(), tmp_path)
    assert "holds further adapters, which are not loaded: second. To load one, give its folder" in caplog.text


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("init", [True, "gaussian"])
def test_peft_reads_ours_with_the_same_logits(
    kind: str, init: bool | str, tmp_path: Path, batch: dict
) -> None:
    make, targets = MODELS[kind]
    ours = saved(
        tmp_path, LoraConfig(r=4, lora_alpha=10, target_modules=targets, init_lora_weights=init), make
    )
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs, batch), logits(ours, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("as_regex", [False, True])
def test_we_read_peft_s_with_the_same_logits(kind: str, as_regex: bool, tmp_path: Path, batch: dict) -> None:
    make, targets = MODELS[kind]
    names = rf".*({'|'.join(targets)})" if as_regex else list(targets)
    config = peft.LoraConfig(
        r=4, lora_alpha=10, lora_dropout=0.1, target_modules=names, task_type="SEQ_2_SEQ_LM"
    )
    theirs = peft.get_peft_model(make(), config).eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(make(), tmp_path)
    torch.testing.assert_close(logits(ours, batch), logits(theirs, batch), rtol=0, atol=1e-5)


def test_a_saved_adapter_loads_with_the_same_logits_and_frozen(tmp_path: Path, batch: dict) -> None:
    model = saved(tmp_path)
    again = load_adapter(make_t5(), tmp_path)
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert not any(p.requires_grad for p in again.parameters())
    trainable = load_adapter(make_t5(), tmp_path, trainable=True)
    assert sum(p.requires_grad for p in trainable.parameters()) == 2 * len(lora_layers(trainable))


def test_loading_does_not_change_the_random_state(tmp_path: Path) -> None:
    saved(tmp_path)
    model = make_t5()
    before = torch.get_rng_state()
    load_adapter(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_adapters_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors", "lora_hf.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_keys_and_shapes_are_peft_s(tmp_path: Path) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.decoder.block.0.layer.1.EncDecAttention.q"
    assert tensors[f"{key}.lora_A.weight"].shape == (4, 32)
    assert tensors[f"{key}.lora_B.weight"].shape == (24, 4)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q", "v"] and config["task_type"] == "SEQ_2_SEQ_LM"
    assert config["lora_alpha"] == 10 and config["inference_mode"] is True


def test_an_adapter_of_another_name_goes_to_its_own_folder(tmp_path: Path, batch: dict) -> None:
    model = inject_adapters(make_t5(), CONFIG, "german")
    randomize(model)
    assert save_adapter(model, tmp_path, "german") == tmp_path / "german"
    again = load_adapter(make_t5(), tmp_path / "german", "anything")
    assert torch.equal(logits(again, batch), logits(model, batch))
    with pytest.raises(UserError, match=r"no adapter 'default' to save; the model has \['german'\]"):
        save_adapter(model, tmp_path)


def damage(directory: Path, change) -> None:
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    (directory / "lora_hf.json").unlink()  # as a file from PEFT: no hash to notice by


def test_missing_unexpected_and_misshaped_tensors_are_one_error(tmp_path: Path) -> None:
    saved(tmp_path)
    prefix = "base_model.model.encoder.block.0.layer.0.SelfAttention"

    def change(tensors: dict) -> None:
        del tensors[f"{prefix}.q.lora_A.weight"]
        tensors[f"{prefix}.k.lora_A.weight"] = torch.zeros(4, 32)
        tensors[f"{prefix}.v.lora_B.weight"] = torch.zeros(23, 4)

    damage(tmp_path, change)
    model = make_t5()
    with pytest.raises(UserError) as error:
        load_adapter(model, tmp_path)
    message = str(error.value)
    assert f"1 missing: {prefix}.q.lora_A.weight" in message
    assert f"1 unexpected: {prefix}.k.lora_A.weight" in message
    assert "(23, 4) here and (24, 4) in the model" in message
    assert not lora_layers(model)


def test_a_flipped_bit_is_found_by_the_manifest_s_hash(tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(UserError, match="not the file that was saved"):
        load_adapter(make_t5(), tmp_path)


def test_a_truncated_file_is_a_clear_error(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "lora_hf.json").unlink()
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        load_adapter(make_t5(), tmp_path)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match="only a pickle"):
        load_adapter(make_t5(), tmp_path)


def test_a_folder_without_an_adapter_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an adapter folder"):
        load_adapter(make_t5(), tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_bias": True},
        {"init_lora_weights": "corda"},
        {"trainable_token_indices": [1]},
        {"layers_pattern": "block"},
        {"a_new_field": 3},
    ],
)
def test_peft_fields_we_do_not_implement_are_refused_by_name(tmp_path: Path, fields: dict) -> None:
    saved(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(UserError, match=f"not implemented: {next(iter(fields))}="):
        load_adapter(make_t5(), tmp_path)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    model = inject_adapters(make_t5(), CONFIG)
    update_state(model, base_fingerprint="aaaa")
    model.name_or_path = "first/base"
    save_adapter(model, tmp_path)
    other = make_t5()
    update_state(other, base_fingerprint="bbbb")
    other.name_or_path = "other/base"
    with pytest.raises(UserError, match="trained on first/base .*aaaa.* this base is other/base .*bbbb"):
        load_adapter(other, tmp_path)


def test_the_fingerprint_depends_on_weights_and_not_on_shards(tmp_path: Path) -> None:
    model = make_t5()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    whole, shards = (sorted((tmp_path / n).glob("*.safetensors")) for n in ("whole", "shards"))
    assert len(whole) == 1 < len(shards)
    assert checkpoint_fingerprint(whole) == checkpoint_fingerprint(shards)
    with torch.no_grad():
        model.encoder.block[0].layer[0].SelfAttention.q.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "changed")
    assert checkpoint_fingerprint((tmp_path / "changed").glob("*.safetensors")) != checkpoint_fingerprint(
        whole
    )
    shutil.rmtree(tmp_path)


def test_peft_s_randomized_pissa_is_loaded_only_after_conversion_to_lora(tmp_path: Path, batch: dict) -> None:
    config = peft.LoraConfig(
        r=4, lora_alpha=10, target_modules=["q"], init_lora_weights="pissa_niter_4", task_type="SEQ_2_SEQ_LM"
    )
    theirs = peft.get_peft_model(make_t5(), config).eval()
    theirs.peft_config["default"].init_lora_weights = True  # or reading its start again would draw another
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa_niter_4"
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "as_it_is")
    model = make_t5()
    with pytest.raises(UserError, match="'pissa_niter_4' .* path_initial_model_for_weight_conversion="):
        load_adapter(model, tmp_path / "as_it_is")
    assert not lora_layers(model)
    expected = logits(theirs, batch)
    start = str(tmp_path / "start")
    theirs.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=start)
    ours = load_adapter(make_t5(), tmp_path / "converted")
    torch.testing.assert_close(logits(ours, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_peft_s_settings_of_a_finished_initialization_are_ignored(tmp_path: Path, batch: dict) -> None:
    options = {"target_modules": ["q"], "task_type": "SEQ_2_SEQ_LM"}
    for name, fields in {
        "eva": {"init_lora_weights": "eva", "eva_config": peft.EvaConfig(rho=1.0)},
        "corda": {"corda_config": CordaConfig()},  # as it is converted
    }.items():
        theirs = peft.get_peft_model(make_t5(), peft.LoraConfig(**options, **fields)).eval()
        randomize(theirs)
        theirs.save_pretrained(tmp_path / name)
        assert f'"{name}_config": {{' in (tmp_path / name / "adapter_config.json").read_text()
        ours = load_adapter(make_t5(), tmp_path / name)
        torch.testing.assert_close(logits(ours, batch), logits(theirs, batch), rtol=0, atol=1e-5)


LLAMA = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_labels=3,
    pad_token_id=0,
)


@pytest.mark.parametrize(
    ("task_type", "kind"),
    [("SEQ_CLS", LlamaForSequenceClassification), ("TOKEN_CLS", LlamaForTokenClassification)],
)
def test_a_head_that_peft_lists_and_the_model_lacks_is_ignored(
    task_type: str, kind: type, tmp_path: Path
) -> None:
    def base() -> nn.Module:
        torch.manual_seed(0)
        return kind(LLAMA).eval()

    config = peft.LoraConfig(r=4, lora_alpha=10, task_type=task_type, target_modules=["q_proj"])
    theirs = peft.get_peft_model(base(), config).eval()
    randomize(theirs)
    with torch.no_grad():
        theirs.base_model.model.score.modules_to_save["default"].weight.normal_()
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(base(), tmp_path)
    inputs = {"input_ids": torch.arange(1, 9)[None]}
    torch.testing.assert_close(logits(ours, inputs), logits(theirs, inputs), rtol=0, atol=1e-5)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"modules_to_save": ["classifier"]}))
    with pytest.raises(UserError, match="unexpected: base_model.model.score"):
        load_adapter(base(), tmp_path)


def test_patterns_that_overlap_mean_the_same_before_saving_and_after(tmp_path: Path, batch: dict) -> None:
    config = LoraConfig(r=3, rank_pattern={"q": 4, "SelfAttention.q": 2}, alpha_pattern={"v": 9, ".*v": 7})
    model = inject_adapters(make_t5(), config)
    randomize(model)
    folder = save_adapter(model, tmp_path)
    again = load_adapter(make_t5(), folder)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
        theirs = peft.PeftModel.from_pretrained(make_t5(), folder).eval()
        torch.testing.assert_close(theirs(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", [BartModel, BartForSequenceClassification])
def test_peft_reads_the_adapters_of_encoder_decoders_that_do_not_generate(
    head: type, tmp_path: Path, batch: dict
) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return head(make_bart().config).eval()

    ids = torch.cat([batch["input_ids"], torch.full((len(batch["input_ids"]), 1), 2)], dim=1)
    ours = saved(tmp_path, make=make)
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids)[0], ours(input_ids=ids)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, torch.int8], ids=str)
def test_values_that_are_not_finite_numbers_are_refused(value: float | torch.dtype, tmp_path: Path) -> None:
    """PEFT's folders have no hash that would tell; such an adapter writes empty texts."""
    saved(tmp_path)
    (tmp_path / "lora_hf.json").unlink()
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    if isinstance(value, torch.dtype):
        tensors[name] = tensors[name].mul(100).to(value)
    else:
        tensors[name][0, 0] = value
    save_file(tensors, file)
    model = make_t5()
    before = {key: id(module) for key, module in model.named_modules()}
    with pytest.raises(
        UserError, match=r"lora_A.weight (has NaN or infinite values|is stored as torch.int8)"
    ):
        load_adapter(model, tmp_path)
    assert {key: id(module) for key, module in model.named_modules()} == before


def other_block(model: Any) -> None:
    nn.init.zeros_(model.decoder.block[1].layer[2].DenseReluDense.wo.weight)


def later_rows(model: Any) -> None:
    """As where tokens were added, or trained."""
    nn.init.zeros_(model.lm_head.weight[20:])


def as_pickles(folder: Path) -> None:
    """Write the weights as most repositories of before 2023 have them."""
    (file,) = folder.glob("*.safetensors")
    held = load_file(file) | {"version": 3, "more": [1]}
    torch.save(held, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    file.unlink()


def attention(model: Any) -> None:
    nn.init.zeros_(model.encoder.block[0].layer[0].SelfAttention.q.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_is_that_of_a_file_after_a_cast_to_half_precision_and_back(dtype: torch.dtype) -> None:
    held = torch.randn(4, 4)
    assert _are_equal(held, held) and _are_equal(held, held.to(dtype).float())
    assert not _are_equal(held, held.to(dtype).float() + 0.1)


@pytest.mark.parametrize("revision", ["main", "v1"])
@pytest.mark.parametrize("is_pickle", [False, True])
@pytest.mark.parametrize(
    ("change", "merges"), [(other_block, True), (later_rows, False), (attention, False), (attention, True)]
)
def test_the_commit_of_a_base_that_transformers_has_loaded_is_found_in_the_hub_s_cache(
    change: Any,
    merges: bool,
    is_pickle: bool,
    revision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Transformers does not record it, and without it, readers take main."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository, commits = tmp_path / "hub" / "models--anna--t5", {"main": "b" * 40, "v1": "a" * 40}
    (repository / "refs").mkdir(parents=True)
    for name, commit in commits.items():
        (repository / "refs" / name).write_text(commit)
        model = make_t5()
        if name == "v1":  # which differs in one weight alone
            change(model)
        model.save_pretrained(repository / "snapshots" / commit)
    model = T5ForConditionalGeneration.from_pretrained(repository / "snapshots" / commits[revision])
    if is_pickle:
        as_pickles(repository / "snapshots" / commits["v1"])
    model.name_or_path, model.config._commit_hash = "anna/t5", None  # some versions know it by the folder
    adapted = inject_adapters(model, LoraConfig(r=2, modules_to_save=["final_layer_norm"]))
    randomize(adapted)
    if merges:
        merge_adapters(adapted)
    save_adapter(adapted, tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    is_known = not (merges and change is attention)
    assert written.get("revision") == (commits[revision] if is_known else None)
    assert ("revision is not known and not recorded" in caplog.text) == (not is_known)
    model.decoder.block[0].layer[2].DenseReluDense.wo.weight.data.add_(1)  # of no revision
    model.config._commit_hash = None
    save_adapter(adapted, tmp_path / "other")
    assert "has all of this model's weights, so that the base's revision is not recorded" in caplog.text
    assert "revision" not in json.loads((tmp_path / "other" / "adapter_config.json").read_text())
