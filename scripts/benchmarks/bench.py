"""Compare time and memory with PEFT and Seq2SeqTrainer on one machine, in turn, as ratios.

    make bench
    python scripts/benchmarks/bench.py --device cuda --shape base --batch 64 --r 32 --only train evaluate

Each library runs in its own process, which takes one step per turn: a training step, the generation of some
summaries, or a start. The model is a FLAN-T5 with random weights, so that only speed and memory are
measured. The dialogues are DialogSum's with T5's tokenizer if `--data` and `--tokenizer` exist, else those
of the embedded sample, which are short. Prints a table, and writes bench.json and bench.png.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from lora_hf.files import write_json
from lora_hf.models.flan_t5 import SIZES
from scripts.benchmarks.against_peft.picture import draw_bench
from scripts.benchmarks.against_peft.turns import Side, in_turn, ratio

REAL = Path(__file__).parents[3] / "shared" / "data"
MAX_LOSS_DIFFERENCE = 1e-3
"""Largest difference of two float32 losses (about 10) of one step: sums are taken in another order."""


def compare_training(options: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Train on the same dialogues and time the last epoch; then compare losses in float32 without dropout.

    With `--count` the first epoch is not compiled, so that `--compile` needs one more.
    """
    names = ["ours", "peer", "peer_best", "dora", *(["ours_4bit"] if given.load_in_4bit else [])]
    n = given.pairs
    flags = [f"--{name}" for name in ("count", "compile") if getattr(given, name)]
    epochs = 3 if given.compile else 2
    timed = [*options, f"--steps={n}", f"--epochs={epochs}", f"--batch={given.batch}", *flags]
    sides = in_turn("train", names, timed, epochs * n)
    seconds = {name: side.of("seconds", n) for name, side in sides.items()}
    few = ["--steps=6", "--epochs=1", "--no-dropout", "--dtype=float32", f"--batch={given.batch}"]
    few += ["--compile"] if given.compile else []
    same = in_turn("train", ["ours", "peer"], [*options, *few], 6)
    losses = {name: side.of("loss", 6) for name, side in same.items()}
    apart = float(np.abs(losses["ours"] - losses["peer"]).max())
    mib = {name: side.steps[-1]["mib"] for name, side in sides.items()}
    train = {
        **ratio("ratio_default", seconds["peer"], seconds["ours"]),
        **ratio("ratio_best", seconds["peer_best"], seconds["ours"]),
        "memory_ratio": round(mib["ours"] / mib["peer"], 3),
        "memory_ratio_best": round(mib["ours"] / mib["peer_best"], 3),
        "mib": {name: round(value) for name, value in mib.items()},
        "dialogues_per_second": {k: round(n * given.batch / v.sum(), 3) for k, v in seconds.items()},
        "tokens_per_second": {
            k: round(sides[k].steps[0]["epoch_tokens"] / v.sum()) for k, v in seconds.items()
        },
        "compiled_graphs": int(sides["ours"].steps[-1]["graphs"]),
        "losses_agree": apart <= MAX_LOSS_DIFFERENCE,
        "losses_apart": apart,
        "losses": {name: [round(float(x), 5) for x in values] for name, values in losses.items()},
    }
    if given.count:
        train |= matrix_share(sides, options, n)
    record = {"train": train, "dora": ratio("ratio", seconds["dora"], seconds["ours"])}
    if given.load_in_4bit:
        record["four_bit"] = ratio("ratio", seconds["ours_4bit"], seconds["ours"])
    return record


def matrix_share(sides: dict[str, Side], options: list[str], n: int) -> dict[str, Any]:
    """Return each worker's share of the device's rate of matrix products; products of padding count."""
    (device,) = in_turn("rate", ["matrices"], [*options, "--steps=3"], 3).values()
    rate = float(device.of("flop_per_second", 3).max())
    flop = {name: sum(step["flop"] for step in side.steps[:n]) for name, side in sides.items()}
    share = {name: float(flop[name] / side.of("seconds", n).sum() / rate) for name, side in sides.items()}
    return {
        "matrix_tflop_per_second": round(rate / 1e12, 2),
        "share_of_matrix_rate": {name: round(x, 4) for name, x in share.items()},
    }


