"""Read a YAML file and `key.sub=value` overrides into a checked `RunConfig`, and write it back.

All mistakes are reported in one error, one per line, with the file's line or `command line`.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError

from lora_hf.config.prediction import BEAM_FIELDS
from lora_hf.config.problems import (
    KeyPath,
    Mistake,
    dotted,
    meant_by,
    mistakes_of,
    section_fields,
    shown,
    shown_at,
    wrong_value,
)
from lora_hf.config.schema import DataConfig, GenerationConfig, RunConfig
from lora_hf.config.sweep import SPACE
from lora_hf.config.task import SUMMARIZATION, best_scores
from lora_hf.config.together import check_together
from lora_hf.config.training import check_training
from lora_hf.config.unread import unread_fields
from lora_hf.config.variants import check_variants, sweep_mistakes, variant_mistakes, with_variant
from lora_hf.config.yaml_reader import SHIPPED as SHIPPED
from lora_hf.config.yaml_reader import Document, read_document, read_value, write_value
from lora_hf.errors import UserError

logger = logging.getLogger(__name__)
CHARACTERS = ("data.delimiter", "data.escapechar")
COMMENT = re.compile(r"(^|\s)#")
"""What YAML takes for the beginning of a comment."""

MAX_DEPTH = 50
"""Nesting of a dict config beyond which it is refused; fields need at most six levels."""
NOT_INPUTS = ("output_dir", "overwrite")  # they do not affect the results
ENDED = "has no effect, because training.max_steps={} ends training"
COMMAND_LINE = 10**9  # beyond every file's lines: mistakes of the command line come last


def load_config(
    source: str | Path | RunConfig | Mapping[str, Any],
    overrides: Sequence[str] = (),
    is_study: bool = False,
    is_done: Callable[[RunConfig], bool] = lambda config: False,
    is_recorded: bool = False,
) -> RunConfig:
    """Load the run that a YAML file and overrides describe.

    A config of the package is found from any folder by its name (`quickstart`, `configs/quickstart.yaml`).

    Args:
        source: the YAML, a shipped config's name, or from Python a config or a dict of the YAML's fields.
        overrides: `key.sub=value`, each replacing a field of the file.
        is_study: whether the variants will run; if so, each is checked together with the common fields.
        is_done: whether the results of the config exist already. If so, the training settings are not checked
            together, which would import Transformers: the finished runs passed that check.
        is_recorded: whether a run has recorded this config. If so, `training` is not checked again: another
            version may refuse what that training accepted.

    Raises:
        UserError: all mistakes, one per line: `FILE:LINE: lora.r='eight' is not an integer`.
    """
    if isinstance(source, str | Path):
        path = find_config(Path(source).expanduser())
        document = read_document(path)
        document.data.setdefault("output_dir", f"runs/{path.stem}")
    else:
        given = (
            source.model_dump(mode="json", exclude_unset=True) if isinstance(source, RunConfig) else source
        )
        path, document = None, Document(resolved_yaml(given))
        document.places.clear()  # line numbers of a text that the caller never saw
    _override(document, overrides)
    mistakes = document.mistakes + ([] if is_recorded else _check_trainings(document.data))
    try:
        config = RunConfig.model_validate(document.data)
    except ValidationError as error:
        mistakes += mistakes_of(error, document.data)
    mistakes = mistakes or (check_variants(config) if is_study else [])
    if not mistakes and not is_recorded and not is_done(config):
        mistakes = _check_epochs(config, document) or _check_combinations(config)
        mistakes = mistakes or (variant_mistakes(config, _check_run) if is_study else [])
        mistakes = mistakes or (sweep_mistakes(config, _check_run) if is_study else [])
    if mistakes:
        raise UserError("\n".join(_lines_of(path, document, mistakes)))
    return config


def generation_fields(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `generation` that `generation.key=value` arguments give, not yet checked.

    Raises:
        UserError: an argument that is not of this form, or a field of another section.
    """
    document = Document("{}")
    _override(document, overrides)
    if document.mistakes:
        raise UserError("\n".join(_lines_of(None, document, document.mistakes)))
    if others := [key for key in document.data if key != "generation"]:
        meant = meant_by(others[0], ("generation.",)) or "such as generation.num_beams=4"
        raise UserError(f"{others[0]}: only fields of generation can be replaced here; {meant}")
    return dict(document.data.get("generation", {}))


