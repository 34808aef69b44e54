"""Progress of a training: a bar on a terminal, and lines for evaluations and, elsewhere, logged steps."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from lora_hf import terminal
from lora_hf.errors import counted
from lora_hf.scores import Score

NAMES = {"loss": "loss", "learning_rate": "learning rate", "grad_norm": "gradient norm", "epoch": "epoch"}
"""Values of a logged step, as a line shows them."""
FEW_SCORES = 2
"""Scores of an evaluation that fit one line of a terminal, beside the loss."""


class ShowProgress(TrainerCallback):
    """Show the Trainer's steps, losses and evaluations on standard error.

    Args:
        scores: those of an evaluation, the main one first.
    """

    def __init__(self, scores: Sequence[Score] = ()) -> None:
        self.scores = scores
        self._bar: terminal.Bar | None = None
        self._before = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before = state.global_step
        if state.is_world_process_zero and not args.disable_tqdm:
            self._bar = terminal.Bar("training", state.max_steps, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar:
            self._bar.update(completed=state.global_step)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar:
            self._bar.update(description="evaluating")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar:
            self._bar.update(description="training")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show a line, or for the loss of a step the bar's note where there is a bar."""
        if not state.is_world_process_zero or not logs:
            return
        at = f"step {state.global_step:,}/{state.max_steps:,}"
        if "train_runtime" in logs:
            seconds, loss = logs["train_runtime"], logs.get("train_loss", 0.0)
            last = f"{state.global_step:,}"
            steps = (
                f"steps {self._before + 1:,} to {last}"
                if self._before
                else counted(state.global_step, "step")
            )
            terminal.line(f"trained {steps} in {duration(seconds)}, mean loss {loss:.4g}")
        elif any(name.startswith("eval_") for name in logs):
            terminal.line(f"{at}: {evaluation_text(logs, self.scores)}")
        elif "loss" in logs:
            has_bar = self._bar is not None and terminal.console.is_interactive
            terminal.line(f"{at}: {step_text(logs)}", logging.DEBUG if has_bar else logging.INFO)
            if self._bar:
                self._bar.update(note=f"loss {logs['loss']:.4g}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar, also after an error."""
        if self._bar:
            self._bar.close()
            self._bar = None


def step_text(logs: Mapping[str, Any]) -> str:
    """Return the values of a logged step: `loss 0.5685, learning rate 0.004, ...`."""
    named = {NAMES.get(name, name): value for name, value in logs.items() if name != "total_flos"}
    order = sorted(named, key=lambda name: [*NAMES.values(), name].index(name))
    return ", ".join(f"{name} {_figure(named[name])}" for name in order)


def evaluation_text(logs: Mapping[str, Any], scores: Sequence[Score]) -> str:
    """Return the loss and the scores of an evaluation; on a terminal only as many as fit one line."""
    most = FEW_SCORES if terminal.console.is_interactive and not terminal.is_shown(logging.DEBUG) else None
    shown = [f"validation loss {_figure(logs['eval_loss'])}"] if "eval_loss" in logs else []
    for score in scores[:most]:
        if (value := logs.get(f"eval_{score.name}")) is not None:
            shown.append(f"{score.label} {score.text(value)}")
    if most is None:
        others = {"words": logs.get("eval_words"), "seconds": logs.get("eval_runtime")}
        shown += [f"{name} {_figure(value)}" for name, value in others.items() if value is not None]
    return ", ".join(shown)


def duration(seconds: float) -> str:
    """Return `41 s`, `3 min 46 s` or `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, of_hour = divmod(minutes, 60)
    if hours:
        return f"{hours} h {of_hour:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
