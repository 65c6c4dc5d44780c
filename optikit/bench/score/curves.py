"""From records to curves: suboptimality along each trial, on every axis of cost.

f* of a problem is its best known value (see `known`): the best of its reference solve, of all
trials, and of what earlier studies found. A trial's gap is (f - f*) / (f0 - f*), with f0 the
referee's value at its start, so a target means the same for every solver. The cost to a target is
that of the first snapshot at or below it: an upper bound, with the previous snapshot as the lower
one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from optikit.bench.axes import AXES, calls
from optikit.bench.job import Job
from optikit.bench.rounds import merged
from optikit.bench.score.known import BestKnown, identity, improved
from optikit.bench.store import Record

_METRIC = "metric_"
"""How the columns of a problem's metrics begin."""

CURVATURE = ("hvp", "ggnvp", "hessian", "jacobian")
"""Oracles whose calls make a trial one of second order."""

CURVED = ("kfac", "ekfac", "foof")
"""Methods that see the Gauss-Newton or Fisher matrix in the statistics of their gradients."""


class Curve(NamedTuple):
    """One trial's course.

    Attributes:
      variant: the optimizer's label, with its swept arguments.
      gaps: relative suboptimality at each snapshot.
      grad_norms: the referee's max|g|.
      costs: by axis, one number (or None) per snapshot.
      warm_spread: bounds of the warm seconds at each snapshot.
      second_order: whether it used any curvature oracle, or is one of `CURVED`.
      facts: the trial's facts.
      optimizer: the label in the study. arguments: all it was given, swept or tuned ones included.
      machine: id of what its times depend on.
      metrics: by name, what else the problem reports of each snapshot.
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
    optimizer: str
    arguments: dict[str, Any]
    machine: str
    metrics: dict[str, list[float]]


class Hit(NamedTuple):
    """When a curve reached a target: the snapshot, and the cost interval on each axis."""

    snapshot: int
    cost: dict[str, float]
    before: dict[str, float]


class ProblemScore(NamedTuple):
    """Everything about one problem.

    Attributes:
      label: in the study, with swept arguments: `quad (n=10)`.
      facts: of the problem's record: reference, prices, parameters (their number n), description.
      optimum: the best known value f*, or what a trial found lower by rounding only.
      curves: of the trials that are reported. tuning: of those that chose hyperparameters.
      group: problems of one group are alike, and are resampled together.
      swept: the arguments that a sweep varies, with this problem's values.
      identity: names the problem independently of its label.
      best: the entry for the file of best known values: source, version, history.
    """

    label: str
    facts: dict[str, Any]
    optimum: float
    curves: list[Curve]
    tuning: list[Curve]
    group: str
    swept: dict[str, Any]
    identity: str
    best: BestKnown

    @property
    def optimum_source(self) -> str:
        """What found the optimum, with the version where there were earlier values."""
        version = f", version {self.best.version}" if self.best.version > 1 else ""
        return self.best.source + version


def score(
    jobs: list[Job], records: dict[str, Record], known: Mapping[str, BestKnown] | None = None
) -> list[ProblemScore]:
    """Scores by problem, in the study's order; failed and missing trials are left out.

    The rounds of a trial are one curve.

    Args:
      known: best known values of earlier studies, by identity.
    """
    jobs, records = merged(jobs, records)
    by_label: dict[str, list[tuple[Job, Record]]] = {}
    for job in jobs:
        mine = by_label.setdefault(job.problem, [])
        if job.id in records and not records[job.id].facts.get("error"):
            mine.append((job, records[job.id]))
    scored = (_score_problem(label, mine, known or {}) for label, mine in by_label.items())
    return [s for s in scored if s is not None]


def _score_problem(
    label: str, good: list[tuple[Job, Record]], known: Mapping[str, BestKnown]
) -> ProblemScore | None:
    first = next(((job, record.facts) for job, record in good if job.kind == "problem"), None)
    trials = [(job, record) for job, record in good if job.kind == "trial"]
    if first is None:
        return None
    job, shared = first
    name = identity(job, shared)
    best = _best(job, shared, trials, known.get(name))
    # what is lower by rounding only makes no new version, but is still no negative gap
    optimum = min([best.value, *(_least(record) for _, record in trials)])
    curves = [(j, _curve(j, record, optimum, shared["prices"])) for j, record in trials]
    return ProblemScore(
        label=label,
        facts=shared,
        optimum=optimum,
        curves=[curve for j, curve in curves if j.role == "report"],
        tuning=[curve for j, curve in curves if j.role == "tune"],
        group=job.group or label,
        swept=job.swept,
        identity=name,
        best=best,
    )


def _best(
    job: Job, shared: dict[str, Any], trials: list[tuple[Job, Record]], known: BestKnown | None
) -> BestKnown:
    """The best known value: of earlier studies, of the reference solve, of all trials."""
    reference = shared["reference"]
    named = {"problem": job.problem_use, "arguments": job.problem_arguments}
    solved = BestKnown(reference["value"], reference["source"], **named)
    starts = [record.rows[0]["value"] for _, record in trials]
    start = next((f for f in starts if math.isfinite(f)), solved.value)
    best = improved(known, solved, start)
    candidates = [
        BestKnown(_least(record), f"{trial.variant}, seed {trial.seed}", **named)
        for trial, record in trials
    ]
    lowest = min(candidates, key=lambda c: c.value, default=None)
    if lowest is None or not math.isfinite(lowest.value):
        return best
    found = improved(best, lowest, start)
    # within one study the version counts studies' findings, not the order of its own trials
    return found._replace(version=1, history=()) if known is None else found


def _least(record: Record) -> float:
    return min((r["value"] for r in record.rows if math.isfinite(r["value"])), default=math.inf)


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
        second_order=any(last[kind] for kind in CURVATURE) or facts.get("method") in CURVED,
        counts=last,
        facts=facts,
        optimizer=job.optimizer,
        arguments=job.optimizer_arguments,
        machine=facts.get("environment", {}).get("machine", ""),
        metrics={
            name.removeprefix(_METRIC): [r[name] for r in rows]
            for name in rows[0]
            if name.startswith(_METRIC)
        },
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


def main_target(targets: Sequence[float]) -> float:
    """The target that verdicts speak of: 1e-6 if it is among them, else the middle one."""
    ordered = sorted(targets)
    return 1e-6 if 1e-6 in targets else ordered[len(ordered) // 2]
