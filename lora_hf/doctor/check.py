"""What a check finds, and how a list of checks is gone through.

A check is a generator: it yields findings, and what it returns is known to the checks after it, which take it
by naming the check as a parameter. So each is a function of plain values, and one that fails takes no other
with it: those that need its value say that they could not be made, and the rest go on.
"""

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from lora_hf.errors import UserError, first_line

State = Literal["ok", "fault", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One line: green, red, or neither."""

    state: State
    title: str
    """What was seen."""
    remedy: str = ""
    """What to do about it, where it is a fault."""
    check: str = ""
    """The key of the check in its registry."""


Findings = Generator[Finding, None, Any]


class Check(NamedTuple):
    """An entry of a registry."""

    run: Callable[..., Findings]
    """Its parameters are the keys of checks before it, whose values it takes, or what is examined."""
    remedy: str
    """Of a `UserError` that it raises: that says what is wrong, and this what to do."""


class CannotTell(Exception):
    """A check cannot be made here; the message says why."""


def ok(title: str) -> Finding:
    """It is as it should be."""
    return Finding("ok", title)


def fault(title: str, remedy: str) -> Finding:
    """It is not, and what would help."""
    return Finding("fault", title, remedy)


def unknown(title: str) -> Finding:
    """It could not be seen, and why."""
    return Finding("unknown", title)


def examine(checks: Mapping[str, Check], known: Mapping[str, Any]) -> Iterator[Finding]:
    """The findings of all checks, in their order, each as soon as it is there.

    Args:
        checks: a registry.
        known: what is examined, by name; the checks' values are added to it.
    """
    values = dict(known)
    for name, check in checks.items():
        for finding in _one(name, check, values):
            yield replace(finding, check=name)


def _one(name: str, check: Check, values: dict[str, Any]) -> Iterator[Finding]:
    """One check's findings; its value goes into `values`, unless it raises."""
    wanted = list(inspect.signature(check.run).parameters)
    if missing := [need for need in wanted if need not in values]:
        yield unknown(f"not checked: it builds on {', '.join(missing)}, which did not come through")
        return
    try:
        values[name] = yield from check.run(*(values[need] for need in wanted))
    except CannotTell as reason:
        yield unknown(f"not checked: {reason}")
    except UserError as error:
        for line in str(error).splitlines():
            yield fault(line, check.remedy)
    except Exception as error:  # the check's own fault; what is examined may be of a kind nobody has met
        yield unknown(f"not checked: the check failed with {type(error).__name__}: {first_line(error)}")
