"""Ctrl-C and SIGTERM (which Slurm sends before the end): save a checkpoint, then stop.

A signal while training is remembered until the step ends, for a checkpoint in the middle of a step would not
be one. A second one stops at once, unless it is the first one's echo: Linux tells a process of its parent's
end once for each of the parent's threads.
"""

import logging
import signal
import time
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from lora_hf.distributed import is_anywhere

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 0.5
"""Seconds within which a second signal is the first one again."""
logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """The run was told to stop; the message says what was saved."""


class StopOnSignal(TrainerCallback):
    """Turns a signal into a checkpoint and an orderly stop; `received` tells whether one came."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._is_told():
            control.should_save = control.should_training_stop = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation can take minutes: leave it; whoever catches this saves the checkpoint."""
        if self._is_told():
            raise Interrupted

    def _is_told(self) -> bool:
        """Whether a signal came to any process of the run: all stop after the same step."""
        if is_anywhere(self.received is not None) and self.received is None:
            self.received = signal.SIGTERM
        return self.received is not None

    def restore(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and time.monotonic() - self._when < ECHO:
            return
        if self.received is not None:
            raise Interrupted("stopped at the second signal, without a checkpoint of this step")
        self.received, self._when = number, time.monotonic()
        logger.warning("%s: saving a checkpoint, then stopping", signal.Signals(number).name)
