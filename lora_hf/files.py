"""Files: fingerprints, hashes, and atomic writes."""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from lora_hf.errors import NOT_JSON, NotWritten, UserError, first_line

OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""The end of a message of Rust's standard library."""
logger = logging.getLogger(__name__)

PIECE = 4096  # bytes
PIECES = 16
GIT_LFS = b"version https://git-lfs.github.com/spec/"
"""First bytes of the pointers that a clone without Git LFS has in the place of large files."""
MAX_JSON_BYTES = 2**24
"""Limit on the size of a config or manifest, a thousand times the largest known."""


def checkpoint_fingerprint(files: Iterable[Path]) -> str:
    """Return a short hash of a checkpoint's weights, independent of sharding and of the dtype in memory.

    It reads at most 64 KiB of each tensor (16 pieces spread over it), so that 44 GB take a second, in the
    order of tensor names. It distinguishes fine-tuned weights from the original ones, but does not protect
    against manipulation.

    Args:
        files: safetensors files.

    Returns:
        16 hexadecimal digits.
    """
    parts = [part for file in files for part in _tensor_hashes(file)]
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]


def _tensor_hashes(file: Path) -> list[str]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        hashes = []
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            step = max((end - begin) // PIECES, PIECE)
            digest = hashlib.sha256()
            for offset in range(begin, end, step):
                stream.seek(8 + length + offset)
                digest.update(stream.read(min(PIECE, end - offset)))
            hashes.append(f"{name} {entry['dtype']} {entry['shape']} {digest.hexdigest()}")
    return hashes


def file_state(file: Path) -> tuple[str, int, int, int, int]:
    """Return the real path of a file, and what changes whenever its content does: size, inode and times."""
    seen = file.stat()
    return str(file.resolve()), seen.st_size, seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder by its relative path; empty if there is no folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}


def refuse_git_lfs_pointer(file: Path) -> None:
    """Refuse a text file that Git LFS has left in the place of a large file.

    Raises:
        UserError: the file is such a pointer.
    """
    if not file.is_file():
        return
    with file.open("rb") as stream:
        begin = stream.read(len(GIT_LFS))
    if begin == GIT_LFS:
        raise UserError(
            f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or "
            "download the file again"
        )


