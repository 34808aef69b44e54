"""The commands. What a verb needs is imported when it runs, after its config is read, so that --help and a
mistake in a config are quick. What they print goes to standard output; `status` says what went wrong.
"""

import gc
import os
import sys
from functools import partial

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
"""In the order of `--help`; a verb is a function of the same name."""
COMPLETING = "_LORA_HF_COMPLETE"
"""Set by the shell's completion, as Typer's scripts for it do."""
HIDDEN = ("peft", "hqq", "sklearn")
"""Packages that Transformers and NLTK import wherever they are installed, which takes seconds, and that no
command uses through them. `StorageFormat.check_package` reveals the one that a base is stored by."""
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fine-tune encoder-decoder models with LoRA, and compare base, full and LoRA in ROUGE.\n\n"
    "--debug, anywhere, shows where an error came from.",
)
for verb in VERBS:
    app.command()(verb)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave the process with its exit status; to stay in the process, call `run`."""
    if COMPLETING in os.environ:
        app(prog_name="lora-hf")
    gc.set_threshold(10_000, 20, 20)  # imports make a million objects that stay: a fifth of their time
    for name in HIDDEN:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    given = sys.argv[1:] if arguments is None else arguments
    words = [word for word in given if word != "--debug"]
    processes.leave(run(words, debug=len(words) < len(given)))


def run(words: list[str], debug: bool) -> int:
    """The exit status of a command line.

    Raises:
        Exception: a fault that is not the user's; Python prints its traceback and ends with status 1.
    """
    return exit_status(partial(_invoke, words), debug)


def _invoke(words: list[str]) -> None:
    if words and words[0] != running.train.__name__:
        remedy = "start each run by `torchrun ... -m lora_hf train`, and this command without it"
        processes.refuse_several(f"lora-hf {words[0]}", remedy)
    invoke(typer.main.get_command(app), words)
