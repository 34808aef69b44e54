"""Count kernels, bytes and memory of a training step on an emulated CUDA device; nothing is timed.

python scripts/benchmarks/cuda_counts.py
python scripts/benchmarks/cuda_counts.py --size large --batch 8 512 128 --operations

The same step of PEFT with Seq2SeqTrainer's forward is counted beside it, and this project's reference path.
A model with 2 and one with 3 layers are counted; each further layer takes what the third does. For the
default size and batch, the last columns have the counts before the fast paths were adapted to GPUs.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "tests")]
from emulated_cuda import device  # noqa: E402

SIZES = ("small", "base", "large", "xl", "xxl")
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--size", choices=SIZES, default="base")
parser.add_argument("--batch", type=int, nargs=3, default=[16, 320, 56], metavar=("ROWS", "SOURCE", "TARGET"))
parser.add_argument("--operations", action="store_true", help="also print the kernels and GiB by operation")
arguments = parser.parse_args()
if reason := device.why_not():
    parser.exit(2, f"CUDA is not emulated: {reason}\n")
device.start()
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

import torch  # noqa: E402
from emulated_cuda.models import BATCH, flan_t5, step_of, with_method  # noqa: E402

from lora_hf.planning.fake_model import SharedFakeMode  # noqa: E402

FP32, BF16 = torch.float32, torch.bfloat16


def ours(layers: int, targets: Any = ("q", "v"), **storage: Any) -> Any:
    model = flan_t5(arguments.size, BF16, layers, **storage)
    return with_method(model, "lora", target_modules=targets if isinstance(targets, str) else [*targets])


def with_peft(layers: int) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"
    )
    return get_peft_model(flan_t5(arguments.size, BF16, layers), settings).train()


BEFORE = {
    "lora_hf, q and v": (3106, 39.9, 3.0),
    "lora_hf, q and v, NF4": (4400, 59.4, 3.7),
    "lora_hf, all linear layers": (5570, 59.5, 4.2),
}
"""Step -> kernels, GiB moved and GiB at its peak at ad33c14, before the fast paths were adapted to GPUs."""
STEPS = {
    "PEFT with Seq2SeqTrainer": (with_peft, False),
    "lora_hf, `fast_paths: false`": (ours, False),
    "lora_hf, q and v": (ours, True),
    "lora_hf, q and v, NF4": (lambda layers: ours(layers, wo=FP32, is_nf4=True), True),
    "lora_hf, all linear layers": (lambda layers: ours(layers, "all-linear"), True),
}
print(f"FLAN-T5-{arguments.size}, r = 8, bfloat16, {arguments.batch}, torch {torch.__version__}")
named = ("kernels", "GiB moved", "GiB at its peak")
is_known = arguments.size == "base" and tuple(arguments.batch) == BATCH
print("| step | " + " | ".join((*named, "before: kernels", *named[1:]) if is_known else named) + " |")
print("| --- |" + " ---: |" * (6 if is_known else 3))
with SharedFakeMode():
    for name, (build, is_fast) in STEPS.items():
        counted = step_of(arguments.size, build, batch=tuple(arguments.batch), fast=is_fast)
        counts = [(counted.kernels, counted.gib, counted.peak_bytes / 2**30)]
        counts += [BEFORE[name]] if is_known and name in BEFORE else []
        cells = [cell for n, *gib in counts for cell in (f"{n:,}", *(f"{x:.1f}" for x in gib))]
        cells += [""] * (3 if is_known and name not in BEFORE else 0)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        if arguments.operations:
            for operation, (n, gib) in sorted(counted.by_operation.items(), key=lambda x: -x[1][1])[:20]:
                print(f"    {operation:56} {n:6,} {gib:7.2f}")
