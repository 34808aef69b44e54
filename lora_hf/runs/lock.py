"""The lock on a run's folder: one process at a time, whoever started the other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_hf.distributed import is_main
from lora_hf.errors import UserError
from lora_hf.files import wait_for_lock


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
            wait_for_lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)
