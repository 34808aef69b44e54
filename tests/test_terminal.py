"""What commands show on standard error: on terminals, in pipes, with -q and -v."""

import ast
import io
import logging
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from lora_hf import terminal

PACKAGE = Path(__file__).parents[1] / "lora_hf"


class Stream(io.StringIO):
    """Standard error as a terminal or a pipe."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture
def screen(monkeypatch):
    """Replace standard error, set the log up as commands do, and return the stream."""

    def make(is_terminal=True, verbosity="normal", **environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"TERM": "xterm", "COLUMNS": "80"} | environment).items():
            monkeypatch.setenv(name, value)
        stream = Stream(is_terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        terminal.set_up(verbosity)
        return stream

    yield make
    monkeypatch.undo()
    terminal.console = terminal.new_console()


LONG = "step 1/2: " + ", ".join(f"ROUGE-{n} 0.5" for n in range(20))
SHOWN = [
    # is a terminal, environment, has color, draws a bar
    (True, {}, True, True),
    (True, {"NO_COLOR": "1"}, False, True),
    (True, {"TERM": "dumb"}, False, False),
    (False, {}, False, False),
    (False, {"FORCE_COLOR": "1"}, True, False),
]


@pytest.mark.parametrize(("is_terminal", "environment", "has_color", "has_bar"), SHOWN)
def test_color_and_bars_appear_only_where_they_can_be_shown(
    screen, is_terminal, environment, has_color, has_bar
):
    stream = screen(is_terminal, **environment)
    with terminal.bar("generating", 3, "text") as bar:
        bar.advance(2)
        logging.getLogger("lora_hf.any").warning("look [here]")
        terminal.line(LONG)
    shown = stream.getvalue()
    assert "look [here]" in shown and ("\x1b[1;33mwarning: " in shown) == has_color
    assert ("generating" in shown and "2/3" in shown) == has_bar
    if not has_bar:
        assert "\r" not in shown and LONG in shown.splitlines()
    if not (has_bar or has_color):
        assert "\x1b" not in shown and shown.splitlines()[0] == "warning: look [here]"


def test_a_warning_is_shown_once_where_it_comes_for_each_split(screen):
    stream = screen(False)
    log = logging.getLogger("lora_hf.any")
    for text in ("row 3 is empty", "row 3 is empty", "row 4 is empty", "row 3 is empty"):
        log.warning(text)
    log.info("same"), log.info("same")
    shown = ["warning: row 3 is empty", "warning: row 4 is empty", "warning: row 3 is empty", "same", "same"]
    assert stream.getvalue().splitlines() == shown


def test_a_line_breaks_at_words_on_a_terminal(screen):
    stream = screen()
    terminal.line(LONG)
    lines = stream.getvalue().splitlines()
    assert len(lines) > 1 and " ".join(line.rstrip() for line in lines) == LONG


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["warning", "note", "progress"]),
        (["-q"], ["warning"]),
        (["-v"], ["detail", "warning", "note", "progress"]),
        (["--quiet", "-v"], ["detail", "warning", "note", "progress"]),
    ],
)
@pytest.mark.parametrize("is_terminal", [True, False])
def test_q_leaves_warnings_and_v_adds_details(screen, words, expected, is_terminal):
    left, verbosity = terminal.split_verbosity(["train", *words, "lora.r=8"])
    stream = screen(is_terminal, verbosity)
    log = logging.getLogger("lora_hf.any")
    log.debug("detail"), log.warning("warning"), log.info("note")
    with terminal.bar("training", 3, "step"):
        terminal.line("progress")
    seen = stream.getvalue()
    assert left == ["train", "lora.r=8"]
    assert [word for word in ("detail", "warning", "note", "progress") if word in seen] == expected


def test_the_runs_of_an_experiment_are_as_verbose_as_it_is(screen, monkeypatch):
    screen(verbosity="verbose")
    assert not terminal.is_part()
    for name, value in terminal.for_runs().items():
        monkeypatch.setenv(name, value)
    assert terminal.is_part() and terminal.split_verbosity(["train"]) == (["train"], "verbose")


def test_the_runs_of_an_experiment_say_what_they_read_once(screen, monkeypatch):
    screen()
    line, detail = "data: talks.csv, 80 train dialogues", logging.DEBUG
    assert [terminal.level_once(line) for _ in range(2)] == [logging.INFO] * 2  # not in an experiment
    for name, value in terminal.for_runs().items():
        monkeypatch.setenv(name, value)
    assert [terminal.level_once(line) for _ in range(3)] == [logging.INFO, detail, detail]
    assert terminal.level_once("train: 0 cut", detail) == detail
    assert terminal.level_once(f"{line} more") == logging.INFO


def test_warnings_of_other_packages_are_hidden(screen, monkeypatch):
    stream = screen(is_terminal=False)
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("before", FutureWarning, stacklevel=1)
        terminal.silence_packages()
        warnings.warn("after", FutureWarning, stacklevel=1)
    for name in ("torch.utils._pytree", "torch.onnx._internal.exporter._registration"):
        assert not logging.getLogger(name).isEnabledFor(logging.WARNING)
    other = logging.Logger("other")  # without a handler, as bitsandbytes
    other.warning("after")
    other.error("broken")
    assert [str(warning.message) for warning in caught] == ["before"]
    assert stream.getvalue() == "broken\n"


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_fits_its_line(screen, width):
    screen()
    bar = terminal.Bar("evaluating", 12_000, 11_999)
    bar.update(note="loss 0.001234")
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(bar._progress.get_renderable())
    bar.close()
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("evaluating ━") and len(line) <= width and "…" not in line
    assert "11999/12000 loss 0.001234" in line and line.rstrip().endswith("left")


def test_only_commands_print_and_only_results_go_to_standard_output():
    """Nothing below the commands prints or writes to standard output; logs and bars go to standard error."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            is_print = isinstance(node, ast.Name) and node.id == "print"
            is_stream = (
                isinstance(node, ast.Attribute)
                and node.attr == "stdout"
                and isinstance(node.value, ast.Name)
                and node.value.id == "sys"
            )
            is_console = (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console"
            )
            is_error = is_console and any(word.arg == "stderr" for word in node.keywords)
            if is_print or is_stream or (is_console and not is_error):
                found.append(file.relative_to(PACKAGE).parts[0])
    assert set(found) <= {"cli", "terminal.py", "distributed.py"}, set(found)
