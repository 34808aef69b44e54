"""A plan's weights, bytes in memory and bytes on disk equal those of a run."""

import json
import re
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.models import make_t5, untie_head
from support.selection import slow_except
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.trainer_pt_utils import LabelSmoother

from lora_hf import LoraConfig, cli, inject_adapters
from lora_hf.adapters.backends import backend_for, is_linear
from lora_hf.config import METHOD_CHOICES, RunConfig
from lora_hf.config.load import load_config
from lora_hf.errors import UserError
from lora_hf.fast.loss import chunked_cross_entropy
from lora_hf.fast.t5 import faster, without_head
from lora_hf.models.flan_t5 import COMMON, SIZES
from lora_hf.models.load import load_model
from lora_hf.planning import activations, measure
from lora_hf.planning.activations import (
    Batch,
    Computation,
    _traced,
    activation_bytes,
    flan_t5_bytes,
    training,
    writing,
)
from lora_hf.planning.fake_model import count_weights, flan_t5, outline
from lora_hf.planning.memory_tracker import LiveBytes
from lora_hf.planning.plan import computation, memory, plan, plan_step
from lora_hf.reporting.plan_table import plan_terminal
from lora_hf.runs.run import execute

LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}
BATCH = Batch(4, 64, 16)
CUDA = Computation(torch.bfloat16, torch.bfloat16, True, "cuda")


def config(**fields: Any) -> RunConfig:
    return RunConfig(**({"model": {"model_name_or_path": "google/flan-t5-small"}, "lora": LORA} | fields))


def test_bytes_are_counted_from_allocation_to_release() -> None:
    known = torch.ones(1000)
    with LiveBytes([known]) as live:
        a = torch.ones(10)  # 40 bytes
        b = a.view(2, 5) * 2  # 40 more: the view has none of its own
        assert live.now == 80
        del a
        assert live.now == 40 and live.peak == 80
        c = known[:10] + b.flatten()
        assert live.now == 80
        del b, c
    assert live.now == 0 and live.peak == 80


