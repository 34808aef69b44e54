"""Run checks and collect their findings.

A check is a generator. It yields findings; later checks receive the value it returns through a parameter with
its name. If a check fails, those that need its value are reported as not checked, and all others still run.
"""

import inspect
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from lora_hf.errors import Unavailable, UserError, first_line

State = Literal["ok", "fault", "unknown"]

OWN_REMEDY = re.compile(r":? \(?(pip install '[^']+')\)?$|: (resize it first, .+)$")
"""End of an error about a missing package, or about another vocabulary: its remedy whatever was checked."""


@dataclass(frozen=True)
class Finding:
    """One line of the report: ok, failed or not checked."""

    state: State
    title: str
    """The observation, in one line."""
    remedy: str = ""
    """The remedy of a fault."""
    check: str = ""
    """Key of the check in its registry."""
    cause: str = ""
    """Of what is not checked: key of the check that it needs, the first of a chain. Else empty."""
    is_notice: bool = False
    """Of a passed check: worth reading before a training. It is printed without `-v` too."""


Findings = Generator[Finding, None, Any]


class Check(NamedTuple):
    """An entry of a registry."""

    run: Callable[..., Findings]
    """The check. Its parameters are keys of earlier checks, or the values that are examined."""
    remedy: str
    """The remedy of a `UserError` that the check raises."""


class CannotTell(Exception):
    """A check is impossible here.

    Args:
        reason: why.
        cause: key of the check that found or reported the reason, if there is one.
    """

    def __init__(self, reason: str, cause: str = "") -> None:
        super().__init__(reason)
        self.cause = cause


def ok(title: str) -> Finding:
    """Return a finding that all is well."""
    return Finding("ok", title)


def fault(title: str, remedy: str) -> Finding:
    """Return a fault with its remedy."""
    return Finding("fault", title, remedy)


def notice(title: str) -> Finding:
    """Return a finding that all is well, but something should be known before a training."""
    return Finding("ok", title, is_notice=True)


def unknown(title: str, cause: str = "") -> Finding:
    """Return a finding that something could not be checked."""
    return Finding("unknown", title, cause=cause)


def examine(checks: Mapping[str, Check], known: Mapping[str, Any]) -> Iterator[Finding]:
    """Run all checks in order and yield each finding as soon as it is known.

    Args:
        checks: a registry.
        known: the values that are examined, by name.
    """
    values = dict(known)
    causes: dict[str, str] = {}
    reported: dict[str, str] = {}
    for name, check in checks.items():
        for finding in _one(name, check, values):
            if finding.state == "unknown":  # for a reason reported before, or one of its own
                cause = finding.cause or reported.setdefault(finding.title, name)
                causes[name] = causes.get(cause, cause)
                finding = replace(finding, cause=causes[name] if causes[name] != name else "")
            yield replace(finding, check=name)


def _one(name: str, check: Check, values: dict[str, Any]) -> Iterator[Finding]:
    """Run one check, and put its value into `values` unless it raises."""
    wanted = list(inspect.signature(check.run).parameters)
    if missing := [need for need in wanted if need not in values]:
        names = ", ".join(missing)
        yield unknown(f"not checked: it needs {names}, which failed or could not be checked", missing[0])
        return
    try:
        values[name] = yield from check.run(*(values[need] for need in wanted))
    except (CannotTell, Unavailable) as reason:
        yield unknown(f"not checked: {reason}", getattr(reason, "cause", ""))
    except UserError as error:
        for line in str(error).splitlines():
            own = OWN_REMEDY.search(line)
            yield fault(line[: own.start()], own[1] or own[2]) if own else fault(line, check.remedy)
    except Exception as error:  # a defect of the check itself: report it, and run the others
        yield unknown(f"not checked: the check failed with {type(error).__name__}: {first_line(error)}")
