"""Run commands on broken inputs: each must end in one clear error and status 2, or in a valid run.

    python scripts/tools/fuzz.py config --count 1000 --seed 1
    python scripts/tools/fuzz.py adapter request --count 200

Each input is derived from a valid one by (kind, seed, number). The command that reads it runs in a separate
process, limited to 30 s of processor time and 2 GiB of memory, and every file it writes is checked; requests
go to one server. The exit status is 1 if any input broke these rules; such inputs are kept below `--keep`.
Data files and the reader of configs are covered by property tests: tests/data/test_any_file.py and
tests/config/test_any_config.py.
"""

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.tools.fuzzing.trial import OUT, Outcome, attempt, isolated

KINDS = ("config", "adapter", "request")


def commands(kind: str, work: Path) -> tuple[Callable[[Random, Path], list[str]], Callable[[list[str]], int]]:
    """Return the function that makes an input of this kind, and the one that runs the command on it."""
    from scripts.tools.fuzzing import adapters, configs

    if kind == "config":
        return configs.make, configs.run
    whole = work / "whole"
    if not whole.exists():
        adapters.prepare(whole)
    return partial(adapters.make, whole=whole), adapters.run


def try_inputs(
    kind: str, numbers: range, seed: int, work: Path, keep: Path, report: Callable[[str], None]
) -> int:
    """Try inputs of one kind; return the number of faults."""
    make, run = commands(kind, work)
    ends: Counter[str] = Counter()
    most = [0.0, 0]
    for number in numbers:
        folder = work / kind / str(number) / "in" / "in"
        (folder / OUT).mkdir(parents=True)
        words = make(Random(f"{kind} {seed} {number}"), folder)
        outcome: Outcome = attempt(partial(run, words), folder)
        most = [max(most[0], outcome.seconds), max(most[1], outcome.mib)]
        fault = outcome.fault()
        ends["faults" if fault else f"status {outcome.status}"] += 1
        if fault:
            report(f"{kind} {number}: {fault}: {' '.join(words)[:300]}")
            shutil.rmtree(keep / f"{kind}-{seed}-{number}", ignore_errors=True)
            shutil.copytree(
                folder.parents[1], keep / f"{kind}-{seed}-{number}", symlinks=True, ignore=_no_fifo
            )
        shutil.rmtree(work / kind / str(number))
    report(
        f"{kind}: {len(numbers)} inputs, {dict(sorted(ends.items()))}; at most {most[0]:.1f} s, {most[1]} MiB"
    )
    return ends["faults"]


def _no_fifo(folder: str, names: list[str]) -> list[str]:
    return [
        name for name in names if Path(folder, name).is_fifo() or Path(folder, name).lstat().st_size > 10**8
    ]


def try_requests(count: int, seed: int, work: Path, report: Callable[[str], None]) -> int:
    """Start a server, send it malformed requests, and return the number of faults."""
    from scripts.benchmarks.serve_load import serving
    from scripts.tools.fuzzing import adapters, requests

    whole = work / "whole"
    if not whole.exists():
        adapters.prepare(whole)
    options = ["--base=embedded", f"--adapter=a={whole / 'lora'}", f"--adapters-dir={whole}", "--timeout=20"]
    with serving(options) as (port, process):
        return requests.try_all(port, process.pid, count, seed, report)


def main() -> int:
    """Try every kind, print the counts, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "kinds", nargs="+", choices=KINDS, metavar="KIND", help=f"one or more of {', '.join(KINDS)}"
    )
    parser.add_argument("--count", type=int, default=100, help="number of inputs of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, default=Path("runs/fuzz"), help="folder for inputs that found a fault"
    )
    given = parser.parse_args()
    keep, start, faults = given.keep.resolve(), time.monotonic(), 0
    report: Callable[[str], None] = partial(print, flush=True)
    with TemporaryDirectory() as folder, isolated(Path(folder)):
        for kind in given.kinds:
            numbers = range(given.first, given.first + given.count)
            if kind == "request":
                faults += try_requests(given.count, given.seed, Path(folder), report)
            else:
                faults += try_inputs(kind, numbers, given.seed, Path(folder), keep, report)
    report(f"{faults} faults in {time.monotonic() - start:.0f} s")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
