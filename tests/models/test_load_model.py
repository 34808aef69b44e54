"""Loading the base: dense and 4-bit, dtypes, the guarded head, fingerprints, clear errors."""

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from support.models import CPU, MODELS, T5_SHAPE, gradients_of, make_t5, randomize, saved
from support.selection import slow_except
from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from lora_hf import LoraConfig, LoraTrainer, count_parameters, inject_adapters, load_adapter, save_adapter
from lora_hf.adapters.backends.bitsandbytes import keep_differentiable
from lora_hf.adapters.model_state import lora_layers, model_state
from lora_hf.config import ModelConfig
from lora_hf.errors import UserError
from lora_hf.models.load import ASSETS, load_model, load_tokenizer
from lora_hf.models.storage import STORAGE_FORMATS
from lora_hf.system import resolve_dtype


@pytest.mark.parametrize("kind", MODELS)
def test_any_seq2seq_model_loads_from_a_folder_with_its_own_outputs(
    kind: str, tmp_path: Path, batch: dict
) -> None:
    model = load_model(saved(tmp_path, kind), CPU)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, MODELS[kind][0]()(**batch).logits)
    assert not model.training and len(model_state(model).base_fingerprint) == 16


def test_the_device_may_be_a_name(tmp_path: Path) -> None:
    assert load_model(saved(tmp_path), "cpu").device == CPU
    for wrong in ("gpu", 1.5):
        with pytest.raises(UserError, match=f"^device={wrong!r} is not a device, such as cpu"):
            load_model(saved(tmp_path), wrong)


def test_an_untied_head_stays_untied_and_a_tied_one_tied(tmp_path: Path) -> None:
    untied = load_model(saved(tmp_path / "a"), CPU)
    untied.tie_weights()
    assert not torch.equal(untied.lm_head.weight, untied.shared.weight)
    tied = load_model(saved(tmp_path / "b", "bart"), CPU)
    tied.tie_weights()
    assert tied.lm_head.weight is tied.model.shared.weight


def test_the_fingerprint_is_the_checkpoint_s_whatever_the_dtype(tmp_path: Path) -> None:
    config = saved(tmp_path)
    half = load_model(config.model_copy(update={"dtype": "bfloat16"}), CPU)
    assert half.dtype == torch.bfloat16
    assert model_state(half).base_fingerprint == model_state(load_model(config, CPU)).base_fingerprint


def test_auto_is_float32_on_a_cpu_and_never_float16() -> None:
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_on_cuda_goes_by_the_capability(
    capability: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_dtype("auto", torch.device("cuda", 0)) == expected


def test_full_fine_tuning_keeps_float32_master_weights_and_refuses_4_bits(tmp_path: Path) -> None:
    config = saved(tmp_path).model_copy(update={"dtype": "bfloat16"})
    assert load_model(config, CPU, train_all=True).dtype == torch.float32
    with pytest.raises(UserError, match="4-bit weights cannot all be trained"):
        load_model(config.model_copy(update={"load_in_4bit": True}), CPU, train_all=True)


@pytest.mark.parametrize(
    ("quant_type", "double"),
    slow_except([("nf4", True)], product(("nf4", "fp4"), (False, True)), versions=True),
)
def test_a_4_bit_base_trains_saves_and_loads_on_a_cpu(
    quant_type: str, double: bool, tmp_path: Path, batch: dict
) -> None:
    config = saved(tmp_path / "base").model_copy(
        update={"load_in_4bit": True, "bnb_4bit_quant_type": quant_type, "bnb_4bit_use_double_quant": double}
    )
    model = load_model(config, CPU)
    q = model.encoder.block[0].layer[0].SelfAttention.q
    assert type(q).__name__ == "Linear4bit" and type(model.lm_head) is nn.Linear
    keep_differentiable(model)
    with torch.no_grad():
        base = model(**batch).logits
    inject_adapters(model, LoraConfig(r=4, lora_alpha=10))
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, base)
    packed = {n: m.weight.detach().clone() for n, m in lora_layers(model).items()}
    train_two_steps(model, tmp_path / "out")
    assert all(torch.equal(m.weight, packed[n]) for n, m in lora_layers(model).items())
    model.eval()
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(load_model(config, CPU), tmp_path / "adapter")
    with torch.no_grad():
        trained = model(**batch).logits
        assert torch.equal(again(**batch).logits, trained) and not torch.equal(trained, base)
    assert model.generate(batch["input_ids"], max_new_tokens=4).shape[0] == 3


@pytest.mark.parametrize("loaded_here", [True, False])
def test_gradients_flow_through_a_4_bit_base_after_an_evaluation(
    loaded_here: bool, tmp_path: Path, batch: dict
) -> None:
    """On a processor with AVX512-BF16, bitsandbytes repacks at the first evaluation and loses them."""
    sizes = {"d_model": 64, "d_kv": 32, "num_heads": 2, "d_ff": 64}  # 32 and 64 divide them: it repacks
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(**(T5_SHAPE | sizes))).save_pretrained(tmp_path)
    config = ModelConfig(model_name_or_path=str(tmp_path), load_in_4bit=True)
    model = load_model(config, CPU)
    if not loaded_here:
        four_bit = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, quantization_config=four_bit).eval()
        with torch.no_grad():
            model(**batch)
    inject_adapters(model, LoraConfig(r=4, lora_alpha=10))
    randomize(model)
    before = gradients_of(model, batch)
    with torch.no_grad():
        model.eval()(**batch)
    assert before.abs().max() > 0
    assert torch.equal(gradients_of(model, batch), before)


