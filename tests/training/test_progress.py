"""The lines and the bar of a training, from the Trainer's own log entries."""

import io
import logging
from types import SimpleNamespace

import pytest
from rich.console import Console

from lora_hf import terminal
from lora_hf.scores import METRICS
from lora_hf.training.progress import ShowProgress, duration

STEP = {"loss": 0.56851, "grad_norm": 0.63849, "learning_rate": 4e-3, "epoch": 0.2}
EVALUATION = {
    "eval_loss": 0.62723,
    "eval_rouge1": 0.48759,
    "eval_rouge2": 0.28901,
    "eval_rougeL": 0.43771,
    "eval_rougeLsum": 0.45812,
    "eval_words": 13.35,
    "eval_runtime": 33.8,
    "eval_samples_per_second": 2.958,
    "epoch": 0.16,
}
END = {"train_runtime": 225.9, "train_loss": 0.40817, "epoch": 0.32}


@pytest.fixture
def shown(monkeypatch):
    """Show three log entries on a console, and return what it has."""

    def show(is_terminal, width=80, level=logging.INFO, **state):
        console = Console(
            file=io.StringIO(), width=width, force_terminal=is_terminal, color_system=None, highlight=False
        )
        monkeypatch.setattr(terminal, "console", console)
        logging.getLogger("lora_hf").setLevel(level)
        known = SimpleNamespace(
            **({"is_world_process_zero": True, "max_steps": 300, "global_step": 0} | state)
        )
        progress, args = ShowProgress(METRICS["rouge"]), SimpleNamespace(disable_tqdm=False)
        progress.on_train_begin(args, known, None)
        for step, logs in ((25, STEP), (100, EVALUATION), (300, END)):
            known.global_step = step
            progress.on_step_end(args, known, None)
            progress.on_prediction_step(args, known, None)
            progress.on_log(args, known, None, logs)
        progress.on_train_end(args, known, None)
        return console.file.getvalue()

    return show


def test_a_pipe_gets_one_line_per_logged_step_with_its_figures(shown):
    assert shown(is_terminal=False).splitlines() == [
        "step 25/300: loss 0.5685, learning rate 0.004, gradient norm 0.6385, epoch 0.2",
        "step 100/300: validation loss 0.6272, ROUGE-1 0.4876, ROUGE-2 0.2890, ROUGE-L 0.4377, "
        "ROUGE-Lsum 0.4581, words 13.35, seconds 33.8",
        "trained 300 steps in 3 min 46 s, mean loss 0.4082",
    ]


def test_a_resumed_training_names_its_own_steps(shown):
    assert "trained steps 21 to 300 in 3 min 46 s" in shown(is_terminal=False, global_step=20)


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_the_loss_in_its_bar_and_evaluations_above_it(shown, width):
    seen = shown(is_terminal=True, width=width)
    assert "step 25/300" not in seen and "loss 0.5685" in seen  # beside the counter
    assert "evaluating" in seen and "100/300" in seen
    line = "step 100/300: validation loss 0.6272, ROUGE-1 0.4876, ROUGE-2 0.2890"
    assert " ".join(seen.split()).count(line) == 1
    assert "step 25/300: loss 0.5685" in shown(is_terminal=True, width=width, level=logging.DEBUG)


def test_quiet_and_other_processes_show_nothing(shown, monkeypatch):
    assert shown(is_terminal=True, level=logging.ERROR) == ""
    assert shown(is_terminal=False, is_world_process_zero=False) == ""


def test_durations_have_two_units_at_most():
    assert [duration(s) for s in (0.4, 41, 225.9, 7500)] == ["0 s", "41 s", "3 min 46 s", "2 h 05 min"]
