"""A real terminal: the bar of a training, and what remains on the screen."""

import re

import pytest
from support.inputs import FEW
from support.screen import Terminal, plain, screen_of

SHORT = [word for word in FEW if "disable_tqdm" not in word]
STEPS = ["training.max_steps=6", "training.logging_steps=2", "training.save_strategy=no"]
EVALUATE = ["training.eval_strategy=steps", "training.eval_steps=3"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_runs_below_whole_lines_and_leaves_none_of_itself(tmp_path, warm_python, width):
    terminal = Terminal(width)
    words = ["train", "--config", "quickstart", *SHORT, *STEPS, *EVALUATE, f"output_dir={tmp_path / 'run'}"]
    child = warm_python.start(
        ["-m", "lora_hf", *words],
        stdout=terminal.child,
        stderr=terminal.child,
        env={"TERM": "xterm", "COLUMNS": str(width)},
    )
    written = terminal.read()
    assert child.wait() == 0, written
    # evaluating begins and ends with a frame of its own, which has the last loss, however short it is
    states = [part for part in re.split(r"[\r\n]+", plain(written)) if "━" in part]
    for described in ("training", "evaluating"):
        assert any(state.startswith(described) and "loss " in state for state in states), states
    assert all(state.endswith(" left") for state in states)
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") > 0  # the cursor is shown again
    # paths, and the commands after them, are not wrapped, so that they can be copied
    shown = screen_of(written.partition("results: ")[0], width)
    assert not any("━" in line for line in shown)
    text = " ".join(shown)
    assert [line.partition(":")[0] for line in shown[:2]] == ["model", "data"]
    assert text.count("step 3/6: validation loss ") == text.count("step 6/6: validation loss ") == 1
    assert text.count("trained 6 steps in ") == 1 and "rouge1 " in text and "it/s" not in written
    assert re.search(r"The best trivial summary \(first .*line.*\) scores \d", text)


@pytest.mark.parametrize("width", [80, 120])
def test_the_doctor_s_findings_are_above_its_spinner_which_leaves_nothing(warm_python, width):
    terminal = Terminal(width)
    few = [word for word in FEW if word.startswith("data.max_") and "length" not in word]
    child = warm_python.start(
        ["-m", "lora_hf", "doctor", "--config", "quickstart", *few, "training.warmup_steps=9999"],
        stdout=terminal.child,
        stderr=terminal.child,
        env={"TERM": "xterm", "COLUMNS": str(width)},
    )
    written = terminal.read()
    assert child.wait() == 1, written
    assert "checking" in plain(written)
    shown = [line for line in screen_of(written, width) if line]
    assert shown[0].startswith("fault   batches") and "checking" not in " ".join(shown)
    assert [line.split()[0] for line in shown].count("fault") == 1 and " 1 failed, 0 " in shown[-1]
