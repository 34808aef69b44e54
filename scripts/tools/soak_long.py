"""Check memory, file handles and logs over 2,000 training steps and 4,000 requests to the service.

    python scripts/tools/soak_long.py
    python scripts/tools/soak_long.py --steps 200 --requests 400

The training logs, evaluates and writes checkpoints. The service answers for four adapters in turn, while a
fifth is loaded and unloaded repeatedly. Resident memory and open handles are sampled four times per second
in training, and in the service after each tenth of the requests, when no client is connected. The first
fifth is warm-up; the last fifth is compared with the second. Prints JSON. The exit status is 1 if memory
grew by more than 5 %, or handles by more than 2.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmarks.bench import machine
from scripts.benchmarks.serve_load import Clients, prepare, serving

ROOT = Path(__file__).parents[2]
EVERY = 0.25  # seconds
MOST_GROWTH, MOST_HANDLES = 1.05, 2
SETTINGS = """data.max_eval_samples=8 data.max_test_samples=8 training.per_device_train_batch_size=8
training.logging_steps=10 training.disable_tqdm=true training.eval_strategy=steps training.save_strategy=steps
training.save_total_limit=2""".split()


Usage = tuple[float, int]
"""Resident memory in MiB, and number of open handles."""


def usage(process: psutil.Process) -> Usage:
    return process.memory_info().rss / 2**20, process.num_fds()


def usage_at_rest(process: psutil.Process) -> Usage:
    """Wait until the connections of the last requests are closed, then return the usage."""
    while any(one.status != psutil.CONN_LISTEN for one in process.net_connections("tcp")):
        time.sleep(0.01)
    return usage(process)


@contextmanager
def sampling(process: psutil.Process) -> Iterator[list[Usage]]:
    """Sample the usage of a process until the block or the process ends."""
    seen: list[Usage] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(EVERY):
            try:
                seen.append(usage(process))
            except psutil.Error:
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def growth(seen: list[Usage]) -> dict[str, Any]:
    """Compare the last fifth of the samples with the second; `flat` is true if neither figure grew."""
    fifth = len(seen) // 5
    early, late = seen[fifth : 2 * fifth], seen[-fifth:]
    mib = [round(median(rss for rss, _ in part), 1) for part in (early, late)]
    handles = [max(number for _, number in part) for part in (early, late)]
    flat = mib[1] <= MOST_GROWTH * mib[0] and handles[1] <= handles[0] + MOST_HANDLES
    return {"samples": len(seen), "mib": mib, "handles": handles, "flat": flat}


def train(folder: Path, steps: int) -> dict[str, Any]:
    """Train for `steps` steps with ten evaluations and checkpoints, and return its usage."""
    every = max(1, steps // 10)
    words = [sys.executable, "-m", "lora_hf", "train", "--config", "configs/quickstart.yaml", *SETTINGS]
    words += [f"training.max_steps={steps}", f"training.eval_steps={every}", f"training.save_steps={every}"]
    words += [f"output_dir={folder / 'run'}"]
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while ": loss " not in (folder / "log").read_text() and child.poll() is None:
            time.sleep(EVERY)  # imports and data take memory before the first step
        with sampling(psutil.Process(child.pid)) as seen:
            status = child.wait()
    size = (folder / "log").stat().st_size
    return {"steps": steps, "status": status, "log_bytes": size} | growth(seen)


def serve(folder: Path, requests: int) -> dict[str, Any]:
    """Send `requests` requests to a service, load and unload an adapter ten times, and return its usage."""
    given = argparse.Namespace(
        shape="embedded", r=8, new_tokens=24, clients=8, requests=max(1, requests // 10)
    )
    base, adapter = prepare(folder, given)
    clients = Clients([f"Ann: shall we meet at {i}? Bob: yes, at {i}." for i in range(97)], given)
    named = [f"--adapter=a{i}={adapter}" for i in range(4)]
    logged: list[int] = []
    seen: list[Usage] = []
    with serving(
        [f"--base={base}", f"--adapters-dir={folder}", *named], lambda line: logged.append(len(line))
    ) as (port, process):
        for _ in range(10):
            clients.ask("mixed", port, [None, "a0", "a1", "a2", "a3"])
            call(port, "POST", "/adapters", {"name": "guest", "path": str(adapter)})
            clients.ask("guest", port, ["guest"])
            call(port, "DELETE", "/adapters/guest", None)
            seen.append(usage_at_rest(process))
    return {"requests": 20 * given.requests, "log_bytes": sum(logged)} | growth(seen)


def call(port: int, verb: str, path: str, body: object) -> None:
    """Send a request.

    Raises:
        RuntimeError: the status is 300 or above.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(verb, path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status >= 300:
        raise RuntimeError(f"{verb} {path}: {response.status}: {response.read().decode()}")
    connection.close()


def main() -> int:
    """Run both checks, print the figures, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=4000)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        record = {"train": train(Path(one), given.steps), "serve": serve(Path(other), given.requests // 2)}
    print(json.dumps({"machine": machine("cpu")} | record, indent=2))
    return 0 if all(part["flat"] and not part.get("status") for part in record.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
