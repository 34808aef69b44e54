"""The README's Python is run, its commands exist, and its figures are those of the documentation."""

import json
import re
import shlex
from pathlib import Path

import pytest
from support.inputs import FEW
from typer.main import get_command

from lora_hf import cli
from lora_hf.serving.schemas import SummarizeRequest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_its_python_ends_in_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line]) <= 6
    words = ["output_dir=runs/first", *FEW, "training.max_steps=2"]
    few = code.replace('["output_dir=runs/first"]', repr(words))
    exec(compile(few, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
    assert (tmp_path / "runs/first/adapter/adapter_model.safetensors").is_file()


def test_it_is_short_and_what_it_names_exists() -> None:
    assert len(README.splitlines()) <= 120
    named = re.findall(r"\]\(([^)#]+)", README) + re.findall(r'(?:src|srcset)="([^"]+)"', README)
    assert len(named) > 15 and all((ROOT / name).is_file() for name in named), named
    targets = set(re.findall(r"^make ([\w-]+)", "\n".join(blocks("bash")), re.MULTILINE))
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets == {"quickstart", "test"} and targets <= rules


def test_its_commands_take_these_options() -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("lora-hf ")]
    assert len(lines) >= 4
    for line in lines:
        _, verb, *words = shlex.split(line, comments=True)
        get_command(cli.app).commands[verb].make_context(verb, words)  # type: ignore[attr-defined]


def test_its_request_is_one_that_the_server_takes() -> None:
    (line,) = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("curl ")]
    words = shlex.split(line, comments=True)
    assert SummarizeRequest.model_validate_json(words[words.index("-d") + 1]).adapter == "talks"
    assert words[1] == "localhost:8000/summarize" and "--adapter talks=" in README


def test_its_figures_are_those_of_the_pages_that_hold_them() -> None:
    (printed,) = blocks("text")
    quickstart = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
    assert not [
        word for word in re.findall(r"[\d.,]+[\d%)]*", printed) if word.rstrip(",.") not in quickstart
    ]
    performance = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    for figure in ("| 3.34 [", "1,369 of 4,131 MiB", "| 4.82 ["):
        assert figure in performance
    assert "3.3 times" in README and "1,369 of 4,131 MiB" in README and "4.8 times" in README
    assert "134 of 134" in README and "134 of 134" in (ROOT / "docs/reliability.md").read_text()
    families = re.findall(
        r"^\| [^|]+ \|(?: (?:ok|refused|impossible)[^|]*\|){19}$", (ROOT / "docs/models.md").read_text(), re.M
    )
    assert f"**{len(families)} encoder-decoder families**" in README


def test_the_points_of_the_costs_are_those_of_their_table() -> None:
    """They were read off a picture, to within 1.5 %; the table has the first and the last of each setting."""
    points = json.loads((ROOT / "docs/charts/costs.json").read_text(encoding="utf-8"))["points"]
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    for setting, title in {"length": "64 to", "batch": "1 to 16", "shape": "small, base"}.items():
        (cells,) = re.findall(rf"^\| {title}[^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|", page, re.MULTILINE)
        keys = [(side, key) for side in ("ours", "peer") for key in ("seconds", "mib_with_weights")]
        for cell, (side, key) in zip(cells, keys, strict=True):
            first, *_, last = map(float, re.findall(r"[\d.]+", cell))
            unit = 1 if key == "seconds" else 1024
            read = [points[setting][place][side][key] / unit for place in (0, -1)]
            rounded = zip(read, (first, last), strict=True)
            assert all(abs(a - b) <= 0.005 + 0.015 * b for a, b in rounded), (setting, side, key)


@pytest.mark.parametrize(
    ("chart", "figures"),
    [
        ("against_peft", ["3.3×", "4.8×", "1,369", "4,131"]),
        ("quickstart", ["{base:.2f}", "{full:.2f}", "{lora:.2f}"]),
    ],
)
def test_the_charts_have_the_figures_of_the_tables(chart: str, figures: list[str]) -> None:
    quickstart = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
    scores = re.findall(r"(\d\.\d+) \[", quickstart.split("| ROUGE-1 |")[1].split("\n")[0])
    values = dict(zip(("base", "full", "lora"), map(float, scores), strict=True))
    for scheme in ("light", "dark"):
        drawn = (ROOT / f"docs/charts/{chart}-{scheme}.svg").read_text(encoding="utf-8")
        assert all(f">{figure.format(**values)}<" in drawn for figure in figures)
