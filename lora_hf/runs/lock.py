"""One process a run: a second one waits, whether a person started it twice or a parent was killed."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_hf.distributed import is_main
from lora_hf.errors import UserError

logger = logging.getLogger(__name__)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder, and wait until no other process has it; what a killed one had, the system lets go.

    Of several processes of one run, as torchrun starts them, the first has it for all.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"output_dir={str(folder)!r} cannot be written: {error.strerror}") from error
    try:
        if is_main():
            _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:  # Windows
        return
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        logger.warning("%s: another process has this run in hand; waiting until it ends", folder)
        flock(descriptor, LOCK_EX)
    except OSError as error:  # a file system without locks
        logger.info("%s: not locked against other processes: %s", folder, error.strerror)
