"""Open a data file: compression by its last ending, encoding by its first bytes, delimiter by its header."""

import bz2
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from lora_hf.errors import UserError, first_line
from lora_hf.files import refuse_git_lfs_pointer

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""The byte order marks of UTF-16, which no UTF-8 text begins with."""
PAGE = (b"<!doctype html", b"<html")
DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}
LONGEST_HEADER = 2**20
"""Characters of the header in which the delimiter is looked for."""


def _open_zst(path: Path) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(cast(Any, pyarrow.CompressedInputStream(str(path), "zstd")))


COMPRESSIONS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: cast(IO[bytes], gzip.open(path, "rb")),
    ".bz2": lambda path: cast(IO[bytes], bz2.open(path, "rb")),
    ".xz": lambda path: cast(IO[bytes], lzma.open(path, "rb")),
    ".zst": _open_zst,
}


def endings(path: Path) -> tuple[str, str]:
    """Return the ending of the format and that of the compression, each in lower case or empty."""
    last = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), last) if last in COMPRESSIONS else (last, "")


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed."""
    compression = endings(path)[1]
    return COMPRESSIONS[compression](path) if compression else path.open("rb")


def open_text(path: Path) -> IO[str]:
    """Open a file as text, decompressed, without a byte order mark; line ends stay as they are."""
    stream = open_bytes(path)
    encoding = "utf-16" if _begins(path, 2) in UTF_16 else "utf-8-sig"  # Excel writes either mark
    return io.TextIOWrapper(stream, encoding=encoding, newline="")


def is_utf_16(path: Path) -> bool:
    """Return whether a file begins with a byte order mark of UTF-16."""
    return _begins(path, 2) in UTF_16


def _begins(path: Path, size: int) -> bytes:
    with open_bytes(path) as stream:
        return stream.read(size)


def delimiter_of(path: Path) -> str:
    """Return what separates the columns in the header: a comma, unless only another one separates any."""
    with open_text(path) as stream:
        header = stream.readline(LONGEST_HEADER)
    counts = {mark: len(next(csv.reader([header], delimiter=mark), [])) for mark in DELIMITERS}
    first = "\t" if endings(path)[0] == ".tsv" else ","
    return first if counts[first] > 1 else max(counts, key=lambda mark: counts[mark])


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Name the file, and what is in it instead, where it cannot be read as text."""
    try:
        if path.is_file():
            refuse_git_lfs_pointer(path)
            _refuse_page(path)
        yield
    except UnicodeDecodeError as error:
        raise UserError(_not_utf_8(path, error)) from error
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path} is damaged or incomplete: {first_line(error)}; copy it again") from error
    except OSError as error:  # also what gzip, bz2 and pyarrow raise for other content
        reason = error.strerror or first_line(error)
        compression = endings(path)[1]
        if compression and error.errno is None:
            remedy = f"copy it again, or take away the ending {compression} if it is not compressed"
            raise UserError(
                f"{path} is not a {compression} file, or is damaged: {reason}; {remedy}"
            ) from error
        raise UserError(f"{path}: {reason}") from error


def _refuse_page(path: Path) -> None:
    with path.open("rb") as stream:
        begin = stream.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begin.startswith(PAGE):
        raise UserError(
            f"{path} is a web page (HTML), not data: the download returned a page, often an error or a "
            "login; download the file itself"
        )


def _not_utf_8(path: Path, error: UnicodeDecodeError) -> str:
    """Return the message on the first line that is not UTF-8, with how Windows-1252 reads its word."""
    with suppress(OSError), open_bytes(path) as stream:
        begun = 0
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as found:
                at = f"{found.reason} at byte {begun + found.start}, in line {number}"
                words = line[max(0, found.start - 12) : found.end + 12]
                guess = ""
                with suppress(UnicodeDecodeError):
                    guess = f" (as Windows-1252 it reads {words.decode('cp1252').strip()!r})"
                return f"{path} is not UTF-8 text: {at}{guess}. Save it as UTF-8."
            begun += len(line)
    return f"{path} is not UTF-8 text: {error.reason} at byte {error.start}. Save it as UTF-8."
