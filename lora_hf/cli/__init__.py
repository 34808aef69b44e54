"""The commands of `lora-hf`.

A command imports what it needs when it runs, after its config is read, so that `--help` and mistakes in a
config are reported at once. Results go to standard output; `exit_status` reports errors.
"""

import gc
import os
import re
import sys
from functools import cache, partial
from importlib.metadata import version
from platform import python_version
from typing import Annotated, Any

import typer

from lora_hf import distributed as processes
from lora_hf import terminal
from lora_hf.cli import checking, hub, running, saved, serving, starting, streams
from lora_hf.cli.exit_status import exit_status, invoke
from lora_hf.errors import UserError

PANELS = {
    "Train": (starting.init, running.train, running.compare, running.reproduce),
    "Use": (saved.predict, saved.evaluate, saved.score, serving.serve, serving.demo),
    "Check": (running.plan, checking.doctor, checking.verify, saved.report, checking.schema),
    "Share": (saved.merge, saved.export, hub.push),
    "Study": (running.methods, running.sweep, saved.truncate),
}
"""The commands in the order of `--help`, by what a person wants to do; each is named after its function."""
VERBS = tuple(verb for verbs in PANELS.values() for verb in verbs)
COMPLETING = "_LORA_HF_COMPLETE"
"""Set by the scripts that Typer writes for completion in the shell."""
HIDDEN = ("peft", "hqq", "torchao", "sklearn")
"""Packages that Transformers and NLTK import wherever they are installed, which takes seconds, although no
command uses them that way. `StorageFormat.check_package` reveals the one that a base is stored by."""
_HOME = re.compile(r"^((?:--[\w-]+=)?)~(?=/)")
"""The user's folder where a shell leaves it as it is: in `--output=~/x`, and in quotes."""
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fine-tune encoder-decoder models with LoRA, and compare the base model, full fine-tuning and LoRA "
    "by ROUGE.\n\nFirst comparison: [dim]lora-hf compare --config quickstart[/dim]"
    "\n\nYour own data: [dim]lora-hf init[/dim]",
)
for panel, verbs in PANELS.items():
    for verb in verbs:
        app.command(rich_help_panel=panel)(verb)


def print_versions(wanted: bool) -> None:
    """Print the versions that a bug report needs, from the packages' metadata, and exit."""
    if not wanted:
        return
    packages = ("torch", "transformers", "datasets", "accelerate")
    print(f"lora_hf {version('lora_hf')}")
    print(", ".join([f"Python {python_version()}", *(f"{name} {version(name)}" for name in packages)]))
    raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the versions of lora_hf and its main dependencies, and exit.",
            callback=print_versions,
            is_eager=True,
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Also works after a command.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Show only results, warnings and errors. Also works after a command."
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Also show samples and details. Also works after a command."),
    ] = False,
) -> None:
    """Take the options of all commands, which `main` and `run` have taken from the command line already."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its status. Use `run` to stay in the process.

    Args:
        arguments: the command's words, which leave the process to its caller: `SystemExit` is raised. Without
            them the command is that of this process, which ends at once.
    """
    if COMPLETING in os.environ:
        app(prog_name="lora-hf")
    gc.set_threshold(10_000, 20, 20)  # imports make a million objects that stay: a fifth of their time
    for name in HIDDEN:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    streams.set_up()
    given = sys.argv[1:] if arguments is None else arguments
    words = [word for word in given if word != "--debug"]
    if terminal.split_verbosity(words)[1] != "verbose":
        terminal.silence_packages()
    status = run(words, debug=len(words) < len(given))
    if arguments is None or processes.world_size() > 1:
        processes.leave(status)
    sys.exit(status)


def run(words: list[str], debug: bool) -> int:
    """Run a command line, which may hold -q or -v, and return its exit status.

    Raises:
        Exception: an error that is not the user's; Python prints its traceback and exits with status 1.
    """
    words, verbosity = terminal.split_verbosity(words)
    return exit_status(partial(_invoke, words), debug, verbosity)


def _invoke(words: list[str]) -> None:
    processes.check_variables()
    if words and words[0] not in READERS:
        check_utf_8(words)
    words = [_HOME.sub(lambda found: f"{found[1]}{os.path.expanduser('~')}", word) for word in words]
    if words and not words[0].startswith("-") and words[0] != running.train.__name__:
        remedy = "start each run by `torchrun ... -m lora_hf train`, and this command without it"
        processes.refuse_several(f"lora-hf {words[0]}", remedy)
    invoke(command(), words)


READERS = ("predict", "score", "evaluate", "doctor", "verify")
"""Commands that write no model."""


def check_utf_8(words: list[str]) -> None:
    """Refuse paths that are not UTF-8: the libraries that read and write models and YAML cannot use them.

    Raises:
        UserError: a word is none.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{word!r}: the path is not UTF-8, and no model can be written there: rename it"
            ) from None


@cache
def command() -> Any:
    """Return the command line that Typer makes of `app`, made once: it takes ten milliseconds.

    In `--help`, Typer writes `<bool>` after flags, which take no value: theirs is empty.
    """
    group: Any = typer.main.get_command(app)
    for one in (group, *group.commands.values()):
        for option in one.get_params(typer.Context(one)):
            if getattr(option, "is_flag", False):
                option.metavar = ""
    return group
