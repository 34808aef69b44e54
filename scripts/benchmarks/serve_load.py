"""Measure the summaries per second of `lora-hf serve` with several adapters, relative to one.

    python scripts/benchmarks/serve_load.py --adapters 1 4 16
    python scripts/benchmarks/serve_load.py --shape embedded --requests 256
    python scripts/benchmarks/serve_load.py --variants torch int8 merged --ctranslate2 int8

For each number of adapters, a server on loopback holds that many copies of one adapter under different
names. The expected output is therefore the same for every mix, and every response is compared. `--clients`
concurrent clients query the servers in turn. Two references are measured too: the base without an adapter,
as a server of a merged model, and the first server once more, whose ratio shows the noise. With
`--ctranslate2`, one process that serves the merged adapter by CTranslate2 is queried in turn too: it holds
one adapter only. `--variants` serves the adapters in several ways: by torch, on a base in int8, and merged
for CTranslate2, as many as `--max-merged`. Prints JSON, with the seconds of one request that half (p50) and
95 % (p95) do not exceed.
"""

import argparse
import http.client
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmarks.bench import REAL, machine
from scripts.benchmarks.interleaved import time_in_turn

ALONE, BASE, CTRANSLATE2 = "alone", "base", "ctranslate2"
VARIANTS = {"torch": [], "int8": ["--quantization=int8"], "merged": ["--engine=ctranslate2"]}
"""Options of a server with adapters."""


def prepare(folder: Path, given: argparse.Namespace) -> tuple[str, Path]:
    """Save a base of the given shape and an adapter with random weights; return both paths."""
    import torch
    from transformers import AutoTokenizer

    from lora_hf import LoraConfig, inject_adapters, save_adapter
    from lora_hf.config import ModelConfig
    from lora_hf.models.flan_t5 import random_flan_t5
    from lora_hf.models.load import load_model

    base = given.shape
    if base != "embedded":
        base = str(folder / "base")
        random_flan_t5(given.shape).save_pretrained(base)
        AutoTokenizer.from_pretrained(given.tokenizer).save_pretrained(base)
    model = load_model(ModelConfig(model_name_or_path=base), torch.device("cpu"))
    inject_adapters(model, LoraConfig(r=given.r, lora_alpha=2 * given.r))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    return base, save_adapter(model, folder / "adapter", extra={"max_new_tokens": given.new_tokens})


