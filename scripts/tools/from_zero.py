"""Run what docs/from_zero.md shows, and write what it prints into the page.

    python scripts/tools/from_zero.py

The page names FLAN-T5-small; here the embedded model takes its place, so that no download is needed.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/from_zero.md"
BLOCK = re.compile(
    r"```(?P<kind>console|python)\n(?P<body>.*?)```\n(?:\n```text\n(?P<out>.*?)```\n)?", re.DOTALL
)
"""Commands with what they print, or Python with its output in a block after it."""


def executed(text: str, folder: Path) -> str:
    """Return the page with the output of its commands and its Python, run in a folder, in their order."""
    program = folder / "bin/lora-hf"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lora_hf "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    work = folder / "work"
    work.mkdir()

    def run(command: list[str]) -> str:
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{command}: status {done.returncode}\n{done.stderr}")
        return done.stdout

    def replaced(block: re.Match[str]) -> str:
        if block["kind"] == "python":
            out = run([sys.executable, "-c", block["body"]])
            shown = f"\n```text\n{out}```\n" if out else ""
            return f"```python\n{block['body']}```\n{shown}"
        parts = []
        for command in commands(block["body"]):
            out = run(["bash", "-c", command])
            lines = [line for line in out.splitlines(keepends=True) if not line.startswith("{'")]
            parts.append(f"$ {command}\n{''.join(lines)}")  # without the Trainer's log
        return f"```console\n{''.join(parts)}```\n"

    return BLOCK.sub(replaced, text)


def commands(body: str) -> Iterator[str]:
    """Yield the command lines of a block."""
    yield from re.findall(r"^\$ (.+)$", body, re.MULTILINE)


def main() -> None:
    """Write the outputs into the page."""
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(executed(PAGE.read_text(encoding="utf-8"), Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
