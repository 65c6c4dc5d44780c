"""Search spaces of hyperparameters, as a study declares them, and what can be wrong with them.

    learning_rate: {log_uniform: [1e-4, 1.0]}        b1: {uniform: [0.8, 0.99]}
    memory: {int_uniform: [3, 30]}                   line_search: {choice: [backtracking, wolfe]}
    shrink: {uniform: [0.1, 0.9], when: {line_search: backtracking}}

An argument with `when` is given only in trials where the arguments it names, declared above it,
have those values; elsewhere the factory's default stands.
"""

import difflib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from optikit.bench.yaml_source import Path

KINDS = ("log_uniform", "uniform", "int_uniform", "choice")
EDGE = 0.05
"""A best value within this fraction of its range from an end is at the edge of the space."""


class Space(NamedTuple):
    """The values that one argument may take.

    Attributes:
      kind: one of `KINDS`.
      values: [low, high], or the choices.
      when: arguments and the value each must have for this one to be given.
    """

    name: str
    kind: str
    values: list[Any]
    when: dict[str, Any]

    def at(self, u: float) -> Any:
        """The value at a point of the unit interval.

        Example:
          >>> round(Space("learning_rate", "log_uniform", [1e-4, 1.0], {}).at(0.5), 9)
          0.01
        """
        if self.kind == "choice":
            return self.values[min(int(u * len(self.values)), len(self.values) - 1)]
        low, high = self.values
        if self.kind == "int_uniform":
            return min(low + int(u * (high - low + 1)), high)
        if self.kind == "uniform":
            return low + u * (high - low)
        inner = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        return min(max(inner, low), high)

    def edge(self, value: Any) -> str:
        """The end of the range that a value is at, "low" or "high", or an empty string.

        Example:
          >>> Space("learning_rate", "log_uniform", [1e-4, 1.0], {}).edge(0.9)
          'high'
        """
        if self.kind == "choice":
            return ""
        low, high = self.values
        if self.kind == "int_uniform":
            return "low" if value == low else "high" if value == high else ""
        scale = math.log if self.kind == "log_uniform" else float
        share = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return "low" if share < EDGE else "high" if share > 1 - EDGE else ""


def spaces(arguments: Mapping[str, Any]) -> list[Space]:
    """The search spaces among an optimizer's arguments, in the order of declaration."""
    found = []
    for name, value in arguments.items():
        kind = kind_of(value)
        if kind:
            found.append(Space(name, kind, list(value[kind]), dict(value.get("when", {}))))
    return found


def kind_of(value: Any) -> str:
    """Which kind of search space a value declares, or an empty string."""
    if not isinstance(value, Mapping):
        return ""
    return next((kind for kind in KINDS if kind in value), "")


def settings(declared: list[Space], points: Any) -> list[dict[str, Any]]:
    """The arguments at points of the unit cube, one column per space; what is off is left out."""
    return [_setting(declared, point) for point in points]


def _setting(declared: list[Space], point: Any) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for space, u in zip(declared, point, strict=True):
        if all(name in given and given[name] == value for name, value in space.when.items()):
            given[space.name] = space.at(float(u))
    return given


def complaints(value: Any, above: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """What is wrong with a search space: where inside it, and what.

    Args:
      above: the optimizer's arguments declared before this one, which `when` may name.
    """
    if not isinstance(value, Mapping):
        return []
    kinds = [kind for kind in KINDS if kind in value]
    if not kinds:
        for key in value:
            close = difflib.get_close_matches(str(key), KINDS, 1)
            if close:
                return [((key,), f"unknown search space {key!r}: did you mean {close[0]!r}?")]
        return []
    if len(kinds) > 1:
        return [((kinds[1],), f"one of {' and '.join(kinds)} only")]
    kind = kinds[0]
    found: list[tuple[Path, str]] = []
    for key in value:
        if key not in (kind, "when"):
            close = difflib.get_close_matches(str(key), ["when"], 1)
            hint = (
                f"did you mean {close[0]!r}?" if close else "a search space takes 'when' beside it"
            )
            found.append(((key,), f"unknown key {key!r}: {hint}"))
    wrong = _range_complaint(kind, value[kind])
    if wrong:
        found.append(((kind,), wrong))
    if "when" in value:
        found += [(("when", *path), text) for path, text in _when_complaints(value["when"], above)]
    return found


def _range_complaint(kind: str, values: Any) -> str:
    if kind == "choice":
        if not isinstance(values, list) or len(values) < 2:
            return "choice takes a list of at least two values"
        return ""
    number = int if kind == "int_uniform" else (int, float)
    if (
        not isinstance(values, list)
        or len(values) != 2
        or any(isinstance(v, bool) or not isinstance(v, number) for v in values)
        or any(not math.isfinite(v) for v in values)
    ):
        what = "integers" if kind == "int_uniform" else "numbers"
        return f"{kind} takes [low, high], two {what} (got {values!r})"
    low, high = values
    if low >= high:
        return f"low must be below high (got {values!r})"
    if kind == "log_uniform" and low <= 0:
        return f"log_uniform needs positive ends (got {values!r})"
    return ""


def _when_complaints(when: Any, above: Mapping[str, Any]) -> list[tuple[Path, str]]:
    if not isinstance(when, Mapping) or not when:
        return [((), "when takes arguments and their values, {name: value}")]
    found: list[tuple[Path, str]] = []
    searched = {name: value for name, value in above.items() if kind_of(value)}
    for name, wanted in when.items():
        if name not in searched:
            close = difflib.get_close_matches(str(name), searched, 1)
            hint = f"did you mean {close[0]!r}?" if close else "it must be a search space above it"
            found.append(((name,), f"{name!r} is not searched: {hint}"))
            continue
        condition = searched[name]
        choices = condition.get("choice")
        if choices is None:
            found.append(((name,), f"{name!r} is a range: `when` needs a choice"))
        elif isinstance(choices, list) and wanted not in choices:
            listed = ", ".join(map(repr, choices))
            found.append(((name,), f"{name!r} is never {wanted!r}: its choices are {listed}"))
    return found
