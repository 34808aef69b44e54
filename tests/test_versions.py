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
"""Packages that the tests do not need."""


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
    tried = [one for one in BOUNDED if str(one) not in OTHERS and one.name != "torch"]
    assert {one.name: f">={lowest[canonicalize_name(one.name)]}" for one in tried} == {
        one.name: str(next(bound for bound in one.specifier if bound.operator == ">=")) for one in tried
    }
    assert lowest["torch"] == PINNED["torch"]
    assert len(lowest) == len({one.name for one in tried}) + 1


@pytest.mark.parametrize("one", [one for one in BOUNDED if str(one) not in EXTRAS["audit"]], ids=str)
def test_pyproject_admits_the_tested_versions(one: Requirement) -> None:
    assert one.specifier.contains(PINNED[canonicalize_name(one.name)])


def test_transformers_is_bounded_by_the_versions_tried_which_the_readme_names(lowest: dict[str, str]) -> None:
    """Those of constraints.txt and of `make test-lowest`."""
    newest = PINNED["transformers"]
    major, minor = newest.split(".")[:2]
    (one,) = (one for one in BOUNDED if one.name == "transformers")
    assert str(one.specifier) == f"<{major}.{int(minor) + 1},>={lowest['transformers']}"
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"Tested with Transformers {lowest['transformers']} and {newest};" in readme
