"""The fuzzers on a few inputs (`make soak` is the long form), and their checks on outcomes that are wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.warm_python import WarmPython

from lora_hf import files
from lora_hf.files import PARTIAL
from scripts.tools.audit import audited
from scripts.tools.fuzzing.trial import BESIDE, OUT, attempt

ROOT = Path(__file__).parents[2]


def test_broken_configs_and_adapters_end_in_one_clear_error(tmp_path: Path, warm_python: WarmPython) -> None:
    command = [sys.executable, *"scripts/tools/fuzz.py config adapter --count 2 --seed 7".split()]
    ended = warm_python.run([*command, "--keep", tmp_path])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counted = [line.split(" inputs")[0] for line in ended.stdout.splitlines()[:2]]
    assert counted == ["config: 2", "adapter: 2"]


def crash() -> int:
    raise KeyError("x")


def write_outside() -> int:
    Path("../elsewhere").write_text("x")
    return 0


def leave_unfinished() -> int:
    Path(OUT, PARTIAL + "weights").write_text("x")
    return 0


def leave_unfinished_beside() -> int:
    Path(BESIDE[0]).write_text("x")
    return 0


def write_whole() -> int:
    with files.whole(Path(OUT)) as folder:
        folder.mkdir()
        (folder / "x").write_text("x")
    return 0


def refuse_and_write() -> int:
    print("error: no", file=sys.stderr)
    Path(OUT, "results.json").write_text("x")
    return 2


def print_two_errors() -> int:
    print("error: a\nerror: b", file=sys.stderr)
    return 2


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        (crash, "status 1"),
        (write_outside, "wrote or started outside"),
        (leave_unfinished, "left an unfinished file"),
        (leave_unfinished_beside, "wrote or started outside"),
        (write_whole, None),
        (refuse_and_write, "refused the input, but wrote"),
        (print_two_errors, "not one clear error"),
        (lambda: os.system("true"), "wrote or started outside"),
        (lambda: len(bytearray(b"x") * 2**32), "status 1: MemoryError"),
        (lambda: 0, None),
    ],
)
def test_an_outcome_that_breaks_a_rule_is_a_fault(tmp_path, monkeypatch, task, fault) -> None:
    folder = tmp_path / "a" / "in" / "in"
    (folder / OUT).mkdir(parents=True)
    for name in ("HF_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    found = attempt(task, folder).fault()
    assert found is None if fault is None else found and found.startswith(fault)


def test_an_audit_counts_only_packages_that_were_looked_up() -> None:
    packages = [
        {"name": "a", "version": "1", "vulns": [{"id": "X-1"}]},
        {"name": "b", "version": "2", "vulns": []},
        {"name": "c", "skip_reason": "not found"},
    ]
    answer = subprocess.CompletedProcess([], 0, json.dumps({"dependencies": packages}), "")
    assert audited(answer) == (2, ["a 1: X-1"])
    assert audited(subprocess.CompletedProcess([], 1, "", "no route to host")) == (0, [])
