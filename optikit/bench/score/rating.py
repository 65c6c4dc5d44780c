"""One number per solver that no rival can move: log cost against a fixed reference solver.

A solver's rating is the mean, over problems and targets, of log2(cost of the reference / cost of
the solver): 1 means half the cost of the reference, -1 twice. It depends on the two of them and on
the version of the best known values only, unlike a performance profile, where every entry is
measured against the best of the company.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optikit.bench.score.curves import ProblemScore
from optikit.bench.score.intervals import Interval, bootstrap, mean, multiplicities
from optikit.bench.score.reach import Reach, log_ratio, reaches

LIMIT = 100.0
"""A factor beyond this, and a target that only one of the two met, counts as this much."""


class RatingTable(NamedTuple):
    """log2(cost of the reference / cost of the solver), a mean over seeds and targets.

    Attributes:
      values: (problems, solvers), NaN where a solver was not run.
      groups: of each problem.
    """

    axis: str
    reference: str
    problems: list[str]
    groups: list[str]
    solvers: list[str]
    values: np.ndarray


def reference_variant(problems: Sequence[ProblemScore], name: str | None = None) -> str:
    """The variant behind a reference's name: itself, its tuned form, or the optimizer's only one.

    By default the first optimizer of the study.

    Raises:
      ValueError: there is no such variant, or there are several.
    """
    variants = {c.variant: c.optimizer for p in problems for c in p.curves}
    if name is None and variants:
        name = next(iter(variants.values())) or next(iter(variants))
    if name in variants:
        return name
    own = [variant for variant, optimizer in variants.items() if optimizer == name]
    tuned = [variant for variant in own if variant.endswith("(tuned)")]
    if len(tuned or own) == 1:
        return (tuned or own)[0]
    msg = (
        f"the reference {name!r} has {len(own)} variants: name one of {', '.join(own)}."
        if own
        else f"no reference {name!r} among {', '.join(variants) or 'no trials'}."
    )
    raise ValueError(msg)


def rating_table(
    problems: Sequence[ProblemScore],
    targets: Sequence[float],
    axis: str,
    reference: str | None = None,
) -> RatingTable:
    """Log ratios to the reference solver on the problems that it was run on.

    Trials are paired by seed. A target that only one of the two met counts as a factor of `LIMIT`,
    one that neither met as equality.

    Args:
      reference: a variant or optimizer label; by default the first of the study.

    Raises:
      ValueError: no such reference; or the axis is a clock and there are several machines.
    """
    fixed = reference_variant(problems, reference)
    rated = [p for p in problems if any(c.variant == fixed for c in p.curves)]
    solvers = list(dict.fromkeys(c.variant for p in rated for c in p.curves))
    values = np.full((len(rated), len(solvers)), math.nan)
    for i, problem in enumerate(rated):
        found: dict[str, list[float]] = {}
        for target in targets:
            trials = reaches([problem], target, axis)
            base = {t.seed: t for t in trials if t.variant == fixed}
            for t in trials:
                if t.seed in base:
                    found.setdefault(t.variant, []).append(_advantage(base[t.seed], t))
        for j, solver in enumerate(solvers):
            if solver in found:
                values[i, j] = np.mean(found[solver])
    names, groups = [p.label for p in rated], [p.group or p.label for p in rated]
    return RatingTable(axis, fixed, names, groups, solvers, values)


def _advantage(base: Reach, own: Reach) -> float:
    """log2(cost of the reference / own cost), within +-log2(LIMIT)."""
    bound = math.log2(LIMIT)
    if not (base.reached and own.reached):
        return bound * (own.reached - base.reached)
    found = log_ratio(base.cost, own.cost, base.axis) / math.log(2.0)
    return min(max(found, -bound), bound)


class Rating(NamedTuple):
    """A solver's rating.

    Attributes:
      score: mean of log2(cost of the reference / own cost) over problems; groups are resampled.
      problems: how many it was run on.
      best: share of resamples in which no solver run on all problems rates higher (ties share);
        NaN if it was not run on all of them.
      low, high: the least and the largest score when any one problem is left out.
      places: the best and the worst place when any one problem is left out; (0, 0) if not ranked.
    """

    solver: str
    score: Interval
    problems: int
    best: float
    low: float
    high: float
    places: tuple[int, int]


def ratings(table: RatingTable, *, seed: int = 0) -> list[Rating]:
    """Every solver's rating with its doubts, best first."""
    full = [j for j in range(len(table.solvers)) if not np.isnan(table.values[:, j]).any()]
    best = probability_best(table.values[:, full], table.groups, seed=seed)
    places = _places(table.values[:, full])
    made = []
    for j, solver in enumerate(table.solvers):
        ran = ~np.isnan(table.values[:, j])
        column = table.values[ran, j]
        groups = [g for g, r in zip(table.groups, ran, strict=True) if r]
        total, count = column.sum(), column.size
        without = (total - column) / (count - 1) if count > 1 else column
        at = full.index(j) if j in full else None
        made.append(
            Rating(
                solver,
                bootstrap(mean, column, groups=groups, student=True, seed=seed),
                count,
                math.nan if at is None else float(best[at]),
                float(np.min(without)),
                float(np.max(without)),
                (0, 0) if at is None else places[at],
            )
        )
    return sorted(made, key=lambda r: -r.score.estimate)


def probability_best(
    values: np.ndarray, groups: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """How often each column has the largest mean when groups of rows are resampled; ties share.

    Example:
      >>> probability_best(np.array([[1.0, 0.0], [2.0, 0.0]]), ["a", "b"]).tolist()
      [1.0, 0.0]
    """
    if not values.size:
        return np.zeros(values.shape[1])
    drawn = multiplicities(groups, resamples=resamples, seed=seed)
    means = drawn @ values / drawn.sum(axis=1, keepdims=True)
    leads = np.isclose(means, means.max(axis=1, keepdims=True), rtol=1e-12, atol=1e-12)
    return (leads / leads.sum(axis=1, keepdims=True)).mean(axis=0)


def _places(values: np.ndarray) -> list[tuple[int, int]]:
    """Best and worst place of each column when any one row is left out."""
    rows = range(len(values)) if len(values) > 1 else [None]
    places = []
    for row in rows:
        means = np.delete(values, [] if row is None else row, axis=0).mean(axis=0)
        places.append(1 + (means[None, :] > means[:, None] + 1e-12).sum(axis=1))
    found = np.array(places).reshape(len(places), -1)
    return [(int(c.min()), int(c.max())) for c in found.T]