OF_FILES = ("encoding", "delimiter", "escapechar", "column_names", "json_field", "explode")
"""Fields of `data` that say how the rows of a file are read."""
READING = ("dialogue_column", "id_column", "turn_template", "on_bad_row", *OF_FILES)
"""Fields of `data` that say how a file of dialogues is read."""
OF_THE_MODEL = ("prompt", "source_language", "target_language")
"""Fields of `data` that say in which form a model reads a text."""


def reading_fields(
    overrides: Sequence[str],
    fields: tuple[str, ...] = READING,
    sections: tuple[str, ...] = ("data", "generation"),
    remedy: str = "",
) -> tuple[DataConfig, dict[str, Any]]:
    """Return how a file is read, by `data.key=value` arguments, and the fields of `generation` among them.

    Args:
        overrides: the arguments.
        fields: those of `data` that may be set.
        sections: `data`, and `generation` where its fields may be set.
        remedy: what to write for other fields of `data`; the end of the message.

    Raises:
        UserError: an argument that is not of this form, a field that says something else, or a wrong value.
    """
    document = Document("{}")
    _override(document, overrides)
    mistakes, given = document.mistakes, document.data.get("data", {})
    if not mistakes:
        if others := [key for key in document.data if key not in sections]:
            such = "generation.num_beams=4" if "generation" in sections else "data.encoding=cp1252"
            meant = meant_by(others[0], tuple(f"{name}." for name in sections)) or f"such as {such}"
            named = " and ".join(sections)
            raise UserError(f"{others[0]}: only fields of {named} can be set here; {meant}")
        if others := [key for key in given if key in DataConfig.model_fields and key not in fields]:
            raise UserError(
                f"data.{others[0]}: only fields that say how a file is read can be set here: "
                f"{', '.join(fields)}{remedy}"
            )
        try:
            data = RunConfig.model_validate({"data": given}).data
            return data, dict(document.data.get("generation", {}))
        except ValidationError as error:
            mistakes = mistakes_of(error, {"data": given})
    raise UserError("\n".join(_lines_of(None, document, mistakes)))


def find_config(path: Path) -> Path:
    """Return the path itself, or that of the shipped config of this name."""
    shipped = (SHIPPED / path.name).with_suffix(".yaml")
    is_name = path.parent in (Path(), Path("configs")) and path.suffix in ("", ".yaml")
    return shipped if is_name and not path.exists() and shipped.is_file() else path


def resolved_yaml(config: RunConfig | Mapping[str, Any]) -> str:
    """Return a config as YAML, in full; `load_config` of it gives the same config."""
    if isinstance(config, RunConfig):
        return write_value(config.model_dump(mode="json"))
    return write_value(_plain(config, (), ()))


def _plain(value: Any, path: KeyPath, holders: tuple[int, ...]) -> Any:
    """Return a value of a dict config as YAML holds it: tuples and sets become lists, paths text.

    Raises:
        UserError: a key is not text, or a container contains itself.
    """
    if isinstance(value, Enum):  # of Transformers
        value = value.value
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if callable(as_python := getattr(value, "tolist", None)):  # of NumPy or PyTorch
        value = as_python()
    if isinstance(value, str | bool | int | float | NoneType):
        return str(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping | list | tuple):
        return str(value).removeprefix("torch.")  # a dtype
    if id(value) in holders or len(holders) > MAX_DEPTH:
        reason = "contains itself" if id(value) in holders else "is nested too deeply to be a config"
        raise UserError(f"config: {dotted(path[:3]) or 'the dict'} {reason}")
    inner = (*holders, id(value))
    if not isinstance(value, Mapping):
        return [_plain(item, (*path, number), inner) for number, item in enumerate(value)]
    for key in value:
        if not isinstance(key, str):
            place = f" of {dotted(path)!r}" if path else ""
            raise UserError(f"config: key {key!r}{place} is not text; keys are names")
    return {key: _plain(item, (*path, key), inner) for key, item in value.items()}


def write_config(config: RunConfig, path: str | Path) -> None:
    """Write the resolved YAML."""
    Path(path).write_text(resolved_yaml(config), encoding="utf-8")


def changed_fields(old: RunConfig | Mapping[str, Any], new: RunConfig | Mapping[str, Any]) -> list[str]:
    """Return the differences between the inputs of two runs, such as `lora.r: 8 -> 16`, in field order."""
    before, after = _flat(old), _flat(new)
    changed = [key for key in {**after, **before} if before.get(key, _UNSET) != after.get(key, _UNSET)]
    return [f"{key}: {_side(before, key)} -> {_side(after, key)}" for key in changed]


