"""Signatures read from source text, without importing it.

A study names factories (`newton-cg`, `my_lab.models:wide_net`) and their arguments. Checking those
must not cost an import of JAX, nor run a user's code, so the factory is found in its source file:
through packages, re-exports and registries, by its syntax tree.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

_SIMPLE = {"int": int, "float": float, "bool": bool, "str": str}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One argument of a factory.

    Attributes:
      name: as written.
      types: the plain types its annotation allows (with type(None) for None); empty if the
        annotation says nothing that can be checked.
      choices: the values of a Literal annotation, else empty.
      required: whether it has no default.
    """

    name: str
    types: tuple[type, ...]
    choices: tuple[Any, ...]
    required: bool


@dataclasses.dataclass(frozen=True)
class Signature:
    """A factory as its source declares it."""

    parameters: tuple[Parameter, ...]
    open: bool  # takes arbitrary keywords
    summary: str  # the first line of its docstring
    path: pathlib.Path


def registry(module: str, name: str) -> dict[str, str]:
    """The keys of a registry dict in a module, each with the "module:name" of its value."""
    file = module_file(module)
    if file is None:
        return {}
    for node in _tree(file).body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        if isinstance(target, ast.Name) and target.id == name:
            value = node.value  # type: ignore[union-attr]
            if isinstance(value, ast.Dict):
                return {
                    str(key.value): f"{module}:{item.id}" if isinstance(item, ast.Name) else ""
                    for key, item in zip(value.keys, value.values, strict=True)
                    if isinstance(key, ast.Constant)
                }
    return {}


@functools.cache
def signature(target: str) -> Signature | None:
    """The signature of "module:function"; None if it cannot be found without importing."""
    module, _, name = target.partition(":")
    return _find(module, name, frozenset())


def absence(target: str) -> str:
    """Why there is no "module:function", in words; "" if there is, or if only importing would tell.

    Example:
      >>> absence("no_such_lab:net")
      "no module 'no_such_lab' beside the study, in the current folder or installed"
    """
    module, _, name = target.partition(":")
    top = module.partition(".")[0]
    if hasattr(sys.modules.get(module), name):
        return ""
    if _spec(top) is None and module not in sys.modules:
        return f"no module {top!r} beside the study, in the current folder or installed"
    file = module_file(module)
    bound = _bound(_tree(file)) if file else set()
    if not bound or name in bound or bound & {"*", "__getattr__", "globals"}:
        return ""
    close = difflib.get_close_matches(name, bound, 1)
    return f"{module} has no {name!r}" + (f": did you mean {close[0]!r}?" if close else "")


def _bound(tree: ast.Module) -> set[str]:
    """Every name that a module's source defines, assigns or imports anywhere, or looks up."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
    return found


def module_file(module: str) -> pathlib.Path | None:
    """The source file of a module, found without importing it or its parents."""
    top, *rest = module.split(".")
    spec = _spec(top)
    if spec is None:
        return None
    if not rest:
        origin = pathlib.Path(spec.origin or "")
        return origin if origin.suffix == ".py" and origin.is_file() else None
    for root in spec.submodule_search_locations or ():
        base = pathlib.Path(root).joinpath(*rest)
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


@contextlib.contextmanager
def importable_from(folders: Sequence[str]) -> Iterator[None]:
    """Find modules in some folders first, as a study's trials do in those of its own."""
    before = list(sys.path)
    sys.path[:0] = folders
    try:
        yield
    finally:
        sys.path[:] = before


def _spec(top: str) -> Any:
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


@functools.cache
def _tree(file: pathlib.Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ast.Module(body=[], type_ignores=[])


def _find(module: str, name: str, seen: frozenset) -> Signature | None:
    file = module_file(module)
    if file is None or (module, name) in seen:
        return None
    seen = seen | {(module, name)}
    for node in _tree(file).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _declared(node, file)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(_absolute(module, file, node), alias.name, seen)
    return None


def _absolute(module: str, file: pathlib.Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _declared(node: ast.FunctionDef, file: pathlib.Path) -> Signature:
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args]
    first_default = len(positional) - len(spec.defaults)
    parameters = [_parameter(a, required=i < first_default) for i, a in enumerate(positional)] + [
        _parameter(a, required=default is None)
        for a, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
    ]
    docstring = ast.get_docstring(node) or ""
    return Signature(tuple(parameters), spec.kwarg is not None, docstring.partition("\n")[0], file)


def _parameter(argument: ast.arg, *, required: bool) -> Parameter:
    types: list[type] = []
    choices: list[Any] = []
    known = argument.annotation is not None and _read_annotation(
        argument.annotation, types, choices
    )
    if not known:
        types, choices = [], []
    return Parameter(argument.arg, tuple(types), tuple(choices), required)


def _read_annotation(node: ast.expr, types: list, choices: list) -> bool:
    """Collect plain types and literal choices; False if there is anything else."""
    if isinstance(node, ast.Constant) and node.value is None:
        types.append(type(None))
        return True
    if isinstance(node, ast.Name) and node.id in _SIMPLE:
        types.append(_SIMPLE[node.id])
        return True
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _read_annotation(node.left, types, choices) and _read_annotation(
            node.right, types, choices
        )
    if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "Literal":
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        choices.extend(item.value for item in items if isinstance(item, ast.Constant))
        return True
    return False
