"""The most likely meaning of a mistyped command line, added to Typer's message."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_hf.errors import as_typed

FIELD = "fields of the config are written as key=value, such as lora.r=8"
AS_YAML = re.compile(r"\b([Ss]et|such as) (data\.\w+): (?:'([^']*)'|(\[[^\]]*\]|[^'\s,;]+))")
"""A remedy as a config has it."""
OTHER_OPTIONS = {"--base": "--model", "--model": "--base", "--out": "--output"}
"""By an option that the command lacks, the one that takes the same in this command."""
OTHER_COMMANDS = {
    **dict.fromkeys(("summarize", "generate", "infer", "inference"), "predict"),
    **dict.fromkeys(("finetune", "fine-tune", "fit"), "train"),
    **dict.fromkeys(("eval", "test"), "evaluate"),
    **dict.fromkeys(("tune", "search", "hpo"), "sweep"),
    **dict.fromkeys(("chat", "api"), "serve"),
    **dict.fromkeys(("check", "validate"), "doctor"),
    **dict.fromkeys(("convert", "onnx"), "export"),
    **dict.fromkeys(("upload", "publish"), "push"),
}
"""Names of other tools for these commands."""
SOURCES = ("--adapter", "--model", "--base")
"""Options that name a trained or base model."""
DEVICES = ("--gpu", "--gpus", "--device", "--cuda", "--cuda-device")
DATA_OR_MODEL = ("--model", "--data")
READ_ELSEWHERE = ("data.", "generation.")
"""Fields that commands without a config take."""
CONFIG_EXAMPLE = "give a YAML file or the name of a shipped config, such as --config quickstart"


def by_option(message: str, words: Sequence[str]) -> str:
    """Return a message on arguments in Python, `engine='x'`, that names the options that were typed."""
    typed = {word.partition("=")[0] for word in words}

    def renamed(name: re.Match[str]) -> str:
        option = f"--{name[1].replace('_', '-')}"
        return f"{option} " if option in typed else name[0]

    return re.sub(r"(?<![\w.-])(\w+)=(?=['\d])", renamed, message)


def as_arguments(message: str) -> str:
    """Return a message with remedies as arguments, `data.delimiter=^`, in the place of lines of a YAML."""
    return AS_YAML.sub(lambda found: f"{found[1]} {as_typed(f'{found[2]}={found[4] or found[3]}')}", message)


def explain(error: Any, words: list[str]) -> str:
    """Return Typer's message for a wrong command line, with the command line that would do.

    Args:
        error: Typer's exception.
        words: the command line, which begins with the command.
    """
    message: str = error.format_message() or "no command given"
    option = getattr(error, "option_name", None)
    if option and (taken := _settings_taken(error)):
        field = field_of(option)
        if field and field.startswith(taken):
            value = _value_of(option, words)
            return f"No such option: {option}; write {field}={value}, without dashes"
    if option == "--base" and "--model" in _options(error) and _takes_fields(error):
        value = _value_of(option, words)
        return (
            f"No such option: {option}; for another base model, write model.model_name_or_path={value}; a "
            f"merged, fully fine-tuned or exported model is given by --model {value}"
        )
    if option in DATA_OR_MODEL and _takes_words(error) and not _is_given("--config", words):
        given = {name: _value_of(name, words) for name in DATA_OR_MODEL if _is_given(name, words)}
        model, data = given.get("--model", "google/flan-t5-small"), given.get("--data", "DATA")
        return f"No such option: {option}; write `{shlex.join(['lora-hf', words[0], model, data])}`"
    if option and _takes_fields(error):
        if field := field_of(option):
            value = _value_of(option, words)
            return f"No such option: {option}; fields are written without dashes: {field}={value}"
        if option in DEVICES:
            return f"No such option: {option}; the first GPU is used, or that of CUDA_VISIBLE_DEVICES=1"
        if option in SOURCES and (hint := _source_instead(option, error, words)):
            return f"No such option: {option}{hint}"
        return message if _near_options(error) else f"{message}; {FIELD}"
    if option in SOURCES and (hint := _source_instead(option, error, words)):
        return f"No such option: {option}{hint}"
    if option and (other := OTHER_OPTIONS.get(option)) in _options(error):
        return f"No such option: {option}. Did you mean {other}?"
    missing = [name for name in getattr(getattr(error, "param", None), "opts", ()) if name.startswith("--")]
    if missing and message.startswith("Missing option"):
        return f"{message.removesuffix('.')}{_instead_of(missing[0], words)}"
    if option == "--config" and "requires an argument" in message:
        return f"{message.removesuffix('.')}; {CONFIG_EXAMPLE}. {shipped()}"
    if message.startswith("No such command") and words:
        if words[0] == "help":
            return f"{message} Write `lora-hf --help`, or `lora-hf COMMAND --help`."
        if words[0] == "version":
            return f"{message.split(' Did you mean')[0]} Write `lora-hf --version`."
        if right := OTHER_COMMANDS.get(words[0]):
            return f"{message.split(' Did you mean')[0]} Did you mean {right!r}?"
        if _is_config(words[0]):
            return f"{message} Did you mean `lora-hf train --config {words[0]}`?"
    if message.startswith("Got unexpected extra argument"):
        serve = "; write --adapter NAME=DIR for each adapter, or --base DIR for a whole model"
        return f"{message}{serve if words[0] == 'serve' else ''}"
    return message


def _source_instead(option: str, error: Any, words: list[str]) -> str:
    """Return how the command takes the model named by an option that it lacks, or an empty text."""
    parameters = getattr(getattr(getattr(error, "ctx", None), "command", None), "params", ())
    metavars = {one.metavar for one in parameters if one.param_type_name == "argument"}
    if metavars & {"MODEL", "RUN", "ADAPTER | KEY.SUB=VALUE"}:
        return f"; write the folder without an option: `lora-hf {words[0]} {_value_of(option, words)}`"
    is_missing = any("--adapter" in one.opts and one.required for one in parameters) and not any(
        word.partition("=")[0] == "--adapter" for word in words
    )
    return f"; write --adapter {_value_of(option, words)}" if option == "--model" and is_missing else ""


def field_of(option: str) -> str | None:
    """Return the field of the config that an option such as `--learning_rate` means; None if none is near."""
    from lora_hf.config.problems import MAIN_FIELDS, OTHER_NAMES, section_fields, training_names

    name = option.lstrip("-").replace("-", "_")
    known = [*section_fields(), *training_names()]
    if name in MAIN_FIELDS:
        return f"{name}.{MAIN_FIELDS[name]}"
    for field in (name, name.replace("_", ".", 1)):  # --lora.r and --lora_r
        if field in known:
            return field
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    return next((field for field in known if field.rpartition(".")[2] == name), None)


def check_not_config(word: str) -> str | None:
    """Return how `doctor` checks a config, where its argument names one; None for anything else."""
    return f"to check a config, write `lora-hf doctor --config {word}`" if _is_config(word) else None


def _is_config(word: str) -> bool:
    from lora_hf.config.load import find_config

    return word.endswith((".yaml", ".yml")) or (find_config(Path(word)) != Path(word))


def _takes_fields(error: Any) -> bool:
    command = getattr(getattr(error, "ctx", None), "command", None)
    names = {parameter.name for parameter in getattr(command, "params", ())}
    return "config" in names and bool(names & {"overrides", "words"})


def _takes_words(error: Any) -> bool:
    """Return whether a command takes a model and data as words, as `train` does."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    names = {parameter.name for parameter in getattr(command, "params", ())}
    return {"config", "words", "columns"} <= names


