"""Ctrl-C and SIGTERM (which Slurm sends before the time limit): save a checkpoint, then stop.

A signal during a step takes effect after it, because the state in the middle of a step cannot be resumed. A
second signal stops at once, unless it follows within half a second: when a parent process ends, Linux sends
its signal once for each of the parent's threads.
"""

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from lora_hf.distributed import any_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEATED = 0.5
"""Seconds within which a second signal counts as a repetition of the first."""
logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run; the message says what was saved."""


class StopOnSignal(TrainerCallback):
    """Turn a signal into a checkpoint and an orderly stop; `received` is the signal's number, or None."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._when, self._process = 0.0, os.getpid()
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # Python has handlers there alone
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._should_stop():
            control.should_save = control.should_training_stop = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave an evaluation, which can take minutes; the caller saves the checkpoint."""
        if self._should_stop():
            raise Interrupted

    def _should_stop(self) -> bool:
        """Return whether any process of the run received a signal: all stop after the same step."""
        if any_process(self.received is not None) and self.received is None:
            self.received = signal.SIGTERM
        return self.received is not None

    def restore(self) -> None:
        """Restore the signal handlers that were installed before training."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked worker that loads data, which Ctrl-C reaches too: it ends with the training
        if self.received is not None and time.monotonic() - self._when < REPEATED:
            return
        if self.received is not None:
            raise Interrupted("stopped at the second signal, without a checkpoint of this step")
        self.received, self._when = number, time.monotonic()
        logger.warning("%s: saving a checkpoint, then stopping", signal.Signals(number).name)
