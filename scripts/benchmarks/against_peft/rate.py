"""The device's own rate: one large product of matrices in bf16, which nothing here can be faster than."""

import argparse
import sys
import time

import torch

from scripts.benchmarks.against_peft.turns import say

SIDE = {"cpu": 2048, "cuda": 8192}


def rate(side: str, options: argparse.Namespace) -> None:
    """Floating-point operations per second of (n, n) by (n, n), the best of ten a turn."""
    n = SIDE[options.device]
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=options.device) for _ in range(2))
    say({"ready": True})
    for _ in range(options.steps):
        sys.stdin.readline()
        say({"flop_per_second": 2 * n**3 / min(_seconds(a, b) for _ in range(10))})


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    a @ b
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
