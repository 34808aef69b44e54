"""Every field of the YAML with its default and its meaning, as docs/config.md: written from the code.

python scripts/tools/config_reference.py            writes docs/config.md
python scripts/tools/config_reference.py --check    says whether it is true
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from pydantic_core import PydanticUndefined

from lora_hf.config.problems import shown
from lora_hf.config.schema import RunConfig
from lora_hf.config.types import Section

FILE = Path(__file__).parents[2] / "docs" / "config.md"
OPENING = """# The config, field by field

One YAML, one run. Every field can be set in the file or after it on the command line as
`section.key=value`; what is not said has the default below. A key that does not exist, a value of the wrong
type and fields that do not go together are errors that name the file's line and the nearest right name.
Written from the code by `python scripts/tools/config_reference.py`.

`training` is not here: it takes every field of `transformers.Seq2SeqTrainingArguments` under its own name,
but for the few that the run itself sets, which are refused by name.
"""


def reference() -> str:
    """The page."""
    parts, top = [OPENING], {}
    for name, field in RunConfig.model_fields.items():
        if _is_section(field.annotation):
            parts.append(_section(name, field.annotation))
        else:
            top[name] = field
    return "\n".join([parts[0], _table("At the top", "", top), *parts[1:]])


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _section(name: str, kind: type[Section]) -> str:
    doc = (kind.__doc__ or "").split("\n")[0]
    return _table(f"`{name}`", doc, dict(kind.model_fields), f"{name}.")


def _table(title: str, doc: str, fields: dict[str, Any], prefix: str = "") -> str:
    lines = [f"## {title}", "", *([doc, ""] if doc else []), "| field | default | |", "| --- | --- | --- |"]
    lines += [
        f"| `{prefix}{n}` | {_default(field)} | {_cell(field.description)} |" for n, field in fields.items()
    ]
    return "\n".join([*lines, ""])


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "must be given"
    return f"`{shown(field.default)}`" if not isinstance(field.default, Section) else ""


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if FILE.read_text(encoding="utf-8") == reference() else f"{FILE} is old: run this script")
    FILE.write_text(reference(), encoding="utf-8")
