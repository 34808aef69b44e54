"""Findings on a terminal: the word, the check, what was seen, the remedy under it, at the same columns."""

import io

from rich.console import Console

from lora_hf.doctor import ADAPTER, CONFIG, MACHINE
from lora_hf.reporting.findings import WIDTH, finding_terminal


def printed(width: int = 80, color: bool = False, **fields: str) -> list[str]:
    record = {"state": "ok", "check": "keys", "title": "as it should be", "remedy": ""} | fields
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=color, color_system="standard" if color else None)
    console.print(finding_terminal(record))
    return out.getvalue().splitlines()


def test_a_fault_has_its_remedy_below_and_all_texts_begin_at_one_column() -> None:
    lines = printed(state="fault", check="fingerprint", title="another base", remedy="give --base")
    assert [line.rstrip() for line in lines] == [
        "fault   fingerprint  another base",
        "                     remedy: give --base",
    ]
    assert printed()[0].index("as it") == lines[0].index("another")


def test_a_long_text_is_wrapped_and_its_markup_is_escaped() -> None:
    path = "runs/" + "x" * 60 + "[bold]"
    lines = printed(width=60, title=f"{path} cannot be read")
    assert "".join(line[21:].rstrip() for line in lines).replace(" ", "") == f"{path}cannotberead"
    assert all(not line[:21].strip() for line in lines[1:])


def test_green_and_red() -> None:
    assert "\x1b[32m" in printed(color=True)[0]
    assert "\x1b[1;31m" in printed(color=True, state="fault")[0]


def test_every_check_s_name_fits_its_column() -> None:
    assert max(len(name) for checks in (MACHINE, CONFIG, ADAPTER) for name in checks) <= WIDTH
