"""From records to statements: suboptimality curves, costs to a target, and verdicts in words.

f* of a problem is the best referee value of its reference solve and of all trials. A trial's gap is
(f - f*) / (f0 - f*), with f0 the referee's value at its start, so a target means the same for every
solver. The cost to a target is that of the first snapshot at or below it: an upper bound, with the
previous snapshot as the lower one. Where a trial was repeated in several processes, they are one.
"""

import math
from typing import Any, NamedTuple

from optikit.bench.axes import AXES, calls
from optikit.bench.plan import Job
from optikit.bench.rounds import merged
from optikit.bench.store import Record

ROUNDING = 1e-14
"""A value lower than the reference by less than this, relative, is the same optimum."""

CURVATURE = ("hvp", "ggnvp", "hessian", "jacobian")


class Curve(NamedTuple):
    """One trial's course.

    Attributes:
      variant: the optimizer's label, with its swept arguments.
      gaps: relative suboptimality at each snapshot.
      grad_norms: the referee's max|g|.
      costs: by axis, one number (or None) per snapshot.
      second_order: whether it used any curvature oracle.
      facts: the trial's facts.
    """

    problem: str
    variant: str
    seed: int
    gaps: list[float]
    grad_norms: list[float]
    costs: dict[str, list[float]]
    warm_spread: list[tuple[float, float]]
    second_order: bool
    counts: dict[str, int]
    facts: dict[str, Any]


class Hit(NamedTuple):
    """When a curve reached a target: the snapshot, and the cost interval on each axis."""

    snapshot: int
    cost: dict[str, float]
    before: dict[str, float]


class ProblemScore(NamedTuple):
    """Everything about one problem."""

    label: str
    facts: dict[str, Any]
    optimum: float
    optimum_source: str
    curves: list[Curve]


def score(jobs: list[Job], records: dict[str, Record]) -> list[ProblemScore]:
    """Scores by problem, in the study's order; failed and missing trials are left out."""
    jobs, records = merged(jobs, records)
    labels = list(dict.fromkeys(job.problem for job in jobs))
    return [s for s in (_score_problem(label, jobs, records) for label in labels) if s is not None]


def _score_problem(label: str, jobs: list[Job], records: dict[str, Record]) -> ProblemScore | None:
    mine = [(job, records[job.id]) for job in jobs if job.problem == label and job.id in records]
    good = [(job, record) for job, record in mine if not record.facts.get("error")]
    shared = next((record.facts for job, record in good if job.kind == "problem"), None)
    trials = [(job, record) for job, record in good if job.kind == "trial"]
    if shared is None:
        return None
    reference = shared["reference"]["value"]
    optimum, source = reference, shared["reference"]["source"]
    for job, record in trials:
        best = min((r["value"] for r in record.rows if math.isfinite(r["value"])), default=optimum)
        if best < optimum:
            optimum = best
            if best < reference - ROUNDING * abs(reference):
                source = f"{job.variant}, seed {job.seed}"
    curves = [_curve(job, record, optimum, shared["prices"]) for job, record in trials]
    return ProblemScore(label, shared, optimum, source, curves)


def _curve(job: Job, record: Record, optimum: float, prices: dict[str, float]) -> Curve:
    rows, facts = record.rows, record.facts
    scale = rows[0]["value"] - optimum
    gaps = [_gap(r["value"] - optimum, scale) for r in rows]
    last = calls(rows[-1])
    return Curve(
        problem=job.problem,
        variant=job.variant,
        seed=job.seed,
        gaps=gaps,
        grad_norms=[r["grad_norm"] for r in rows],
        costs={key: [axis.of(r, facts, prices) for r in rows] for key, axis in AXES.items()},
        warm_spread=[(r["warm_low"], r["warm_high"]) for r in rows],
        second_order=any(last[kind] for kind in CURVATURE),
        counts=last,
        facts=facts,
    )


def _gap(above: float, scale: float) -> float:
    """Relative suboptimality; a start at the optimum has gap 0, a lost point an infinite one."""
    if not math.isfinite(above):
        return math.inf
    return max(above, 0.0) / scale if scale > 0 else 0.0


def hit(curve: Curve, target: float) -> Hit | None:
    """The first snapshot at or below a target, or None."""
    for i, gap in enumerate(curve.gaps):
        if gap <= target:
            before = max(i - 1, 0)
            return Hit(
                i,
                {key: column[i] for key, column in curve.costs.items()},
                {key: column[before] for key, column in curve.costs.items()},
            )
    return None


