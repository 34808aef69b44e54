"""Hooks of MkDocs: pages that are made from the code and the notebooks while the site is built.

- `commands.md`: each command of `lora-hf` with its options, from the command line's own definitions;
- `notebooks/NAME.md`: each notebook with the outputs that are stored in it;
- in every page, a `<picture>` with a light and a dark image becomes two images that follow the theme's
  toggle, and indented blocks of commands and of YAML are highlighted;
- the tables of `config.md` become lists on a phone (`site.css`).
"""

import base64
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

PICTURE = re.compile(
    r'<picture>\s*<source[^>]*srcset="([^"]+)">\s*<img alt="([^"]*)" src="([^"]+)">\s*</picture>'
)
COMMAND = r"lora-hf|make|python|pip|uv|torchrun|accelerate|source|git|curl|for|hf"
FIELD = r"(?:# [^\n]*\n    )?(?:data|task|model|lora|training|generation|retention|arms):"
INDENTED = re.compile(
    rf"(?<=\n\n)( {{4}}(?:(?P<shell>{COMMAND}) |{FIELD})[^\n]*(?:\n(?: {{4}}[^\n]*)?(?=\n))*)"
)
"""A block of commands, or of YAML."""
WIDE = "---\nhide: [toc]\n---"
"""The head of a page whose code needs the width of the table of contents."""
COMMANDS = """# Commands

`lora-hf --help` lists the commands, and `lora-hf COMMAND --help` prints the options of one. This page is made
from the same definitions. Fields of the [configuration](config.md) follow the options as `section.key=value`.
[What commands print](output.md) says what goes to standard output, and what `-q` and `-v` show.

| exit status | meaning |
| ---: | --- |
| 0 | The command has done its work. |
| 1 | A check of `doctor` or `verify` failed, or an error that is not in the input. |
| 2 | A mistake in the input; one message says what to change ([Troubleshooting](troubleshooting.md)). |
| 130 | Interrupted by Ctrl-C or SIGTERM. Rerun the command to resume. |
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "commands.md", content=commands_page()))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, images = notebook_page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in images.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with its pictures in both schemes and its commands as shell blocks."""
    markdown = PICTURE.sub(r"![\2](\3#only-light)![\2](\1#only-dark)", markdown)
    return INDENTED.sub(_highlighted, markdown)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Return the page; the tables of the configuration get a class, by which a phone shows them as lists."""
    if page.file.src_uri != "config.md":
        return html
    return re.sub(r"<table>.*?</table>", r'<div class="fields">\g<0></div>', html, flags=re.DOTALL)


def fenced(language: str, text: str) -> str:
    """Return a fenced block; the fence is longer than any within the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`{3,}", text)), default=0))
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


def _highlighted(block: re.Match[str]) -> str:
    text = "\n".join(line[4:] for line in block[0].split("\n"))
    return fenced("bash" if block["shell"] else "yaml", text) + "\n"


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its images by name."""
    import nbformat

    parts: list[str] = []
    images: dict[str, bytes] = {}
    source = f"This page is the notebook `notebooks/{path.name}` of the repository with its stored outputs."
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code" and cell.source.strip():
            parts.append(fenced("python", cell.source))
        for output in cell.get("outputs", []):
            parts.append(_output(output, path.stem, images))
        if len(parts) == 1:
            parts.append(f"*{source}*")
    return "\n\n".join([WIDE, *filter(None, parts)]), images


def _output(output: Any, stem: str, images: dict[str, bytes]) -> str:
    """Return one output as Markdown; an image is added to `images`."""
    if output.output_type == "stream":
        return fenced("text", re.sub(r"\x1b\[[\d;]*m", "", output.text)) if output.text.strip() else ""
    data = output.get("data", {})
    if "image/png" in data:
        name = f"{stem}-{len(images) + 1}.png"
        images[name] = base64.b64decode(data["image/png"])
        return f"![Output of the cell above]({name}){{ .notebook }}"
    if "text/html" in data:  # a table; the progress bar above it is finished
        found = re.search(r"<table.*</table>", data["text/html"], re.DOTALL)
        return re.sub(r"\n\s*\n", "\n", found[0]) if found else ""
    return fenced("text", data["text/plain"]) if data.get("text/plain") else ""


def commands_page() -> str:
    """Return the reference of the commands as Markdown."""
    from typer.main import get_command

    from lora_hf import cli

    group: Any = get_command(cli.app)
    groups: dict[str, list[str]] = {}
    for name, command in group.commands.items():
        if not command.hidden:
            groups.setdefault(getattr(command, "rich_help_panel", None) or "", []).append(
                _command(name, command)
            )
    parts = [COMMANDS]
    for title, entries in groups.items():
        parts += [f"## {title}" if title else "", *entries]
    return "\n\n".join(part for part in parts if part)


def _command(name: str, command: Any) -> str:
    """Return the section of one command: what it does, its usage, arguments and options."""
    text = re.sub(r"\\\n", "\n", (command.help or "").replace("\b", "")).replace("\f", "")
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(["lora-hf", name, *command.collect_usage_pieces(context)])
    lines = [f"### `{name}`", "", *(_prose(block) for block in text.split("\n\n")), fenced("text", usage), ""]
    rows = [row for parameter in command.params if (row := _parameter(parameter, context))]
    if rows:
        lines += ["| option | meaning |", "| --- | --- |", *rows]
    return "\n".join(line if line.startswith("|") else f"{line}\n" for line in lines)


def _prose(block: str) -> str:
    """Return a paragraph of a command's help; an example, which the help dims, is a shell block."""
    text = " ".join(block.split()).replace("<", "&lt;")
    label, dim, example = text.partition("[dim]")
    if not dim:
        return text
    return f"{label.strip()}\n\n{fenced('bash', example.replace('[/dim]', '').replace('&lt;', '<'))}"


def _parameter(parameter: Any, context: Any) -> str:
    """Return a row of the table: names, what is given, the help, and the default."""
    record = parameter.get_help_record(context)
    if getattr(parameter, "hidden", False) or parameter.name in ("help", "debug"):
        return ""
    if record is None:
        help_text = (getattr(parameter, "help", None) or "").strip()
        record = (parameter.make_metavar(context), help_text)
    names, meaning = (" ".join(part.split()) for part in record)
    names = re.sub(r"(\S+) <([^>]+)>", _kind, names)
    meaning = meaning.replace("|", "\\|").replace("<", "&lt;").replace("[required]", "**Required.**")
    return f"| <code>{names.replace('|', '&#124;')}</code> | {meaning} |"


def _kind(metavar: re.Match[str]) -> str:
    """Return what follows an option's name, in capitals: nothing for a switch or a list of `KEY=VALUE`."""
    option, kind = metavar.groups()
    is_option = option.startswith("-")
    if kind == "boolean" or (kind.startswith("list") and not is_option):
        return option
    words = {"path": "PATH", "int": "N", "int range": "N", "float range": "N", "float": "N"}
    return f"{option} {words.get(kind, 'TEXT')}" if is_option else option.upper()


__all__ = ["on_files", "on_page_content", "on_page_markdown"]
