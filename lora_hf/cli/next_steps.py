"""What to type after a command has ended, with the paths of that run.

These lines go to standard error, as everything but results does. They are left out with `--json`, in the runs
that a comparison starts, and with -q.
"""

import logging
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lora_hf import terminal

if TYPE_CHECKING:
    from lora_hf.config import RunConfig

TRY = (
    "Try it on a text of your own",
    "echo 'Anna: Lunch at noon? Ben: Yes.' | lora-hf predict - --adapter {adapter} --format text",
)
PAGE = ("Open the report in a browser", "{page}")
TRY_MODEL = (TRY[0], TRY[1].replace("--adapter {adapter}", "--model {whole}"))
MERGE = (
    "Write a folder that Transformers loads without lora_hf",
    "lora-hf merge --adapter {mergeable} --output {merged}",
)
SERVE = ("Serve it over HTTP, under a name such as mine", "lora-hf serve --adapter mine={mergeable}")
TRAIN = ("Train", "lora-hf {trainer} {source}")
NEXT: dict[str, tuple[tuple[str, str], ...]] = {
    "init": (("Check the data and the settings", "lora-hf doctor {source}"), TRAIN),
    "plan": (TRAIN,),
    "doctor": (TRAIN, TRY),
    "train": (
        TRY,
        (
            "Write what it makes of each row of a file",
            "lora-hf predict FILE --adapter {adapter} --keep-columns -o predictions.csv",
        ),
        ("Write its report", "lora-hf report {run}"),
        MERGE,
        ("Compare it with the base model and full fine-tuning", "lora-hf compare {compared}"),
    ),
    "compare": (PAGE, TRY, ("Train on your own texts", "lora-hf init --data {file}")),
    "methods": (PAGE,),
    "sweep": (PAGE,),
    "reproduce": (PAGE, TRY),
    "report": (PAGE,),
    "verify": (("Write its report", "lora-hf report {run}"),),
    "evaluate": (TRY,),
    "predict": (SERVE, MERGE),
    "merge": (
        TRY_MODEL,
        (
            "Write it for CTranslate2, which is faster on a CPU",
            "lora-hf export {exportable} --to ctranslate2 --quantization int8 --output {ct2}",
        ),
        ("Write it for ONNX", "lora-hf export {exportable} --to onnx --output {onnx}"),
    ),
    "export": (TRY_MODEL,),
    "truncate": (("Try the smallest adapter on a text of your own", TRY[1]),),
    "push": (("Use it on any machine", "lora-hf predict FILE --adapter {repository}"),),
    "preview": (("Push it", "lora-hf push --adapter {adapter} --repo-id {repository}"),),
}
"""By command, what can be done next. A step whose path in braces is not known is left out."""


def show_next(command: str, as_json: bool = False, **paths: str | Path | None) -> None:
    """Print the next commands on standard error.

    Args:
        command: a key of `NEXT`.
        as_json: whether the command printed JSON, after which nothing is printed.
        paths: what replaces the words in braces; options and overrides are words already quoted. The
            `trainer` is `train` unless it is given.
    """
    if as_json or terminal.is_part() or not terminal.is_shown(logging.INFO):
        return
    program, known = program_name(), {"trainer": "train", **paths}
    lines = []
    for label, template in NEXT[command]:
        if any(known.get(name) is None for name in re.findall(r"{(\w+)}", template)):
            continue
        text = re.sub(r"\blora-hf\b", lambda match: program, template)
        lines += [
            f"  {label}:",
            f"    {text.format(**{name: _quoted(path) for name, path in known.items()})}",
        ]
    if not lines:
        return
    if program != "lora-hf" and (activate := Path(sys.executable).with_name("activate")).is_file():
        lines += ["  To write lora-hf alone, once per terminal:", f"    source {_near(activate)}"]
    print("", "Next:", *lines, sep="\n", file=sys.stderr)


def trainer_of(config: "RunConfig") -> str:
    """Return the command that makes all runs of a config."""
    return next((command for _, command in config.listed_runs().values()), "train")


def with_options(word: str | Path, **options: str | int | None) -> str:
    """Return a word of a next command, quoted, with the options after it that this command was given.

    Args:
        word: such as a folder.
        options: by the option's name with `_`; a flag has True. None and False are left out.
    """
    words = [str(word)]
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def program_name() -> str:
    """Return how this installation's command is called: `lora-hf`, or its path where the shell lacks it."""
    if shutil.which("lora-hf"):
        return "lora-hf"
    script = Path(sys.executable).with_name("lora-hf")
    return _near(script) if script.is_file() else f"{_near(Path(sys.executable))} -m lora_hf"


def _near(path: Path) -> str:
    """Return a path as a shell takes it, relative to the working directory if it is below that."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _quoted(path: str | Path | None) -> str:
    return shlex.quote(str(path)) if isinstance(path, Path) else str(path)
