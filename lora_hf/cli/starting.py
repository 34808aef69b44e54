"""The command `init`, and what runs without a YAML: `lora-hf train MODEL DATA -o DIR`."""

import logging
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lora_hf import terminal
from lora_hf.cli.hints import config_or_texts, is_file_of_texts
from lora_hf.cli.next_steps import show_next
from lora_hf.cli.options import Columns, DataWords
from lora_hf.errors import UserError, as_typed, counted, did_you_mean, in_words, path_hint
from lora_hf.files import check_new, removed_if_fruitless, write_text
from lora_hf.run_files import COMPARISON, CONFIG, comparison_folder

if TYPE_CHECKING:
    from lora_hf.config import Method
    from lora_hf.config.task import Task
    from lora_hf.data.columns import MissingColumn
    from lora_hf.data.examples import Example

METHODS = ("lora", "full", "bottleneck", "prompt_tuning")
"""Values of `method` that train."""
COLUMNS = ("data.dialogue_column", "data.summary_column")
"""The fields that `--columns` sets."""
ROWS_WITH_IDS = 10_000
"""Rows that are looked at for a column that names them."""
UNNAMED = re.compile(r"^data\.(?:dialogue|summary)_column='[^']*': ")
"""The beginning of an error on columns that nobody has named."""
logger = logging.getLogger(__name__)


def init(
    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New YAML file. Default: the name of the data, with .yaml."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="File (csv, jsonl, parquet, ...), folder, or name on the Hub with your texts, as DATA."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder, name on the Hub, or embedded. Default: google/flan-t5-small."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What is learned: summarization (the default), translation, question_answering, "
            "classification or text_to_text."
        ),
    ] = None,
    columns: Columns = None,
    method: Annotated[
        str | None,
        typer.Option(help="How it is trained: lora (the default), full, bottleneck or prompt_tuning."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: take the default of each missing option.")
    ] = False,
    words: DataWords = None,
) -> None:
    """Write a config for your own data, with a comment beside each field.

    In a terminal, it asks for what the options do not say. It reads the data, to find its columns.

    Answer a few questions: [dim]lora-hf init talks.csv[/dim]

    Without questions: [dim]lora-hf init talks.csv --model google/flan-t5-base --yes[/dim]
    """
    from lora_hf.config.load import load_config
    from lora_hf.config.starter import MODEL, starter_config
    from lora_hf.config.task import TASKS
    from lora_hf.config.yaml_reader import read_value

    asks = sys.stdin.isatty() and not yes
    if file:
        check_new(file)
    data, fields = _data_and_fields(data, words or [])
    if data is None and not asks:
        raise UserError(
            "DATA is missing: give a file, a folder or a name on the Hub that holds your texts, as in "
            "`lora-hf init talks.csv`"
        )
    names = _column_names(columns)
    given = _data_fields(fields)
    if data is not None:  # before the first question
        _new_file(data, file)
        _check_there(data, fields)
    task = _choice("task", task, "summarization", tuple(TASKS), asks)
    place, target, names, found = _find_data(data, file, names, [f"task={task}", *fields], asks)
    known = "Base model (a name on the Hub, a folder, or embedded, a toy)"
    model = model or (_model(known) if asks else MODEL)
    method = _choice("method", method, "lora", METHODS, asks)
    _check_model(model)
    text = starter_config(
        place,
        model,
        task,
        names,
        cast("Method", method),
        output_dir=f"runs/{target.stem}",
        file=str(target),
        rows=found.rows,
        notes=found.notes,
        fields={**found.fields, **given},
    )
    load_config(read_value(text))  # a mistake in a value is an error here, not in the next command
    write_text(target, text)
    for note in found.notes:
        logger.info(note)
    print(target)
    show_next("init", source=f"--config {shlex.quote(str(target))}")


