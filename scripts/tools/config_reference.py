"""Write docs/config.md: every field of the YAML with its default and meaning, from the code.

python scripts/tools/config_reference.py            write docs/config.md
python scripts/tools/config_reference.py --check    fail if the page is out of date
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from pydantic_core import PydanticUndefined

from lora_hf.config.problems import shown
from lora_hf.config.schema import RunConfig
from lora_hf.config.training_fields import ELSEWHERE, FIXED, NO_EFFECT
from lora_hf.config.types import Section

FILE = Path(__file__).parents[2] / "docs" / "config.md"
OPENING = """# Configuration

One YAML file describes one run. Every field can be set in the file, or after it on the command line as
`section.key=value`; other fields have the defaults below. Unknown keys, values of the wrong type and
conflicting fields are errors that name the line of the file and the nearest valid name.
`python scripts/tools/config_reference.py` writes this page from the code.

`training` takes the fields of `transformers.Seq2SeqTrainingArguments` under their own names. The end of this
page lists those that are set elsewhere, have one possible value, or do not affect the results.
"""
TRAINING = """## `training`

Fields that a config cannot set, or to one value only. A setting that would have no effect is an error.

| field | value | reason |
| --- | --- | --- |
{refused}

Fields that do not affect the results of an uninterrupted run, beyond rounding. All others do.

| field | what it does |
| --- | --- |
{no_effect}
"""


def reference() -> str:
    """Return the page as Markdown."""
    parts, top = [OPENING], {}
    for name, field in RunConfig.model_fields.items():
        if _is_section(field.annotation):
            parts.append(_section(name, field.annotation))
        else:
            top[name] = field
    return "\n".join([parts[0], _table("Top level", "", top), *parts[1:], _training()])


def _training() -> str:
    """The fields of `training` that are refused, and those without effect on the results."""
    rows = [(name, "not set", reason) for name, reason in ELSEWHERE.items()]
    rows += [(name, f"`{shown(value)}`", reason) for name, (value, reason) in FIXED.items()]
    refused = [f"| `{name}` | {value} | {_cell(reason)} |" for name, value, reason in sorted(rows)]
    no_effect = [f"| `{name}` | {_cell(effect)} |" for name, effect in sorted(NO_EFFECT.items())]
    return TRAINING.format(refused="\n".join(refused), no_effect="\n".join(no_effect))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _section(name: str, kind: type[Section]) -> str:
    doc = (kind.__doc__ or "").split("\n")[0]
    return _table(f"`{name}`", doc, dict(kind.model_fields), f"{name}.")


def _table(title: str, doc: str, fields: dict[str, Any], prefix: str = "") -> str:
    lines = [
        f"## {title}",
        "",
        *([doc, ""] if doc else []),
        "| field | default | meaning |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| `{prefix}{n}` | {_default(field)} | {_cell(field.description)} |" for n, field in fields.items()
    ]
    return "\n".join([*lines, ""])


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return f"`{shown(field.default)}`" if not isinstance(field.default, Section) else ""


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(
            0
            if FILE.read_text(encoding="utf-8") == reference()
            else f"{FILE} is out of date: run this script without --check"
        )
    FILE.write_text(reference(), encoding="utf-8")
