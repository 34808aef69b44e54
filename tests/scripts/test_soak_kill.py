"""The kill test in short: a run that is killed at any of three moments ends with identical results."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.warm_python import Started, WarmPython

from scripts.tools import soak_kill
from scripts.tools.soak_kill import (
    NO_STAGE,
    RUN,
    after,
    in_checkpoint,
    outcome,
    resume,
    stage_of,
    start_and_kill,
    time_run,
)

ROOT = Path(__file__).parents[2]


def test_the_stack_of_a_process_names_its_stage() -> None:
    line = '  File "x.py", line 3 in {}\n'
    assert (
        stage_of("".join(line.format(f) for f in ("sdpa", "evaluate", "_inner_training_loop")))
        == "evaluation"
    )
    assert stage_of(line.format("load_model")) == stage_of("") == NO_STAGE


def test_a_moment_is_counted_from_the_first_file_or_from_a_checkpoint(tmp_path: Path) -> None:
    first, written = after(0), in_checkpoint(2, 0)
    assert not first(tmp_path) and not written(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    for step in (3, 6):
        assert first(tmp_path) and not written(tmp_path)
        (tmp_path / "checkpoints" / ".partial.checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        written(tmp_path)
    assert written(tmp_path)


@pytest.mark.slow
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, warm_python: WarmPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(words: list[str], process_group: int, **options: Any) -> Started:
        return warm_python.start(words, **options)

    def run(words: list[str], capture_output: bool, **options: Any) -> "subprocess.CompletedProcess[str]":
        return warm_python.run(words, **options)

    started = SimpleNamespace(Popen=start, run=run, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(soak_kill, "subprocess", started)
    config = tmp_path / "run.yaml"
    config.write_text(RUN)
    seconds = time_run(config, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    moments = {"early": after(0.1 * seconds), "late": after(0.6 * seconds)}
    for name, moment in moments.items():
        assert start_and_kill(config, tmp_path / name, moment) is not None
    for attempt in range(10):  # writing takes milliseconds: on a busy machine the signal may come after it
        moments |= {(name := f"checkpoint {attempt}"): in_checkpoint(3, 0.002)}
        if start_and_kill(config, tmp_path / name, moments[name]) == "writing a checkpoint":
            break
    else:
        raise AssertionError("no run of ten was killed while it wrote a checkpoint")
    for name in moments:
        assert resume(config, tmp_path / name) == expected, name
