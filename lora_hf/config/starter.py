"""A first config, with a comment beside each field: `lora-hf init` writes it, `train MODEL DATA` runs it."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from lora_hf.config.model import EMBEDDED
from lora_hf.config.schema import Method
from lora_hf.config.task import TASKS
from lora_hf.config.yaml_reader import write_inline
from lora_hf.run_files import comparison_folder

TEMPLATE = Path(__file__).parents[1] / "assets/starter.yaml.jinja"
MODEL = "google/flan-t5-small"
RATES: dict[Method, float] = {"lora": 1e-3, "full": 1e-4, "bottleneck": 1e-3, "prompt_tuning": 0.1}
"""Learning rates for FLAN-T5: those of the shipped configs, and of docs/methods.md for the last two."""
EMBEDDED_RATES = RATES | {"lora": 1e-2, "full": 1e-3, "bottleneck": 1e-2}
"""Those of the embedded model: docs/quickstart.md and docs/methods.md."""
WIDTH = 100
"""Characters of a line of the config, unless a value is longer."""
COMMAND = re.compile(r"(\s*#\s+)(lora-hf .*)")
"""A command in a comment."""
FEW_ROWS = 1000
"""Training rows below which three epochs are too few steps."""


def starter_config(
    data: str,
    model: str = MODEL,
    task: str = "summarization",
    columns: Sequence[str] = (),
    method: Method = "lora",
    output_dir: str | None = None,
    file: str = "FILE",
    rows: int | None = None,
    notes: Sequence[str] = (),
    main: str | None = None,
    fields: Mapping[str, Any] | None = None,
) -> str:
    """Return a config as YAML with comments.

    Args:
        data: `data.dataset_name`.
        model: `model.model_name_or_path`.
        task: a name of `TASKS`.
        columns: the column of the texts and those of the targets; none leaves them to be found.
        method: one of those that train.
        output_dir: the run directory; None takes `runs/` and the name of the data.
        file: where the config will be, for its first lines.
        rows: number of training rows, if it is known: with few of them there are more epochs.
        notes: one line each, written above the columns.
        main: score that chooses the best epoch; None for the task's main score.
        fields: further fields of `data`.
    """
    from jinja2 import Environment, StrictUndefined  # here: most commands do not need it

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["yaml"] = write_inline
    folder = output_dir or default_output(data)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        data=data,
        model=model,
        task=task,
        columns=columns,
        method=method,
        output_dir=folder,
        file=shlex.quote(file),
        compared=shlex.quote(f"output_dir={comparison_folder(folder)}"),
        notes=[" ".join(note.split()) for note in notes],
        rates=EMBEDDED_RATES if model == EMBEDDED else RATES,
        epochs=10 if rows is not None and rows < FEW_ROWS else 3,
        main=main or TASKS[task].main,
        fields=fields or {},
    )
    return "".join(f"{part}\n" for line in text.splitlines() for part in _laid_out(*line.split("\t")))


def _laid_out(field: str, comment: str = "") -> list[str]:
    """Return a line with its comment beside it, or above it where both are too wide; comments are wrapped."""
    line = f"{field:<34}  {comment}".rstrip()
    indent = field[: len(field) - len(field.lstrip())]
    if len(line) <= WIDTH:
        return [line]
    if comment:
        return [f"{indent}{comment}", field]
    if not field.lstrip().startswith("#"):
        return [field]
    is_command = COMMAND.match(field)
    if is_command:  # a shell takes the lines, without #, as one
        field = is_command[1] + " ".join(
            shlex.quote(w).replace(" ", "\0") for w in shlex.split(is_command[2])
        )
    wrapped = wrap(
        field, WIDTH - 2, subsequent_indent=f"{indent}#     ", break_long_words=False, break_on_hyphens=False
    )
    return (" \\\n" if is_command else "\n").join(wrapped).replace("\0", " ").split("\n")


def default_output(data: str) -> str:
    """Return `runs/` and the name of the data without its endings."""
    return f"runs/{Path(data).name.partition('.')[0] or 'mine'}"