@contextmanager
def serving(
    options: list[str], on_line: Callable[[str], object] = str
) -> Iterator[tuple[int, psutil.Process]]:
    """Start a server, yield its port and process, and call `on_line` for each line of its log."""
    command = [sys.executable, "-m", "lora_hf", "serve", "--port=0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = process.stderr
    assert log
    try:
        lines: list[str] = []
        for line in log:
            lines.append(line)
            if found := re.search(r"serving on \S+:(\d+)", line):
                break
        else:
            raise RuntimeError("".join(lines))
        threading.Thread(target=lambda: [on_line(line) for line in log], daemon=True).start()
        yield int(found[1]), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def server(
    base: str, adapter: Path, variant: str, n: int, given: argparse.Namespace
) -> AbstractContextManager[tuple[int, psutil.Process]]:
    """Start a server with `n` adapters; the context yields its port and process."""
    options = [f"--base={base}", *(f"--adapter=a{i}={adapter}" for i in range(n)), *VARIANTS[variant]]
    options += [f"--max-batch={given.batch}", f"--max-merged={given.max_merged}", "--timeout=600"]
    return serving(options)


def exported(base: str, adapter: Path, folder: Path, quantization: str) -> Path:
    """Merge the adapter and write it for CTranslate2; return the folder."""
    from lora_hf.saved.export import export
    from lora_hf.saved.source import find_source

    source = find_source(str(adapter), base)
    # weights at random have near ties everywhere, which say nothing about the speed
    export(source, folder / CTRANSLATE2, CTRANSLATE2, quantization, examples=8, allow_loss=True)
    return folder / CTRANSLATE2


class Clients:
    """Concurrent clients, each with its own connection, and all answers they got."""

    def __init__(self, dialogues: list[str], given: argparse.Namespace) -> None:
        self.dialogues, self.given = dialogues, given
        self.answers: dict[tuple[str, bool, str], set[str]] = {}
        """By dialogue, whether it is the base's, and by what computes it."""
        self.seconds: dict[str, list[list[float]]] = {}
        """By server, of each round, of each request."""

    def ask(self, side: str, port: int, names: list[str | None]) -> None:
        """Send all requests, cycling through dialogues and adapters, and wait for the answers."""
        seconds: list[float] = []
        self.seconds.setdefault(side, []).append(seconds)
        requests = list(
            itertools.islice(
                zip(itertools.cycle(self.dialogues), itertools.cycle(names)), self.given.requests
            )
        )
        local = threading.local()

        def one(dialogue: str, name: str | None) -> None:
            if not hasattr(local, "connection"):
                local.connection = http.client.HTTPConnection("127.0.0.1", port)
            limit = self.given.new_tokens  # the base has no default length
            body = json.dumps(
                {"dialogue": dialogue, "adapter": name, "max_new_tokens": limit, "truncate": True}
            )
            start = time.perf_counter()
            local.connection.request("POST", "/summarize", body, {"Content-Type": "application/json"})
            response = local.connection.getresponse()
            text = response.read()
            seconds.append(time.perf_counter() - start)
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {text.decode()}")
            model = dialogue, name is None, side.split(":")[0] if name else side
            self.answers.setdefault(model, set()).add(json.loads(text)["summary"])

        with ThreadPoolExecutor(self.given.clients) as pool:
            list(pool.map(one, *zip(*requests, strict=True)))


def measure(
    given: argparse.Namespace, base: str, adapter: Path, by_ctranslate2: Path | None
) -> dict[str, Any]:
    """Return summaries per second of each server, and ratios to one adapter alone in the same round."""
    from lora_hf.config import DataConfig
    from lora_hf.data.splits import load_split

    test = load_split(DataConfig(dataset_name=given.data, max_test_samples=given.requests), "test")
    clients = Clients([example.dialogue for example in test], given)
    cpu: dict[str, list[float]] = {}

    def ask(side: str, port: int, process: psutil.Process, names: list[str | None]) -> None:
        before = process.cpu_times()
        clients.ask(side, port, names)
        after = process.cpu_times()
        cpu.setdefault(side, []).append(after.user + after.system - before.user - before.system)

    with ExitStack() as stack:
        first = given.variants[0]
        numbers = dict.fromkeys([(first, 1), *itertools.product(given.variants, given.adapters)])
        servers = {of: stack.enter_context(server(base, adapter, *of, given)) for of in numbers}
        alone = f"{first}: {ALONE}"
        sides: dict[str, Callable[[], None]] = {alone: partial(ask, alone, *servers[first, 1], ["a0"])}
        sides[BASE] = partial(ask, BASE, *servers[first, 1], [None])
        for variant, n in itertools.product(given.variants, given.adapters):
            side, names = f"{variant}: {n}", [f"a{i}" for i in range(n)]
            sides[side] = partial(ask, side, *servers[variant, n], names)
        if by_ctranslate2:
            options = [f"--base={by_ctranslate2}", f"--max-batch={given.batch}", "--timeout=600"]
            process = stack.enter_context(serving(options))
            sides[CTRANSLATE2] = partial(ask, CTRANSLATE2, *process, [None])
        seconds = time_in_turn(sides, given.rounds)
    cpu = {
        name: times[1:] for name, times in cpu.items()
    }  # as `time_in_turn`: the first round is not counted
    return {
        "summaries_per_second": {
            name: round(median(given.requests / s for s in times), 2) for name, times in seconds.items()
        },
        "seconds_of_a_request": {name: percentiles(times[1:]) for name, times in clients.seconds.items()},
        "ratio_to_alone": ratios(seconds, alone),
        "ratio_of_processor_time": ratios(cpu, alone),
        "same_answers": {
            of: all(len(texts) == 1 for key, texts in clients.answers.items() if key[2] == of)
            for of in dict.fromkeys(key[2] for key in clients.answers)
        },
    }


def percentiles(rounds: list[list[float]]) -> dict[str, float]:
    """Return the p50 and p95 of all requests of all rounds."""
    cuts = quantiles(itertools.chain(*rounds), n=20, method="inclusive")
    return {"p50": round(cuts[9], 3), "p95": round(cuts[18], 3)}


def ratios(seconds: dict[str, list[float]], alone: str) -> dict[str, dict[str, Any]]:
    """Return throughput relative to one adapter alone: median over rounds, and quartiles."""
    found = {}
    for name, times in seconds.items():
        each = [first / own for first, own in zip(seconds[alone], times, strict=True)]
        low, _, high = quantiles(each, n=4, method="inclusive")
        found[name] = {"median": round(median(each), 3), "quartiles": [round(low, 3), round(high, 3)]}
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    is_real = (REAL / "dialogsum").is_dir() and (REAL / "t5_tokenizer").is_dir()
    parser.add_argument("--shape", choices=["embedded", "small", "base", "large"], default="small")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["torch"])
    parser.add_argument("--max-merged", type=int, default=17, help="models that the variant `merged` keeps")
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--requests", type=int, default=128, help="requests per server and round")
    parser.add_argument("--rounds", type=int, default=5, help="at least 2")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32, help="largest batch of the server")
    parser.add_argument("--ctranslate2", metavar="QUANTIZATION", help="also serve the merged adapter by it")
    parser.add_argument("--new-tokens", type=int, default=32, help="maximum length of a summary in tokens")
    parser.add_argument("--data", default=str(REAL / "dialogsum") if is_real else "embedded")
    parser.add_argument(
        "--tokenizer", default=str(REAL / "t5_tokenizer") if is_real else "lora_hf/assets/tiny_t5"
    )
    return parser.parse_args()


def main() -> None:
    given = parsed()
    with TemporaryDirectory() as folder:
        base, adapter = prepare(Path(folder), given)
        other = exported(base, adapter, Path(folder), given.ctranslate2) if given.ctranslate2 else None
        record = measure(given, base, adapter, other)
    print(json.dumps({"machine": machine("cpu"), "options": vars(given)} | record, indent=2))


if __name__ == "__main__":
    main()
