"""How the cost of a target grows with a swept argument of a problem: n, condition number, batch.

Costs are fitted by a power law, cost = a * size^exponent, on logarithms. Where one method overtakes
another is read off the sizes that were run, not off the fits: an extrapolated crossover is a guess.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from optikit.bench.score.curves import ProblemScore
from optikit.bench.score.intervals import LEVEL, RESAMPLES, Interval
from optikit.bench.score.reach import Ratio, cost_ratio, reaches, typical


class Sweep(NamedTuple):
    """Problems that differ in one swept argument only.

    Attributes:
      name: the swept argument. label: the problem's label, with the other swept arguments.
      problems: by size, ascending.
    """

    label: str
    name: str
    sizes: list[float]
    problems: list[ProblemScore]


def sweeps(problems: Sequence[ProblemScore]) -> list[Sweep]:
    """The one-dimensional sweeps of a study, of at least two sizes each.

    A grid over two arguments gives, for each value of the one, a sweep over the other.
    """
    found: dict[tuple, list[tuple[float, ProblemScore]]] = {}
    for problem in problems:
        for name, value in problem.swept.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                continue
            rest = {k: v for k, v in problem.swept.items() if k != name}
            base = problem.label.partition(" (")[0]
            inner = ", ".join(
                f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in rest.items()
            )
            label = f"{base} ({inner})" if inner else base
            found.setdefault((label, name), []).append((float(value), problem))
    made = []
    for (label, name), entries in found.items():
        entries.sort(key=lambda entry: entry[0])
        if len(entries) > 1:
            made.append(Sweep(label, name, [s for s, _ in entries], [p for _, p in entries]))
    return made


class Exponent(NamedTuple):
    """The fitted power of a method's cost.

    Attributes:
      power: with its interval; bounds are infinite below four sizes.
      sizes: those that entered the fit. missed: sizes where the target was mostly not met.
    """

    variant: str
    axis: str
    power: Interval
    sizes: list[float]
    missed: list[float]


def exponents(sweep: Sweep, target: float, axis: str) -> list[Exponent]:
    """The exponent of cost to a target of each method that met it at two sizes or more."""
    variants = dict.fromkeys(c.variant for p in sweep.problems for c in p.curves)
    found = []
    for variant in variants:
        costs: dict[float, float] = {}
        missed: list[float] = []
        for size, problem in zip(sweep.sizes, sweep.problems, strict=True):
            trials = reaches([problem], target, axis, variant)
            cost = typical(trials)
            if math.isfinite(cost) and cost > 0:
                costs[size] = cost
            elif trials:
                missed.append(size)
        if len(costs) > 1:
            found.append(Exponent(variant, axis, fit_exponent(costs), list(costs), missed))
    return found


def fit_exponent(
    costs: Mapping[float, float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The exponent of a power law through (size, cost), with a residual bootstrap interval.

    Residuals are inflated by sqrt(k / (k - 2)) for k sizes and the percentiles taken from Student's
    t, so that few sizes give wide intervals; below four sizes there is none (infinite bounds).

    Reference: Davison & Hinkley (1997), Bootstrap Methods and their Application, section 6.2.

    Example:
      >>> round(fit_exponent({n: 3.0 * n**2 for n in (10, 100, 1000, 10000)}).estimate, 6)
      2.0
    """
    from scipy.special import ndtr, stdtrit

    x = np.log(np.array(list(costs), float))
    y = np.log(np.array(list(costs.values()), float))
    k = x.size
    centred = x - x.mean()
    pull = centred / (centred @ centred)
    power = float(pull @ y)
    if k < 4:
        return Interval(power, -math.inf, math.inf, k)
    residuals = y - y.mean() - power * centred
    residuals *= math.sqrt(k / (k - 2))
    drawn = np.random.default_rng(seed).choice(residuals, size=(resamples, k))
    powers = power + drawn @ pull
    tail = float(ndtr(stdtrit(k - 2, (1 - level) / 2)))
    low, high = np.quantile(powers, [tail, 1 - tail])
    return Interval(power, float(low), float(high), k)


class Crossover(NamedTuple):
    """Where one method overtakes another along a sweep.

    Attributes:
      ratios: cost(first) / cost(second) at each size; None where not both met the target.
      leads: per size, "first", "second" or "" (not separable, or one seed, or nobody arrived). A
        method that alone met the target leads.
      between: the sizes between which the lead changes hands, as (size, next size, new leader).
    """

    first: str
    second: str
    axis: str
    sizes: list[float]
    ratios: list[Ratio | None]
    leads: list[str]
    between: list[tuple[float, float, str]]


def crossover(sweep: Sweep, first: str, second: str, target: float, axis: str) -> Crossover:
    """Which of two methods leads at each size, and where that changes."""
    ratios: list[Ratio | None] = []
    leads: list[str] = []
    for problem in sweep.problems:
        ratio = cost_ratio(
            reaches([problem], target, axis, first), reaches([problem], target, axis, second)
        )
        ratios.append(ratio if ratio.joint else None)
        leads.append(_lead(ratio))
    between = []
    last: tuple[float, str] | None = None
    for size, lead in zip(sweep.sizes, leads, strict=True):
        if lead and last and lead != last[1]:
            between.append((last[0], size, lead))
        if lead:
            last = (size, lead)
    return Crossover(first, second, axis, sweep.sizes, ratios, leads, between)


def _lead(ratio: Ratio) -> str:
    if ratio.joint:
        if not ratio.separable:
            return ""
        return "first" if ratio.interval.estimate < 1 else "second"
    if ratio.first_only > 1:
        return "first"
    return "second" if ratio.second_only > 1 else ""
