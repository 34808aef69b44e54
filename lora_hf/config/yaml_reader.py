"""Read YAML as version 1.2 defines it, with the line of every key, and write it so that it reads back equal.

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
from lora_hf.errors import UserError, few, is_windows_path, path_hint

SHIPPED = Path(__file__).parents[1] / "configs"
"""The configs of the package."""
MAX_BYTES = 1_000_000  # a thousand times the longest config; what is longer is some other file
REMEDIES = {
    "mapping values are not allowed here": "put text that contains ': ' in quotes",
    "'\\t' that cannot start any token": "indent with spaces, not with tabs",
    "found another document": "remove the line `---` between them",
    "found character '@'": "put text that begins with '@' in quotes",
    "found character '`'": "put text that begins with '`' in quotes",
    "found character '%'": "put text that begins with '%' in quotes",
}
"""Words of PyYAML, and what to do."""
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


_TYPES = {"int": "an integer", "float": "a number", "bool": "true or false"}


def shipped_configs() -> list[str]:
    """Return the names of the package's configs."""
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's plain scalars and without aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse `*alias`, as PyYAML refuses what it cannot read."""
        if self.check_event(yaml.AliasEvent):
            problem = "aliases (*name) are not supported; write the value again in full"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """Writer that quotes all text that YAML 1.1 or 1.2 would read as another type, and writes no anchors."""

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
    """The values of a file, the line of every key, and the mistakes found while reading on."""

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
            problem = f"tag {node.tag!r} is not supported; remove it"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        try:
            return self._loader.construct_object(node)
        except (ValueError, KeyError):  # `!!int x`, `!!bool x`, or an integer of thousands of digits
            problem = f"{shown(node.value)} is not {_TYPES[node.tag.removeprefix(_PREFIX)]}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def _build_mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = self._build(key_node, (*path, "(key)")), key_node.start_mark.line + 1
            if not isinstance(key, str):
                self._add(path, line, f"key {shown(key)} is not text; a key is the name of a field")
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
    """Read a file's keys, values and lines.

    Raises:
        UserError: no such file, not text, not YAML, or not a mapping of keys.
    """
    text = _read_text(path)
    try:
        document = Document(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise UserError(f"{place}: not a valid config: {_explained(error)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not a valid YAML file: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply to be a config") from None
    if not isinstance(document.data, dict):
        found = "is empty" if document.data is None else f"holds {shown(document.data)}"
        raise UserError(f"{path}: {found}; a config is a mapping of keys, such as `method: lora`")
    return document


def read_value(text: str) -> Any:
    """Read one value as YAML, for `key=value` on the command line.

    Raises:
        ValueError: the text is not valid YAML. The message continues a sentence that begins with the field.
    """
    try:
        document = Document(text)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"is not a YAML value: {_explained(error)}") from None
    except yaml.YAMLError:
        raise ValueError("is not a YAML value: it holds characters that YAML does not allow") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if document.mistakes:
        raise ValueError(f"is not a YAML value: {document.mistakes[0].text}")
    return document.data


def write_value(data: Any) -> str:
    """Return data as YAML that reads back equal, with the keys in their order."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)


def write_inline(value: Any) -> str:
    """Return a value as YAML in one line, as it stands behind its key."""
    text = yaml.dump([value], Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.strip()[1:-1]


def _explained(error: yaml.MarkedYAMLError) -> str:
    """Return what is wrong, with a remedy for the mistakes that beginners make."""
    problem = " ".join((error.problem or error.context or "").split())
    if problem.startswith("but found"):  # PyYAML splits the sentence in two
        problem = f"{error.context}, {problem}"
    for words, remedy in REMEDIES.items():
        if words in problem:
            return f"{problem}; {remedy}"
    return problem


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a config{_files_of(path)}")
    if not path.exists():
        raise UserError(f"{path}: no such config{_nearest(path)}")
    try:
        if path.stat().st_size > MAX_BYTES:
            size = f"is {path.stat().st_size:,} bytes long, and the limit is {MAX_BYTES:,}"
            raise UserError(f"{path}: {size}; a config is a short text file")
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
    """Suggest the nearest file of the same folder or of configs/, and list the shipped configs for a name."""
    if is_windows_path(str(path)):
        return f".{path_hint(str(path))}"
    names = shipped_configs()
    listed = f"hipped configs: {', '.join(names)}" if path.parent == Path() else ""
    for folder in dict.fromkeys((path.parent, Path("configs"))):
        if near := get_close_matches(path.name, _configs_in(folder), n=1, cutoff=0.5):
            return f"; did you mean {str(folder / near[0])!r}?" + (f" S{listed}" if listed else "")
    if path.parent in (Path(), Path("configs")):
        if near := get_close_matches(path.stem, names, n=1, cutoff=0.5):
            return f"; did you mean {near[0]!r}?" + (f" S{listed}" if listed else "")
        if listed:
            here = _configs_in(Path())
            held = f", such as {few(here)} in this folder" if here else ""
            return f"; give a YAML file{held}, or one of the s{listed}"
    if hint := path_hint(str(path)):
        return f".{hint}"
    if not path.parent.is_dir():
        return f"; there is no folder {str(path.parent)!r}"
    return f"; folder {str(path.parent)!r}{_files_of(path.parent)[4:]}" if _files_of(path.parent) else ""
