"""When a target was reached, as interval-censored data, and what follows: shares, times, ratios.

A target is first met somewhere between two snapshots, so the cost of meeting it is known within an
interval. Where it was not met the cost is only known to exceed what the trial spent
(right-censored). A clock adds a spread of its own, which matters where a single trial is all there
is: between several trials it shows as their differences.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from optikit.bench.score.curves import Curve, ProblemScore
from optikit.bench.score.intervals import LEVEL, Interval, bootstrap, mean, median, wilson

CLOCK_AXES = frozenset({"warm", "cold", "joules"})
"""Axes that a clock is behind: unknown where it is invalid."""

MACHINE_AXES = CLOCK_AXES | {"memory"}
"""Axes that mean something on one machine only."""

_FREE = {"warm": 1e-9, "cold": 1e-9, "joules": 1e-9}
"""What a cost of zero counts as in a ratio: a clock tick, else one unit."""


class Reach(NamedTuple):
    """One trial and one target on one axis.

    Attributes:
      reached: whether the target was met.
      cost: at the first snapshot that met it; infinite if none did, NaN if the axis is unknown.
      lower, upper: the cost of meeting it is at least `lower` and at most `upper` (infinite if it
        was not met: then `lower` is what was spent).
      fastest, slowest: the same with the clock's spread on the warm axis.
      spent: what the trial cost until it met the target, or in all.
    """

    problem: str
    group: str
    variant: str
    seed: int
    machine: str
    axis: str
    reached: bool
    cost: float
    lower: float
    upper: float
    fastest: float
    slowest: float
    spent: float


def reach(curve: Curve, target: float, axis: str, *, group: str = "") -> Reach:
    """When a curve first met a target, as an interval of cost.

    Once consecutive steps are both on record, the step of the first hit is exact, and so is its
    cost on every axis that is counted.
    """
    costs, steps = curve.costs[axis], curve.costs["steps"]
    spread = curve.warm_spread if axis == "warm" else list(zip(costs, costs, strict=True))
    found = next((i for i, gap in enumerate(curve.gaps) if gap <= target), None)
    made = Reach(
        curve.problem, group or curve.problem, curve.variant, curve.seed, curve.machine, axis,
        reached=found is not None, cost=math.inf, lower=costs[-1], upper=math.inf,
        fastest=spread[-1][0], slowest=math.inf, spent=costs[-1],
    )  # fmt: skip
    if axis in CLOCK_AXES and curve.facts.get("invalid"):
        return made._replace(**dict.fromkeys(made._fields[-6:], math.nan))  # no clock at all
    if found is None:
        return made
    exact = found == 0 or steps[found] - steps[found - 1] <= 1
    before = found if exact else found - 1
    cost, lower = costs[found], costs[before]
    return made._replace(
        cost=cost,
        lower=lower if exact or axis != "steps" else lower + 1,
        upper=cost,
        fastest=min(spread[before][0], lower),
        slowest=max(spread[found][1], cost),
        spent=cost,
    )


def reaches(
    problems: Iterable[ProblemScore], target: float, axis: str, variant: str | None = None
) -> list[Reach]:
    """Every reported trial's `Reach`, or those of one variant; where the axis is known.

    Raises:
      ValueError: the axis is of one machine and a problem's trials come from several.
    """
    found = []
    for problem in problems:
        machines = {curve.machine for curve in problem.curves}
        if axis in MACHINE_AXES and len(machines) > 1:
            msg = (
                f"{problem.label} was run on {len(machines)} machines, which share no {axis!r} "
                "axis: take one with on_one_machine()."
            )
            raise ValueError(msg)
        for curve in problem.curves:
            if variant is None or curve.variant == variant:
                one = reach(curve, target, axis, group=problem.group)
                if not math.isnan(one.spent) and not math.isnan(one.cost):
                    found.append(one)
    return found


def on_one_machine(problems: Sequence[ProblemScore]) -> tuple[list[ProblemScore], str]:
    """The trials of the machine that ran most of them, and a sentence on what that leaves out.

    Times of different machines are never compared; counted axes need no such choice.
    """
    tally: dict[str, int] = {}
    for problem in problems:
        for curve in problem.curves:
            tally[curve.machine] = tally.get(curve.machine, 0) + 1
    if len(tally) <= 1:
        return list(problems), ""
    kept = max(tally, key=lambda machine: tally[machine])
    chosen = [
        p._replace(
            curves=[c for c in p.curves if c.machine == kept],
            tuning=[c for c in p.tuning if c.machine == kept],
        )
        for p in problems
    ]
    left = sum(tally.values()) - tally[kept]
    note = (
        f"Times are those of machine {kept}; {left} trials of {len(tally) - 1} other "
        f"machine{'s' if len(tally) > 2 else ''} are left out of every comparison of time."
    )
    return chosen, note


def success_rate(trials: Sequence[Reach]) -> Interval:
    """The share of trials that met the target, with Wilson's interval."""
    return wilson(sum(t.reached for t in trials), len(trials))


def median_cost(trials: Sequence[Reach]) -> Interval:
    """The median cost of meeting the target (misses count as infinite), resampling groups.

    The groups are families of problems if there are several, else problems, else trials.
    """
    lower, upper = _bounds(trials)
    return bootstrap(
        median,
        [t.cost for t in trials],
        low=[x if t.reached else math.inf for t, x in zip(trials, lower, strict=True)],
        high=upper,
        groups=_clusters(trials),
    )


