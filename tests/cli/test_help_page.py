"""Errors name a section of docs/troubleshooting.md, and what that page quotes are messages of the code."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from lora_hf import cli
from lora_hf.cli.help_page import PAGE, SECTIONS, help_line, page
from lora_hf.errors import UserError

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lora_hf"


@cache
def texts() -> str:
    """All string literals of the package, without the docstrings, which nobody sees as a message."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    constants = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings]
    return "\0".join(node.value for node in constants if isinstance(node.value, str))


def sections() -> dict[str, str]:
    """The page's sections by the anchors that MkDocs and GitHub give them."""
    parts = re.split(r"^## (.+)$", (ROOT / PAGE).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        title.lower().replace(" ", "-"): text for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


def test_every_part_that_reports_mistakes_has_a_section() -> None:
    raising = {
        file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for file in PACKAGE.rglob("*.py")
        if re.search(r"raise \w*(UserError|AgreedError|Unavailable)\(", file.read_text(encoding="utf-8"))
    }
    assert raising - set(SECTIONS) <= {"errors", "files", "arguments"}  # called by the others
    assert set(SECTIONS.values()) == set(sections())


def test_the_messages_quoted_on_the_page_are_those_of_the_code() -> None:
    quoted = re.findall(r"^\| `([^`]+)`", (ROOT / PAGE).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 40
    typer_and_shell = {"No such command", "Missing option", "lora-hf: command not found", "no matches found"}
    fragments = {part.strip() for message in quoted for part in message.split("...")} - typer_and_shell
    assert not [fragment for fragment in fragments if fragment not in texts()]


@pytest.mark.parametrize(
    ("words", "section"),
    [
        (["trian"], "command-line"),
        (["train", "--config", "quickstart", "lora.rr=8"], "configuration"),
        (["score", "absent.csv", "--prediction", "a", "--reference", "b"], "data"),
        (["init", "--data", "absent.csv"], "data"),  # raised again by the command, with a hint
        (["merge", "--adapter", "absent", "--output", "out"], "adapters"),
        (["report", "absent"], "runs-and-folders"),
    ],
)
def test_a_mistake_names_its_section(
    words: list[str],
    section: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(words, debug=False) == 2
    error, help_line = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ") and help_line == f"help: {ROOT / PAGE}#{section}"


def test_the_page_is_named_as_it_is_found_from_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert page() == PAGE
    monkeypatch.chdir(ROOT / "lora_hf")
    assert page() == str(ROOT / PAGE)
    monkeypatch.setattr("lora_hf.cli.help_page.ROOT", ROOT / "lora_hf")  # no documentation beside the package
    assert page() == PAGE


@pytest.mark.parametrize(
    ("part", "message", "section"),
    [
        ("exporting", "ONNX needs the package onnxruntime: pip install 'lora_hf[onnx]'", "configuration"),
        ("exporting", "CTranslate2 folders need the package ctranslate2: pip install", "configuration"),
        ("evaluation", "task.metrics: this metric needs the package sacrebleu", "scores"),
        ("models", "its tokenizer needs the package sentencepiece", "base-model"),
    ],
)
def test_a_missing_package_is_explained_where_the_page_does(part: str, message: str, section: str) -> None:
    scope = {"__name__": f"lora_hf.{part}", "UserError": UserError}
    with pytest.raises(UserError) as error:
        exec(f"raise UserError({message!r})", scope)
    assert str(help_line(error.value)).endswith(f"#{section}")
