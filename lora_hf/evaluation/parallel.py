"""A function of this package in several processes, where one process would take seconds.

A worker is a Python of its own that is given JSON and gives JSON, which keeps every float to the bit.
`multiprocessing` would fork a process that has Torch's threads, or run the caller's script again.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

WORKER = """
import importlib, json, sys
function = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
json.dump(function(*json.load(sys.stdin)), sys.stdout)
"""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(module: str, function: str, pieces: Sequence[Sequence[Any]]) -> list[Any]:
    """The function of each piece's values, in order, each in a process of its own, all at once.

    Args:
        module: where the function is, in full.
        function: its name; what it takes and returns must be JSON's.
        pieces: the positional arguments of each call.

    Raises:
        RuntimeError: a worker ended with an error; its last words are in the message.
    """
    command = [sys.executable, "-c", WORKER, module, function]
    known = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def run(piece: Sequence[Any]) -> Any:
        done = subprocess.run(command, input=json.dumps(piece), capture_output=True, text=True, env=known)
        if done.returncode:
            words = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"a worker of {module}.{function} ended with {done.returncode}: {words}")
        return json.loads(done.stdout)

    with ThreadPoolExecutor(len(pieces)) as pool:
        return list(pool.map(run, pieces))
