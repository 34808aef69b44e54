"""What a command shows while it works, on standard error: log lines and one progress bar.

Standard output has results only, so that it can be redirected. A terminal gets a bar at its last line, above
which lines appear; a pipe or a log file gets lines alone, without escape codes and never wrapped. Rich reads
NO_COLOR and FORCE_COLOR; the latter colors the lines of a pipe, but draws no bar in it.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from lora_hf.distributed import is_main

VERBOSITY = "LORA_HF_VERBOSITY"
"""Environment variable with the verbosity of an experiment's runs: a key of `LEVELS`."""
PART = "LORA_HF_PART"
"""Environment variable that is set in the runs of an experiment, which prints their results itself."""
SHOWN = "LORA_HF_SHOWN"
"""Environment variable with a file of the lines that other runs of the experiment have shown already."""
LEVELS = {"quiet": logging.WARNING, "normal": logging.INFO, "verbose": logging.DEBUG}
OPTIONS = {"-q": "quiet", "--quiet": "quiet", "-v": "verbose", "--verbose": "verbose"}
NOISY = ("torch.utils._pytree", "torch.onnx._internal")
"""Loggers below PyTorch's own handler: torchao registers types twice, an export misses torchvision."""
HEADS = r"^(model|data|method):|^\[\d+/\d+\] .*"
"""The beginnings of lines that say what runs."""
STYLES = {logging.DEBUG: "dim", logging.WARNING: "bold yellow"}


def new_console() -> Console:
    """Return a console on standard error, which draws a bar only on a terminal that can move its cursor."""
    made = Console(stderr=True, highlight=False)
    made.is_interactive = made.is_interactive and sys.stderr.isatty()  # FORCE_COLOR makes pipes terminals
    return made


console = new_console()
"""The console of this process. All lines go through it, so that they appear above the bar."""


def split_verbosity(words: Sequence[str]) -> tuple[list[str], str]:
    """Return a command line without `-q` and `-v`, and the verbosity they ask for; the last one counts."""
    asked = [OPTIONS[word] for word in words if word in OPTIONS]
    inherited = os.environ.get(VERBOSITY, "normal")
    known = inherited if inherited in LEVELS else "normal"
    return [word for word in words if word not in OPTIONS], asked[-1] if asked else known


def set_up(verbosity: str) -> None:
    """Show this package's log on standard error, as far as a verbosity has it."""
    global console
    console = new_console()
    ours = logging.getLogger("lora_hf")
    ours.setLevel(LEVELS[verbosity] if is_main() else logging.ERROR)
    ours.propagate = False
    ours.handlers = [LineHandler()]


def silence_packages() -> None:
    """Hide the warnings of other packages; what a user should know is checked and reported by this one."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.lastResort = logging.StreamHandler()  # of loggers without a handler, such as bitsandbytes
    logging.lastResort.setLevel(logging.ERROR)


def for_runs() -> dict[str, str]:
    """Return the environment variables for the runs that this command starts."""
    level = logging.getLogger("lora_hf").level
    verbosity = next((name for name, value in LEVELS.items() if value == level), "normal")
    return {VERBOSITY: verbosity, PART: "1", SHOWN: os.environ.get(SHOWN) or _shown_lines().name}


@cache
def _shown_lines() -> Any:
    """Return the file that all runs of this process share; it is deleted when the process ends."""
    return NamedTemporaryFile(prefix="lora_hf_shown_")  # noqa: SIM115


@contextmanager
def logged_from(name: str, level: int) -> Iterator[None]:
    """Inside the block, what a module logs below this level is dropped."""
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


def level_once(text: str, level: int = logging.INFO) -> int:
    """Return the level of a line that many runs of an experiment have: DEBUG from the second run on.

    Args:
        text: the line, such as which data is read.
        level: that of the first time, and of every time outside experiments.
    """
    if SHOWN not in os.environ or level < logging.INFO or not is_main():
        return level
    file = Path(os.environ[SHOWN])
    if file.exists() and text in file.read_text(encoding="utf-8").splitlines():
        return logging.DEBUG
    with file.open("a", encoding="utf-8") as lines:
        lines.write(f"{text}\n")
    return level


def is_part() -> bool:
    """Return whether this process is a run of an experiment, which prints the results itself."""
    return PART in os.environ


def is_shown(level: int) -> bool:
    """Return whether lines of a level are shown; a library without a log's handler shows them from INFO."""
    ours = logging.getLogger("lora_hf")
    return is_main() and level >= (ours.level or logging.INFO)


def line(text: str, level: int = logging.INFO, style: str | None = None) -> None:
    """Show a line above the bar: wrapped at words on a terminal, whole in a pipe."""
    if is_shown(level):
        write(Text(text, style or STYLES.get(level, "")))


def write(text: Text) -> None:
    """Show a text above the bar, whatever the verbosity."""
    console.print(text, soft_wrap=not console.is_interactive)


def labelled(label: str, style: str, text: str) -> Text:
    """Return a text with a colored label before it, such as `error: ...`."""
    return Text.assemble((f"{label}: ", style), text)


class LineHandler(logging.Handler):
    """Show log records as lines above the bar; warnings begin with `warning: `.

    A warning is shown once where it comes several times in a row, as for each split of the same file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        last, self._last = self._last, text
        if record.levelno >= logging.WARNING:
            if text == last:
                return
            write(labelled(record.levelname.lower(), STYLES.get(record.levelno, "bold red"), text))
        else:
            shown = Text(text, STYLES.get(record.levelno, ""))
            shown.highlight_regex(HEADS, "bold")
            write(shown)


class _Rate(ProgressColumn):
    """Steps per second, or seconds per step where that is the larger number."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        super().__init__()

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f} {self.unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{self.unit}")


class Bar:
    """A progress bar at the bottom of a terminal until it is closed; elsewhere it does nothing.

    Without a total, it is a spinner beside the description.
    """

    def __init__(self, description: str, total: int | None, done: int = 0, unit: str = "step") -> None:
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", style="bold"),
            BarColumn(None, style="bright_black", complete_style="green", finished_style="green"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="cyan"),
            _Rate(unit),
            TimeRemainingColumn(),
            TextColumn("left", style="dim"),
        ]
        if total is None:
            columns = [SpinnerColumn(), columns[0]]
        is_drawn = console.is_interactive and is_shown(logging.INFO)
        self._progress = Progress(
            *columns,
            console=console,
            transient=True,
            expand=total is not None,
            disable=not is_drawn,
            redirect_stdout=sys.stdout.isatty(),  # what others print there appears above the bar
        )
        self._described = description
        self._task = self._progress.add_task(description, total=total, completed=done, note="")
        self._progress.start()

    def advance(self, steps: int) -> None:
        """Add steps to those that are done."""
        self._progress.advance(self._task, steps)

    def update(self, **fields: Any) -> None:
        """Set `completed`, `description`, or the `note` beside the counter, such as the loss."""
        is_other = fields.get("description", self._described) != self._described
        self._described = fields.get("description", self._described)
        self._progress.update(self._task, **fields, refresh=is_other)  # also what takes a moment is seen

    def close(self) -> None:
        """Remove the bar; may be called again."""
        self._progress.stop()


@contextmanager
def bar(description: str, total: int | None, unit: str) -> Iterator[Bar]:
    """Show a bar inside the block."""
    shown = Bar(description, total, unit=unit)
    try:
        yield shown
    finally:
        shown.close()
