"""The commands of `lora-hf`.

A command imports what it needs when it runs, after its config is read, so that `--help` and mistakes in a
config are reported at once. Results go to standard output; `exit_status` reports errors.
"""

import gc
import os
import sys
from functools import partial
from importlib.metadata import version
from typing import Any

import typer

from lora_hf import distributed as processes
from lora_hf.cli import checking, hub, running, saved, serving
from lora_hf.cli.exit_status import exit_status, invoke

VERBS = (
    running.train,
    running.compare,
    running.methods,
    running.sweep,
    running.reproduce,
    running.plan,
    checking.doctor,
    saved.report,
    saved.evaluate,
    saved.predict,
    saved.merge,
    saved.export,
    saved.truncate,
    saved.score,
    checking.verify,
    serving.serve,
    serving.demo,
    hub.push,
    checking.schema,
)
"""The commands, in the order of `--help`; each is named after its function."""
COMPLETING = "_LORA_HF_COMPLETE"
"""Set by the scripts that Typer writes for completion in the shell."""
HIDDEN = ("peft", "hqq", "torchao", "sklearn")
"""Packages that Transformers and NLTK import wherever they are installed, which takes seconds, although no
command uses them that way. `StorageFormat.check_package` reveals the one that a base is stored by."""
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fine-tune encoder-decoder models with LoRA, and compare the base model, full fine-tuning and LoRA "
    "by ROUGE.\n\nAdd --debug to any command to see the traceback of an error, or use --version alone.",
)
for verb in VERBS:
    app.command()(verb)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its status. Use `run` to stay in the process."""
    if COMPLETING in os.environ:
        app(prog_name="lora-hf")
    gc.set_threshold(10_000, 20, 20)  # imports make a million objects that stay: a fifth of their time
    for name in HIDDEN:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    for stream in (sys.stdout, sys.stderr):
        make_writable(stream)
    given = sys.argv[1:] if arguments is None else arguments
    words = [word for word in given if word != "--debug"]
    processes.leave(run(words, debug=len(words) < len(given)))


def make_writable(stream: Any) -> None:
    """Let a stream take any text: UTF-8 in files and pipes, as in all files that are written.

    A terminal keeps its encoding, and shows escapes for what that lacks.
    """
    if not hasattr(stream, "reconfigure"):
        return
    stream.reconfigure(errors="backslashreplace") if stream.isatty() else stream.reconfigure(encoding="utf-8")


def run(words: list[str], debug: bool) -> int:
    """Run a command line and return its exit status.

    Raises:
        Exception: an error that is not the user's; Python prints its traceback and exits with status 1.
    """
    return exit_status(partial(_invoke, words), debug)


def _invoke(words: list[str]) -> None:
    if words == ["--version"]:
        print(f"lora_hf {version('lora_hf')}")
        return
    processes.check_variables()
    if words and words[0] != running.train.__name__:
        remedy = "start each run by `torchrun ... -m lora_hf train`, and this command without it"
        processes.refuse_several(f"lora-hf {words[0]}", remedy)
    invoke(typer.main.get_command(app), words)
