"""Small disks in memory, mounted for a test that fills them or makes them read-only."""

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
    """Mount a disk of `kib` KiB at a folder; yield a function that makes it larger."""
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
    """Make a mounted disk read-only within the block."""
    _mount("-o", "remount,ro", folder)
    try:
        yield
    finally:
        _mount("-o", "remount,rw", folder)
