"""Compare int8 products on a CPU, one layer at a time, and profile one text that a base in int8 writes.

    python scripts/benchmarks/int8_products.py

Layers have the shapes of FLAN-T5's, and random weights. Each way of multiplying takes its turn in each round;
times are processor time of one thread, as a ratio to FBGEMM's kernels, the ones that `--quantization int8`
uses. The profile is of the model of `inference.py`, and says which share of the time each operation takes.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lora_hf.fast.int8 import LARGEST, RowInt8, _Packed
from lora_hf.fast.packed import pack
from lora_hf.models.flan_t5 import COMMON, SIZES
from lora_hf.reporting.tables import markdown_table
from scripts.benchmarks.inference import batch, opened, prepare

FBGEMM = "FBGEMM, rows in int8 (lora_hf)"
Multiply = Callable[[Tensor], Tensor]


def ways(weight: Tensor) -> dict[str, Multiply]:
    """Return the functions that multiply float32 rows by a weight (out, in)."""
    stored, half = RowInt8.quantize(weight), weight.bfloat16()
    codes, scale = stored.codes, stored.scale[:, 0]
    fbgemm, columns, packed = _Packed(codes, scale), codes.T, pack(half)
    onednn = torch.ops.onednn.qlinear_prepack(codes, None)
    zeros = torch.zeros(len(codes), dtype=torch.int64)

    def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
        step = x.abs().amax(-1, keepdim=True) / LARGEST
        return (x / step).round_().to(torch.int8), step

    def by_int_mm(x: Tensor) -> Tensor:
        q, step = rounded(x)
        return torch._int_mm(q, columns) * scale * step

    def by_onednn(x: Tensor) -> Tensor:
        step = x.abs().max() / LARGEST
        q = ((x / step).round_() + 128).to(torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(
            q, float(step), 128, onednn, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return {
        FBGEMM: fbgemm.multiply,
        "torch._int_mm, rows in int8": by_int_mm,
        "oneDNN qlinear, one scale for all rows": by_onednn,
        "weights alone in int8, rows in bfloat16": lambda x: torch._weight_int8pack_mm(
            x.bfloat16(), codes, scale.bfloat16()
        ),
        "bfloat16, packed": lambda x: torch.ops.mkldnn._linear_pointwise(
            x.bfloat16(), packed, None, "none", [], ""
        ),
        "float32": lambda x: F.linear(x, weight),
    }


def layers(shape: str) -> dict[str, tuple[int, int]]:
    """Return name -> (out, in) of the layers of a decoder."""
    size = SIZES[shape]
    model, inner, wide = size["d_model"], size["num_heads"] * (size | COMMON)["d_kv"], size["d_ff"]
    return {"q": (inner, model), "wi": (wide, model), "wo": (model, wide), "head": (32_128, model)}


def products(shape: str, rows: list[int], rounds: int) -> list[list[str]]:
    """Return a table: for each way, its time over FBGEMM's, by layer and number of rows."""
    table = [["Product", *(f"{name}, {n} row{'s' * (n > 1)}" for name in layers(shape) for n in rows)]]
    columns: list[dict[str, float]] = []
    for sizes in layers(shape).values():
        torch.manual_seed(0)
        weight = torch.randn(sizes) / sizes[1] ** 0.5
        functions = ways(weight)
        for n in rows:
            x = torch.randn(n, sizes[1])
            exact = x @ weight.T
            times = max(1, 2**24 // weight.numel())
            seconds: dict[str, list[float]] = {name: [] for name in functions}
            for number in range(rounds + 1):
                for name, multiply in functions.items():
                    start = time.process_time()
                    for _ in range(times):
                        product = multiply(x)
                    if number:
                        seconds[name].append(time.process_time() - start)
                    error = (product - exact).norm() / exact.norm()
                    assert error < 0.03, f"{name}: wrong by {error:.2f}"
            first = seconds[FBGEMM]
            columns.append(
                {
                    name: median(a / b for a, b in zip(own, first, strict=True))
                    for name, own in seconds.items()
                }
            )
    return table + [[name, *(f"{column[name]:.2f}" for column in columns)] for name in columns[0]]


def shares(shape: str, new: int, source: int, most: int = 10) -> list[list[str]]:
    """Return a table: operations of one text in int8 and their share of the processor time."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as held, torch.inference_mode():
        folder = Path(temporary) / shape
        prepare(shape, folder)
        write, sources = opened(folder, "lora_hf", "int8", held), batch(folder, 1, source)
        write(sources, new, 1)
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            write(sources, new, 1)
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    rows = [
        [event.key, str(event.count), f"{event.self_cpu_time_total / total:.0%}"] for event in events[:most]
    ]
    return [["Operation", "Calls", "Share of the operations' time"], *rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SIZES, default="small")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", type=int, default=256, help="tokens of the source")
    parser.add_argument("--new", type=int, default=24, help="tokens of the output")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(markdown_table(products(given.shape, given.rows, given.rounds)))
    print()
    print(markdown_table(shares(given.shape, given.new, given.source)))


if __name__ == "__main__":
    main()