def read_object(file: Path, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        file: the file.
        most: limit on its size in bytes.

    Raises:
        UserError: the path is not a regular file (reading a pipe would block), or the file is too large,
            cannot be read, or holds no JSON object.
        FileNotFoundError: the file does not exist.
    """
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is not a file")
        refuse_git_lfs_pointer(file)
        if file.stat().st_size > most:
            raise UserError(f"{file} has {file.stat().st_size:,} bytes; the limit is {most:,}")
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, *NOT_JSON) as error:
        raise UserError(f"{file} is not readable as JSON: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} does not hold a JSON object")
    return value


def check_new(output: Path) -> None:
    """Refuse to overwrite existing files: the input itself, a base model, another run's results.

    Raises:
        UserError: `output` is a file, or a folder that is not empty, or its place is not writable.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        what = "is a file" if output.is_file() else "is a folder that is not empty"
        raise UserError(
            f"--output {str(output)!r} {what}; nothing is overwritten: choose another name, or remove it"
        )
    if not is_writable(output):
        raise UserError(f"--output {str(output)!r} cannot be written there; choose another place")


def is_writable(place: Path) -> bool:
    """Return whether a file or folder can be made at a place: by its nearest folder that exists."""
    nearest = next((folder for folder in place.absolute().parents if folder.exists()), place)
    return nearest.is_dir() and os.access(nearest, os.W_OK)


@contextmanager
def whole(place: Path, beside: Path | None = None) -> Iterator[Path]:
    """Write a file or a folder atomically: yield a path beside it, and rename that when the block ends.

    A kill leaves the old version or the new one, and perhaps the path beside it, which the next write
    removes. A failure leaves the old version and nothing else.

    Args:
        place: path of the file or folder.
        beside: path to write to, on the same disk; by default a hidden name in the same folder.

    Raises:
        NotWritten: the disk is full, or the place is not writable.
    """
    beside = beside or place.with_name(PARTIAL + place.name)
    try:
        remove(beside)
        beside.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        for written in (beside, *(beside.rglob("*") if beside.is_dir() else ())):
            if written.is_file() and written != beside:  # safetensors makes its files private
                written.chmod(beside.stat().st_mode & 0o666)
            _sync(written)
        _take_place(beside, place)
    except BaseException as error:
        cause = error if isinstance(error, OSError) else _no_room(error, beside)
        with suppress(OSError):
            remove(beside)
        if cause is None:
            raise
        raise NotWritten(cause.errno, cause.strerror or str(cause), str(place)) from error
    finally:
        if beside.parent != place.parent:
            with suppress(OSError):
                beside.parent.rmdir()


@contextmanager
def removed_if_fruitless(file: Path, folder: Path) -> Iterator[None]:
    """Remove a file that the block writes, if the block fails before anything new is in a folder."""

    def names() -> set[str]:
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    before = names()
    try:
        yield
    except BaseException:
        if names() == before:
            file.unlink(missing_ok=True)
        raise


@contextmanager
def whole_output(output: Path) -> Iterator[Path]:
    """Write a new folder or file of a command as `whole` does; another process with the same place waits.

    The lock is a hidden file beside the place while it is written. A kill may leave the file, and the next
    command takes it.

    Raises:
        UserError: the place is taken, perhaps by the process that was waited for.
        NotWritten: as in `whole`.
    """
    file = output.with_name(f"{PARTIAL}{output.name}.lock")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(file, output)
    except OSError as error:
        raise NotWritten(error.errno, error.strerror or str(error), str(output)) from error
    try:
        check_new(output)
        with whole(output) as beside:
            yield beside
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(file: Path, place: Path) -> int:
    """Create and lock a file, and return its descriptor; wait while another process holds it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        wait_for_lock(descriptor, place)
        with suppress(FileNotFoundError):  # who held it has removed the file
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                return descriptor
        os.close(descriptor)


def wait_for_lock(descriptor: int, place: Path) -> None:
    """Lock an open file or folder; wait while another process holds the lock of this place, and say so.

    On a file system without locks, nothing is locked.
    """
    try:
        if not lock_descriptor(descriptor, blocking=False):
            logger.warning(
                "%s: another process is running this; waiting for it to end (Ctrl-C stops waiting)", place
            )
            lock_descriptor(descriptor)
    except OSError as error:
        logger.info("%s: not locked against other processes: %s", place, error.strerror)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents; do nothing if there is neither."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk, so that the rename survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # not supported here
            raise
    finally:
        os.close(descriptor)


def _take_place(beside: Path, place: Path) -> None:
    """Rename, moving an existing folder away first: a rename cannot replace a folder that is not empty."""
    old = beside.with_name(f"{PARTIAL}old.{place.name}")
    remove(old)
    if place.is_dir():
        os.replace(place, old)
    os.replace(beside, place)
    _sync(place.parent)
    remove(old)


def _no_room(error: BaseException, beside: Path) -> OSError | None:
    """Return the system's error that a library's exception hides, or None.

    Libraries in Rust, such as safetensors, write its number into the text; of others it is found by writing
    1 MiB.
    """
    if not isinstance(error, Exception):
        return None
    if number := OS_ERROR.search(str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    probe = beside.with_name(f"{PARTIAL}probe")
    try:
        probe.write_bytes(bytes(2**20))
    except OSError as cause:
        return cause
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        NotWritten: as in `whole`.
    """
    with whole(file) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(file: Path, value: object) -> None:
    """Write `json_text(value)` atomically."""
    write_text(file, json_text(value))


def json_text(value: object) -> str:
    """Return a value as JSON with sorted keys, so that equal values give equal bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


PARTIAL = ".partial."
"""Prefix of a file or folder that is being written; leftovers of a kill can be removed."""


def hub_copies(name: str) -> list[Path]:
    """Return the folders of a model's local copies, one for each downloaded commit; that of `main` first."""
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    main = repository / "refs" / "main"
    first = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    return sorted(repository.glob("snapshots/*"), key=lambda folder: (folder.name != first, folder.name))
