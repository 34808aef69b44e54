"""Check lora_hf on a GPU in about ten minutes, and print one table to send in.

    make test-gpu
    python scripts/benchmarks/gpu_check.py --output my_card.md
    python scripts/benchmarks/gpu_check.py --device cpu --small     # tests that it runs to its end

The model is a FLAN-T5 with random weights, so nothing is downloaded. Where a row compares two computations,
"ok" means that they agree within the tolerance it names, and "LOOK" that they do not. A check that fails is a
row too, and the others still run. Exit status: 0 if all rows are ok, 1 if not, 2 without a GPU.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

NO_GPU = "error: this PyTorch sees no GPU, so there is nothing to check (docs/support.md)\n"
if __name__ == "__main__" and not torch.cuda.is_available():  # before imports that take seconds
    if not any(word in ("-h", "--help") or word.endswith("cpu") for word in sys.argv[1:]):
        sys.stderr.write(NO_GPU)
        sys.exit(2)

from transformers import (  # noqa: E402
    PrinterCallback,
    Seq2SeqTrainingArguments,
    T5Config,
    default_data_collator,
)
from transformers.utils.logging import set_verbosity_error  # noqa: E402

from lora_hf import LoraTrainer  # noqa: E402
from lora_hf.config import RunConfig  # noqa: E402
from lora_hf.models.flan_t5 import COMMON, SIZES  # noqa: E402
from lora_hf.planning.activations import Batch, activation_bytes  # noqa: E402
from lora_hf.planning.plan import computation, memory  # noqa: E402
from lora_hf.system import device_name, resolve_dtype, versions  # noqa: E402
from lora_hf.training.micro_batch import LOG_KEY  # noqa: E402
from scripts.benchmarks.against_peft.models import TINY, adapted  # noqa: E402

ROOT = Path(__file__).parents[2]
STEPS = 4
CLOSE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}
"""Largest difference of two losses (about 10) by dtype: sums are taken in another order."""
PLAN_OFF = 0.15
"""Largest difference of the measured peak from the plan, as a share."""


class Row(NamedTuple):
    """A line of the table."""

    check: str
    result: str
    is_ok: bool | None = None
    """None where nothing is compared."""


class Trained(NamedTuple):
    """Some steps of training."""

    losses: list[float]
    peak: int
    """Bytes: largest memory of the GPU, or 0 on a CPU."""
    micro_batch: int | None
    """Dialogues at a time after memory ran out."""


def train(given: Namespace, side: str, dtype: str, fast: bool = True, **fields: Any) -> Trained:
    """Take `STEPS` steps with LoRA on q and v; without dropout, unless `dropout` is among the fields.

    Args:
        given: command line.
        side: `ours`, or `ours_4bit` for NF4 weights.
        dtype: of the weights and of autocast.
        fast: use the fast path.
        fields: of `Seq2SeqTrainingArguments`.
    """
    dropout = fields.pop("dropout", False)
    release()
    own = {"dtype": dtype, "dropout": dropout, "r": 8, "adapters": 1, "job": "train"}
    model = adapted(side, Namespace(shape=given.shape, device=given.device, **own))
    with TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder,
            **{
                "per_device_train_batch_size": given.batch.dialogues,
                "max_steps": STEPS,
                "learning_rate": 1e-3,
                "bf16": dtype == "bfloat16",
                "use_cpu": given.device == "cpu",
                "logging_steps": 1,
                "report_to": "none",
                "save_strategy": "no",
                "disable_tqdm": True,
                "train_sampling_strategy": "sequential",
                "dataloader_pin_memory": given.device == "cuda",
            }
            | fields,
        )
        trainer = LoraTrainer(
            model,
            arguments,
            train_dataset=rows(given.batch),  # type: ignore[arg-type]
            data_collator=default_data_collator,
            fast_paths=fast,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    log = trainer.state.log_history
    sizes = [entry[LOG_KEY] for entry in log if LOG_KEY in entry]
    peak = torch.cuda.max_memory_allocated() if given.device == "cuda" else 0
    return Trained([entry["loss"] for entry in log if "loss" in entry], peak, sizes[-1] if sizes else None)


def release() -> None:
    """Give back the memory of the model before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def rows(batch: Batch) -> list[dict[str, list[int]]]:
    """Return random rows of the batch's lengths, as many as the steps take."""
    draw, n = torch.Generator().manual_seed(0), batch.dialogues * STEPS
    source, target = (
        torch.randint(2, 90, (n, length), generator=draw).tolist() for length in (batch.source, batch.target)
    )
    return [
        {"input_ids": ids, "attention_mask": [1] * batch.source, "labels": labels}
        for ids, labels in zip(source, target, strict=True)
    ]


