"""Kill a short run at random moments, give the same command again, and compare the ends, byte by byte.

    make soak
    python scripts/tools/soak_kill.py --kills 50

Each kill is a run of its own on the embedded model (CPU, float32), ended by SIGKILL and gone on with by the
same command. Two of three come at a moment drawn evenly between the run's first file and its end, the third
while one of its checkpoints, drawn too, is being written. Compared with a run that nothing interrupted: the
adapter's files, the predictions and the scores, and of the last checkpoint the optimizer, the schedule and
the random states. Where a kill hit is what the process's stack said just before.
"""

import argparse
import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from lora_hf.files import file_sha256, write_json
from lora_hf.run_files import ADAPTER, CHECKPOINTS, CONFIG, PREDICTIONS, RESULTS, UNFINISHED

RUN = """
method: lora
lora: {r: 4, lora_alpha: 8, lora_dropout: 0.1}
data: {max_train_samples: 60, max_eval_samples: 8, max_test_samples: 60, max_source_length: 96}
generation: {max_new_tokens: 10}
early_stopping_patience: 20
training:
  {max_steps: 15, per_device_train_batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 5.0e-3,
  warmup_steps: 3, eval_strategy: steps, eval_steps: 3, save_strategy: steps, save_steps: 3, logging_steps: 1,
  load_best_model_at_end: true, save_total_limit: 3, disable_tqdm: true}
"""
SAVED = 5
"""Checkpoints of that run."""
WRITING = 0.03
"""Seconds that one takes to write, about."""
STAGES = {
    "writing a checkpoint": {"_save_checkpoint"},
    "evaluation": {"evaluate", "evaluation_loop"},
    "training": {"_inner_training_loop"},
    "writing the adapter": {"save_trained"},
    "scoring": {"score_model"},
}
"""By functions on the stack; the first that has one."""
ELSE = "between the stages"
STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
SCORES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def words(config: Path, run: Path) -> list[str]:
    """The command, without Python's name and the program's."""
    return ["train", "--config", str(config), f"output_dir={run}"]


def watched(stack: str, *arguments: str) -> None:
    """The command in a process that writes its stack to a file at SIGUSR1."""
    from lora_hf.cli import main

    file = open(stack, "w")  # as long as the process
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=False)
    main(list(arguments))


def start(config: Path, run: Path) -> subprocess.Popen[str]:
    """The run in a process of its own, in a group of its own."""
    code = "import sys; from scripts.tools.soak_kill import watched; watched(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(run.with_suffix(".stack")), *words(config, run)],
        stdout=subprocess.DEVNULL,
        stderr=run.with_suffix(".log").open("a"),
        text=True,
        cwd=Path(__file__).parents[2],
        process_group=0,
    )


def killed(config: Path, run: Path, moment: Callable[[Path], bool]) -> str | None:
    """Start a run, kill it at `moment`, and return the stage it was in; None if it had finished."""
    child = start(config, run)
    while child.poll() is None and not moment(run):
        time.sleep(0.001)
    if child.poll() is not None:
        return None
    stack = run.with_suffix(".stack")
    child.send_signal(signal.SIGUSR1)
    until = time.monotonic() + 0.2
    while child.poll() is None and time.monotonic() < until and not stack.stat().st_size:
        time.sleep(0.0002)
    child.kill()
    child.wait()
    return stage_of(stack.read_text())


def stage_of(stack: str) -> str:
    """Where a process was, from the names of its functions."""
    functions = {line.rsplit(" in ", 1)[-1].strip() for line in stack.splitlines()}
    return next((stage for stage, names in STAGES.items() if names & functions), ELSE)