def main_target(targets: list[float]) -> float:
    """The target that verdicts speak of: 1e-6 if it is among them, else the middle one."""
    ordered = sorted(targets)
    return 1e-6 if 1e-6 in targets else ordered[len(ordered) // 2]


def verdict(problem: ProblemScore, target: float) -> str:
    """A sentence to act on: does second order pay here, by how much, and what does it cost?"""
    reached = [(curve, found) for curve in problem.curves if (found := hit(curve, target))]
    where = f"On {problem.label}"
    if not reached:
        best = min(problem.curves, key=lambda c: min(c.gaps), default=None)
        closest = f"; {best.variant} came closest, at {min(best.gaps):.1e}" if best else ""
        return f"{where}, no method reached {target:g} of the optimum within the budget{closest}."
    missed = [curve.variant for curve in problem.curves if hit(curve, target) is None]
    tail = f" Not within the budget: {_listed(missed)}." if missed else ""
    second, first = (_soonest(reached, second_order=order) for order in (True, False))
    if second is None or first is None:
        alone, costs = second or first or reached[0]
        kind = "second" if alone.second_order else "first"
        return (
            f"{where}, only {kind}-order methods reached {target:g} of the optimum, "
            f"{alone.variant} soonest: {_seconds(costs.cost['warm'])} warm, "
            f"{_seconds(costs.cost['cold'])} with compilation.{tail}"
        )
    return f"{where}, {_compared(second, first, target)}{tail}"


def _soonest(reached: list[tuple[Curve, Hit]], *, second_order: bool) -> tuple[Curve, Hit] | None:
    """The curve of an order that reached the target first in warm seconds."""
    own = [pair for pair in reached if pair[0].second_order == second_order]
    return min(own, key=lambda pair: pair[1].cost["warm"], default=None)


def _compared(second: tuple[Curve, Hit], first: tuple[Curve, Hit], target: float) -> str:
    """The two best of either order, on every axis."""
    (a, at), (b, bt) = second, first
    pays = at.cost["warm"] < bt.cost["warm"]
    winner, loser = (second, first) if pays else (first, second)
    times = [_seconds(pair[1].cost["warm"]) for pair in (winner, loser)]
    if _overlap(a, at, b, bt):
        lead = (
            f"second order is not separable from first in warm seconds: {winner[0].variant} "
            f"({times[0]}) and {loser[0].variant} ({times[1]}) reached {target:g} of the optimum "
            "within each other's spread"
        )
    else:
        factor = loser[1].cost["warm"] / winner[1].cost["warm"]
        lead = (
            f"second order {'pays' if pays else 'does not pay'}: {winner[0].variant} reached "
            f"{target:g} of the optimum {factor:.1f}x sooner than {loser[0].variant} in warm "
            f"seconds ({times[0]} against {times[1]})"
        )
    axes = [
        f"{winner[1].cost[key] / loser[1].cost[key]:.2g}x the {label}"
        for key, label in (("gradients", "gradient equivalents"), ("flops", "FLOPs"))
        if loser[1].cost[key] > 0 and winner[1].cost[key] > 0
    ]
    with_axes = f", with {' and '.join(axes)}" if axes else ""
    return f"{lead}{with_axes}; {_cold(winner, loser)}."


def _cold(winner: tuple[Curve, Hit], loser: tuple[Curve, Hit]) -> str:
    """How compilation changes the picture."""
    w, lo = winner[1].cost["cold"], loser[1].cost["cold"]
    names = f"{winner[0].variant} {_seconds(w)}, {loser[0].variant} {_seconds(lo)}"
    if abs(w - lo) <= 0.1 * max(w, lo):
        return f"with compilation included they take about as long ({names})"
    if w < lo:
        return f"it leads with compilation included too ({names})"
    gain = loser[1].cost["warm"] - winner[1].cost["warm"]
    solves = f" and pays from about {(w - lo) / gain + 1:.0f} solves on" if gain > 0 else ""
    return f"with compilation included it trails ({names}){solves}"


def _overlap(a: Curve, at: Hit, b: Curve, bt: Hit) -> bool:
    """Whether the spreads of warm seconds overlap: then the two are not separable."""
    (a_low, a_high), (b_low, b_high) = a.warm_spread[at.snapshot], b.warm_spread[bt.snapshot]
    return a_low <= b_high and b_low <= a_high


def _seconds(x: float) -> str:
    if not math.isfinite(x):
        return "unknown"
    return f"{x * 1e3:.3g} ms" if x < 1 else f"{x:.3g} s"


def _listed(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} and {unique[-1]}"
