"""The one error that means "what you asked for cannot be done as written", and the one of a run elsewhere.

Commands end with status 2 and print a UserError's message after `error: `; every other exception is a fault
of the program or the machine and ends with status 1. A message names the field as the user wrote it,
the value, what would do, and the nearest match.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

NOT_JSON = (ValueError, RecursionError)
"""What `json.loads` raises: integers of thousands of digits and deep nesting are no JSONDecodeError."""


NOT_REGULAR = (re.error, OverflowError, RecursionError)
"""What `re.compile` raises."""


class UserError(ValueError):
    """A mistake in what the user wrote or gave: a config, a file, a name, a value.

    Args:
        message: what is wrong, where, and what to do. It names the field with its value: `r=0 must be ...`.
        field: the field at fault, as the message writes it (`r`, `rank_pattern['q']`). Code below the config
            knows fields by their Python names only; `in_section` adds the section of the YAML.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field

    def in_section(self, section: str) -> "UserError":
        """Return the same error with the field under a section of the YAML: `lora.r=0 must be ...`.

        An error without a field is returned unchanged.
        """
        if self.field is None:
            return self
        field = f"{section}.{self.field}"
        message = re.sub(rf"(?<![\w.]){re.escape(self.field)}(?!\w)", lambda _: field, str(self), count=1)
        return type(self)(message, field)


class NotWritten(OSError):
    """The disk is full, or a place cannot be written (any more); what was there is as it was."""


class RunFailed(Exception):
    """A run in a process of its own ended with another status than 0; it has said why itself, if it could."""

    def __init__(self, status: int) -> None:
        super().__init__(f"an arm ended with status {status}")
        self.status = status


class FaultFound(Exception):
    """A check found a fault, and has told it: the command ends with status 1."""


def first_line(error: Exception) -> str:
    """What another library's exception says, without the paragraphs that many add."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """` Did you mean 'x' or 'y'?` for the nearest of `known`, or nothing where none is near."""
    near = get_close_matches(name, list(known), n=most, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def few(names: Iterable[str], most: int = 3) -> str:
    """The first of the names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
