"""Compare the memory that `lora-hf plan` predicts with the measured memory, as a Markdown table.

    python scripts/benchmarks/plan_check.py --shapes small base --dtypes float32 bfloat16

Each case is a separate process that takes three steps of LoRA, r = 8, by the Trainer on the CPU, with random
weights. Its C library is configured to return every large block on release. By default it keeps gaps between
used blocks, which the last column includes.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from lora_hf.cli import HIDDEN

sys.modules |= dict.fromkeys(HIDDEN)  # Transformers would import them, which takes seconds
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def measured(shape: str, dtype: str, batch: list[int]) -> float:
    """Return the peak memory of this process minus its memory before the first step, in MiB."""
    import torch
    from transformers import Seq2SeqTrainingArguments

    from lora_hf import LoraConfig, LoraTrainer, inject_adapters
    from lora_hf.models.flan_t5 import random_flan_t5
    from scripts.benchmarks.against_peft.models import memory

    model = inject_adapters(
        random_flan_t5(shape).to(getattr(torch, dtype)), LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05)
    )
    dialogues, source, target = batch
    row = {"input_ids": [2] * source, "attention_mask": [1] * source, "labels": [2] * target}
    rows: Any = [row] * (3 * dialogues)
    with TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder,
            per_device_train_batch_size=dialogues,
            max_steps=3,
            bf16=dtype == "bfloat16",
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = LoraTrainer(model, arguments, train_dataset=rows)
        before = memory("cpu")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        trainer.train()
    return memory("cpu", "VmHWM") - before


def planned(shape: str, dtype: str, batch: list[int]) -> float:
    import torch

    from lora_hf.config import RunConfig
    from lora_hf.planning.activations import Batch, Computation, activation_bytes
    from lora_hf.planning.fake_model import flan_t5
    from lora_hf.planning.plan import memory

    config = RunConfig(lora={"r": 8, "lora_alpha": 16, "lora_dropout": 0.05})
    settings = flan_t5(shape)
    how = Computation(getattr(torch, dtype), torch.bfloat16 if dtype == "bfloat16" else None, fast=True)
    activations = activation_bytes(config, settings, Batch(*batch), how)
    held = memory(config, settings, dtype, activations)["bytes"]
    return float(held["activations"] + held["gradients"] + held["optimizer"]) / 2**20


def in_a_process(shape: str, dtype: str, batch: list[int], settings: dict[str, str]) -> float:
    command = [
        sys.executable,
        __file__,
        "--shapes",
        shape,
        "--dtypes",
        dtype,
        "--one",
        "--batch",
        *map(str, batch),
    ]
    done = subprocess.run(command, env=os.environ | settings, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["small", "base"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", nargs=3, type=int, default=[8, 300, 40], help="dialogues, tokens, tokens")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(measured(given.shapes[0], given.dtypes[0], given.batch))
        return
    cases = []
    for shape in given.shapes:
        for dtype in given.dtypes:
            mib = in_a_process(shape, dtype, given.batch, RETURNED)
            case = {
                "shape": shape,
                "dtype": dtype,
                "planned_mib": planned(shape, dtype, given.batch),
                "measured_mib": mib,
            }
            if not given.json:
                case["with_gaps_mib"] = in_a_process(shape, dtype, given.batch, {})
            cases.append(case)
    print(json.dumps(cases) if given.json else table(cases))


def table(cases: list[dict[str, Any]]) -> str:
    from lora_hf.reporting.tables import markdown_table

    lines = [["shape, dtype", "planned, MiB", "measured", "planned ÷ measured", "measured with gaps"]]
    for case in cases:
        p, m, g = (case[key] for key in ("planned_mib", "measured_mib", "with_gaps_mib"))
        lines.append(
            [f"{case['shape']}, {case['dtype']}", f"{p:,.0f}", f"{m:,.0f}", f"{p / m:.2f}", f"{g:,.0f}"]
        )
    return markdown_table(lines)


if __name__ == "__main__":
    main()
