"""Open a data file: compression by its last ending, encoding by its first bytes, delimiter by its header."""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import IO, Any, cast

from lora_hf.config import DataConfig
from lora_hf.errors import UserError, first_line
from lora_hf.files import refuse_git_lfs_pointer

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""The byte order marks of UTF-16, which no UTF-8 text begins with."""
UTF_32 = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")
PAGE = (b"<!doctype html", b"<html")
DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}
LONGEST_HEADER = 2**20
"""Characters of the header in which the delimiter is looked for."""


@dataclass(frozen=True)
class Form:
    """Form of files as a config gives it; None stands for the form that the file itself shows."""

    encoding: str | None = None
    delimiter: str | None = None
    escapechar: str | None = None
    json_field: str | None = None
    column_names: tuple[str, ...] | None = None
    explode: str | None = None
    parallel_files: tuple[str, ...] | None = None

    @classmethod
    def of(cls, config: DataConfig) -> "Form":
        """Return the fields of a config."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    @property
    def parallel(self) -> tuple[str, ...]:
        """Return the endings of parallel files with their dots, source first."""
        return tuple(f".{ending}" for ending in self.parallel_files or ())


SEEN = Form()
"""The form that a file shows by itself."""


def _open_zst(path: Path) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(cast(Any, pyarrow.CompressedInputStream(str(path), "zstd")))


COMPRESSIONS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: cast(IO[bytes], gzip.open(path, "rb")),
    ".bz2": lambda path: cast(IO[bytes], bz2.open(path, "rb")),
    ".xz": lambda path: cast(IO[bytes], lzma.open(path, "rb")),
    ".zst": _open_zst,
}


