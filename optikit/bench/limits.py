"""What a study may not do though each of its values is right: repeat itself, or grow too large."""

import math
from typing import Any

from optikit.bench.yaml_source import Mark, Source

MAX_TRIALS = 100_000
"""Trials in one study; more is taken for a slip in a grid."""


def repetitions(source: Source) -> list[tuple[Mark, str]]:
    """The same seed twice would name the same trial twice; the same target twice says nothing."""
    problems = []
    tuning = source.data.get("tuning")
    searched = tuning.get("seeds") if isinstance(tuning, dict) else None
    for path, values in (
        (("seeds",), source.data.get("seeds")),
        (("tuning", "seeds"), searched),
        (("targets",), source.data.get("targets")),
    ):
        seen: set[str] = set()
        for i, value in enumerate(values if isinstance(values, list) else []):
            if repr(value) in seen:
                mark = source.mark((*path, i))
                problems.append((mark, f"{'.'.join(path)}: {value!r} is there twice"))
            seen.add(repr(value))
    return problems


def size(source: Source, study: Any) -> list[tuple[Mark, str]]:
    """A slip in a grid should not plan millions of trials."""
    problems = sum(map(_sweep, study.problems.values()))
    optimizers = sum(map(_sweep, study.optimizers.values()))
    count = problems * optimizers * len(study.seeds)
    if count <= MAX_TRIALS:
        return []
    largest = max(study.optimizers, key=lambda label: _sweep(study.optimizers[label]))
    text = f"about {count:,} trials; the most is {MAX_TRIALS:,}: shorten a grid"
    return [(source.mark(("optimizers", largest)), f"optimizers.{largest}: {text}")]


def _sweep(use: Any) -> int:
    """How many argument sets the grids of a factory make."""
    grids = [v["grid"] for v in use.arguments.values() if isinstance(v, dict) and "grid" in v]
    return math.prod(len(grid) for grid in grids if isinstance(grid, list))
