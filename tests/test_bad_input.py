"""Regression tests for inputs that fuzzers found; no code from outside is run."""

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import make_t5

from lora_hf import LoraConfig, inject_adapters, load_adapter, save_adapter
from lora_hf.adapters import targets
from lora_hf.adapters.checkpoint_io import MANIFEST_NAME
from lora_hf.adapters.peft_format import CONFIG_NAME, WEIGHTS_NAME
from lora_hf.config import DataConfig, ModelConfig
from lora_hf.config.load import load_config
from lora_hf.data import tokenize
from lora_hf.data.input_file import read_file
from lora_hf.data.tokenize import encode_sources
from lora_hf.errors import UserError
from lora_hf.evaluation.rouge import rouge_per_pair
from lora_hf.models.load import ASSETS, load_model, load_tokenizer


class Command:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """As PEFT would have written it: no manifest, and so no hash."""
    folder = save_adapter(inject_adapters(make_t5(), LoraConfig(r=2, lora_alpha=3)), tmp_path / "adapter")
    (folder / MANIFEST_NAME).unlink()
    return folder


def change(folder: Path, **fields: Any) -> None:
    file = folder / CONFIG_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"dialogue": ' + "9" * 5000 + "}", "line 1: not json: Exceeds the limit"),
        ("[" * 100_000, "line 1: not json: nested too deeply"),
        ('{"dialogue": "\\ud800"}', "not text"),
    ],
    ids=["digits", "depth", "half a character"],
)
def test_invalid_json_is_an_error_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    for name in ("data.jsonl", "data.json"):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=says.replace("line 1: ", "") if name.endswith("json") else says):
            read_file(tmp_path / name, DataConfig())