def ended(config: Path, run: Path) -> dict[str, Any]:
    """The same command to its end; what is compared of it.

    Raises:
        RuntimeError: it did not end well.
    """
    done = subprocess.run(
        [sys.executable, "-m", "lora_hf", *words(config, run)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode != 0:
        raise RuntimeError(f"{run}: ended with status {done.returncode}: {done.stderr[-2000:]}")
    return outcome(run)


def outcome(run: Path) -> dict[str, Any]:
    """Hashes of what was trained and written, by file, and the scores."""
    last = max(
        (run / CHECKPOINTS).glob("checkpoint-*"), key=lambda c: int(c.name.removeprefix("checkpoint-"))
    )
    files = [*sorted((run / ADAPTER).iterdir()), run / PREDICTIONS, *(last / name for name in STATES)]
    record = json.loads((run / RESULTS).read_text())
    return {str(f.relative_to(run)): file_sha256(f) for f in files} | {name: record[name] for name in SCORES}


def after(seconds: float) -> Callable[[Path], bool]:
    """That long after the run has written its first file."""
    begun: list[float] = []

    def moment(run: Path) -> bool:
        if not begun and (run / CONFIG).exists():
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] >= seconds

    return moment


def in_checkpoint(number: int, seconds: float) -> Callable[[Path], bool]:
    """That long after the folder has appeared in which a run's so manieth checkpoint is written."""
    seen: dict[str, float] = {}

    def moment(run: Path) -> bool:
        with suppress(FileNotFoundError):  # not there yet, or just renamed
            for name in os.listdir(run / CHECKPOINTS / UNFINISHED):
                seen.setdefault(name, time.monotonic())
        return len(seen) >= number and time.monotonic() - [*seen.values()][number - 1] >= seconds

    return moment


def draw_moment(draw: random.Random, number: int, seconds: float) -> tuple[str, Callable[[Path], bool]]:
    """The moment of one kill, in words and as a function."""
    if number % 3:
        moment = draw.uniform(0, seconds)
        return f"{moment:.2f} s", after(moment)
    checkpoint, delay = draw.randint(1, SAVED), draw.uniform(0, WRITING)
    return f"checkpoint {checkpoint} and {1000 * delay:.0f} ms", in_checkpoint(checkpoint, delay)


def seconds_of(config: Path, run: Path) -> float:
    """From the first file of a run that nothing interrupts to its end."""
    child = start(config, run)
    while not (run / CONFIG).exists():
        if child.poll() is not None:
            raise RuntimeError(run.with_suffix(".log").read_text()[-2000:])
        time.sleep(0.001)
    begun = time.monotonic()
    child.wait()
    return time.monotonic() - begun


def soak(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """As many kills as asked for; the counts."""
    config = folder / "run.yaml"
    config.write_text(RUN)
    seconds = seconds_of(config, folder / "whole")
    expected, draw = outcome(folder / "whole"), random.Random(seed)
    stages, resumed_at, differing = Counter[str](), Counter[str](), []
    print(f"uninterrupted: {seconds:.1f} s after its first file", flush=True)
    while stages.total() < kills:
        run = folder / f"kill-{stages.total() + 1}"
        when, moment = draw_moment(draw, stages.total(), seconds)
        stage = killed(config, run, moment)
        if stage is None:  # quicker than the uninterrupted one was
            continue
        stages[stage] += 1
        found = ended(config, run)
        step = json.loads((run / RESULTS).read_text())["resumed_at_step"]
        resumed_at[str(step)] += 1
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        differing += [f"{run.name}: {wrong}"] if wrong else []
        verdict = f"DIFFERS in {wrong}" if wrong else "equal"
        print(f"{run.name}: after {when}, in {stage}; resumed from step {step}: {verdict}", flush=True)
    return {
        "command": f"python scripts/tools/soak_kill.py --kills {kills} --seed {seed}",
        "kills": kills,
        "equal": kills - len(differing),
        "stages": dict(stages),
        "resumed_at_step": dict(resumed_at),
        "differing": differing,
        "compared": sorted(expected),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--output", type=Path, help="folder for the runs; by default one that is removed")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        counts = soak(folder, given.kills, given.seed)
        write_json(folder / "soak_kill.json", counts)
    print(json.dumps(counts, indent=2))
    sys.exit(counts["equal"] != counts["kills"])


if __name__ == "__main__":
    main()
