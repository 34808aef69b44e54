"""The section of docs/troubleshooting.md on an error, chosen by the part of the package that raised it."""

import re
from pathlib import Path
from types import TracebackType

PAGE = "docs/troubleshooting.md"
SECTIONS = {
    "cli": "command-line",
    "config": "configuration",
    "api": "configuration",
    "data": "data",
    "language_codes": "data",
    "models": "base-model",
    "families": "base-model",
    "exporting": "base-model",
    "planning": "base-model",
    "adapters": "adapters",
    "baselines": "adapters",
    "saved": "adapters",
    "doctor": "adapters",
    "training": "training",
    "fast": "training",
    "memory": "training",
    "system": "training",
    "runs": "runs-and-folders",
    "run_records": "runs-and-folders",
    "experiments": "runs-and-folders",
    "hub": "the-hub",
    "evaluation": "scores",
    "serving": "serving",
    "demo": "serving",
    "distributed": "several-processes",
}
"""Part of the package -> anchor. An error of another part, such as `arguments`, belongs to its caller."""

PACKAGE = re.compile(r"(?<!metric )(?<!tokenizer )needs? the package")
"""A missing package, other than one of metrics or tokenizers, which other sections explain."""
ROOT = Path(__file__).parents[2]


def help_line(error: BaseException) -> str | None:
    """Return the line that names the section on an error; None if no part with a section raised it."""
    if str(error).startswith("--output"):  # checked where files are written
        return f"help: {page()}#{SECTIONS['cli']}"
    found: list[str] = []
    cause: BaseException | None = error
    while cause is not None:  # `cli` raises errors of other parts again, with a hint
        found += sections_of(cause.__traceback__)
        cause = cause.__cause__
    section = next((section for section in found if section != SECTIONS["cli"]), found[0] if found else None)
    if PACKAGE.search(str(error)):
        section = SECTIONS["config"]
    return f"help: {page()}#{section}" if section else None


def page() -> str:
    """Return the page's path, from the current folder or absolute; its name if no clone holds the package."""
    file = ROOT / PAGE
    is_here = Path(PAGE).is_file() and file.is_file() and file.samefile(PAGE)
    return str(file) if file.is_file() and not is_here else PAGE


def sections_of(trace: TracebackType | None) -> list[str]:
    """Return the anchors of the parts of the package in a traceback, the innermost part first."""
    found: list[str] = []
    while trace is not None:
        package, _, rest = trace.tb_frame.f_globals.get("__name__", "").partition(".")
        if package == "lora_hf" and (section := SECTIONS.get(rest.partition(".")[0])):
            found.insert(0, section)
        trace = trace.tb_next
    return found
