"""Kill a short run at random moments, repeat the command, and compare the results byte by byte.

    make soak
    python scripts/tools/soak_kill.py --kills 50

Each kill ends a new run on the embedded model (CPU, float32) by SIGKILL; the same command then resumes it.
Two of three kills come at a random moment between the run's first file and its end, the third while a random
checkpoint is being written. The result is compared with that of an uninterrupted run: the adapter's files,
the predictions, the scores, and the optimizer, schedule and random states of the last checkpoint. The stage
that a kill interrupted is read from the stack that the process has printed just before.
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
N_CHECKPOINTS = 5
"""Number of checkpoints that the run writes."""
CHECKPOINT_SECONDS = 0.03
"""Approximate time to write one."""
STAGES = {
    "writing a checkpoint": {"_save_checkpoint"},
    "evaluation": {"evaluate", "evaluation_loop"},
    "training": {"_inner_training_loop"},
    "writing the adapter": {"save_trained"},
    "scoring": {"score_model"},
}
"""Names of functions by stage. A stack is in the first stage that has one of its functions."""
NO_STAGE = "between the stages"
STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
SCORES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def command_line(config: Path, run: Path) -> list[str]:
    """Return the arguments of `lora-hf` that start or resume the run."""
    return ["train", "--config", str(config), f"output_dir={run}"]


def run_with_stack_dump(stack: str, *arguments: str) -> None:
    """Run `lora-hf` in this process, which writes its stack to the file `stack` at SIGUSR1."""
    from lora_hf.cli import main

    file = open(stack, "w")  # open until the process ends
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=False)
    main(list(arguments))


def start(config: Path, run: Path) -> subprocess.Popen[str]:
    """Start the run in a new process and process group."""
    code = "import sys; from scripts.tools.soak_kill import run_with_stack_dump as run; run(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(run.with_suffix(".stack")), *command_line(config, run)],
        stdout=subprocess.DEVNULL,
        stderr=run.with_suffix(".log").open("a"),
        text=True,
        cwd=Path(__file__).parents[2],
        process_group=0,
    )


def start_and_kill(config: Path, run: Path, moment: Callable[[Path], bool]) -> str | None:
    """Start a run, kill it at `moment`, and return its stage; None if it finished first."""
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
    """Return the stage of a run, given the stack that faulthandler has printed."""
    functions = {line.rsplit(" in ", 1)[-1].strip() for line in stack.splitlines()}
    return next((stage for stage, names in STAGES.items() if names & functions), NO_STAGE)


def resume(config: Path, run: Path) -> dict[str, Any]:
    """Repeat the command until it ends, and return the run's `outcome`.

    Raises:
        RuntimeError: the command failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "lora_hf", *command_line(config, run)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode != 0:
        raise RuntimeError(f"{run}: ended with status {done.returncode}: {done.stderr[-2000:]}")
    return outcome(run)


def outcome(run: Path) -> dict[str, Any]:
    """Return what is compared: the SHA-256 of each file, and the scores."""
    last = max(
        (run / CHECKPOINTS).glob("checkpoint-*"), key=lambda c: int(c.name.removeprefix("checkpoint-"))
    )
    files = [*sorted((run / ADAPTER).iterdir()), run / PREDICTIONS, *(last / name for name in STATES)]
    record = json.loads((run / RESULTS).read_text())
    return {str(f.relative_to(run)): file_sha256(f) for f in files} | {name: record[name] for name in SCORES}


def after(seconds: float) -> Callable[[Path], bool]:
    """Return a function that is true from `seconds` after the run has written its first file."""
    begun: list[float] = []

    def moment(run: Path) -> bool:
        if not begun and (run / CONFIG).exists():
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] >= seconds

    return moment


def in_checkpoint(number: int, seconds: float) -> Callable[[Path], bool]:
    """Return a function that is true from `seconds` after the run has begun to write checkpoint `number`."""
    seen: dict[str, float] = {}

    def moment(run: Path) -> bool:
        with suppress(FileNotFoundError):  # not written yet, or just renamed
            for name in os.listdir(run / CHECKPOINTS / UNFINISHED):
                seen.setdefault(name, time.monotonic())
        return len(seen) >= number and time.monotonic() - [*seen.values()][number - 1] >= seconds

    return moment


def draw_moment(draw: random.Random, number: int, seconds: float) -> tuple[str, Callable[[Path], bool]]:
    """Draw the moment of a kill, in words and as a function; every third is in a checkpoint."""
    if number % 3:
        moment = draw.uniform(0, seconds)
        return f"{moment:.2f} s", after(moment)
    checkpoint, delay = draw.randint(1, N_CHECKPOINTS), draw.uniform(0, CHECKPOINT_SECONDS)
    return f"checkpoint {checkpoint} and {1000 * delay:.0f} ms", in_checkpoint(checkpoint, delay)


def time_run(config: Path, run: Path) -> float:
    """Run without interruption and return the seconds from the first file to the end."""
    child = start(config, run)
    while not (run / CONFIG).exists():
        if child.poll() is not None:
            raise RuntimeError(run.with_suffix(".log").read_text()[-2000:])
        time.sleep(0.001)
    begun = time.monotonic()
    child.wait()
    return time.monotonic() - begun


def soak(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill and resume `kills` runs, print one line for each, and return the counts."""
    config = folder / "run.yaml"
    config.write_text(RUN)
    seconds = time_run(config, folder / "whole")
    expected, draw = outcome(folder / "whole"), random.Random(seed)
    stages, resumed_at, differing = Counter[str](), Counter[str](), []
    print(f"uninterrupted: {seconds:.1f} s after its first file", flush=True)
    while stages.total() < kills:
        run = folder / f"kill-{stages.total() + 1}"
        when, moment = draw_moment(draw, stages.total(), seconds)
        stage = start_and_kill(config, run, moment)
        if stage is None:  # it finished before the moment came
            continue
        stages[stage] += 1
        found = resume(config, run)
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
    parser.add_argument("--output", type=Path, help="folder for the runs; default: a temporary one")
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
