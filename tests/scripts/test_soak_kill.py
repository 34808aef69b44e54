"""The script of the long form, in short: three kills at chosen moments change no bit of the end."""

from pathlib import Path

import pytest

from scripts.tools.soak_kill import (
    ELSE,
    RUN,
    after,
    ended,
    in_checkpoint,
    killed,
    outcome,
    seconds_of,
    stage_of,
)

ROOT = Path(__file__).parents[2]


def test_a_stack_says_where_a_kill_hit() -> None:
    line = '  File "x.py", line 3 in {}\n'
    assert (
        stage_of("".join(line.format(f) for f in ("sdpa", "evaluate", "_inner_training_loop")))
        == "evaluation"
    )
    assert stage_of(line.format("load_model")) == stage_of("") == ELSE


def test_the_moments_are_what_they_say(tmp_path: Path) -> None:
    first, written = after(0), in_checkpoint(2, 0)
    assert not first(tmp_path) and not written(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    for step in (3, 6):
        assert first(tmp_path) and not written(tmp_path)
        (tmp_path / "checkpoints" / ".partial.checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        written(tmp_path)
    assert written(tmp_path)


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(RUN)
    seconds = seconds_of(config, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    moments = {
        "early": after(0.1 * seconds),
        "checkpoint": in_checkpoint(3, 0.002),
        "late": after(0.6 * seconds),
    }
    stages = {name: killed(config, tmp_path / name, moment) for name, moment in moments.items()}
    assert stages["checkpoint"] == "writing a checkpoint" and None not in stages.values()
    for name in moments:
        assert ended(config, tmp_path / name) == expected, name
