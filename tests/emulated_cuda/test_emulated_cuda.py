"""What runs on GPUs, on emulated ones: devices and dtypes, and budgets of kernels, bytes and waits.

Each fixture runs its checks once, in a process of their own (`checks.py`); no time is measured, and no value
is computed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from emulated_cuda.device import guard, why_not
from emulated_cuda.models import BATCH, LORA

from lora_hf.config import RunConfig
from lora_hf.planning.activations import Batch, activation_bytes
from lora_hf.planning.fake_model import flan_t5
from lora_hf.planning.plan import computation

ROOT = Path(__file__).parents[2]


def results_of(folder: Path, *checks: str) -> Any:
    """Return the results of each check, by its name."""
    if reason := why_not():
        pytest.skip(f"CUDA is not emulated: {reason}")
    guard()
    file = folder / "found.json"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "emulated_cuda.checks", str(file), *checks],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return results_of(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return results_of(tmp_path_factory.mktemp("more"), "other_budgets", "methods", "replicas")


def is_within(counted: Any, kernels: int, gib: float) -> bool:
    return counted["kernels"] <= kernels and counted["gib"] <= gib and not counted["waits"]


def test_a_step_stays_within_its_budget(found: Any) -> None:
    """FLAN-T5-base, bfloat16, 16 dialogues of 320 and 56 tokens; 3,106 kernels at first."""
    assert is_within(found["budget"], 1900, 24.0), found["budget"]


@pytest.mark.slow
@pytest.mark.parametrize(("adapters", "kernels", "gib"), [("qlora", 3300, 44.5), ("all_linear", 4177, 44.5)])
def test_a_step_of_a_4_bit_base_or_of_all_layers_stays_within_its_budget(
    adapters: str, kernels: int, gib: float, more: Any
) -> None:
    """4,400 and 5,570 kernels at first."""
    counted = more["other_budgets"][adapters]
    assert is_within(counted, kernels, gib), counted


def _planned(size: str, dtype: torch.dtype = torch.bfloat16, **fields: Any) -> int:
    run = RunConfig(**{"method": "lora", "lora": LORA} | fields)
    return activation_bytes(run, flan_t5(size), Batch(*BATCH), computation(run, "cuda", dtype))


def test_the_plan_for_a_gpu_is_within_15_percent_of_the_count(found: Any) -> None:
    assert found["budget"]["peak_gib"] == pytest.approx(_planned("base") / 2**30, rel=0.15)


@pytest.mark.slow
def test_the_plan_of_a_4_bit_base_is_within_15_percent_of_the_count(more: Any) -> None:
    """4 bits change no activations."""
    counted = more["other_budgets"]["qlora"]["peak_gib"]
    assert counted == pytest.approx(_planned("base") / 2**30, rel=0.15)


@pytest.mark.slow
def test_the_plan_of_other_sizes_methods_and_cards_is_within_15_percent(tmp_path: Path) -> None:
    planned = {
        "small": _planned("small"),
        "base": _planned("base"),
        "large": _planned("large"),
        "base on a T4": _planned("base", torch.float32),
        "base on a T4, float16": _planned("base", torch.float32, training={"fp16": True}),
        "base, checkpointing": _planned("base", training={"gradient_checkpointing": True}),
        "base, full": _planned("base", method="full"),
    }
    assert results_of(tmp_path, "peaks")["peaks"] == pytest.approx(planned, rel=0.15)


def test_a_token_stays_within_its_budget(found: Any) -> None:
    decoding = found["decoding"]
    assert decoding["kernels"] <= 300 and sum(decoding["waits"].values()) <= 1, decoding


def test_the_trainer_waits_for_the_step_before_alone_and_keeps_everything_on_the_card(found: Any) -> None:
    training = found["training"]
    assert not training["waits"] and training["waits_for_the_step_before"] == 1, training
    assert training["devices"] == training["optimizer"] == ["cuda:0"]


def test_dtype_and_compiling_fit_the_generation_of_the_card(found: Any) -> None:
    chosen = {name: found["decisions"][name] for name in ("T4", "A100", "H100")}
    old = {"device": "cuda", "auto": "float32", "compiles": False}
    new = {"device": "cuda", "auto": "bfloat16", "compiles": True}
    assert chosen == {"T4": old, "A100": new, "H100": new}


def test_of_two_cards_a_process_uses_one_without_data_parallel(found: Any) -> None:
    expected = {"seen": 2, "used": 1, "model": "T5ForConditionalGeneration"}
    assert found["decisions"]["two cards"] == expected


def test_products_may_be_written_in_another_dtype(found: Any) -> None:
    assert len(found["products"]) == 6 and not any(found["products"].values()), found["products"]


@pytest.mark.slow
def test_each_method_and_each_dtype_run_with_gradients_on_the_card(more: Any) -> None:
    wrong = {name: said for name, said in more["methods"].items() if said}
    assert not wrong and len(more["methods"]) == 14, wrong


@pytest.mark.slow
def test_all_methods_run_in_all_dtypes_by_both_paths(tmp_path: Path) -> None:
    found = results_of(tmp_path, "all_methods")["all_methods"]
    assert len(found) == 108 and not any(found.values()), found


@pytest.mark.slow
def test_a_replica_on_a_second_card_uses_nothing_of_the_first(more: Any) -> None:
    assert set(more["replicas"].values()) == {""}, more["replicas"]


def test_faults_put_in_on_purpose_are_found(found: Any) -> None:
    assert all(found["faults"].values()), found["faults"]
