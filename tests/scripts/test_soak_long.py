"""The soak test of training and service in short, and its rule for flat memory and handles."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.warm_python import WarmPython

from scripts.benchmarks import serve_load
from scripts.tools import soak_long
from scripts.tools.soak_long import growth, serve, train


@pytest.mark.parametrize(
    ("last", "flat"), [((100.0, 7), True), ((104.9, 9), True), ((105.1, 7), False), ((100.0, 10), False)]
)
def test_the_last_fifth_is_compared_with_the_second(last, flat):
    seen = [(50.0, 3)] * 10 + [(100.0, 7)] * 30 + [last] * 10
    found = growth(seen)
    assert found["flat"] is flat and found["mib"] == [100.0, last[0]] and found["handles"] == [7, last[1]]


@pytest.mark.slow
def test_memory_handles_and_logs_of_training_and_service_are_recorded(
    tmp_path: Path, warm_python: WarmPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = SimpleNamespace(Popen=warm_python.start, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    for script in (soak_long, serve_load):
        monkeypatch.setattr(script, "subprocess", started)
    monkeypatch.setattr(soak_long, "EVERY", 0.05)
    monkeypatch.setattr(soak_long, "SETTINGS", [*soak_long.SETTINGS, "generation.max_new_tokens=4"])
    (tmp_path / "one").mkdir()
    trained, served = train(tmp_path / "one", 20), serve(tmp_path, 50)
    assert trained["status"] == 0 and trained["samples"] and served["requests"] == 100
    assert served["samples"] == 10
    assert 0 < trained["log_bytes"] < 20_000 and served["log_bytes"] < 20_000
    assert served["handles"][1] <= served["handles"][0] + 2
