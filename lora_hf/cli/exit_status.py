"""The exit status of a command, and the one message on standard error that explains it.

A second line names the section of the documentation on such errors (`help: docs/troubleshooting.md#data`).

0: done. 2: the user's mistake, with a message that begins `error: `. 130: interrupted. 1: anything else.
"""

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import typer
from rich.text import Text

from lora_hf import distributed as processes
from lora_hf import terminal
from lora_hf.cli.help_page import help_line
from lora_hf.cli.hints import as_arguments, by_option, explain, repeated_options
from lora_hf.cli.streams import Results, finish_output
from lora_hf.errors import FaultFound, NotWritten, RunFailed, UserError, WrittenModelDiffers

logger = logging.getLogger(__name__)
LOST_PROCESS = "another process of this run has ended; rerun the command to resume from the last checkpoint"


def exit_status(task: Callable[[], object], debug: bool = False, verbosity: str = "normal") -> int:
    """Run a task and return the exit status; a mistake of the user becomes one message on standard error.

    Args:
        task: what the command does.
        debug: show the traceback of a mistake too.
        verbosity: a key of `terminal.LEVELS`.

    Raises:
        Exception: an error that is not the user's; Python prints its traceback and exits with status 1.
    """
    terminal.set_up(verbosity)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # short-lived ones
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _call(task)
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        if processes.is_main():
            terminal.write(Text(f"interrupted: {interrupt}" if interrupt.args else "interrupted"))
        return 130
    except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
        return 1
    except FaultFound:
        return 1
    except RunFailed as failure:
        return _status_of(failure)
    except NotWritten as error:
        if debug:
            traceback.print_exception(error)
        _print_error(_not_written(error))
        return 1
    except WrittenModelDiffers as error:
        if debug:
            traceback.print_exception(error)
        _print_error(str(error))
        return 1
    except Exception as error:
        if processes.is_lost_peer(error) and not debug:
            terminal.write(Text(LOST_PROCESS))
            return 1
        if not _is_the_users(error):
            raise
        if debug:
            traceback.print_exception(error)
        is_agreed = isinstance(error, processes.AgreedError)
        if processes.is_main() or not is_agreed:
            _print_error(_message(error))
            if line := help_line(error):
                terminal.write(Text(line))
        if is_agreed:
            processes.stop()  # a launcher ends all processes once one exits: print first
        return 2
    finally:
        finish_output()
    return 0


def _call(task: Callable[[], object]) -> None:
    """Call a task. Pydantic makes an error of its own of an interrupt while it writes a config: undo that."""
    try:
        task()
    except ValueError as error:
        if type(error).__name__ == "PydanticSerializationError" and "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from None
        raise


def invoke(command: Any, words: list[str]) -> None:
    """Call a command as Typer does, but let Ctrl-C through: Typer drops the exception's message."""
    try:
        with suppress(typer.Exit), command.make_context("lora-hf", list(words)) as context:  # after --help
            verb = command.commands.get(words[0]) if words else None
            for earlier, later in repeated_options(verb, words[1:]) if verb else ():
                logger.warning("%s is not used, because %s after it replaces it", earlier, later)
            command.invoke(context)
    except Exception as error:
        if type(error) is UserError:
            has_config = any(word.partition("=")[0] == "--config" for word in words)
            text = by_option(str(error), words)
            if (text := text if has_config else as_arguments(text)) != str(error):
                raise UserError(text) from error
        if isinstance(error, UserError) or not hasattr(error, "format_message"):
            raise
        raise UserError(explain(error, words)) from error


def _status_of(failure: RunFailed) -> int:
    """Return the child's status. It has printed its own message, unless a signal ended it."""
    if failure.status in (130, -signal.SIGINT, -signal.SIGTERM):
        return 130
    if failure.status > 0:
        return failure.status
    name = signal.Signals(-failure.status).name
    cause = "; often memory ran out: try a smaller per_device_train_batch_size" if name == "SIGKILL" else ""
    terminal.write(Text(f"the run's process was ended by {name}{cause}"))
    return 1


def _print_error(message: str) -> None:
    terminal.write(terminal.labelled("error", "bold red", message))


def _not_written(error: NotWritten) -> str:
    if error.filename == Results.title:
        return f"{error.filename} cannot be written: {error.strerror}. Redirect it to another place and rerun"
    return (
        f"{error.filename} cannot be written: {error.strerror}; existing files are unchanged. Free disk "
        "space or change the permissions, then rerun the command"
    )


def _is_too_long(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG


def _is_the_users(error: Exception) -> bool:
    return isinstance(error, UserError) or _is_too_long(error)


def _message(error: Any) -> str:
    return f"{error.filename!r} is too long for a path" if _is_too_long(error) else str(error)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