def typical(trials: Sequence[Reach]) -> float:
    """The median cost alone; infinite where most trials missed, or where there are none."""
    return float(np.median([t.cost for t in trials])) if trials else math.inf


def expected_running_time(trials: Sequence[Reach]) -> Interval:
    """ERT: the cost of all trials over the number of successes, resampling groups.

    That is what meeting the target costs on average when a solver is restarted until it does. It is
    infinite without a success, and its upper end is where resamples without one are likely.

    Reference: Hansen, Auger, Ros, Mersmann, Tusar & Brockhoff (2021), COCO, Optim. Methods
    Softw. 36.
    """
    reached = np.array([t.reached for t in trials], float)
    lower, upper = _bounds(trials)

    def ratio(spent: np.ndarray, weights: np.ndarray) -> np.ndarray:
        total, successes = weights @ spent, weights @ reached
        return np.divide(total, successes, out=np.full_like(total, np.inf), where=successes > 0)

    return bootstrap(
        ratio,
        [t.spent for t in trials],
        low=lower,
        high=[x if t.reached else t.spent for t, x in zip(trials, upper, strict=True)],
        groups=_clusters(trials),
    )


class Ratio(NamedTuple):
    """How two solvers compare where both meet the target.

    Attributes:
      interval: geometric mean of cost(first) / cost(second) over jointly solved pairs.
      unit: what was resampled: "group", "problem" or "seed" ("none" if there is only one).
      joint, first_only, second_only, neither: pairs (problem, seed) by who met the target.
    """

    interval: Interval
    unit: str
    joint: int
    first_only: int
    second_only: int
    neither: int

    @property
    def separable(self) -> bool:
        """Whether the interval excludes equality (never with a single unit)."""
        return self.interval.excludes(1.0)


def cost_ratio(first: Sequence[Reach], second: Sequence[Reach], *, level: float = LEVEL) -> Ratio:
    """Geometric mean of paired ratios, over the problems and seeds that both solved.

    Each problem counts once, whatever its number of seeds. Resampled are families of problems where
    there are several, else problems, else seeds: a claim reaches as far as what was resampled. The
    interval also holds what the snapshots leave open, and for a single pair the clock. Read it
    beside the counts of pairs that only one solved, which it leaves out.

    Example:
      >>> from optikit.bench.score.reach import Reach
      >>> def run(seed, cost):
      ...     return Reach("p", "p", "v", seed, "", "steps", True, *[cost] * 6)
      >>> found = cost_ratio([run(s, 20 + s) for s in range(8)], [run(s, 10) for s in range(8)])
      >>> round(found.interval.estimate, 1), found.separable, found.unit
      (2.3, True, 'seed')
    """
    partner = {(t.problem, t.seed): t for t in second}
    pairs = [(a, partner[a.problem, a.seed]) for a in first if (a.problem, a.seed) in partner]
    joint = [(a, b) for a, b in pairs if a.reached and b.reached]
    (low_a, high_a), (low_b, high_b) = (_bounds([pair[i] for pair in joint]) for i in (0, 1))
    logs = np.array(
        [
            [log_ratio(x, y, joint[0][0].axis) for x, y in zip(*columns, strict=True)]
            for columns in (
                ([a.cost for a, _ in joint], [b.cost for _, b in joint]),
                (low_a, high_b),
                (high_a, low_b),
            )
        ]
    ).T
    unit = _unit([a for a, _ in joint])
    values, groups = logs, None
    if unit in ("group", "problem"):
        labels = [a.problem for a, _ in joint]
        names = list(dict.fromkeys(labels))
        of = {a.problem: a.group for a, _ in joint}
        values = np.array([logs[[x == name for x in labels]].mean(axis=0) for name in names])
        groups = [of[name] if unit == "group" else name for name in names]
    found = bootstrap(
        mean, values[:, 0], low=values[:, 1], high=values[:, 2],
        groups=groups, student=True, level=level,
    )  # fmt: skip
    return Ratio(
        Interval(_exp(found.estimate), _exp(found.low), _exp(found.high), found.units),
        unit,
        len(joint),
        sum(a.reached and not b.reached for a, b in pairs),
        sum(b.reached and not a.reached for a, b in pairs),
        sum(not a.reached and not b.reached for a, b in pairs),
    )


def log_ratio(a: float, b: float, axis: str) -> float:
    """log(a / b); two costs of zero are equal, one alone counts as the smallest unit."""
    if a == b:
        return 0.0
    least = min(_FREE.get(axis, 1.0), max(a, b))
    return math.log((a or least) / (b or least))


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))


def _unit(trials: Sequence[Reach]) -> str:
    for unit, values in (
        ("group", {t.group for t in trials}),
        ("problem", {t.problem for t in trials}),
        ("seed", {t.seed for t in trials}),
    ):
        if len(values) > 1:
            return unit
    return "none"


def _bounds(trials: Sequence[Reach]) -> tuple[list[float], list[float]]:
    """What is known of each cost: with the clock's spread if there is but one trial."""
    if len(trials) == 1:
        return [trials[0].fastest], [trials[0].slowest]
    return [t.lower for t in trials], [t.upper for t in trials]


def _clusters(trials: Sequence[Reach]) -> list[Hashable]:
    unit = _unit(trials)
    return [(t.group if unit == "group" else t.problem if unit == "problem" else i)
            for i, t in enumerate(trials)]  # fmt: skip
