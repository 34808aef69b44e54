"""A pseudo-terminal, and the text that it shows: the few control sequences that Rich writes."""

import fcntl
import os
import pty
import re
import struct
import termios
from contextlib import suppress

_TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|[\r\n]|[^\x1b\r\n]")


class Terminal:
    """A pseudo-terminal of a width; `child` is the end that a process writes to."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._own, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        self.child = os.fdopen(child, "wb", buffering=0)

    def read(self) -> str:
        """Return everything that is written until the processes close their end."""
        self.child.close()
        found = b""
        with suppress(OSError):  # how Linux reports the end
            while part := os.read(self._own, 2**16):
                found += part
        os.close(self._own)
        return found.decode()


def plain(written: str) -> str:
    """Return a text without its control sequences, such as colors, and with every state of each line."""
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", written)


def screen_of(written: str, width: int) -> list[str]:
    """Return the lines that a terminal shows after a text with control sequences.

    Raises:
        AssertionError: a line is longer than the terminal is wide.
    """
    lines: list[str] = [""]
    row = column = 0
    for token in _TOKEN.finditer(written):
        text, (arguments, command) = token.group(), token.groups()
        if text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif command == "A":
            row -= int(arguments or 1)
        elif command == "K":
            lines[row] = "" if arguments == "2" else lines[row][:column]
        elif command is None:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + 1 :]
            column += 1
            assert column <= width, lines[row]
    return [line.rstrip() for line in lines]
