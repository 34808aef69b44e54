"""Commands that check: `doctor`, `verify`, and `schema`."""

import json
import logging
import shlex
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_hf import terminal
from lora_hf.cli.hints import check_not_config
from lora_hf.cli.next_steps import show_next, trainer_of, with_options
from lora_hf.cli.options import Base, Json, complete_config, complete_override
from lora_hf.data.split_names import SPLITS
from lora_hf.errors import FaultFound, UserError, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_hf.doctor.check import Finding


RECORDED = ("state", "title", "remedy", "check")
"""Fields of a finding in `--json`."""
UNBOUNDED = 10_000
"""Characters of the longest line that a finding has where nothing shows it."""


def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ADAPTER | KEY.SUB=VALUE",
            help="Folder of an adapter or a run, or USER/NAME on the Hub; with --config, its overrides.",
            show_default=False,
            autocompletion=complete_override,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Config to check; overrides may follow it.", autocompletion=complete_config),
    ] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Check an adapter or a config, and this machine. Exit with status 1 if a check fails.

    It prints what needs attention, what is cut, and if scores rest on few rows. With -v, it prints all.

    This machine alone: [dim]lora-hf doctor[/dim]

    An adapter: [dim]lora-hf doctor runs/quickstart/lora[/dim]

    A config: [dim]lora-hf doctor --config quickstart lora.r=8[/dim]
    """
    of_adapter = f"{words[0]} and its base model" if words else None
    named = f"{config}, its data and its base model" if config else of_adapter
    subjects = f"this machine; {named}" if named else "this machine"
    subject = str(config or (words[0] if words else "this machine"))
    otherwise = "; a run checks data and model too, before it trains" if config else ""
    findings = _findings(words or [], config, base)
    if not _report(findings, as_json, subjects, subject, otherwise, is_full=named is None):
        return
    from lora_hf.config.load import load_config

    checked = load_config(config, words or [], is_done=lambda run: True) if config else None
    show_next(
        "doctor",
        as_json,
        trainer=trainer_of(checked) if checked else None,
        source=shlex.join(["--config", str(config), *(words or [])]) if config else None,
        adapter=with_options(words[0], base=base) if words and not config else None,
    )


def verify(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Output directory of a finished train, compare, methods or sweep command."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Repeat the scoring of a finished run. Exit with status 1 if a result differs.

    It prints what differs. With -v, it prints every check.

    One run: [dim]lora-hf verify runs/quickstart/lora[/dim]

    All runs of a comparison: [dim]lora-hf verify runs/quickstart[/dim]
    """
    from lora_hf import doctor as checks

    _report(checks.of_run(run), as_json, f"{run}, its data and its base model", str(run))
    show_next("verify", as_json, run=run)


def _report(
    findings: "Iterator[Finding]",
    as_json: bool,
    checked: str,
    subject: str,
    otherwise: str = "",
    is_full: bool = False,
) -> bool:
    """Print the findings that need attention as soon as they are known, or all findings as JSON.

    What is not checked because another check failed is named in one line for each such check, at the end.

    Args:
        findings: of the checks.
        as_json: print them as JSON.
        checked: what the checks look at, in words.
        subject: the argument that names it.
        otherwise: added to the last line where something could not be checked and nothing failed.
        is_full: print the findings of passed checks, and each of those that were not checked, as with -v.

    Returns:
        Whether everything could be checked. Without the Hub, for instance, a model that is there is not.

    Raises:
        FaultFound: a check failed.
    """
    is_full = is_full or terminal.is_shown(logging.DEBUG)
    found = []
    with _each_notice_once(), terminal.bar("checking", None, "check"):
        for finding in findings:
            found.append(finding)
            if not as_json and (is_full or (finding.state != "ok" and not finding.cause)):
                _print_finding(finding)
    states = [finding.state for finding in found]
    counts = {state: states.count(state) for state in ("ok", "fault", "unknown")}
    if as_json:
        records = [{name: getattr(finding, name) for name in RECORDED} for finding in found]
        print(json.dumps(counts | {"findings": records}))
    else:
        if not is_full:
            _print_dependents(found)
        if counts["ok"] == len(found):
            print(f"{counted(len(found), 'check')} passed{'' if is_full else ' (-v lists them)'}")
            print(f"checked: {checked}")
        else:
            each = " (-v lists each)" if not is_full and any(finding.cause for finding in found) else ""
            print(f"{counts['ok']} ok, {counts['fault']} failed, {counts['unknown']} not checked{each}")
        notices = () if is_full else (finding.title for finding in found if finding.is_notice)
        for _, of_kind in groupby(notices, lambda title: title.partition(":")[0] in SPLITS):
            print(f"note: {'; '.join(of_kind)}")
        if counts["unknown"]:
            reasons = sum(finding.state != "ok" and not finding.cause for finding in found)
            those = f"the reason{'s' * (reasons != 1)} above"
            advice = (
                "correct what failed, then check again"
                if counts["fault"]
                else f"remove {those} and check again"
            )
            print(f"{subject} could not be checked whole: {advice}{'' if counts['fault'] else otherwise}")
    if counts["fault"]:
        raise FaultFound
    return not counts["unknown"]