_UNSET = object()


def _side(flat: Mapping[str, Any], key: str) -> str:
    return shown(flat[key]) if key in flat else "(not set)"


def _flat(config: RunConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Flatten to dotted keys. Empty sections vanish, so that `arms: {}` equals a missing `arms`."""
    data = config.model_dump(mode="json") if isinstance(config, RunConfig) else dict(config)
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{sub}": leaf for sub, leaf in _flat(value).items()}
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return {key: value for key, value in flat.items() if key not in NOT_INPUTS}


def _joined(overrides: Sequence[str]) -> list[str]:
    """Return the overrides, and refuse those that a shell has split at spaces.

    Raises:
        UserError: `lora.r = 8` or `lora.r 8`, with the right spelling.
    """
    for at, key in enumerate(overrides):
        following = [word.lstrip("=") for word in overrides[at + 1 : at + 3] if word != "="]
        if key in section_fields() and following and "=" not in following[0]:
            spelled = f"write {key}={following[0]} without spaces"
            raise UserError(f"command line: {key!r} is not key=value; {spelled}")
    return list(overrides)


def _override(document: Document, overrides: Sequence[str]) -> None:
    """Apply overrides to the document in their order: the last value of a field is used, with a warning."""
    given: dict[KeyPath, Any] = {}
    for override in _joined(overrides):
        read = _read_override(document, override)
        if read is None:
            continue
        path, value = read
        for earlier, before in given.items():
            if earlier[: len(path)] == path and (earlier != path or before != value):
                old, new = (f"{dotted(p)}={shown_at(p, v)}" for p, v in ((earlier, before), (path, value)))
                _warn_once(f"command line: {old} is not used, because {new} after it replaces it")
        given[path] = value
        _put(document, path, value)


@cache  # some commands read the config again
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def _read_override(document: Document, override: str) -> tuple[KeyPath, Any] | None:
    """Return the key and the value of one `key.sub=value`; None with a mistake in the document."""
    name, equals, text = override.partition("=")
    path: KeyPath = tuple(name.strip().split("."))
    if not equals or not all(path):
        document.places[(override,)] = COMMAND_LINE
        key, colon, value = override.partition(":")
        hint = f"; did you mean {f'{key}={value.strip()}'!r}?" if colon and key in section_fields() else ""
        text = f"{override!r} is not key=value, such as lora.r=16{hint}"
        document.mistakes.append(Mistake((override,), text))
        return None
    try:
        return path, _override_value(dotted(path), text)
    except ValueError as error:
        document.places[path] = COMMAND_LINE
        document.mistakes.append(Mistake(path, f"{dotted(path)}={text!r} {error}"))
        return None


def _override_value(name: str, text: str) -> Any:
    """Read a value as YAML; a text field takes it literally: a revision of digits, a prompt with a colon.

    A command line has no comments: a `#` belongs to the value.
    """
    if name in CHARACTERS and len(text) == 1:
        return text
    if COMMENT.search(text) and not text.lstrip().startswith(("'", '"', "[", "{")):
        return text.strip()
    is_text = _takes_only_text(section_fields().get(name))
    try:
        value = read_value(text)
    except ValueError:
        if is_text:
            return text
        raise
    return text if is_text and value is not None and not isinstance(value, str) else value


def _takes_only_text(annotation: Any) -> bool:
    """Return whether a field is `str` or `str | None`, with or without bounds."""
    members = [annotation] if isinstance(annotation, type) else get_args(annotation)
    plain = [get_args(member)[0] if get_origin(member) is Annotated else member for member in members]
    return bool(plain) and set(plain) <= {str, NoneType}


def _put(document: Document, path: KeyPath, value: Any) -> None:
    section = document.data
    for depth, part in enumerate(path[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
            document.places[path[:depth]] = COMMAND_LINE
        if not isinstance(section[part], dict):
            text = f"{dotted(path)!r}: {dotted(path[:depth])}={shown(section[part])} is not a section of keys"
            document.places[path] = COMMAND_LINE
            document.mistakes.append(Mistake(path, text))
            return
        section = section[part]
    section[path[-1]] = value
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]  # the file's lines below this key are replaced
    document.places[path] = COMMAND_LINE


def _trainings(data: Mapping[str, Any]) -> list[tuple[KeyPath, dict[str, Any]]]:
    """Return every mapping that may hold a `training`: the top level, the arms and the variants."""
    holders: list[tuple[KeyPath, Any]] = [((), data)]
    for key in ("arms", "variants"):
        if isinstance(sections := data.get(key), dict):
            holders += [((key, name), section) for name, section in sections.items()]
    return [((*path, "training"), holder) for path, holder in holders if isinstance(holder, dict)]


def _check_trainings(data: dict[str, Any]) -> list[Mistake]:
    """Check each section `training`, and replace its values by the converted ones."""
    mistakes: list[Mistake] = []
    scores = best_scores(data.get("task", SUMMARIZATION))
    for path, holder in _trainings(data):
        if isinstance(holder.get("training"), dict):
            holder["training"], found = check_training(holder["training"], path, scores)
            mistakes += found
    return mistakes


def _check_combinations(config: RunConfig) -> list[Mistake]:
    """Check the settings of each run together, as Transformers does; a common mistake is reported once."""
    if found := _check_beams(config.generation):
        return found
    if unread := unread_fields(config):
        return unread
    common = check_together(config.training) if config.training else []
    own: dict[KeyPath, Mapping[str, Any]] = {("arms", n): one.training for n, one in config.arms.items()}
    own |= {("variants", name): changes.get("training", {}) for name, changes in config.variants.items()}
    merged = {p: {**config.training, **own[p]} for p in own if own[p] and isinstance(own[p], dict)}
    checked = [check_together(training, (*path, "training")) for path, training in merged.items()]
    return common or [mistake for mistakes in checked for mistake in mistakes]


def _check_beams(generation: GenerationConfig) -> list[Mistake]:
    """Check that a field that only several beams read is not given for one."""
    plain = GenerationConfig()
    for field in BEAM_FIELDS if generation.num_beams == 1 else ():
        if (value := getattr(generation, field)) != getattr(plain, field):
            text = "has no effect with generation.num_beams=1: set num_beams above 1, or remove it"
            return [wrong_value(("generation", field), value, text)]
    return []


def _check_run(study: RunConfig, name: str) -> list[Mistake]:
    """Check the settings of a variant, or of a combination of a sweep, together, as its run will."""
    changes, run = study.variants[name], with_variant(study, name)
    if found := _check_beams(run.generation):
        return found
    own = changes.get("training") or {}
    if "num_train_epochs" in own and (steps := run.training.get("max_steps", -1)) > 0:
        text = f"{ENDED.format(steps)}; add training.max_steps=-1"
        return [wrong_value(("training", "num_train_epochs"), own["num_train_epochs"], text)]
    return check_together(run.training) if own else []


def _check_epochs(config: RunConfig, document: Document) -> list[Mistake]:
    """Refuse epochs on the command line where `max_steps` ends training; warn where one file gives both.

    `training.max_steps=5` on the command line shortens the training of a file, so it may replace its epochs.
    """
    epochs, steps = config.training.get("num_train_epochs"), config.training.get("max_steps", -1)
    if epochs is None or steps < 1:
        return []
    path: KeyPath = ("training", "num_train_epochs")
    line = _line(document, path)
    text = ENDED.format(steps)
    if line == COMMAND_LINE:
        return [wrong_value(path, epochs, f"{text}; add training.max_steps=-1")]
    if line and _line(document, ("training", "max_steps")) != COMMAND_LINE:
        _warn_once(f"training.num_train_epochs={epochs} {text}; remove one of them")
    return []


def _lines_of(path: Path | None, document: Document, mistakes: list[Mistake]) -> list[str]:
    lines = sorted((_line(document, mistake.path), index) for index, mistake in enumerate(mistakes))
    return [f"{_place(path, line)}: {mistakes[index].text}" for line, index in lines]


def _line(document: Document, path: KeyPath) -> int:
    """Return the line of the key, or of the nearest enclosing section."""
    if path[: len(SPACE)] == SPACE and path[: len(SPACE) + 1] not in document.places:
        axis, rest = path[len(SPACE) : len(SPACE) + 1], path[len(SPACE) + 1 :]
        path = (*SPACE, *(part for name in axis for part in str(name).split(".")), *rest)  # written nested
    while path and path not in document.places:
        path = path[:-1]
    return document.places.get(path, 0)


def _place(path: Path | None, line: int) -> str:
    if line == COMMAND_LINE:
        return "command line" if path else "overrides"
    return f"{path}:{line}" if path else "config"
