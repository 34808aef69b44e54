"""Train on a stream of a million generated dialogues with less memory than their file has bytes.

    python scripts/tools/large_data.py --rows 1000000
    python scripts/tools/large_data.py --rows 1000000 --in-memory   # without data.streaming

Prints the size of the file, the limit (`RLIMIT_DATA` of the training process), the seconds until the first
step, and the peak resident memory. The exit status is 1 if training fails.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))

from lora_hf.files import read_object
from scripts.tools.generator import Split, dialogues

PIECE = 1000
"""Rows per task of the pool."""
SETTINGS = """data.max_eval_samples=8 data.max_test_samples=8 training.logging_steps=1
training.disable_tqdm=true training.eval_strategy=no training.save_strategy=no
training.per_device_train_batch_size=8""".split()


def write_splits(folder: Path, rows: int, characters: int) -> int:
    """Write the splits and return the size of the training split in bytes.

    Args:
        folder: folder to create.
        rows: number of training rows; the other splits have 100.
        characters: least length of a dialogue; shorter ones are repeated.
    """
    folder.mkdir()
    with ProcessPoolExecutor() as pool:
        for split, n in (("train", rows), ("validation", 100), ("test", 100)):
            pieces = pool.map(partial(piece, split, n, characters), range(0, n, PIECE))
            with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(pieces)
    return (folder / "train.jsonl").stat().st_size


def piece(split: Split, n: int, characters: int, first: int) -> str:
    """Return up to `PIECE` of `n` rows as lines, from row `first`."""
    made = dialogues(split, min(PIECE, n - first), first=first)
    texts = [one.text if len(one.text) >= characters else filled(one.text, characters) for one in made]
    rows = [{"dialogue": text, "summary": one.summary} for text, one in zip(texts, made, strict=True)]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def filled(text: str, characters: int) -> str:
    """Repeat a text up to a number of characters."""
    return (text + "\n") * (characters // len(text) + 1)


def train(folder: Path, limit: int, steps: int, streaming: bool) -> tuple[int, float, list[str]]:
    """Train in a process under a memory limit; return status, seconds to the first step, and output.

    Arrow's own allocator reserves 1 GiB of addresses at its import, which the limit would count as used.

    Args:
        folder: folder of the splits; the run is written beside it.
        limit: limit in bytes.
        steps: number of training steps.
        streaming: whether the training split is streamed.
    """
    words = [sys.executable, "-m", "lora_hf", "train", "--config", "configs/quickstart.yaml", *SETTINGS]
    words += [f"data.dataset_name={folder}", f"data.streaming={str(streaming).lower()}"]
    words += [f"training.max_steps={steps}", f"output_dir={folder.parent / 'run'}"]
    begun, first, printed = time.perf_counter(), float("nan"), []
    child = subprocess.Popen(
        words,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONUNBUFFERED": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_DATA, (limit, limit)),
    )
    for line in child.stdout or []:
        printed.append(line.rstrip())
        if ": loss " in line and first != first:
            first = time.perf_counter() - begun
    return child.wait(), first, printed


def main() -> int:
    """Generate the data, train, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--characters", type=int, default=1500, help="least length of a dialogue")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--limit-mib", type=int, help="memory limit of the training; default: 9/10 of the file"
    )
    parser.add_argument("--in-memory", action="store_true", help="do not stream")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        begun = time.perf_counter()
        size = write_splits(Path(folder) / "data", given.rows, given.characters)
        print(f"{given.rows:,} rows, {size / 2**20:,.0f} MiB, written in {time.perf_counter() - begun:.0f} s")
        limit = given.limit_mib * 2**20 if given.limit_mib else size * 9 // 10
        status, first, printed = train(Path(folder) / "data", limit, given.steps, not given.in_memory)
        print(
            f"limit {limit / 2**20:,.0f} MiB: status {status}, the first step after {first:.0f} s", flush=True
        )
        peak = Path(folder) / "run/results.json"
        if peak.is_file():
            print(f"peak resident memory: {read_object(peak)['peak_memory_mib']:,} MiB")
        print(*printed[-3:], sep="\n")
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