def train_two_steps(model: nn.Module, folder: Path) -> None:
    from support.tiny_trainer import Rows, arguments, make_trainer

    trainer = make_trainer(
        model, arguments(folder, max_steps=2, learning_rate=0.05), LoraTrainer, train_dataset=Rows(8)
    )
    trainer.train()
    assert not getattr(model, "_hf_peft_config_loaded", False)


def test_weights_of_a_4_bit_base_are_counted_as_the_numbers_they_stand_for(tmp_path: Path) -> None:
    config = saved(tmp_path)
    dense = count_parameters(load_model(config, CPU))[1]
    assert count_parameters(load_model(config.model_copy(update={"load_in_4bit": True}), CPU))[1] == dense


def test_the_embedded_model_and_its_tokenizer_load_by_name() -> None:
    assert load_model(ModelConfig(), CPU).name_or_path == "embedded"
    assert (
        load_tokenizer(ModelConfig())("A: Hi!").input_ids
        == AutoTokenizer.from_pretrained(ASSETS)("A: Hi!").input_ids
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"model.model_name_or_path='./nowhere': no such folder"),
        ("/a/b/c", "no such folder"),
        ("base/", "'base/': no such folder. The path begins at the current folder"),
        ("my base", "'my base': no such folder. The path begins at the current folder"),
        ("nobody/nothing", "'nobody/nothing' cannot be loaded.*'embedded', a toy, needs neither"),
    ],
)
def test_a_missing_model_is_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(ModelConfig(model_name_or_path=name), CPU)


def test_a_folder_without_a_config_or_with_a_pickle_only_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder has no config.json; it holds nothing"):
        load_model(ModelConfig(model_name_or_path=str(tmp_path)), CPU)
    model = make_t5()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no weights in safetensors .* it holds pytorch_model.bin. Load it"):
        load_model(ModelConfig(model_name_or_path=str(tmp_path)), CPU)


@pytest.mark.parametrize("holds", ["adapter", "model"])
def test_the_directory_of_a_run_is_no_base_and_the_error_says_what_to_give(
    holds: str, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("method: lora")
    (tmp_path / holds).mkdir()
    (tmp_path / "adapter").mkdir(exist_ok=True)
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "google/flan-t5-base"}'
    )
    says = {
        "adapter": "holds an adapter .*, 'google/flan-t5-base', and pass",
        "model": f"give {tmp_path / 'model'}",
    }
    if holds == "model":
        shutil.rmtree(tmp_path / "adapter")
    for load in (load_tokenizer, lambda config: load_model(config, CPU)):
        with pytest.raises(UserError, match=f"model.model_name_or_path=.*{says[holds]}"):
            load(ModelConfig(model_name_or_path=str(tmp_path)))


def test_an_adapter_on_the_hub_is_no_base_and_the_error_names_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a connection the Hub's list of files is unknown, but the local copy is there."""
    commit, repo = "c" * 40, tmp_path / "models--somebody--adapter"
    folder = shutil.copytree(ASSETS, repo / "snapshots" / commit)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "google/flan-t5-base"}')
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match="holds an adapter .*, 'google/flan-t5-base', and pass the adapter by"
    ):
        load_model(ModelConfig(model_name_or_path="somebody/adapter"), CPU)


def test_a_folder_without_a_tokenizer_is_one_error_and_no_empty_tokenizer(tmp_path: Path) -> None:
    for file in (ASSETS / "config.json", ASSETS / "model.safetensors"):
        (tmp_path / file.name).symlink_to(file)
    with pytest.raises(UserError, match="there is no tokenizer beside the model"):
        load_tokenizer(ModelConfig(model_name_or_path=str(tmp_path)))


@pytest.mark.parametrize(
    ("file", "has_model"),
    [("adapter_config.json", False), ("adapter_config.json", True), ("lora_hf.json", False)],
)
def test_an_adapter_folder_is_refused_as_a_base(file: str, has_model: bool, tmp_path: Path) -> None:
    """Transformers would apply it where PEFT is installed, and ignore it where it is not.

    Prompt tuning and bottleneck adapters have the manifest alone; beside a whole model it holds the prompt.
    """
    folder = shutil.copytree(ASSETS, tmp_path / "base")
    (folder / file).write_text('{"base_model_name_or_path": "google/flan-t5-base"}')
    if not has_model:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    config = ModelConfig(model_name_or_path=str(folder))
    for load in (load_tokenizer, lambda config: load_model(config, CPU)):
        with pytest.raises(UserError, match=f"holds an adapter .{file}.*, 'google/flan-t5-base', and"):
            load(config)


@pytest.mark.parametrize("given", ["google/flan-t5-small", None, {"model_name_or_path": "embedded"}])
def test_a_name_in_the_place_of_the_settings_is_one_error(given: Any) -> None:
    with pytest.raises(
        UserError, match=r"config=.* is not a ModelConfig: pass lora_hf.ModelConfig\(model_name_or_path="
    ):
        load_model(given)


def test_memory_that_runs_out_while_loading_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(STORAGE_FORMATS["dense"], "load", no_room)
    says = "loading model.model_name_or_path='embedded': out of memory .*model.load_in_4bit: true"
    with pytest.raises(UserError, match=says):
        load_model(ModelConfig(), torch.device("cpu"))