@pytest.mark.parametrize(
    ("size", "base", "r", "added"),
    slow_except(
        [("small", 76_961_152, 8, 344_064)],
        [
            ("small", 76_961_152, 8, 344_064),
            ("base", 247_577_856, 32, 3_538_944),
            ("xxl", None, 16, 18_874_368),
        ],
    ),
)
def test_weights_are_those_of_the_checkpoints(size: str, base: int | None, r: int, added: int) -> None:
    run = config(lora={"r": r, "lora_alpha": r})
    with outline(run, flan_t5(size), torch.bfloat16) as model:
        parts, trainable, _ = count_weights(model, True)
    assert parts["added"] == trainable == added
    assert base in (None, sum(n for part, n in parts.items() if part != "added"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fast", "method", "layers"),
    [(False, "full", 5), (True, "full", 5), (False, "lora", 8), (True, "lora", 8)],
)
def test_layers_beyond_the_third_hold_as_much_as_it(
    fast: bool, method: str, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For full fine-tuning they do not, from the fifth block on: all blocks are traced."""
    run, settings = config(method=method), flan_t5("small")
    settings.num_layers = settings.num_decoder_layers = layers
    how = Computation(torch.bfloat16, torch.bfloat16, fast)
    changes = activations._changes

    @cache
    def once(n: int) -> list[int]:
        return changes(run, settings, BATCH, how, n, training)

    monkeypatch.setattr(activations, "_changes", lambda *of: once(of[4] or layers))
    whole = _traced(run, settings, BATCH, how, layers)
    planned = activation_bytes(run, settings, BATCH, how)
    assert planned == pytest.approx(whole, rel=0.002)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "size"),
    [({"lora": LORA | {"use_dora": True}}, "xl"), ({"method": "prompt_tuning"}, "large")],
)
def test_a_size_s_bytes_from_the_traces_of_all_are_those_of_its_own(
    fields: dict[str, Any], size: str
) -> None:
    run = config(**fields)
    own = activation_bytes(run, flan_t5(size), BATCH, CUDA)
    assert flan_t5_bytes(run, BATCH, CUDA)(SIZES[size]) == own


@pytest.mark.parametrize(
    ("layers", "more"),
    slow_except(
        [(2, {"modules_to_save": ["lm_head"]})],
        [
            (4, {}),
            (2, {"modules_to_save": ["lm_head"]}),
            (4, {"layer_replication": {"decoder": [[0, 3], [2, 4]]}}),
        ],
    ),
)
def test_planned_activations_equal_those_of_a_step(layers: int, more: dict[str, Any]) -> None:
    """The same count, over a real step on real tensors."""
    shape = {"d_model": 64, "d_ff": 128, "num_layers": layers, "num_heads": 2}
    settings = T5Config(**COMMON, **shape)
    base = T5ForConditionalGeneration(settings)
    untie_head(base)
    model = inject_adapters(base, LoraConfig(**LORA, **more)).train()
    ids = torch.ones(BATCH.dialogues, BATCH.source, dtype=torch.long)
    labels = torch.ones(BATCH.dialogues, BATCH.target, dtype=torch.long)
    with LiveBytes(model.state_dict(keep_vars=True).values()) as live, faster(model):
        if "modules_to_save" in more:
            model(input_ids=ids, decoder_input_ids=labels, labels=labels, use_cache=False).loss.backward()
        else:
            with without_head(model) as head:
                hidden = model(input_ids=ids, decoder_input_ids=labels, use_cache=False).logits
                chunked_cross_entropy(hidden, head, labels).backward()
    run = config(lora=LORA | more)
    planned = activation_bytes(run, settings, BATCH, Computation(torch.float32, None, fast=True))
    assert planned == pytest.approx(live.peak, rel=0.05)


@pytest.mark.slow
def test_a_compiled_step_is_planned_with_reference_blocks_and_without_all_logits() -> None:
    run, settings = config(), T5Config(**COMMON, d_model=64, d_ff=128, num_layers=2, num_heads=2)
    held = [
        activation_bytes(run, settings, BATCH, CUDA._replace(fast=fast, compiled=compiled))
        for fast, compiled in ((True, False), (False, True), (False, False))
    ]
    assert held == sorted(set(held))


@pytest.mark.slow
def test_label_smoothing_is_planned_with_all_logits() -> None:
    settings = T5Config(**COMMON, d_model=64, d_ff=128, num_layers=2, num_heads=2)
    run = config(training={"label_smoothing_factor": 0.1})
    base = T5ForConditionalGeneration(settings)
    untie_head(base)
    model = inject_adapters(base, LoraConfig(**LORA)).train()
    ids = torch.ones(BATCH.dialogues, BATCH.source, dtype=torch.long)
    labels = torch.ones(BATCH.dialogues, BATCH.target, dtype=torch.long)
    with LiveBytes(model.state_dict(keep_vars=True).values()) as live, faster(model):
        inputs = {"input_ids": ids, "decoder_input_ids": labels, "labels": labels}
        LabelSmoother(0.1)(model(**inputs, use_cache=False), labels).backward()
    planned = activation_bytes(run, settings, BATCH, computation(run, "cpu", torch.float32))
    assert planned == pytest.approx(live.peak, rel=0.05)


def test_a_full_fine_tuning_on_a_gpu_stores_float32(monkeypatch: pytest.MonkeyPatch, uncounted: None) -> None:
    monkeypatch.setattr("lora_hf.planning.plan._sizes", lambda *of: {})
    record = plan(config(method="full", data={"dataset_name": "nobody/nothing"}))
    assert {record["store"], *(way["store"] for way in record["ways"])} == {"float32"}


@pytest.mark.parametrize(
    ("training", "capability", "compiled"),
    [
        ({"max_steps": 2_000}, (8, 0), "by default"),
        ({"max_steps": 2_000}, (7, 5), None),
        ({"max_steps": 1_999}, (8, 0), None),
        ({}, (9, 0), "by default"),  # the number of steps is unknown, because the data is on the Hub
        ({"max_steps": 2_000, "gradient_checkpointing": True}, (8, 0), None),
        ({"torch_compile": False}, (8, 0), None),
        ({"torch_compile": True}, (7, 5), "asked"),
    ],
    ids=str,
)
def test_what_a_gpu_would_compile_is_planned_compiled(
    training: dict[str, Any], capability: tuple[int, int], compiled: str | None, monkeypatch: Any
) -> None:
    counted: list[tuple[Batch, Computation]] = []

    def held(run: RunConfig, settings: Any, batch: Batch, how: Computation, work: Any = None) -> int:
        if work is not writing:
            counted.append((batch, how))
        else:
            assert how.fast and not how.compiled  # evaluations run uncompiled
        return 2**33

    monkeypatch.setattr("lora_hf.planning.plan.activation_bytes", held)
    monkeypatch.setattr("lora_hf.planning.plan._sizes", lambda *of: {})
    monkeypatch.setattr("lora_hf.planning.plan.free_memory", lambda device: 2**33)
    monkeypatch.setattr("lora_hf.planning.plan.pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    data = {"dataset_name": "nobody/nothing", "max_source_length": 500, "max_target_length": 100}
    record = plan(config(data=data, training=training))
    batch, how = counted[0]
    assert record["compiled"] == record["ways"][0]["compiled"] == compiled
    assert (how.compiled, how.fast) == (compiled is not None, compiled is None)
    assert batch == (Batch(8, 512, 112) if compiled else Batch(8, 500, 100))
    off = [way for way in record["ways"] if way["overrides"] == ["training.torch_compile=false"]]
    assert [way["compiled"] for way in off] == ([None] if compiled == "by default" else [])
    shown = "\n".join(map(str, plan_terminal(record)))
    assert ("Compiled: an upper bound" in shown) is (compiled is not None)
    assert ("2,000 steps or more" in shown) is (compiled == "by default")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dtype"), [("small", "float32"), ("base", "bfloat16")])
def test_a_step_s_peak_is_within_15_percent_of_the_plan(size: str, dtype: str) -> None:
    """Resident memory of a process whose allocator gives back what is free: gaps in the heap come on top."""
    command = [
        sys.executable,
        "scripts/benchmarks/plan_check.py",
        "--shapes",
        size,
        "--dtypes",
        dtype,
        *("--batch", "4", "300", "40"),
        "--json",
    ]
    (case,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert case["planned_mib"] == pytest.approx(case["measured_mib"], rel=0.15)


@pytest.mark.parametrize("quantize_wo", slow_except([True], [False, True]))
@pytest.mark.parametrize(
    "fields",
    slow_except(
        [{"load_in_4bit": True}, {"load_in_8bit": True}],
        [
            {"load_in_4bit": True},
            {"load_in_4bit": True, "bnb_4bit_use_double_quant": False},
            {"load_in_4bit": True, "quant_method": "hqq"},
            {"load_in_8bit": True},
            {"load_in_8bit": True, "quant_method": "torchao"},
        ],
    ),
)
def test_a_quantized_model_takes_the_bytes_that_are_planned(
    fields: dict[str, Any], quantize_wo: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    shape = {"d_model": 256, "d_kv": 32, "d_ff": 1024, "num_layers": 2, "num_heads": 8, "vocab_size": 96}
    settings = T5Config(**shape, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
    random = type(make_t5())(settings)
    random.lm_head.weight = nn.Parameter(random.lm_head.weight.detach().clone())
    random.config.tie_word_embeddings = False
    random.save_pretrained(tmp_path)
    run = config(
        model={
            "model_name_or_path": str(tmp_path),
            "dtype": "bfloat16",
            "quantize_wo": quantize_wo,
            **fields,
        }
    )
    planned = memory(run, settings, run.model.storage, 0)["bytes"]["weights"]
    loaded = load_model(run.model, torch.device("cpu"))
    for side in ("encoder", "decoder"):
        layers = [m for m in loaded.get_submodule(side).modules() if is_linear(m)]
        assert planned[side] == pytest.approx(sum(backend_for(layer).nbytes for layer in layers), rel=0.05)


def test_a_full_fine_tuning_keeps_weights_gradients_and_moments_in_float32() -> None:
    bytes_ = memory(config(method="full"), flan_t5("small"), "bfloat16", 0)["bytes"]
    weights = sum(bytes_["weights"].values())
    assert weights == bytes_["gradients"] == bytes_["optimizer"] // 2 == 76_961_152 * 4


def test_gradient_checkpointing_needs_less_memory() -> None:
    how, settings = Computation(torch.bfloat16, torch.bfloat16, False), flan_t5("small")
    settings.num_layers = settings.num_decoder_layers = 2
    plain, saved = (
        activation_bytes(config(training=training), settings, Batch(8, 256, 32), how)
        for training in ({}, {"gradient_checkpointing": True})
    )
    assert saved < 0.4 * plain


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes longest and does not depend on data: the bytes of a step."""
    monkeypatch.setattr("lora_hf.planning.plan.activation_bytes", lambda *of, **options: 2**20)


def test_lengths_and_steps_come_from_local_data(uncounted: None) -> None:
    run = RunConfig(
        data={"max_train_samples": 50}, training={"per_device_train_batch_size": 4, "num_train_epochs": 2}
    )
    record = plan_step(run)
    assert record["steps"] == 26 and record["batch"]["dialogues"] == 4
    assert 50 < record["batch"]["source"] < 512
    assert "longest of 50 rows" in record["batch"]["lengths"]
    accumulated = run.model_copy(update={"training": run.training | {"gradient_accumulation_steps": 3}})
    assert plan_step(accumulated)["steps"] == 10  # 50 rows are five steps of 12


def test_steps_are_known_where_only_the_tokenizer_is_elsewhere(tmp_path: Path, uncounted: None) -> None:
    rows = [{"dialogue": f"Al: {n // 2} o'clock?", "summary": f"Al asks, {n}."} for n in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, fields = {"dataset_name": str(tmp_path)}, {"per_device_train_batch_size": 4, "num_train_epochs": 2}
    models = ("embedded", "google/flan-t5-small")
    here, elsewhere = (
        plan_step(RunConfig(data=data, training=fields, model={"model_name_or_path": name}))
        for name in models
    )
    assert here["steps"] == elsewhere["steps"] == 6
    assert "because the model's tokenizer is not on this machine" in elsewhere["batch"]["lengths"]


def test_a_quantized_base_is_timed_as_it_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[set[str]] = []

    class Watched(measure.LoraTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            timed.append({type(module).__name__ for module in self.model.modules()})
            return super().train(*args, **kwargs)

    monkeypatch.setattr(measure, "LoraTrainer", Watched)
    run = RunConfig(
        data={"max_train_samples": 16},
        training={"per_device_train_batch_size": 2},
        model={"load_in_4bit": True},
        lora={"init_lora_weights": "loftq"},
    )
    assert measure.step_seconds(run, {"batch": {"dialogues": 2, "source": 9, "target": 5}}) > 0
    assert "Linear4bit" in timed[0]


def test_copies_of_fake_tensors_share_their_mode() -> None:
    """Tensors of two modes cannot be used together, and a copied mode crashes a later garbage collection."""
    run = config(lora=LORA | {"modules_to_save": ["lm_head"]})
    with outline(run, flan_t5("small"), torch.float32, layers=1) as model:
        assert len({id(parameter.fake_mode) for parameter in model.parameters()}) == 1


def test_a_plan_for_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="method='base' trains nothing"):
        plan(config(method="base"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": {"dtype": "float16"}}, "model.dtype='float16' has too small a range"),
        ({"lora": {"init_lora_weights": "loftq"}}, "lora.init_lora_weights='loftq' compensates for quant"),
        ({"lora": {"init_lora_weights": "pissa", "r": 999}}, "lora.r=999: layer encoder.block.0."),
    ],
)
def test_a_plan_refuses_what_the_run_would_refuse_before_its_data_is_read(
    fields: dict[str, Any], named: str, tmp_path: Path
) -> None:
    run = RunConfig(**fields, data={"dataset_name": "embedded", "max_train_samples": 4})
    run = run.model_copy(update={"output_dir": str(tmp_path / "run")})
    for use in (plan, execute):
        with pytest.raises(UserError, match=re.escape(named)):
            use(run)
    assert not any(tmp_path.iterdir())


def test_a_target_that_matches_nothing_is_found_before_a_download() -> None:
    with pytest.raises(UserError, match="query"):
        plan(config(lora={"target_modules": ["query"]}))


@pytest.mark.slow
def test_the_command_needs_no_network_for_a_flan_t5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    command = ["plan", "--config", "lora_hf/configs/flan_t5_base_dialogsum_lora.yaml"]
    assert cli.run([*command, "--json"], debug=False) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["trainable"] == 3_538_944 and record["steps"] is None
    sizes = record["sizes"]
    assert set(sizes) == {"small", "base", "large", "xl", "xxl"}
    assert sizes["small"]["bfloat16"]["fits_gb"] == 8
    assert sizes["base"]["float32"]["fits_gb"] == 16  # with room on a T4
    assert sizes["xxl"]["float32"]["fits_gb"] in (80, None)
    monkeypatch.setattr("lora_hf.planning.plan.plan", lambda run: record)  # the same, shown as a table
    assert cli.run(command, debug=False) == 0
    shown = capsys.readouterr().out
    assert "247,577,856" not in shown and "3,538,944 of 251,116,800 train (1.41%)" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_shipped_config_of_the_base_size_fits_a_t4(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the doctor compares with the free memory on such a card: 7.9 GiB, planned as 17 at first."""
    monkeypatch.setattr("lora_hf.planning.plan.pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    record = plan_step(load_config("flan_t5_base_dialogsum_lora"))
    assert record["store"] == "float32"
    assert 7 * 2**30 < max(record["peak_bytes"], record["scoring_bytes"]) < 9 * 2**30


def test_a_plan_names_what_makes_a_run_fit_a_smaller_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def held(run: RunConfig, settings: Any, batch: Batch, how: Computation, work: Any = None) -> int:
        if work is writing:
            return 0
        return batch.dialogues * (10 if run.training.get("gradient_checkpointing") else 100) * 2**27

    monkeypatch.setattr("lora_hf.planning.plan.activation_bytes", held)
    monkeypatch.setattr("lora_hf.planning.plan.free_memory", lambda device: 2**33)
    monkeypatch.setattr(
        "lora_hf.planning.plan.flan_t5_bytes", lambda *of: lambda shape: shape["d_model"] * 2**24
    )
    sizes = {name: SIZES[name] for name in ("small", "base")}
    monkeypatch.setattr("lora_hf.planning.plan.SIZES", sizes)
    words = ["data.dataset_name=nobody/nothing", "training.gradient_accumulation_steps=2"]
    words += ["model.model_name_or_path=google/flan-t5-base", "training.per_device_train_batch_size=8"]
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(["plan", "--config", "flan_t5_base_dialogsum_lora", *words], debug=False) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert len(lines) <= 15 and max(map(len, lines)) <= 80
    assert re.search(r"on this machine: \w+, float32 .* 10\d.\d GiB +no, 8.0 GiB free", shown)
    fits = {line.split()[0]: line.split()[-3:] for line in lines if line.startswith("  ")}
    assert fits["training.per_device_train_batch_size=2"] == ["40", "GB", "GPU"]
    assert fits["training.gradient_checkpointing=true"] == ["16", "GB", "GPU"]
    assert fits["model.load_in_4bit=true"] == ["of", "80", "GB"]  # a GPU that does not exist
    assert fits["all"] == ["8", "GB", "GPU"] and "training.gradient_accumulation_steps=8" in shown
    assert "FLAN-T5" not in shown
    assert cli.run(["plan", "-v", "--config", "flan_t5_base_dialogsum_lora", *words], debug=False) == 0
    assert re.search(r"bfloat16, uncompiled +16 GB +16 GB", capsys.readouterr().out)


def test_a_toy_has_no_rows_of_flan_t5_and_no_changes_that_it_does_not_need(
    tmp_path: Path, uncounted: None, capsys: pytest.CaptureFixture[str]
) -> None:
    T5Config(**COMMON, d_model=8, d_ff=16, num_layers=1, num_heads=1).save_pretrained(tmp_path)
    toy = [f"model.model_name_or_path={tmp_path}", "data.dataset_name=nobody/nothing"]
    assert cli.run(["plan", "--config", "quickstart", *toy], debug=False) == 0
    shown = capsys.readouterr().out
    is_on_cpu = "on this machine: cpu" in shown
    assert ("memory of a run on top of Python and PyTorch" in shown) == is_on_cpu
    assert "FLAN-T5" not in shown and "on a GPU: bfloat16" in shown and "gradient_checkpointing" not in shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.53, "58 s"), (0.6, "1 min 06 s"), (40.0, "1 h 13 min")])
def test_the_time_of_a_run_is_in_its_largest_units(seconds: float, shown: str, uncounted: None) -> None:
    record = plan_step(config(data={"dataset_name": "nobody/nothing"})) | {
        "steps": 110,
        "step_seconds": seconds,
    }
    assert f"110 steps of {seconds:.2f} s: {shown}, without evaluations." in plan_terminal(record)


def test_a_model_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model_name_or_path=.*has no config.json; it holds nothing"):
        plan(config(model={"model_name_or_path": str(tmp_path)}))


@pytest.mark.parametrize(
    "method", slow_except(["lora"], [method for method in METHOD_CHOICES if method != "base"])
)
def test_every_method_that_trains_can_be_planned(method: str, request: pytest.FixtureRequest) -> None:
    if method == "lora":  # whose step other tests count
        request.getfixturevalue("uncounted")
    run = config(method=method, data={"dataset_name": "nobody/nothing"})
    trainable = {
        "lora": 24 * 2 * 8 * (512 + 384),  # 8 + 2 x 8 attentions, q and v of each, r (in + out)
        "bottleneck": (8 * 2 + 8 * 3) * (2 * 64 * 512 + 64 + 512),
        "prompt_tuning": 20 * 512,
        "full": 76_961_152,
    }
    assert plan_step(run)["trainable"] == trainable[method]


def test_as_json_a_measured_plan_is_json_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its step is the median of three after one that is not counted."""
    began_and_ended = iter([0, 50, 100, 101, 200, 203, 300, 302])
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(began_and_ended)))
    monkeypatch.setattr("lora_hf.planning.plan.plan", plan_step)  # the sizes are as good as any other field
    words = ["data.max_train_samples=16", "training.per_device_train_batch_size=2"]
    assert cli.run(["plan", "--config", "quickstart", "--measure", "--json", *words], debug=False) == 0
    assert json.loads(capsys.readouterr().out)["step_seconds"] == 2