def compare_evaluation(
    options: list[str], given: argparse.Namespace, key: str = "evaluate", **changed: Any
) -> dict[str, Any]:
    """Summarize the same dialogues with both libraries; the first turn is a warm-up."""
    n = given.pairs + 1
    settings = {"dtype": given.evaluate_dtype, "beams": given.beams, "batch": given.dialogues} | changed
    more = [*options, f"--steps={n}", *(f"--{name}={value}" for name, value in settings.items())]
    sides = in_turn("evaluate", ["ours", "peer"], more, n)
    texts = {name: [text for step in side.steps for text in step["texts"]] for name, side in sides.items()}
    same = [a == b for a, b in zip(texts["ours"], texts["peer"], strict=True)]
    seconds = {name: side.of("seconds", given.pairs) for name, side in sides.items()}
    return {
        key: {
            **ratio("ratio", seconds["peer"], seconds["ours"]),
            "same_tokens": all(same),
            "summaries_the_same": f"{sum(same)} of {len(same)}",
            **settings,
        }
    }


def compare_beams(options: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Compare generation with four beams and half as many dialogues per turn."""
    half = (given.dialogues + 1) // 2
    return compare_evaluation(options, given, "evaluate_beams", beams=4, batch=half)


def compare_bf16(options: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Compare generation in bfloat16, where a batch's shape alone can change tokens."""
    return compare_evaluation(options, given, "evaluate_bf16", dtype="bfloat16")


def compare_starts(options: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Compare the time to load and adapt FLAN-T5-base's shape from disk; time `lora-hf --help` too."""
    from lora_hf.models.flan_t5 import random_flan_t5

    with TemporaryDirectory() as folder:
        random_flan_t5("base").save_pretrained(folder)
        names = ["ours", "plain", "peer", "pissa"]
        sides = in_turn("start_up", names, [f"--folder={folder}", "--steps=6"], 6)
    seconds = {name: side.of("seconds", 5) for name, side in sides.items()}
    return {
        "start_up": {
            **ratio("ratio", seconds["peer"], seconds["ours"]),
            **ratio("over_from_pretrained", seconds["ours"], seconds["plain"]),
            "pissa_start_seconds": round(float(np.median(seconds["pissa"] - seconds["ours"])), 2),
            "help_seconds": round(min(_help_seconds() for _ in range(5)), 3),
        }
    }


def _help_seconds() -> float:
    import subprocess

    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lora_hf", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


PARTS = {
    "train": compare_training,
    "evaluate": compare_evaluation,
    "beams": compare_beams,
    "bf16": compare_bf16,
    "start_up": compare_starts,
}


def machine(device: str) -> dict[str, Any]:
    """Return the device, system, processor and date of the figures."""
    import torch

    from lora_hf.system import device_name

    named = {"device": device_name(torch.device(device)), "system": platform.platform()}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return named | {"processor": model, "when": time.strftime("%Y-%m-%d")}


def positive(text: str) -> int:
    """Parse a whole number above 0, as the type of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of 1 or more")
    return int(text)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    is_real = (REAL / "dialogsum").is_dir() and (REAL / "t5_tokenizer").is_dir()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=["tiny", *SIZES], default="small")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", default=str(REAL / "dialogsum") if is_real else "embedded")
    parser.add_argument(
        "--tokenizer", default=str(REAL / "t5_tokenizer") if is_real else "lora_hf/assets/tiny_t5"
    )
    parser.add_argument("--pairs", type=positive, default=10, help="number of pairs of steps to compare")
    parser.add_argument("--batch", type=positive, default=8, help="dialogues per training step")
    parser.add_argument("--r", type=positive, default=8)
    parser.add_argument("--dialogues", type=positive, default=24, help="dialogues summarized per turn")
    parser.add_argument("--beams", type=positive, default=1)
    parser.add_argument("--evaluate-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--load-in-4bit", action="store_true", help="measure lora_hf in 4 bits too")
    parser.add_argument("--count", action="store_true", help="share of the matrix rate; always on a GPU")
    parser.add_argument("--compile", action="store_true", help="compile lora_hf's model")
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    given = parser.parse_args()
    if given.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: this torch sees no GPU")
    for option in ("data", "tokenizer"):
        where = getattr(given, option)
        if where != "embedded" and not Path(where).exists():
            parser.error(f"--{option} {where!r}: no such folder")
    return given


def main() -> None:
    given = parsed()
    given.count |= given.device == "cuda"
    from lora_hf.system import versions

    names = ("device", "shape", "data", "tokenizer", "r")
    options = [f"--{name}={getattr(given, name)}" for name in names]
    record = {
        "machine": machine(given.device),
        "versions": versions(),
        "settings": {key: str(value) for key, value in vars(given).items()},
    }
    for part in given.only:
        record |= PARTS[part](options, given)
        write_json(given.output, record)
    draw_bench(record, given.output.with_suffix(".png"))
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