@pytest.mark.parametrize("unit", ["a", "Anna: Yes, at noon. ", " "])
def test_only_the_beginning_of_a_very_long_dialogue_is_tokenized(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, config = load_tokenizer(ModelConfig()), DataConfig(max_source_length=64)
    text = "x" + unit * (40_000 // len(unit)) + "x"
    whole = encode_sources([text], tokenizer, config)
    monkeypatch.setattr(tokenize, "ABSURD", 1000)
    beginning = encode_sources([text], tokenizer, config)
    assert beginning._replace(lengths=whole.lengths) == whole
    assert beginning.lengths == pytest.approx(whole.lengths, rel=0.1)
    lengths = []
    monkeypatch.setattr(
        tokenize, "_encode", lambda texts, _: lengths.extend(map(len, texts)) or [[1] * 999] * len(texts)
    )
    assert len(tokenize._beginning("a" * 10**7, 64, tokenizer)) == 1000 and max(lengths) <= 1000


def test_texts_too_long_to_score_are_refused() -> None:
    with pytest.raises(UserError, match="reference 2 are too long for ROUGE-L: 10,000 and 10,000 words"):
        rouge_per_pair(["a", "a b " * 5000], ["a", "a b " * 5000])
    with pytest.raises(UserError, match="1 and 1 words, .* characters"):
        rouge_per_pair(["a" * 2_000_000], ["a"])
    assert rouge_per_pair(["a b " * 5000], ["a b"])["rouge1"][0] > 0


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
def test_a_regular_expression_that_takes_too_long_is_refused(
    adapter: Path, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "SECONDS", 0.1)
    pattern = "((.|..|...)+)+[0-9][0-9]"
    change(adapter, **{field: {pattern: 3} if field == "rank_pattern" else pattern})
    with pytest.raises(UserError, match=rf"{field}.*takes more than 0.1 s"):
        load_adapter(make_t5(), adapter)


@pytest.mark.parametrize("pattern", ["a{99999999999999999999}", "(" * 5000 + ")" * 5000])
def test_a_regular_expression_too_large_to_compile_is_refused(adapter: Path, pattern: str) -> None:
    change(adapter, target_modules=pattern)
    with pytest.raises(UserError, match="is not a regular expression"):
        load_adapter(make_t5(), adapter)


def test_gigabytes_that_do_not_fit_are_refused_by_their_header(adapter: Path) -> None:
    size = 1 << 40
    header = json.dumps({"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with (adapter / WEIGHTS_NAME).open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + size)  # a hole: no disk is used
    with pytest.raises(UserError, match="1 unexpected: x"):
        load_adapter(make_t5(), adapter)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "long"])
def test_a_large_or_special_file_is_not_read_as_json(adapter: Path, kind: str) -> None:
    file = adapter / CONFIG_NAME
    file.unlink()
    makes = {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda at: at.symlink_to("/dev/zero")}
    makes.get(kind, lambda at: at.write_bytes(b" " * 2**25))(file)
    with pytest.raises(UserError, match="is not a file|33,554,432 bytes; the limit is 16,777,216"):
        load_adapter(make_t5(), adapter)


def test_a_rank_beyond_the_layer_is_refused_before_memory_is_taken_for_it() -> None:
    with pytest.raises(UserError, match=r"^r=1000000000: layer \S+ has 56 inputs and outputs together"):
        inject_adapters(make_t5(), LoraConfig(r=10**9))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("training: {dataloader_num_workers: 1000000000}", "must be at most 1024"),
        ("training: {lr_scheduler_type: cosine_with_min_lr}", "min_lr"),
        (
            "training: {torch_compile: true, torch_compile_mode: fast}",
            "is not one of default, reduce-overhead",
        ),
        ("training: {torch_compile_backend: inf}", "is not one of no, eager"),
        ("training: {dataloader_multiprocessing_context: fork}", "without training.dataloader_num_workers"),
        ("training: {accelerator_config: nowhere.json}", "must be a mapping of fields"),
        ("training: {metric_for_best_model: accuracy}", "is not one of loss, rouge1"),
        ("training: {data_seed: 1000000000000000000000000000000}", "data_seed=1.* must be at most"),
        ("training: {data_seed: 1152921504606846976}", "data_seed=1.* must be at most"),
        ("training: {eval_accumulation_steps: 0}", "eval_accumulation_steps=0 must be at least 1"),
        ("training: {per_device_eval_batch_size: 9223372036854775807}", "must be at most"),
        ("training: {predict_with_generate: false}", "must be true: evaluations"),
        ("training: {batch_eval_metrics: true}", "batch_eval_metrics=true has no use here"),
        ("generation: {num_beams: 1000000000}", "num_beams"),
        pytest.param(f"data: {{dataset_name: '{'9' * 256}'}}", "dataset_name='9.* is too long", id="name"),
        pytest.param(f"output_dir: {'deep/' * 820}", "output_dir='deep/.* is too long", id="path"),
        ("lora: {target_modules: 'a{99999999999999999999}'}", "is not a regular expression"),
    ],
)
def test_a_config_that_exhausts_the_machine_or_fails_later_is_refused(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("name", ["adapter_model.bin", WEIGHTS_NAME, CONFIG_NAME, MANIFEST_NAME])
def test_no_pickle_of_an_adapter_is_read(adapter: Path, tmp_path: Path, name: str) -> None:
    if name.endswith(".bin"):
        (adapter / WEIGHTS_NAME).unlink()
    (adapter / name).write_bytes(pickle.dumps(Command(tmp_path / "ran")))
    with pytest.raises(UserError):
        load_adapter(make_t5(), adapter)
    assert not (tmp_path / "ran").exists()
    pickle.loads((adapter / name).read_bytes())
    assert (tmp_path / "ran").exists()  # it would have run


def test_the_states_of_a_checkpoint_are_read_without_running_what_they_hold(tmp_path: Path) -> None:
    """Transformers reads them: the version that is installed is looked at here."""
    from lora_hf.training.trainer import LoraTrainer

    trainer = object.__new__(LoraTrainer)
    trainer.args = type("Args", (), {"world_size": 1, "process_index": 0})()
    torch.save({"python": Command(tmp_path / "ran")}, tmp_path / "rng_state.pth")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        trainer._load_rng_state(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_the_code_in_a_base_s_repository_is_neither_run_nor_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in ASSETS.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text())
    names = {"AutoConfig": "own.Own", "AutoModelForSeq2SeqLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    (base / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": names}))
    (base / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Own: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever is asked says yes
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(ModelConfig(model_name_or_path=str(base)), torch.device("cpu"))
    assert not (tmp_path / "ran").exists()
