"""The device's rate of matrix products in bf16, as an upper bound for every other rate."""

import argparse
import sys
import time

import torch

from scripts.benchmarks.against_peft.turns import send

SIDE = {"cpu": 2048, "cuda": 8192}


def rate(side: str, options: argparse.Namespace) -> None:
    """Report the operations per second of an (n, n) by (n, n) product, the best of ten in each turn."""
    n = SIDE[options.device]
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=options.device) for _ in range(2))
    send({"ready": True})
    for _ in range(options.steps):
        sys.stdin.readline()
        send({"flop_per_second": 2 * n**3 / min(_seconds(a, b) for _ in range(10))})


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    a @ b
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
