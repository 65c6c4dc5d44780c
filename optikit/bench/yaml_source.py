"""YAML with positions: every value remembers where it stands in its file.

Scalars follow YAML 1.2 (`1e-3` is a number, `no` is a string), which PyYAML's own resolver does
not; duplicate keys are errors; only plain data is built, never objects.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml

Path = tuple[str | int, ...]
"""Keys and indices from the root to a value."""


class Mark(NamedTuple):
    """A position, counted from 1."""

    line: int
    column: int


class Source(NamedTuple):
    """Parsed data, with the position of every key and item, and of every value."""

    name: str
    data: Any
    marks: dict[Path, Mark]

    def mark(self, path: Path) -> Mark:
        """The position of a value, or of the nearest enclosing one that the file has."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, Mark(1, 1))


class Problem(NamedTuple):
    """Something wrong in a file: where and what."""

    mark: Mark
    message: str


MAX_VALUES = 100_000
"""Values in one file, aliases written out: more is no study but an attack, or a mistake."""


class _TooMuch(Exception):
    """A file with more than `MAX_VALUES` values."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers and booleans."""


_REPLACED = {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] not in _REPLACED]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = (
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


def parse(text: str, name: str) -> tuple[Source, list[Problem]]:
    """The data of a YAML text with positions, and what is wrong with it as YAML.

    After a syntax error the data is None; duplicate keys and unknown tags leave the rest usable.
    """
    marks: dict[Path, Mark] = {}
    problems: list[Problem] = []
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = None if node is None else _build(node, (), marks, problems, set())
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        mark = Mark(at.line + 1, at.column + 1) if at else Mark(1, 1)
        return Source(name, None, {}), [Problem(mark, f"not YAML: {error.problem}")]
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        mark = Mark(before.count("\n") + 1, error.position - before.rfind("\n"))
        return Source(name, None, {}), [Problem(mark, f"not YAML: {error.reason}")]
    except RecursionError:
        return Source(name, None, {}), [Problem(Mark(1, 1), "nested too deeply")]
    except _TooMuch:
        return Source(name, None, {}), [Problem(Mark(1, 1), f"more than {MAX_VALUES} values")]
    return Source(name, data, marks), problems


def read(path: pathlib.Path) -> tuple[Source, list[Problem]]:
    """Parse a file; an unreadable one is a problem at its first character."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Source(str(path), None, {}), [Problem(Mark(1, 1), f"cannot be read: {reason}")]


def _position(node: yaml.Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)


def _build(node: yaml.Node, path: Path, marks: dict, problems: list, above: set) -> Any:
    """Plain data from a node, entering positions and problems on the way."""
    marks.setdefault(path, _position(node))
    if len(marks) > MAX_VALUES:
        raise _TooMuch
    if id(node) in above:
        problems.append(Problem(_position(node), "an alias must not contain itself"))
        return None
    above = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, path, marks, problems, above)
    if isinstance(node, yaml.SequenceNode):
        return [
            _build(item, (*path, i), marks, problems, above) for i, item in enumerate(node.value)
        ]
    try:
        return _Loader("").construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        reason = getattr(error, "problem", None) or error
        problems.append(Problem(_position(node), f"not plain data: {reason}"))
        return None


def _build_mapping(node, path: Path, marks: dict, problems: list, above: set) -> dict:
    built: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(Problem(_position(key_node), "a key must be a plain word"))
            continue
        key = str(key_node.value)
        if key == "<<":
            text = "YAML 1.2 merges no mappings by '<<': write the keys out"
            problems.append(Problem(_position(key_node), text))
            continue
        if key in built:
            first = marks[(*path, key)]
            problems.append(
                Problem(_position(key_node), f"{key!r} was already given at line {first.line}")
            )
            continue
        marks[(*path, key)] = _position(key_node)
        built[key] = _build(value_node, (*path, key), marks, problems, above)
        if not isinstance(value_node, yaml.ScalarNode):
            continue
        marks[(*path, key, "=")] = _position(value_node)
    return built


def overridden(source: Source, overrides: Sequence[str]) -> tuple[Source, list[tuple[Mark, str]]]:
    """The source with `a.b=value` applied, and what is wrong with that; values are read as YAML.

    What an override has set stands at line 0.
    """
    data, problems = source.data, []
    marks = dict(source.marks)
    for text in overrides:
        key, equals, raw = text.partition("=")
        value, wrong = parse(raw, text)
        if not equals or not key or wrong:
            problems.append((Mark(0, 0), f"override {text!r}: write it as a.b=value"))
            continue
        path = tuple(key.split("."))
        data = _with(data, path, value.data)
        marks = {at: mark for at, mark in marks.items() if at[: len(path)] != path}
        for length in range(1, len(path) + 1):
            marks.setdefault(path[:length], Mark(0, 0))
        marks[(*path, "=")] = Mark(0, 0)
    return Source(source.name, data, marks), problems


def _with(data: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    inner = data if isinstance(data, dict) else {}
    return {**inner, path[0]: _with(inner.get(path[0]), path[1:], value)}
