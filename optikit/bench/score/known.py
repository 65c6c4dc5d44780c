"""The best known value of a problem: what "optimal" means, with a version.

A target is a fraction of the way from the start to the best known value, so every score rests on
that value. It belongs to a problem (factory, arguments, data), not to its label in some study; it
comes from a long float64 solve and from every trial ever scored with the file. A lower value raises
the version: scores of one version are comparable, and a report says which version it used.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from optikit.bench import store

ROUNDING = 1e-14
"""Values that differ by less than this, relative to the progress from the start, are the same."""

FILE = "best-known.json"


class BestKnown(NamedTuple):
    """The best known value of one problem.

    Attributes:
      version: 1 for the first value; one more whenever a lower one was found.
      problem, arguments: the factory and what it was given, for people.
      history: [version, value, source] of earlier versions, oldest first.
    """

    value: float
    source: str
    version: int = 1
    problem: str = ""
    arguments: Mapping[str, Any] | None = None
    history: tuple[tuple[int, float, str], ...] = ()


def identity(job: Any, facts: Mapping[str, Any]) -> str:
    """Sixteen digits that name a problem: factory, arguments, data and value at the start.

    Args:
      job: of the problem, or of any trial on it.
      facts: of the problem's record.
    """
    start = facts.get("start_value")
    what = [
        job.problem_use,
        job.problem_arguments,
        facts.get("checksum"),
        # ten digits: enough to notice another objective, few enough to survive another machine
        None if start is None else f"{start:.10g}",
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def improved(known: BestKnown | None, found: BestKnown, start: float) -> BestKnown:
    """The better of two values: a found one that is lower raises the version.

    Args:
      start: the objective at the start, which sets the scale of what counts as lower.

    Example:
      >>> first = BestKnown(1.0, "newton")
      >>> improved(first, BestKnown(0.5, "bfgs, seed 0"), start=10.0).version
      2
      >>> improved(first, BestKnown(1.0 - 1e-16, "bfgs, seed 0"), start=10.0).source
      'newton'
    """
    if known is None or not math.isfinite(known.value):
        return found
    if not found.value < known.value - ROUNDING * max(abs(known.value), abs(start - known.value)):
        return known
    past = (*known.history, (known.version, known.value, known.source))
    return known._replace(
        value=found.value, source=found.source, version=known.version + 1, history=past
    )


def merged(*files: Mapping[str, BestKnown]) -> dict[str, BestKnown]:
    """Several files as one; the lower value wins, under a version above that of the higher."""
    result: dict[str, BestKnown] = {}
    for file in files:
        for name, entry in file.items():
            other = result.get(name)
            if other is None or other.value == entry.value:
                result[name] = entry if other is None or entry.version > other.version else other
                continue
            low, high = sorted((entry, other), key=lambda e: e.value)
            result[name] = low._replace(version=max(low.version, high.version + 1))
    return result


def read_known(path: pathlib.Path) -> dict[str, BestKnown]:
    """The best known values of a file, by identity; none if there is no such file.

    Raises:
      StoreError: the file is there but damaged.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["problems"]
        return {name: _entry(fields) for name, fields in entries.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} is no file of best known values ({type(error).__name__}): delete it."
        raise store.StoreError(msg) from error


def _entry(fields: dict[str, Any]) -> BestKnown:
    past = tuple((int(v), float(x), str(s)) for v, x, s in fields.pop("history", ()))
    entry = BestKnown(**fields, history=past)
    return entry._replace(value=float(entry.value), version=int(entry.version))


def write_known(path: pathlib.Path, known: Mapping[str, BestKnown]) -> None:
    """Write a file of best known values, whole or not at all."""
    entries = {name: known[name]._asdict() for name in sorted(known)}
    text = json.dumps({"format": 1, "problems": entries}, indent=1, allow_nan=False)
    store.write_atomically(path, text.encode())
