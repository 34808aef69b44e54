"""YAML with the line of every key, read as YAML 1.2 reads it, and written so that it reads back the same.

PyYAML follows YAML 1.1, where `5e-4` is a string, `eval_strategy: no` is false, `1:30` is ninety and a date
is an object. Here only true/false are booleans, `5e-4` is a number, and the rest is text. Aliases are
refused: nothing in a config needs them, and nine lines of them can unfold into gigabytes.
"""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from lora_hf.config.problems import KeyPath, Mistake, dotted, shown
from lora_hf.errors import UserError

MAX_BYTES = 1_000_000  # a thousand times the longest config; what is longer is some other file
_PREFIX = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_RESOLVERS = {
    "null": (re.compile(r"~|null|Null|NULL|"), [*"~nN", ""]),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), [*"tTfF"]),
    "int": (_INTEGER, [*"-+0123456789"]),
    "float": (_FLOAT, [*"-+.0123456789"]),
}


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's plain scalars and without aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse `*alias`, as PyYAML refuses what it cannot read."""
        if self.check_event(yaml.AliasEvent):
            problem = "aliases (*name) are not taken; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as anything but text; never writes anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal lists out twice."""
        return True


def _read_integer(loader: Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


for _name, (_pattern, _first) in _RESOLVERS.items():
    Loader.add_implicit_resolver(_PREFIX + _name, re.compile(f"(?:{_pattern.pattern})$"), _first)
    Dumper.add_implicit_resolver(_PREFIX + _name, re.compile(f"(?:{_pattern.pattern})$"), _first)
Loader.add_constructor(_PREFIX + "int", _read_integer)


class Document:
    """What a file says, with the line of every key and the mistakes that did not stop the reading."""

    def __init__(self, text: str) -> None:
        self.places: dict[KeyPath, int] = {}
        self.mistakes: list[Mistake] = []
        self._loader = Loader(text)
        try:
            node = self._loader.get_single_node()
            self.data: Any = None if node is None else self._build(node, ())
        finally:
            self._loader.dispose()

    def _build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.places.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._build_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*path, index)) for index, item in enumerate(node.value)]
        if node.tag.removeprefix(_PREFIX) not in (*_RESOLVERS, "str"):
            raise yaml.MarkedYAMLError(problem=f"tag {node.tag!r} is not taken", problem_mark=node.start_mark)
        try:
            return self._loader.construct_object(node)
        except ValueError as error:  # `!!int x`, or an integer of thousands of digits
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None

    def _build_mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = self._build(key_node, (*path, "(key)")), key_node.start_mark.line + 1
            if not isinstance(key, str):
                self._add(path, line, f"key {shown(key)} is not text; keys are names")
            elif key in result:
                name, value = dotted((*path, key)), self._build(value_node, (*path, "(again)"))
                first = self.places[(*path, key)]
                self._add(
                    path, line, f"key {name!r} is given twice (value {shown(value)}); first on line {first}"
                )
            else:
                self.places[(*path, key)] = line
                result[key] = self._build(value_node, (*path, key))
        return result

    def _add(self, path: KeyPath, line: int, text: str) -> None:
        place: KeyPath = (*path, f"(line {line})")  # an invalid key has no path
        self.places[place] = line
        self.mistakes.append(Mistake(place, text))


def read_document(path: Path) -> Document:
    """The file's keys, values and lines.

    Raises:
        UserError: no such file, not text, not YAML, or not a mapping of keys.
    """
    text = _read_text(path)
    try:
        document = Document(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise UserError(f"{place}: not a valid config: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not a valid YAML file: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply to be a config") from None
    if not isinstance(document.data, dict):
        found = "is empty" if document.data is None else f"holds {shown(document.data)}"
        raise UserError(f"{path}: {found}; a config is a mapping of keys, such as `method: lora`")
    return document


def read_value(text: str) -> Any:
    """One value as YAML has it, for `key=value` on the command line.

    Raises:
        ValueError: it is not YAML; the message says why.
    """
    try:
        document = Document(text)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"is not a YAML value: {error.problem or error.context}") from None
    except yaml.YAMLError:
        raise ValueError("is not a YAML value: it holds characters that YAML does not take") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if document.mistakes:
        raise ValueError(f"is not a YAML value: {document.mistakes[0].text}")
    return document.data


def write_value(data: Any) -> str:
    """YAML that reads back as the same data, keys in their own order."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a config{_files_of(path)}")
    if not path.exists():
        raise UserError(f"{path}: no such config{_nearest(path)}")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: is {path.stat().st_size} bytes long; a config is a short text")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _configs_in(folder: Path) -> list[str]:
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file.name for file in files if file.suffix in (".yaml", ".yml"))


def _files_of(folder: Path) -> str:
    names = _configs_in(folder)
    return f"; it holds {', '.join(names[:12])}{', ...' if names[12:] else ''}" if names else ""


def _nearest(path: Path) -> str:
    """Suggest the nearest file of the same folder or of configs/."""
    for folder in dict.fromkeys((path.parent, Path("configs"))):
        if near := get_close_matches(path.name, _configs_in(folder), n=1, cutoff=0.5):
            return f"; did you mean {str(folder / near[0])!r}?"
    if not path.parent.is_dir():
        return f"; there is no folder {str(path.parent)!r}"
    return f"; folder {str(path.parent)!r}{_files_of(path.parent)[4:]}" if _files_of(path.parent) else ""
