"""Errors that commands report without a traceback, and helpers for their messages.

A command prints the message of a UserError after `error: ` and ends with status 2; every other exception is a
fault of the program or the machine, and ends with status 1. A message names the field as the user wrote it,
its value, what to do, and the nearest valid name.
"""

import os
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

NOT_JSON = (ValueError, RecursionError)
"""Exceptions of `json.loads`: integers of thousands of digits and deep nesting raise no JSONDecodeError."""


NOT_REGULAR = (re.error, OverflowError, RecursionError)
"""Exceptions of `re.compile`."""


class UserError(ValueError):
    """A mistake in the user's input: a config, a file, a name, a value.

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


class Unavailable(UserError):
    """Something that is needed is on the Hub and cannot be read now: the input may well be right."""


class OutOfMemory(UserError):
    """The device or the machine has too little memory for what was asked."""


class NotWritten(OSError):
    """The disk is full, or a place is not writable; existing files are unchanged."""


class WrittenModelDiffers(Exception):
    """A model folder that was just written gives other outputs than the model in memory, or cannot be read.

    Args:
        fault: what was found.
        folder: where the folder was put, under a name that nothing takes for a finished model.
    """

    def __init__(self, fault: str, folder: Path) -> None:
        super().__init__(
            f"the model was saved, but {fault}. The folder is kept as {folder} and must not be used; "
            "adapters and checkpoints are unharmed. Please report this with the name of the base model"
        )


class NotFinite(UserError):
    """A model computes NaN or infinity: its weights are damaged, or its training has diverged."""


class RunFailed(Exception):
    """A run in its own process ended with a status other than 0; it has reported the reason itself."""

    def __init__(self, status: int) -> None:
        super().__init__(f"a run ended with status {status}")
        self.status = status


class FaultFound(Exception):
    """A check found a fault and has reported it: the command ends with status 1."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """Return ` Did you mean 'x' or 'y'?` for the nearest of `known`, or an empty string if none is near."""
    near = get_close_matches(name, list(known), n=most, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def listed(names: Iterable[str], most: int = 12) -> list[str]:
    """Return the first names for a message, long ones cut, and the number of further ones."""
    names = [name if len(name) <= 40 else f"{name[:37]}..." for name in map(str, names)]
    return names if len(names) <= most else [*names[:most], f"... {len(names) - most} more"]


def in_words(names: Iterable[str], most: int = 12) -> str:
    """Return the first names for a sentence, `id, text, 'a b'`: in quotes only what is not one plain word."""
    plain = re.compile(r"[\w.-]+|\.\.\. \d+ more")
    return ", ".join(name if plain.fullmatch(name) else repr(name) for name in listed(names, most))


def as_typed(word: str) -> str:
    """Return a word as a command line has it, in quotes where it needs them, on one line."""
    return shlex.quote(word) if word.isprintable() else repr(word)


def few(names: Iterable[str], most: int = 3) -> str:
    """Return the first names, and the number of further ones."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(n: int, one: str, several: str = "") -> str:
    """Return a number with its noun: `1 row`, `1,200 rows`; `several` is a plural that has more than an s."""
    return f"{n:,} {one if n == 1 else several or f'{one}s'}"


def is_windows_path(name: str) -> bool:
    """Return whether a name is written as a path of Windows on a system that reads it as one odd name."""
    return os.name != "nt" and bool(re.match(r"[A-Za-z]:[\\/]|[^/]*\\", name))


def path_hint(name: str) -> str:
    """Return a sentence on a path that does not exist: the nearest existing one, or an empty text.

    For a path of Windows: how it is written here. For a relative path that cannot be a Hub name: the folder
    in which it begins.
    """
    if is_windows_path(name):
        drive, colon, rest = name.rpartition(":")
        here = (f"/mnt/{drive.lower()}" if colon else "") + rest.replace("\\", "/")
        return f" It is written as on Windows; here folders are separated by /, such as {here!r}."
    path = Path(name).expanduser()
    with suppress(OSError):
        missing = next((p for p in (*reversed(path.parents), path) if not p.exists()), None)
        if missing is None:
            return ""
        names = [entry.name for entry in missing.parent.iterdir()] if missing.parent.is_dir() else []
        for near in get_close_matches(missing.name, names, n=3, cutoff=0.7):
            found = missing.with_name(near) / path.relative_to(missing)
            if found.exists():
                return f" Did you mean {str(found)!r}?"
    is_file = path.suffix[1:].isalpha() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
    is_relative = name.startswith(".") or (is_file and not path.is_absolute() and not name.startswith("~"))
    return f" The path begins at the current folder, {str(Path.cwd())!r}." if is_relative else ""
