"""Values, byte strings and lines of YAML that have broken something before, and random changes of bytes.

The fuzzers (`scripts/tools/fuzz.py`) and the property tests (`tests/support/properties.py`) draw from them.
"""

from collections.abc import Callable
from random import Random
from typing import Any


def deep(n: int, is_map: bool) -> str:
    """Return JSON (and YAML) nested n levels deep."""
    return '{"a":' * n + "1" + "}" * n if is_map else "[" * n + "]" * n


# fmt: off
NAMES = [
    "../../../out_of_here", "/etc/passwd", "a/../../b", "..", ".", "~", "C:\\x", "x" * 5000, "a\0b", "", " ",
]
"""Names of files, adapters and tensors."""

VALUES: list[Any] = [
    None, True, False,
    0, 1, 2, 3, -1, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
    10**9, 10**30, 2**31, 2**63, -(2**63),
    "8", "5e-4", "no", "none", "auto", "true", "\ud800", "\U0001f642", "{dialogue}",
    [], {}, [[]], [1, 2], ["q"], ["q", "v"], {"a": {"b": 1}}, {"q": 4}, {"q": 10**9},
    "q|v", ".*q", "(", "*", "([a-zA-Z0-9_.]+)+!",
    "hf_abcdefghijklmnopqrstuvwxyz", "!!python/object/apply:os.system ['touch x']",
    "steps", "epoch", "all-linear", "pissa", "loftq", "olora", "float16", "bfloat16", "full", "lora", "base",
    *NAMES,
]
"""Values of the kinds that YAML and JSON can hold."""

PIECES = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\t", b'"', b"'", b"{", b"]", b"\xed\xa0\x80", b"\x1b[2J",
    "\u2028".encode(), b"9" * 5000, deep(3000, is_map=False).encode(), deep(3000, is_map=True).encode(),
]
"""Bytes to insert into a text: control characters, invalid UTF-8, brackets, deep nesting."""

ENCODINGS = ("utf-16", "utf-32", "cp500", "utf-7", "utf-8-sig")
"""Encodings other than the UTF-8 that files must have."""

YAML_LINES = [
    "a: &a [1]\nb: *a", 'x: !!python/object/apply:os.system ["touch pwned"]', "<<: {r: 1}", "--- \n---",
    "%YAML 9.9", "? [a]\n: b", "- - - -", "lora: {r: 8}\nlora: {r: 9}", "\t- a", "\x85",
    "x: !!binary aGk=", "x: !!set {a}", "x: 2001-01-01", "x: 0o999",
    "'a': \"\\ud800\"", 'seed: "\\U0010ffff"', f"x: {deep(4000, is_map=False)}",
]
"""Constructs of YAML that no config needs, each a line or two to insert."""
# fmt: on


def break_bytes(random: Random, data: bytes) -> bytes:
    """Apply one to three random changes to the data."""
    for _ in range(random.choice((1, 1, 2, 3))):
        data = random.choice(BREAKS)(random, data)
    return data


def _cut(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _flip(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8)) if data else 0):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _insert(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data) + 1)
    piece = random.choice([*PIECES, random.randbytes(random.randrange(1, 64))])
    return data[:at] + piece + data[at:]


def _repeat(random: Random, data: bytes) -> bytes:
    begin = random.randrange(len(data) + 1)
    end = min(len(data), begin + random.randrange(1, 200))
    return data[:end] + data[begin:end] * random.choice((1, 2, 500)) + data[end:]


def _remove(random: Random, data: bytes) -> bytes:
    begin = random.randrange(len(data) + 1)
    return data[:begin] + data[begin + random.randrange(1, 64) :]


def _encode(random: Random, data: bytes) -> bytes:
    return data.decode("utf-8", "replace").encode(random.choice(ENCODINGS), "replace")


BREAKS: list[Callable[[Random, bytes], bytes]] = [
    *(_cut, _flip, _flip, _insert, _insert, _repeat, _remove, _encode)
]