def _print_dependents(found: "list[Finding]") -> None:
    """Print one line for each check that others need: their names."""
    dependents: dict[str, dict[str, None]] = {}
    for finding in found:
        if finding.cause:
            dependents.setdefault(finding.cause, {})[finding.check] = None
    for cause, checks in dependents.items():
        run, colon, check = cause.rpartition(": ")
        need = "they need" if len(checks) > 1 else "it needs"
        title = f"{run}{colon}not checked, because {need} {check}: {', '.join(checks)}"
        _print_finding(replace(found[0], state="unknown", title=title, remedy="", check=check))


def _findings(words: list[str], config: Path | None, base: str | None) -> "Iterator[Finding]":
    """Return the findings of the requested checks; a missing path is an error before the first of them."""
    adapters = [word for word in words if "=" not in word] if config else words
    if adapters and (hint := check_not_config(adapters[0])) and not config:
        raise UserError(f"doctor {' '.join(words)}: {hint}")
    if not config and adapters and "=" in adapters[0]:
        raise UserError(f"doctor {' '.join(words)}: overrides belong to a config; add --config NAME")
    if len(adapters) > (0 if config else 1):
        rest = "--config takes only overrides (key=value)" if config else "give one adapter only"
        raise UserError(f"doctor {' '.join(words)}: {rest}")
    if base and not adapters:
        raise UserError(f"--base {base!r} needs an adapter to check; give its folder")
    from itertools import chain

    from lora_hf import doctor as checks

    findings: Iterator[Finding] = iter(())
    if config:
        findings = checks.of_config(config, words)
    elif adapters:
        findings = checks.of_adapter(adapters[0], base)
    return chain(checks.of_machine(), findings)


@contextmanager
def _each_notice_once() -> "Iterator[None]":
    """Log each message once, although several checks load the same files."""
    logged: set[str] = set()

    def is_news(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        known = message in logged
        logged.add(message)
        return not known

    handlers = logging.getLogger("lora_hf").handlers
    for handler in handlers:
        handler.addFilter(is_news)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_news)


def _print_finding(finding: "Finding") -> None:
    from rich.console import Console

    from lora_hf.reporting.findings import finding_terminal

    console = Console()
    if not console.is_terminal:  # a pipe takes whole lines, as of every command
        console.width = UNBOUNDED
    with console.capture() as shown:
        console.print(finding_terminal(vars(finding)))
    print(shown.get(), end="")  # as `print` writes it, it appears above a bar


def schema() -> None:
    """Print the JSON schema of a config. Editors use it to complete and check YAML files.

    Into a file: [dim]lora-hf schema > schema.json[/dim]
    """
    from lora_hf.config.json_schema import config_schema

    print(json.dumps(config_schema(), indent=2))
