"""The versions that the metadata names: of Python, and the oldest and the tested ones of every package."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
EVERY = [Requirement(text) for some in (PROJECT["dependencies"], *EXTRAS.values()) for text in some]
BOUNDED = [one for one in EVERY if one.name != PROJECT["name"] and one.specifier]
OTHERS = {*EXTRAS["deepspeed"], *EXTRAS["audit"]}
"""What the tests do without."""


def versions(lines: str) -> dict[str, str]:
    found = re.findall(r"(?m)^([\w.-]+)==(\S+)$", lines)
    return {canonicalize_name(name): version for name, version in found}


PINNED = versions((ROOT / "constraints.txt").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lowest() -> dict[str, str]:
    command = [sys.executable, "scripts/tools/lowest.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return versions(done.stdout)


def test_classifiers_and_requires_python_agree_and_the_running_one_is_among_them() -> None:
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: Python ::" in line]
    assert named == [f"3.{minor}" for minor in range(11, 11 + len(named))]
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in named


def test_every_package_of_the_tests_is_tried_at_its_lower_bound_but_torch(lowest: dict[str, str]) -> None:
    tried = {one.name: one.specifier for one in BOUNDED if str(one) not in OTHERS and one.name != "torch"}
    assert {name: f">={lowest[canonicalize_name(name)]}" for name in tried} == {
        name: str(bound) for name, bound in tried.items()
    }
    assert lowest["torch"] == PINNED["torch"]
    assert len(lowest) == len(tried) + 1


@pytest.mark.parametrize("one", [one for one in BOUNDED if str(one) not in EXTRAS["audit"]], ids=str)
def test_the_tested_version_is_one_that_is_admitted(one: Requirement) -> None:
    assert one.specifier.contains(PINNED[canonicalize_name(one.name)])
