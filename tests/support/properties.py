"""Settings and strategies of the property tests: the same examples every time, and nothing kept on disk."""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from scripts.tools.fuzzing.junk import VALUES, deep

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "lora_hf_hypothesis")  # tables of Unicode, not examples


def examples(n: int) -> settings:
    """Return the settings of a test that tries `n` examples, drawn from a fixed seed.

    All examples of a test share its `tmp_path`: each writes its file anew.
    """
    shared = [HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=n, derandomize=True, deadline=None, database=None, suppress_health_check=shared
    )


def values() -> st.SearchStrategy[Any]:
    """Values of every kind that YAML and JSON can hold, among them those that have broken something."""
    plain = st.one_of(st.sampled_from(VALUES), st.integers(), st.floats(), st.text(max_size=20))
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=4,
    )


PIECES = [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r",
    b"\t",
    b'"',
    b"'",
    b"{",
    b"]",
    b"\xed\xa0\x80",
    b"\x1b[2J",
]
PIECES += [
    "\u2028".encode(),
    b"9" * 5000,
    deep(3000, is_map=False).encode(),
    deep(3000, is_map=True).encode(),
]


@st.composite
def broken(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with one to three pieces cut out, put in or repeated, or the whole in another encoding."""
    data = whole
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 200)))
        piece = draw(st.sampled_from([*PIECES, b"", data[start:end] * 500]) | st.binary(max_size=40))
        data = data[:start] + piece + data[end:]
    if draw(st.integers(0, 9)) == 0:
        encoding = draw(st.sampled_from(("utf-16", "utf-32", "cp500", "utf-7", "utf-8-sig")))
        data = data.decode("utf-8", "replace").encode(encoding, "replace")
    return data