def compared(check: str, ours: list[float], reference: list[float], dtype: str) -> Row:
    """Return the row of two runs' losses."""
    apart = max(abs(a - b) for a, b in zip(ours, reference, strict=True))
    result = f"losses differ by {apart:.1e} (at most {CLOSE[dtype]:.0e}); last {ours[-1]:.4f}"
    return Row(check, result, apart <= CLOSE[dtype] and len(ours) == STEPS)


def decisions(given: Namespace) -> Iterator[Row]:
    """Report the machine and what is chosen on it."""
    device = torch.device(given.device)
    name, auto = device_name(device), str(resolve_dtype("auto", device)).removeprefix("torch.")
    if given.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        name += f", {card.total_memory / 1e9:.1f} GB, capability {card.major}.{card.minor}"
        name += f", CUDA {torch.version.cuda}"
    yield Row("device", name)
    yield Row("versions", ", ".join(f"{package} {version}" for package, version in versions().items()))
    yield Row("commit", commit())
    yield Row("model", f"FLAN-T5 {given.shape}, {tuple(given.batch)}; dtype auto is {auto}")


def commit() -> str:
    """Return the commit of this checkout, with a mark if files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def losses(given: Namespace) -> Iterator[Row]:
    """Compare the fast path's losses with those of the reference path, dense and in 4 bits."""
    for dtype in ("float32", given.dtype):
        if dtype == "float32" or given.dtype != "float32":
            fast, slow = (train(given, "ours", dtype, is_fast).losses for is_fast in (True, False))
            yield compared(f"fast and reference path, {dtype}", fast, slow, dtype)
    fast, slow = (train(given, "ours_4bit", given.dtype, is_fast).losses for is_fast in (True, False))
    yield compared("fast and reference path, NF4", fast, slow, given.dtype)


def float16(given: Namespace) -> Iterator[Row]:
    """Compare float16 autocast with float32."""
    if given.device != "cuda":
        yield Row("float16 autocast", "needs a GPU")
        return
    for side, name in (("ours", "dense"), ("ours_4bit", "NF4")):
        half = train(given, side, "float32", fp16=True)
        yield compared(
            f"float16 autocast and float32, {name}",
            half.losses,
            train(given, side, "float32").losses,
            "float16",
        )


def memory_planned(given: Namespace) -> Iterator[Row]:
    """Compare the peak of a step with the plan."""
    config = RunConfig(
        lora={"r": 8, "lora_alpha": 16, "lora_dropout": 0.05},
        training={"per_device_train_batch_size": given.batch.dialogues},
    )
    settings = T5Config(**COMMON, **(TINY if given.shape == "tiny" else SIZES[given.shape]))
    for side, storage in (("ours", given.dtype), ("ours_4bit", "nf4")):
        how = computation(config, given.device, getattr(torch, given.dtype))
        held = activation_bytes(config, settings, given.batch, how)
        planned = memory(config, settings, storage, held)["peak_bytes"]
        measured = train(given, side, given.dtype, dropout=True).peak
        if not measured:
            yield Row(
                f"peak memory, {storage}", f"planned {planned / 2**20:,.0f} MiB; measured on GPUs alone"
            )
            continue
        text = f"measured {measured / 2**20:,.0f} MiB, planned {planned / 2**20:,.0f}"
        yield Row(
            f"peak memory, {storage}",
            f"{text}: {measured / planned:.2f}",
            abs(measured / planned - 1) <= PLAN_OFF,
        )


def halving(given: Namespace) -> Iterator[Row]:
    """Let memory run out, and compare the losses of the smaller micro-batches with those of whole batches."""
    whole = train(given, "ours", given.dtype)
    with memory_for(whole.peak, given.batch.dialogues):
        halved = train(given, "ours", given.dtype, auto_find_batch_size=True)
    name = f"out of memory: {halved.micro_batch} of {given.batch.dialogues} dialogues at a time"
    row = compared(name, halved.losses, whole.losses, given.dtype)
    is_less = halved.micro_batch is not None and halved.micro_batch < given.batch.dialogues
    yield row._replace(is_ok=row.is_ok and is_less)


