"""Small disks that a test fills or locks: in memory, mounted for the test."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _mount(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk here: {done.stderr.strip()}")


@contextmanager
def full_disk(folder: Path, kib: int) -> Iterator[Callable[[int], None]]:
    """A disk of so many KiB at a folder; what it yields makes it larger."""
    folder.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder)
    except FileNotFoundError:
        pytest.skip("no small disk here: this system has no mount")
    try:
        yield lambda more: _mount("-o", f"remount,size={more}k", folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A mounted disk that cannot be written meanwhile."""
    _mount("-o", "remount,ro", folder)
    try:
        yield
    finally:
        _mount("-o", "remount,rw", folder)