def endings(path: PurePath) -> tuple[str, str]:
    """Return the ending of the format and that of the compression, each in lower case or empty."""
    last = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), last) if last in COMPRESSIONS else (last, "")


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed."""
    compression = endings(path)[1]
    return COMPRESSIONS[compression](path) if compression else path.open("rb")


def open_text(path: Path, form: Form = SEEN) -> IO[str]:
    """Open a file as text, decompressed, without a byte order mark; line ends stay as they are."""
    encoding = encoding_of(path, form)  # Excel writes the mark of UTF-8 or of UTF-16
    return io.TextIOWrapper(
        open_bytes(path), encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline=""
    )


def encoding_of(path: Path, form: Form = SEEN) -> str:
    """Return the encoding that the config names, or else UTF-16 or UTF-32 by its mark, or else UTF-8."""
    if form.encoding is not None:
        return codecs.lookup(form.encoding).name
    with open_bytes(path) as stream:
        begin = stream.read(64)
    if begin[:4] in UTF_32:
        return "utf-32"
    for encoding, at in (("utf-16-le", 1), ("utf-16-be", 0)):
        if len(begin) > 7 and not any(begin[at::2]) and all(begin[1 - at :: 2]):
            raise UserError(f"{path} is UTF-16 text without its mark: set data.encoding: {encoding}")
    return "utf-16" if begin[:2] in UTF_16 else "utf-8"


EXCEL_DELIMITER = re.compile(r'"?sep=(.)"?')
"""A first line of a csv file that names its delimiter."""


def delimiter_of(path: Path, form: Form = SEEN) -> str:
    """Return what separates the columns in the header: a comma, unless only another one separates any.

    A first line `sep=;`, which Excel writes and reads, names it.
    """
    if form.delimiter is not None:
        return form.delimiter
    with open_text(path, form) as stream:
        header = ""
        while not header.strip() and (line := stream.readline(LONGEST_HEADER)):
            header = line
    if named := EXCEL_DELIMITER.fullmatch(header.rstrip("\r\n")):
        return named[1]
    counts = {mark: len(next(csv.reader([header], delimiter=mark), [])) for mark in DELIMITERS}
    first = "\t" if endings(path)[0] == ".tsv" else ","
    return first if counts[first] > 1 else max(counts, key=lambda mark: counts[mark])


@contextmanager
def readable(path: Path, form: Form = SEEN) -> Iterator[None]:
    """Name the file, and what is in it instead, where it cannot be read as text."""
    try:
        if path.is_file():
            refuse_git_lfs_pointer(path)
            _refuse_other_content(path)
        yield
    except UnicodeDecodeError as error:
        raise UserError(_not_text(path, form, error)) from error
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
    except UnicodeError as error:  # UTF-16 without its mark
        raise UserError(f"{path} is not {form.encoding} text: {first_line(error)}; {CHOOSE}") from error


CHOOSE = "set data.encoding to the encoding of the file, or save it as UTF-8"


CONTENTS = {
    b"\x1f\x8b": "gzip data: add .gz to its name",
    b"BZh": "bzip2 data: add .bz2 to its name",
    b"\xfd7zXZ\x00": "xz data: add .xz to its name",
    b"\x28\xb5\x2f\xfd": "Zstandard data: add .zst to its name",
    b"PK\x03\x04": "a zip archive or an Excel sheet: unpack it, or save the sheet as csv (UTF-8)",
    b"\xd0\xcf\x11\xe0": "an Excel sheet: save it as csv (UTF-8)",
    b"%PDF": "a PDF: copy its text to a .txt file, or its table to a csv (UTF-8)",
    b"PAR1": "a parquet file: rename it to .parquet",
}
"""What a file of text is instead, by its first bytes."""
TAR_MARK = slice(257, 262)
"""Bytes of a tar archive, after it is decompressed, that say `ustar`."""
TEXT_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")


def _refuse_other_content(path: Path) -> None:
    with path.open("rb") as stream:
        raw = stream.read(512)
    ending, compression = endings(path)
    if ending in TEXT_ENDINGS and not compression:
        for mark, content in CONTENTS.items():
            if raw.startswith(mark):
                raise UserError(f"{path} is {content}")
    if ending in TEXT_ENDINGS:
        with open_bytes(path) as stream:
            if stream.read(TAR_MARK.stop)[TAR_MARK] == b"ustar":
                raise UserError(f"{path} is a tar archive: unpack it, and give the folder or a file in it")
    begin = raw.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begin.startswith(PAGE):
        raise UserError(
            f"{path} is a web page (HTML), not data: the download returned a page, often an error or a "
            "login; download the file itself"
        )


def _sample(path: Path) -> bytes:
    with open_bytes(path) as stream:
        begin = stream.read(2**17)
    return begin[: begin.rfind(b"\n") + 1] or begin


def _not_text(path: Path, form: Form, error: UnicodeDecodeError) -> str:
    """Return the message on the first line that is not in the encoding, with the encoding that reads it."""
    encoding = encoding_of(path, form)
    name = "UTF-8" if encoding == "utf-8" else encoding
    if encoding.startswith(("utf-16", "utf-32")):  # lines cannot be found in bytes
        return f"{path} is not {name} text: {error.reason} at byte {error.start}; {CHOOSE}"
    with suppress(OSError), open_bytes(path) as stream:
        begun = 0
        for number, line in enumerate(stream, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as found:
                byte = begun + found.start
                at = f"{path}, line {number}, is not {name} text: {found.reason} at byte {byte}"
                others = [name for name in likely_encodings(_sample(path), line) if name != encoding]
                if not others:
                    return f"{at}; {CHOOSE}"
                words = line[max(0, found.start - 12) : found.end + 12]
                read = [f"{words.decode(name, 'ignore').strip()!r} as {name}" for name in others]
                return (
                    f"{at}; it may read {' or '.join(read)}: set data.encoding to the right one, such as "
                    f"data.encoding: {others[0]}"
                )
            begun += len(line)
    return f"{path} is not {name} text: {error.reason} at byte {error.start}; {CHOOSE}"


SCRIPTS = {
    "cp949": "[가-힣]",
    "cp932": "[\u3041-\u30ff\u4e00-\u9fff]",
    "gb18030": "[\u4e00-\u9fff]",
    "cp1253": "[\u0370-\u03ff]",
    "cp874": "[\u0e00-\u0e7f]",
    "cp1251": "[\u0400-\u045f]",
}
"""Encodings whose letters beyond ASCII form whole words, and these letters."""
WESTERN = ("cp1252", "cp1250", "mac_roman")
COMMON = {*SCRIPTS, *WESTERN, "big5", "euc_jp", "koi8_r", "cp850"} | {f"cp{n}" for n in range(1254, 1259)}
SAME = {
    "euc_jis_2004": "euc_jp",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
}
"""The common encodings that contain others."""
MOST_READINGS = 3


def likely_encodings(sample: bytes, line: bytes) -> list[str]:
    """Return common encodings that a text may have, at most `MOST_READINGS`, the likeliest first.

    Encodings of one byte per character cannot be told apart with certainty: the user chooses the one in which
    the text reads well.

    Args:
        sample: the beginning of the file, by whole lines.
        line: the first line that is not UTF-8.
    """
    from charset_normalizer import from_bytes

    matches = [SAME.get(match.encoding, match.encoding) for match in from_bytes(sample)]
    likely = [name for name in matches if name in COMMON]
    is_run = re.search(rb"[\x80-\xff]{4}", line)  # Western letters beyond ASCII mostly stand alone
    shares = {name: _share_of_script(line, name) for name in SCRIPTS if is_run}
    by_script = sorted((name for name in shares if shares[name] > 0.9), key=lambda name: -shares[name])
    if not is_run or likely[:1] and likely[0] in WESTERN:
        by_script = [*WESTERN]
    found: dict[str, str] = {}
    for name in (*likely[: 2 if by_script else None], *by_script):
        with suppress(UnicodeDecodeError):
            read = line.decode(name)
            found[read] = name if name == WESTERN[0] else found.get(read, name)  # the commonest of equal ones
    return list(found.values())[:MOST_READINGS]


def _share_of_script(line: bytes, encoding: str) -> float:
    """Return the share of an encoding's own letters among letters, marks and symbols beyond ASCII."""
    with suppress(UnicodeDecodeError):
        text = line.decode(encoding)
        beyond = [c for c in text if not c.isascii() and unicodedata.category(c)[0] in "LMS"]
        return sum(bool(re.match(SCRIPTS[encoding], c)) for c in beyond) / max(1, len(beyond))
    return 0.0
