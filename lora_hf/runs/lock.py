"""The lock on a run's folder: one process at a time, whoever started the other."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from lora_hf.distributed import is_main
from lora_hf.errors import UserError

logger = logging.getLogger(__name__)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Create the folder if needed, and hold its lock; wait while another process holds it.

    The lock is on the folder itself: no lock file, and a finished run on a read-only disk can be locked. The
    system releases it when the process ends, however it ends. Of several processes of one run, as torchrun
    starts them, the first holds it for all. On a file system without locks the run continues unlocked.

    Raises:
        UserError: the folder cannot be created or read.
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
        if not lock_descriptor(descriptor, blocking=False):
            logger.warning(
                "%s: another process is running this; waiting for it to end (Ctrl-C stops waiting)", folder
            )
            lock_descriptor(descriptor)
    except OSError as error:
        logger.info("%s: not locked against other processes: %s", folder, error.strerror)
