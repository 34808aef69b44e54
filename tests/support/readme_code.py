"""The Python code in a model folder's README, run for any dialogues; needs no package of its own.

    python tests/support/readme_code.py FOLDER FILE

reads `{"example": ..., "dialogues": [...]}` from the file, and prints a JSON list of what the code prints.
"""

import json
import sys
from contextlib import chdir, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any


def written_by_the_readme(folder: Path, example: str, dialogues: list[str]) -> list[str]:
    """Return what a README's code prints for each dialogue, run inside the folder.

    Args:
        folder: a merged or an exported model.
        example: the dialogue in the code, which the others replace.
        dialogues: any.
    """
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    before, after = code.split(next(line for line in code.splitlines() if repr(example) in line))
    line = code.removeprefix(before).removesuffix(after).replace(repr(example), "dialogue")
    scope: dict[str, Any] = {}
    written = []
    with chdir(folder):
        exec(compile(before, "README.md", "exec"), scope)
        once = compile(line + after, "README.md", "exec")
        for scope["dialogue"] in dialogues:
            with redirect_stdout(StringIO()) as out:
                exec(once, scope)
            written.append(out.getvalue().strip())
    return written


if __name__ == "__main__":
    assert find_spec("lora_hf") is None, "this environment has lora_hf"
    asked = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    print(json.dumps(written_by_the_readme(Path(sys.argv[1]), asked["example"], asked["dialogues"])))
