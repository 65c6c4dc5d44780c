"""What can be wrong with a study beyond its structure: sweeps, search spaces, seeds, reference."""

import difflib
import pathlib
from collections.abc import Mapping
from typing import Any

from optikit.bench.spaces import complaints, kind_of
from optikit.bench.yaml_source import Mark, Path, Source

TUNING_SEEDS = [10_000]


def check_protocol(source: Source) -> list[tuple[Mark, str]]:
    """Every mistake in sweeps, search spaces, tuning seeds and the reference, with its place."""
    found = _check_sections(source)
    tuned = _searched(source.data.get("optimizers"))
    if tuned:
        found += _check_seeds(source) + _check_lanes(source)
    return found + _check_reference(source)


def _check_sections(source: Source) -> list[tuple[Mark, str]]:
    found = []
    for section in ("problems", "optimizers"):
        entries = source.data.get(section)
        for label, entry in entries.items() if isinstance(entries, Mapping) else ():
            if isinstance(entry, Mapping):
                found += _check_entry(source, section, label, entry)
    return found


def _check_entry(
    source: Source, section: str, label: str, entry: Mapping[str, Any]
) -> list[tuple[Mark, str]]:
    """Grids and search spaces among the arguments of one factory."""
    found = []
    above: dict[str, Any] = {}
    grids = [
        name for name, value in entry.items() if isinstance(value, Mapping) and "grid" in value
    ]
    for name, value in entry.items():
        path: Path = (section, label, name)
        wrong: list[tuple[Path, str]] = []
        if name in grids:
            wrong = _grid_complaints(value)
        elif section == "problems" and kind_of(value):
            wrong = [((), "a problem is swept by {grid: [...]}; search spaces are for optimizers")]
        elif section == "optimizers":
            wrong = complaints(value, above)
            if kind_of(value) and grids:
                text = f"a grid (of {grids[0]!r}) and a search space exclude each other: use choice"
                wrong.append(((), text))
        where = ".".join(map(str, path))
        found += [(place(source, (*path, *inner)), f"{where}: {text}") for inner, text in wrong]
        above[name] = value
    return found


def _grid_complaints(value: Mapping[str, Any]) -> list[tuple[Path, str]]:
    extra = next((key for key in value if key != "grid"), None)
    if extra is not None:
        return [((extra,), f"unknown key {extra!r}: a grid has no other keys")]
    items = value["grid"]
    if not isinstance(items, list) or not items:
        return [(("grid",), f"grid takes a list of values (got {items!r})")]
    seen: set[str] = set()  # a list would make long grids slow
    for i, item in enumerate(items):
        if isinstance(item, Mapping | list):
            return [(("grid", i), f"a grid holds plain values (got {item!r})")]
        if repr(item) in seen:
            return [(("grid", i), f"{item!r} is there twice")]
        seen.add(repr(item))
    return []


def _searched(optimizers: Any) -> list[str]:
    """The labels of optimizers that have a search space."""
    if not isinstance(optimizers, Mapping):
        return []
    return [
        label
        for label, entry in optimizers.items()
        if isinstance(entry, Mapping) and any(kind_of(value) for value in entry.values())
    ]


def _check_seeds(source: Source) -> list[tuple[Mark, str]]:
    """A setting must not be judged on the seeds that chose it."""
    tuning = source.data.get("tuning")
    given = tuning.get("seeds") if isinstance(tuning, Mapping) else None
    seeds = TUNING_SEEDS if given is None else given
    reported = source.data.get("seeds", [0])
    if not isinstance(seeds, list) or not isinstance(reported, list):
        return []
    path: Path = ("seeds",) if given is None else ("tuning", "seeds")
    return [
        (
            source.mark(path if given is None else (*path, i)),
            f"{'.'.join(map(str, path))}: seed {seed!r} serves tuning and the report: take another",
        )
        for i, seed in enumerate(seeds)
        if seed in reported
    ]


def _check_lanes(source: Source) -> list[tuple[Mark, str]]:
    """Lanes share a clock, so that no setting can be chosen by it."""
    measure, tuning = source.data.get("measure"), source.data.get("tuning")
    if not isinstance(measure, Mapping) or measure.get("lanes") is not True:
        return []
    axis = tuning.get("axis") if isinstance(tuning, Mapping) else None
    if axis not in ("warm", "cold"):
        return []
    text = f"tuning.axis: lanes share their seconds, so {axis!r} cannot choose: take a counted axis"
    return [(place(source, ("tuning", "axis")), text)]


def _check_reference(source: Source) -> list[tuple[Mark, str]]:
    """The reference must be an optimizer of the study, and a single variant of it."""
    name, optimizers = source.data.get("reference"), source.data.get("optimizers")
    if not isinstance(name, str) or not isinstance(optimizers, Mapping):
        return []
    at = place(source, ("reference",))
    if name not in optimizers:
        close = difflib.get_close_matches(name, map(str, optimizers), 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(optimizers)}"
        return [(at, f"reference: no optimizer {name!r}: {hint}")]
    entry = optimizers[name]
    values = entry.values() if isinstance(entry, Mapping) else ()
    if any(isinstance(value, Mapping) and "grid" in value for value in values):
        return [(at, f"reference: {name!r} has a grid, and a reference must be one variant")]
    return []


def resolve_best_known(source: Source, folder: pathlib.Path) -> tuple[str | None, list]:
    """The path of the shared file of best known values, relative to the study's folder."""
    name = source.data.get("best_known") if isinstance(source.data, Mapping) else None
    if not isinstance(name, str):
        return None, []
    path = (folder / name).resolve()
    if not path.is_file():
        return None, [(place(source, ("best_known",)), f"best_known: no file {path}")]
    return str(path), []


def place(source: Source, path: Path) -> Mark:
    """Where a value stands, or the nearest thing around it."""
    return source.marks.get((*path, "="), source.mark(path))