def _check_model(model: str) -> None:
    """Refuse what can be no base model, without loading anything of it.

    Raises:
        UserError: a file of texts, a path that is not there, or a folder without config.json.
    """
    from lora_hf.config.model import EMBEDDED
    from lora_hf.hub.names import is_hub_name

    if is_file_of_texts(model):
        raise UserError(f"--model {model!r} is a file of texts and not a model: give texts by --data")
    folder = Path(model).expanduser()
    if model == EMBEDDED or (folder / "config.json").is_file():
        return
    if folder.is_dir():
        raise UserError(
            f"--model {model!r} holds no model: it has no config.json; give the folder of a base model, or "
            "its name on the Hub"
        )
    if not is_hub_name(model):
        raise UserError(f"--model {model!r}: no such folder.{path_hint(model)}".removesuffix("."))


def _find_data(
    data: str | None, file: Path | None, names: list[str], fields: list[str], asks: bool
) -> "tuple[str, Path, list[str], Look]":
    """Return the data, the new file, the columns and what was seen; ask again for what cannot be read."""
    from lora_hf.config.task import TASKS
    from lora_hf.data.columns import TO_SET, MissingColumn

    while True:
        place = data or _ask("Your texts (a file, a folder, or a name on the Hub)")
        target = _new_file(place, file)
        try:
            return place, target, names, look(place, [*fields, *_column_fields(names)])
        except UserError as error:
            is_of_columns = isinstance(error, MissingColumn) or TO_SET.search(str(error)) is not None
            text = _by_columns(error, names)
            if not asks or (data and not is_of_columns):
                raise UserError(text) from error
            guesses: list[str | None] = [None, None]
            if isinstance(error, MissingColumn) and error.option in COLUMNS:
                no_such = f"No column {error.name!r}: "
                text = text.replace(f"{_option(names)}: ", no_such, 1) if names else _columns_of(error)
                right = [name if name in error.present else None for name in names] or guesses  # these stay
                others = iter([name for name in error.likely if name not in right])
                guesses = [name or next(others, None) for name in right[:2]]
            typer.echo(text, err=True)
            if is_of_columns:
                data = place
                words = TASKS[fields[0].removeprefix("task=")]
                names = [
                    _ask(f"Column of the input, the {words.source}", guesses[0]),
                    _ask(f"Column of the target, the {words.target}", guesses[1]),
                ]


def _check_there(data: str, fields: Sequence[str]) -> None:
    """Find the data, without reading it. Data at an address or on the Hub is not looked for.

    Raises:
        UserError: no such data, or a wrong field.
    """
    from lora_hf.config.load import load_config
    from lora_hf.data.sources import is_remote, open_part

    config = load_config({"data": {"dataset_name": data}}, fields, is_done=lambda run: True).data
    if not is_remote(config):
        open_part(config, "train")


def _new_file(data: str, file: Path | None) -> Path:
    """Return the file that is written: the one that was named, or one named after the data.

    Raises:
        UserError: it is there already, or cannot be written.
    """
    from lora_hf.config.starter import default_output

    target = file or Path(f"{Path(default_output(data)).name}.yaml")
    if file is None and target.exists():
        raise UserError(
            f"{str(target)!r} exists, and nothing is overwritten: name another file by --output, or remove it"
        )
    check_new(target)
    return target


