"""Count kernels, bytes and memory of a training step on an emulated CUDA device; nothing is timed.

python scripts/benchmarks/cuda_counts.py
python scripts/benchmarks/cuda_counts.py --size large --batch 8 512 128 --operations

The same step of PEFT with Seq2SeqTrainer's forward is counted beside it, and this project's reference path.
A model with 2 and one with 3 layers are counted; each further layer takes what the third does.
"""

import argparse
import gc
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
parser.add_argument("--batch", type=int, nargs=3, default=(16, 320, 56), metavar=("ROWS", "SOURCE", "TARGET"))
parser.add_argument("--operations", action="store_true", help="also print the kernels and GiB by operation")
arguments = parser.parse_args()
if reason := device.why_not():
    parser.exit(2, f"CUDA is not emulated: {reason}\n")
device.start()
warnings.simplefilter("ignore")
gc.disable()  # in a collection, PyTorch's fake tensors may crash
logging.disable(logging.WARNING)

import torch  # noqa: E402
from emulated_cuda.models import flan_t5, step_of, with_method  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

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


STEPS = {
    "PEFT with Seq2SeqTrainer": (with_peft, False),
    "lora_hf, reference path": (ours, False),
    "lora_hf": (ours, True),
    "lora_hf, all linear layers": (lambda layers: ours(layers, "all-linear"), True),
    "lora_hf, NF4": (lambda layers: ours(layers, wo=FP32, is_nf4=True), True),
}
print(f"FLAN-T5-{arguments.size}, r = 8, bfloat16, {arguments.batch}, torch {torch.__version__}")
print(f"| {'step':26} | kernels | GiB moved | GiB at its peak |\n| --- | ---: | ---: | ---: |")
with FakeTensorMode():
    for name, (build, is_fast) in STEPS.items():
        counted = step_of(arguments.size, build, batch=tuple(arguments.batch), fast=is_fast)
        peak = counted.peak_bytes / 2**30
        print(f"| {name:26} | {counted.kernels:,} | {counted.gib:.1f} | {peak:.1f} |", flush=True)
        if arguments.operations:
            for operation, (n, gib) in sorted(counted.by_operation.items(), key=lambda x: -x[1][1])[:20]:
                print(f"    {operation:56} {n:6,} {gib:7.2f}")
