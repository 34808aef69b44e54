"""Write docs/config.md: every field of the YAML with its type, default and meaning, from the code.

python scripts/tools/config_reference.py            write docs/config.md
python scripts/tools/config_reference.py --check    fail if the page is out of date
"""

import re
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

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
EXAMPLES = {
    "Top level": """method: lora
output_dir: runs/talks
seed: 1
seeds: [1, 2, 3]                # a comparison repeats every run with each
arms: {full: {training: {learning_rate: 1.0e-4}}}
""",
    "task": """task:
  source: ticket
  target: reply
  prompt: "Answer this ticket. {source} Reply: "
  metrics: [rouge]
""",
    "model": """model:
  model_name_or_path: google/flan-t5-xl
  load_in_4bit: true            # QLoRA
  quantize_wo: true             # T5's wo in 4 bits too
""",
    "lora": """lora:
  r: 16
  lora_alpha: 32
  lora_dropout: 0.05
  target_modules: all-linear
""",
    "bottleneck": """method: bottleneck
bottleneck: {bottleneck_dim: 64}
""",
    "prompt_tuning": """method: prompt_tuning
prompt_tuning: {num_virtual_tokens: 20}
""",
    "data": """data:
  dataset_name: talks.csv       # divided into train, validation and test
  dialogue_column: text
  summary_column: title
  max_source_length: 512
""",
    "generation": """generation: {num_beams: 4, max_new_tokens: 60}
""",
    "sweep": """sweep:
  space: {lora: {r: [4, 8, 16]}, training: {learning_rate: [1.0e-3, 3.0e-3]}}
""",
    "training": """training:
  learning_rate: 1.0e-3
  num_train_epochs: 3
  per_device_train_batch_size: 16
  gradient_accumulation_steps: 2
  eval_strategy: epoch
""",
}
"""A YAML for each section; tests load them."""
TRAINING = """## `training`

{example}
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
    example = _example("training")
    return TRAINING.format(example=example, refused="\n".join(refused), no_effect="\n".join(no_effect))


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
        _example(title.strip("`")),
        "| field | type | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{prefix}{n}` | {_type(field.annotation)} | {_default(field)} | {_cell(field.description)} |"
        for n, field in fields.items()
    ]
    return "\n".join([*lines, ""])


def _example(section: str) -> str:
    return f"```yaml\n{EXAMPLES[section]}```\n"


def _type(kind: Any) -> str:
    """Return the type of a field in words; the values of a choice."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{shown(value).strip(chr(39))}`" for value in arguments)
    if origin in (Union, types.UnionType):
        parts = dict.fromkeys(_type(part) for part in arguments if part is not type(None))
        return " or ".join(parts) + (" or `null`" if type(None) in arguments else "")
    if origin in (tuple, list):
        return f"list of {_plural(_type(arguments[0]))}"
    if origin is dict:
        return "mapping"
    return {bool: "true or false", int: "integer", float: "number", str: "text"}.get(kind, "mapping")


def _plural(words: str) -> str:
    plurals = {"text": "texts", "integer": "integers", "number": "numbers", "mapping": "mappings"}
    return plurals.get(words, f"({words})" if " or " in words or " of " in words else words)


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return f"`{shown(field.default)}`" if not isinstance(field.default, Section) else ""


def _cell(text: str | None) -> str:
    """Return a description as a table's cell; pages that it names are links."""
    words = " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"\(docs/(\w+)\.md\)", r"([more](\1.md))", words)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(
            0
            if FILE.read_text(encoding="utf-8") == reference()
            else f"{FILE} is out of date: run this script without --check"
        )
    FILE.write_text(reference(), encoding="utf-8")