def _data_and_fields(data: str | None, words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the data that `--data` or the one word without `=` names, and the `data.key=value` arguments.

    Raises:
        UserError: several such words, a word and `--data`, or a word that names the new file.
    """
    named = [word for word in words if "=" not in word]
    if file := next((word for word in named if word.endswith((".yaml", ".yml"))), None):
        raise UserError(f"Got unexpected extra argument ({file}); name the new file by --output")
    if named and data is not None:
        raise UserError(f"{named[0]} and --data {data}: give the data once")
    if len(named) > 1:
        raise UserError(
            f"{shlex.join(['init', *named])}: give one word, the data; name the base model by --model, and "
            "the new file by --output"
        )
    return (named[0] if named else data), [word for word in words if "=" in word]


def _data_fields(words: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `data` that `data.key=value` arguments of `init` give.

    Raises:
        UserError: a field of another section, or with an option of its own, or a wrong one.
    """
    from lora_hf.config.load import load_config

    for word in words:
        if not word.startswith("data."):
            raise UserError(f"{word}: only fields of data can be set here; add this one to the new file")
        if word.startswith(("data.dataset_name=", *COLUMNS)):
            raise UserError(f"{word}: write --data, or --columns with both names, such as text,title")
    data = load_config({}, words, is_done=lambda run: True).data
    return data.model_dump(mode="json", include={word[5:].partition("=")[0].strip() for word in words})


def _column_names(columns: str | None) -> list[str]:
    """Return the names in a value of `--columns`: the input's, and one or more of the target's.

    Raises:
        UserError: fewer than two.
    """
    names = [name.strip() for name in (columns or "").split(",") if name.strip()]
    if columns is not None and len({*names}) < 2:
        raise UserError(f"--columns {columns!r} does not name two columns, such as text,title")
    return names


def _column_fields(names: list[str]) -> list[str]:
    """Return the overrides that name these columns."""
    from lora_hf.config.yaml_reader import write_inline

    if not names:
        return []
    target = write_inline(names[1:] if len(names) > 2 else names[1])
    return [f"{COLUMNS[0]}={write_inline(names[0])}", f"{COLUMNS[1]}={target}"]


def _by_columns(error: UserError, names: list[str]) -> str:
    """Return a message on the columns of the data with the option that names them."""
    from lora_hf.data.columns import TO_SET, MissingColumn

    if not isinstance(error, MissingColumn):
        text = str(error) if names else UNNAMED.sub("", str(error))
        return TO_SET.sub(
            lambda found: _option([found[1], *found[2].strip("[]").split(", ")]) + (found[3] or ""), text
        )
    if error.option not in COLUMNS:  # the id's
        return str(error)
    given = f"{_option(names)}: " if names else ""
    text = f"{given}{_columns_of(error)}."
    if near := did_you_mean(error.name, error.present) if names else "":
        return f"{text}{near}"
    if len(error.present) < 2 and not error.likely:
        return f"{text} Two are needed, the input's and the target's"
    such_as = ", such as" if len(error.present) > 2 else ":"
    return f"{text} Name the input's and the target's{such_as} {_option(error.likely or ('INPUT', 'TARGET'))}"


def _columns_of(error: "MissingColumn") -> str:
    return f"{error.source} has the columns {in_words(error.present)}"


def _option(columns: Iterable[str]) -> str:
    return f"--columns {as_typed(','.join(columns))}"


@dataclass(frozen=True)
class Look:
    """What was seen in the data."""

    task: "Task"
    rows: int | None = None
    """Training texts; None if the data would have to be downloaded."""
    notes: tuple[str, ...] = ()
    """The columns and the size of each split, one line each."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `data` that suit it: the column that names each row."""


def look(data: str, overrides: Sequence[str] = ()) -> Look:
    """Read the data as training would, and say what it holds. Data at an address or on the Hub is not read.

    Args:
        data: `data.dataset_name`.
        overrides: `key.sub=value`; those of `task` and `data` matter.

    Raises:
        UserError: no such data, no such columns, rows without text, or a wrong override.
    """
    from lora_hf.config.load import load_config
    from lora_hf.data.columns import likely_id, names_rows
    from lora_hf.data.sources import is_remote, open_part
    from lora_hf.data.split_names import SPLITS
    from lora_hf.data.splits import load_split_and_origin

    config = load_config({"data": {"dataset_name": data}}, overrides, is_done=lambda run: True)
    if is_remote(config.data):
        return Look(config.task)
    with terminal.logged_from("lora_hf.data", logging.WARNING):  # training repeats its notices
        splits = {split: load_split_and_origin(config.data, split) for split in SPLITS}
    train = splits["train"]
    sizes = (
        f"{split}: {config.task.counted(len(of.examples))}{_pairs(of.examples)}, {of.origin}"
        for split, of in splits.items()
    )
    named: dict[str, Any] = {}
    if "id_column" not in config.data.model_fields_set and not config.data.explode:
        rows = {of: list(islice(open_part(config.data, of).rows, ROWS_WITH_IDS)) for of in SPLITS}
        name = likely_id(rows["train"], train.columns)
        if name is not None and all(names_rows(name, of) for of in rows.values()):
            named["id_column"] = name
    by = f", named by {named['id_column']!r}" if named else ""
    columns = f"columns: {train.columns}{by}"
    return Look(config.task, len(train.examples), (columns, *sizes), named)


def _pairs(examples: "Sequence[Example]") -> str:
    """Return the number of rows in parentheses, where texts have several, as duplicates and references do."""
    pairs = sum(len(example.references) for example in examples)
    return f" ({counted(pairs, 'row')})" if pairs != len(examples) else ""


@dataclass(frozen=True)
class Source:
    """What a command runs: a config, and the fields that replace its own."""

    file: Path
    overrides: list[str]
    text: str | None = None
    """The config itself, where the command line names a model and data; the file is then not written yet."""
    named: tuple[str, ...] = ()
    """That model and data, and the option that names the columns."""
    columns: tuple[str, ...] = ()
    """The columns that this option names."""

    @property
    def config(self) -> Any:
        """The config as `load_config` takes it."""
        from lora_hf.config.yaml_reader import read_value

        return self.file if self.text is None else read_value(self.text)

    @property
    def words(self) -> str:
        """The source as a command line has it."""
        return shlex.join([*self._beginning, *self.overrides])

    @property
    def _beginning(self) -> tuple[str, ...]:
        return self.named or ("--config", str(self.file))

    def compared(self, folder: str | Path) -> str | None:
        """Return the source as `compare` takes it after a run, with a folder of its own; None if it does not.

        Without `arms`, as in the run's own config.yaml, the other methods would have the run's learning rate.

        Args:
            folder: the run's.
        """
        from lora_hf.config.load import NOT_INPUTS, load_config
        from lora_hf.experiments.runner import check_sections

        try:  # the file may have changed since the run began
            config = load_config(self.config, self.overrides, is_done=lambda run: True)
            check_sections(config, "compare")
        except UserError:
            return None
        if not config.arms:
            return None
        kept = [word for word in self.overrides if word.partition("=")[0].strip() not in NOT_INPUTS]
        other = comparison_folder(folder)
        return shlex.join(
            [*self._beginning, *kept, *(["-o", other] if self.named else [f"output_dir={other}"])]
        )

    @contextmanager
    def naming_columns(self) -> Iterator[None]:
        """Let errors on the columns of the data name the option, where a config has not named them.

        Raises:
            UserError: as in the body, with this option as the remedy.
        """
        try:
            yield
        except UserError as error:
            is_by_field = not self.named or any(word.startswith(COLUMNS) for word in self.overrides)
            text = str(error) if is_by_field and not self.columns else _by_columns(error, [*self.columns])
            if text == str(error):
                raise
            fields = (
                f" (the fields {' and '.join(COLUMNS)})" if not self.columns and "--columns" in text else ""
            )
            raise UserError(f"{text}{fields}") from error

    def write(self) -> None:
        """Write the config, unless it is a file already.

        Raises:
            UserError: a file of this name holds another config.
        """
        if self.text is None:
            return
        if self.file.exists() and self.file.read_text(encoding="utf-8") != self.text:
            raise UserError(
                f"{self.file} exists and holds another config: pass it by --config, or choose another -o"
            )
        write_text(self.file, self.text)
        logger.info("config: %s", self.file)

    @contextmanager
    def written(self) -> Iterator[None]:
        """Write the config for the runs of the body, and remove it again if that fails before any has begun.

        A mistake in the model is found by the first run; the right model is then another config.

        Raises:
            UserError: as `write`, or a mistake in the config, which is then not written.
        """
        from lora_hf.config.load import load_config

        if self.text is None or self.file.exists():
            self.write()
            yield
            return
        folder = Path(load_config(self.config, self.overrides, is_done=lambda run: True).output_dir)
        with removed_if_fruitless(self.file, folder):
            self.write()
            yield


def source_of(
    command: str,
    config: Path | None,
    words: Sequence[str] | None,
    output: str | None = None,
    columns: str | None = None,
) -> Source:
    """Return the config that a command line means: that of `--config`, or one for MODEL and DATA.

    Args:
        command: the command, for errors.
        config: the value of `--config`.
        words: the arguments: overrides, and without a config the model and the data before them.
        output: the value of `--output`, which replaces `output_dir`. Without one, the folder is named after
            the data; a comparison beside a run that has this folder goes to `comparison_folder` of it.
        columns: the value of `--columns`.

    Raises:
        UserError: neither a config nor a model and data, or a mistake in the data.
    """
    words = words or []
    names = _column_names(columns)
    fields = _column_fields(names)
    if config is not None:
        fields_after = [f"output_dir={output}"] if output else []
        return Source(config, [*fields, *words, *fields_after], columns=tuple(names))
    named = [word for word in words if "=" not in word]
    if len(named) != 2:
        raise UserError(config_or_texts(command, named))
    from lora_hf.config.starter import default_output, starter_config

    model, data = named
    if is_file_of_texts(model):
        typed = shlex.join([command, *named])
        raise UserError(f"{typed}: {model!r} is a file of texts and not a model; the order is MODEL DATA")
    overrides = [word for word in words if "=" in word]
    folder = output or default_output(data)
    is_set = output or any(word.partition("=")[0].strip() == "output_dir" for word in overrides)
    if command == "compare" and not is_set and _is_single_run(Path(folder)):
        logger.info("%s holds a run: the comparison goes to %s", folder, comparison_folder(folder))
        folder = comparison_folder(folder)
    typed_columns = ("--columns", columns) if columns is not None else ()
    source = Source(Path(f"{folder}.yaml"), overrides, "", (model, data, *typed_columns), tuple(names))
    with source.naming_columns():
        found = look(data, [*fields, *overrides])
    text = starter_config(
        data,
        model,
        found.task.name or "text_to_text",
        names,
        output_dir=folder,
        file=f"{folder}.yaml",
        rows=found.rows,
        main=found.task.main,
        fields=found.fields,
    )
    return replace(source, text=text)


def _is_single_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not (folder / f"{COMPARISON}.json").exists()


def _choice(name: str, value: str | None, default: str, choices: Sequence[str], asks: bool) -> str:
    """Return an option's value, the default, or in a terminal the first answer that is one of the choices.

    Raises:
        UserError: the option has another value, and nobody can be asked.
    """
    question = f"{name.capitalize()} ({', '.join(choices)})"
    if value is None:
        value = _ask(question, default) if asks else default
    while value not in choices:
        text = f"{value!r} is not one of {', '.join(choices)}.{did_you_mean(value, choices)}"
        if not asks:
            raise UserError(f"--{name} {text}")
        typer.echo(text, err=True)
        value = _ask(question, default)
    return value


def _model(question: str) -> str:
    """Ask for the base model until the answer can be one."""
    from lora_hf.config.load import load_config
    from lora_hf.config.starter import MODEL

    while True:
        name = _ask(question, MODEL)
        try:
            _check_model(name)
            load_config({"model": {"model_name_or_path": name}}, is_done=lambda run: True)
        except UserError as error:
            typer.echo(str(error).removeprefix("config: "), err=True)
        else:
            return name


def _ask(question: str, default: str | None = None) -> str:
    """Ask in the terminal.

    Raises:
        KeyboardInterrupt: the input has ended.
    """
    try:
        return str(typer.prompt(question, default=default, err=True)).strip()
    except typer.Abort:
        raise KeyboardInterrupt from None