@contextmanager
def memory_for(peak: int, dialogues: int) -> Iterator[None]:
    """Limit the GPU's memory to 70 % of a peak; on a CPU, let batches of more than half the rows fail."""
    if peak:
        release()
        torch.cuda.set_per_process_memory_fraction(0.7 * peak / torch.cuda.mem_get_info()[1])
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    original = LoraTrainer.compute_loss

    def limited(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if len(inputs["labels"]) > dialogues // 2:
            raise torch.OutOfMemoryError("CUDA out of memory (as if)")
        return original(self, model, inputs, *args, **kwargs)

    LoraTrainer.compute_loss = limited  # type: ignore[method-assign]
    try:
        yield
    finally:
        LoraTrainer.compute_loss = original  # type: ignore[method-assign]


def against_peft(given: Namespace) -> Iterator[Row]:
    """Compare speed with PEFT in turn, and greedy tokens; then train compiled."""
    record = bench(given, "--only", "train", "evaluate", "--load-in-4bit")
    step, speed = record["train"], record["train"]["tokens_per_second"]
    yield Row(
        "a step of PEFT with Seq2SeqTrainer / ours, bfloat16",
        f"{spread(step, 'ratio_default')}; grouped by length {spread(step, 'ratio_best')}",
    )
    yield Row("tokens per second", ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in speed.items()))
    yield Row(
        "losses of PEFT and ours, float32", f"differ by {step['losses_apart']:.1e}", step["losses_agree"]
    )
    mib = step["mib"]
    yield Row("memory of a step", f"ours {mib['ours']:,} MiB, PEFT {mib['peer']:,}")
    yield Row("a step in NF4 / dense", spread(record["four_bit"], "ratio"))
    wrote = record["evaluate"]
    yield Row(
        "greedy summaries of PEFT and ours, float32",
        f"{wrote['summaries_the_same']} are the same; PEFT / ours {spread(wrote, 'ratio')}",
        wrote["same_tokens"],
    )
    if given.small:
        yield Row("compiled", "not with --small")
        return
    compiled = bench(given, "--only", "train", "--compile")["train"]
    ours = {name: run["tokens_per_second"]["ours"] for name, run in (("no", step), ("yes", compiled))}
    yield Row(
        "compiled",
        f"{ours['yes']:,} tokens per second, {ours['no']:,} without; {compiled['compiled_graphs']} graphs",
        compiled["losses_agree"],
    )


def bench(given: Namespace, *options: str) -> dict[str, Any]:
    """Run `bench.py`, and return its record."""
    release()
    sizes = ("--pairs", "1", "--batch", "2", "--dialogues", "3") if given.small else ("--batch", "16")
    with TemporaryDirectory() as folder:
        output = Path(folder) / "bench.json"
        where = ["--device", given.device, "--shape", given.shape, "--output", str(output)]
        command = [sys.executable, "scripts/benchmarks/bench.py", *where, *sizes, *options]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        record: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return record


def spread(record: dict[str, Any], name: str) -> str:
    low, high = record[f"{name}_spread"]
    return f"{record[name]:.2f} [{low:.2f}, {high:.2f}]"


CHECKS: tuple[Callable[[Namespace], Iterator[Row]], ...] = (
    decisions,
    losses,
    float16,
    memory_planned,
    halving,
    against_peft,
)


def run_all(given: Namespace) -> list[Row]:
    """Run every check; print each row as it is found."""
    print("| check | result | |\n| --- | --- | --- |", flush=True)
    found: list[Row] = []
    for check in CHECKS:
        try:
            for row in check(given):
                found.append(row)
                show(row)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            found.append(Row(check.__name__, f"{type(error).__name__}: {lines[0]}", False))
            show(found[-1])
    return found


def show(row: Row) -> None:
    print(written(row), flush=True)


def written(row: Row) -> str:
    """Return a row in Markdown."""
    verdict = {True: "ok", False: "LOOK", None: ""}[row.is_ok]
    return f"| {row.check} | {row.result.replace('|', '/')} | {verdict} |"


def parsed() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--shape", choices=SIZES, default="base")
    parser.add_argument("--small", action="store_true", help="a tiny model and few steps")
    parser.add_argument("--output", type=Path, help="write the table to this file too")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, NO_GPU)
    given.batch = Batch(4, 24, 8) if given.small else Batch(16, 320, 56)
    given.shape = "tiny" if given.small else given.shape
    has_bf16 = given.device == "cpu" or torch.cuda.get_device_capability() >= (8, 0)
    given.dtype = "bfloat16" if has_bf16 else "float32"
    return given


def main() -> None:
    given, began = parsed(), time.monotonic()
    set_verbosity_error()
    found = run_all(given)
    found.append(Row("time", f"{(time.monotonic() - began) / 60:.1f} minutes"))
    show(found[-1])
    if given.output:
        lines = ["| check | result | |", "| --- | --- | --- |", *map(written, found)]
        given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(int(any(row.is_ok is False for row in found)))


if __name__ == "__main__":
    main()