def _is_given(option: str, words: Sequence[str]) -> bool:
    return any(word.partition("=")[0] == option for word in words)


def _settings_taken(error: Any) -> tuple[str, ...]:
    """Return the sections of which a command without a config takes fields, as `predict` those of `data.`."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    taken = next((one.metavar or "" for one in getattr(command, "params", ()) if one.name == "settings"), "")
    return tuple(one for one in READ_ELSEWHERE if one in taken or "SECTION." in taken)


def repeated_options(command: Any, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option with a value that another value after it replaces, both as they were written.

    Args:
        command: Typer's, with its parameters.
        words: the command line after the command's name.
    """
    single = {
        name: option
        for option in command.params
        for name in option.opts
        if name.startswith("-") and not option.multiple and not option.is_flag
    }
    given: dict[int, str] = {}
    rest = iter(words)
    for word in rest:
        if word == "--":
            return
        option = single.get(word.partition("=")[0])
        if option is None:
            continue
        written = word if "=" in word else f"{word} {next(rest, '')}".strip()
        earlier = given.get(id(option), written)
        if earlier.replace("=", " ", 1) != written.replace("=", " ", 1):
            yield earlier, written
        given[id(option)] = written


def _options(error: Any) -> set[str]:
    """Return the options of the command that an error is about."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    return {name for parameter in getattr(command, "params", ()) for name in parameter.opts}


def _near_options(error: Any) -> bool:
    """Return whether Typer suggests an option itself, other than `--help`, which is near to nothing."""
    return bool(set(getattr(error, "possibilities", None) or ()) - {"--help"})


def _value_of(option: str, words: list[str]) -> str:
    """Return the value that the option was given, or VALUE."""
    for word, following in zip(words, [*words[1:], "VALUE"], strict=True):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option:
            return "VALUE" if following.startswith("-") else following
    return "VALUE"


def _instead_of(option: str, words: list[str]) -> str:
    """Return where the value of a missing option is on the command line, or what the option takes."""
    free = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    if option == "--config":
        named = next((word for word in free if _is_config(word)), None)
        if named:
            return f": write `lora-hf {words[0]} --config {named}`"
        return f"; {CONFIG_EXAMPLE}. {shipped()}"
    if option == "--adapter":
        named = next((word for word in free if Path(word).expanduser().is_dir()), None)
        return f": write --adapter {named}" if named else "; give the folder of an adapter or of its run"
    return "."


def missing_config(command: str, words: Sequence[str]) -> str:
    """Return the error of a command that needs `--config` and has these other arguments."""
    return f"Missing option '--config'{_instead_of('--config', [command, *words])}"


def config_or_texts(command: str, named: list[str]) -> str:
    """Return what a command without `--config` needs, for arguments that are not a model and data."""
    if config := next((word for word in named if _is_config(word)), None):
        return f"Missing option '--config': write `lora-hf {command} --config {config}`"
    if len(named) == 1 and is_file_of_texts(named[0]):
        right = shlex.join([command, "google/flan-t5-small", named[0]])
        return f"lora-hf {command} {named[0]}: name the base model before your texts: `lora-hf {right}`"
    either = f"give a config (`--config quickstart`), or a model and data (`lora-hf {command} MODEL DATA`)"
    return f"lora-hf {command} {' '.join(named)}".strip() + f": {either}. {shipped()}"


def is_file_of_texts(word: str) -> bool:
    """Return whether an argument is named like a file of data, there or not."""
    from lora_hf.data.opened import endings
    from lora_hf.data.readers import READERS

    path = Path(word).expanduser()
    return endings(path)[0] in READERS and not path.is_dir()


def shipped() -> str:
    """Return a sentence that names the shipped configs."""
    from lora_hf.config.yaml_reader import shipped_configs

    return f"Shipped configs: {', '.join(shipped_configs())}"
