"""Print a constraint for the oldest version of each dependency that pyproject.toml admits.

Torch is an exception: its version is the one that constraints.txt pins.

    python scripts/tools/lowest.py > lowest.txt
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"([\w-]+)(?:\[([\w,]+)\])?(?:>=([\d.]+)(?:,<[\d.]+)?)?")
"""A package, its extras and its lower bound; an upper bound is ignored."""


def required(project: dict[str, Any], names: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the package and lower bound of each requirement; the project's own extras are expanded.

    Raises:
        ValueError: a requirement has another form.
    """
    for name in names:
        if not (match := NAMED.fullmatch(name)):
            raise ValueError(f"pyproject.toml: {name!r} is not NAME>=VERSION or NAME>=VERSION,<VERSION")
        package, extras, bound = match.groups()
        if package != project["name"]:
            yield package, bound
            continue
        for extra in extras.split(","):
            yield from required(project, project["optional-dependencies"][extra])


def lowest() -> dict[str, str]:
    """Return the lower bound of each package that has one, and the pinned version of torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = required(project, [*project["dependencies"], f"{project['name']}[test]"])
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    torch = next(line for line in pins.splitlines() if line.startswith("torch=="))
    return {name: bound for name, bound in found if bound} | {"torch": torch.removeprefix("torch==")}


def main() -> None:
    print(*(f"{name}=={version}" for name, version in lowest().items()), sep="\n")


if __name__ == "__main__":
    main()
