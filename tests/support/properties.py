"""Settings and strategies of the property tests. Every run tries the same examples and keeps none on disk."""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from scripts.tools.fuzzing.junk import ENCODINGS, PIECES, VALUES

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
    """Return a strategy for values of every kind that YAML and JSON can hold."""
    plain = st.one_of(st.sampled_from(VALUES), st.integers(), st.floats(), st.text(max_size=20))
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=4,
    )


@st.composite
def broken(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw `whole` with one to three pieces removed, inserted or repeated, sometimes in another encoding."""
    data = whole
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 200)))
        piece = draw(st.sampled_from([*PIECES, b"", data[start:end] * 500]) | st.binary(max_size=40))
        data = data[:start] + piece + data[end:]
    if draw(st.integers(0, 9)) == 0:
        encoding = draw(st.sampled_from(ENCODINGS))
        data = data.decode("utf-8", "replace").encode(encoding, "replace")
    return data
