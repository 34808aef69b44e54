"""Standard output and standard error of a command, which may be full, closed, or of another encoding.

What standard output does not take is an error, because results are lost. What standard error does not take is
dropped: a training does not end because the disk of its log is full.
"""

import io
import os
import sys
from contextlib import suppress
from typing import Any, ClassVar

from lora_hf.errors import NotWritten


class _Stream(io.TextIOWrapper):
    """A stream that takes the place of Python's own, with the same file and settings."""

    lost: ClassVar[type[OSError] | None] = None
    """What is raised where a text cannot be written; None drops the text."""
    title: ClassVar[str]

    def __init__(self, own: io.TextIOWrapper) -> None:
        super().__init__(
            own.buffer,
            own.encoding,
            own.errors,
            line_buffering=own.line_buffering,
            write_through=own.write_through,
        )
        self._own = own  # its end would close the file

    def write(self, text: str) -> int:
        """Write a text; `BrokenPipeError` is raised by both streams, because the reader wants no more."""
        try:
            return super().write(text)
        except OSError as error:
            self._report(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, with the errors of `write`."""
        try:
            super().flush()
        except OSError as error:
            self._report(error)

    def _report(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise error
        if self.lost:
            raise self.lost(error.errno, error.strerror, self.title) from error


class Results(_Stream):
    """Standard output."""

    lost, title = NotWritten, "standard output"


class Messages(_Stream):
    """Standard error."""

    title = "standard error"


def set_up() -> None:
    """Prepare both streams of this process, unless something else has replaced them."""
    if sys.stdout is None:  # closed, as by `>&-`; what is opened next would take its number
        sys.stdout = _opened(1, os.O_RDONLY)
    if sys.stderr is None:
        sys.stderr = _opened(2, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        make_writable(stream)
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout = Results(sys.stdout)
    if type(sys.stderr) is io.TextIOWrapper:
        sys.stderr = Messages(sys.stderr)


def _opened(number: int, flags: int) -> io.TextIOWrapper:
    """Return a stream of a file descriptor's number, which takes everything, or nothing if `O_RDONLY`."""
    descriptor = os.open(os.devnull, flags)
    if descriptor != number:
        os.dup2(descriptor, number)
        os.close(descriptor)
    return open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def make_writable(stream: Any) -> None:
    """Let a stream take any text: UTF-8 in files and pipes, as in all files that are written.

    A terminal keeps its encoding, and shows escapes for what that lacks.
    """
    if not hasattr(stream, "reconfigure"):
        return
    if stream.isatty():
        stream.reconfigure(errors="backslashreplace")
    else:  # a path whose name is not UTF-8 is written by its bytes
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def finish_output() -> None:
    """Write what is left of standard output; what it does not take is dropped, and so is what follows.

    A failed write leaves its text in the buffer, and the end of the process would fail on it again.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # a stream without a file
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, sys.stdout.fileno())
            os.close(nothing)
            sys.stdout.flush()
