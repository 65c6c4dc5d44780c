"""Which methods are worth considering: Pareto fronts, and orders that change with the axis."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optikit.bench.score.curves import ProblemScore
from optikit.bench.score.intervals import median, multiplicities
from optikit.bench.score.reach import Ratio, cost_ratio, reaches, typical
from optikit.bench.score.repeats import merged_repeats


class FrontPoint(NamedTuple):
    """A point that no trial beats: nobody was closer to the optimum at no more cost."""

    cost: float
    gap: float
    variant: str
    seed: int


def front(problem: ProblemScore, axis: str) -> list[FrontPoint]:
    """The Pareto front of suboptimality against an axis, over all snapshots, cheapest first.

    The front of a method alone is its own course; a rival appears on it where it was closer to the
    optimum at the same cost. Who came to the same point shares it.
    """
    points = sorted(
        FrontPoint(cost, gap, curve.variant, curve.seed)
        for curve in problem.curves
        for cost, gap in zip(curve.costs[axis], curve.gaps, strict=True)
        if math.isfinite(cost) and math.isfinite(gap)
    )
    found: list[FrontPoint] = []
    for point in points:
        last = found[-1] if found else None
        tied = last and point[:2] == last[:2] and point.variant != last.variant
        if last is None or point.gap < last.gap or tied:
            found.append(point)
    return found


def on_front(points: Sequence[FrontPoint]) -> list[str]:
    """The variants on a front, cheapest first, without those that are there by their start only."""
    return list(dict.fromkeys(point.variant for point in points if point.gap < 1))


def off_every_front(problem: ProblemScore, axes: Sequence[str]) -> list[str]:
    """Variants that are on the front of no axis: whatever one pays in, another does better."""
    on = {variant for axis in axes for variant in on_front(front(problem, axis))}
    variants = dict.fromkeys(curve.variant for curve in problem.curves)
    return [variant for variant in variants if variant not in on]


class Standing(NamedTuple):
    """A variant's place in the order of cost to a target.

    Attributes:
      place: 1 for the cheapest; methods that are not separable from the one before share a place.
      cost: median over seeds; infinite if most missed.
      behind: the ratio of its cost to that of the first; None for the first and for misses.
    """

    variant: str
    place: int
    cost: float
    behind: Ratio | None


def standings(problem: ProblemScore, target: float, axis: str) -> list[Standing]:
    """The order of cost to a target on one problem and axis, cheapest first.

    A method gets a place of its own only if its ratio to the leader of the place before excludes
    equality.
    """
    trials = {
        variant: found
        for variant in dict.fromkeys(curve.variant for curve in problem.curves)
        if (found := reaches([problem], target, axis, variant))
    }
    costs = {variant: typical(found) for variant, found in trials.items()}
    order = sorted(costs, key=lambda variant: costs[variant])
    placed: list[Standing] = []
    leader = ""  # of the current place
    for i, variant in enumerate(order):
        if not math.isfinite(costs[variant]):
            place = i + 1 if not placed or math.isfinite(placed[-1].cost) else placed[-1].place
            placed.append(Standing(variant, place, math.inf, None))
            continue
        if not placed:
            leader = variant
            placed.append(Standing(variant, 1, costs[variant], None))
            continue
        apart = cost_ratio(trials[variant], trials[leader])
        if apart.separable:
            leader = variant
        place = i + 1 if apart.separable else placed[-1].place
        placed.append(
            Standing(variant, place, costs[variant], cost_ratio(trials[variant], trials[order[0]]))
        )
    return placed


def probability_cheapest(
    problem: ProblemScore, target: float, axis: str, *, seed: int = 0
) -> dict[str, float]:
    """How often each variant has the least median cost when seeds are resampled; ties share.

    Seeds are drawn for all variants at once, since they share starts and data. A resample in which
    every median is a miss has no best, so the shares may add up to less than 1. Variants that lack
    a seed are left out. Nothing comes of one variant, of one seed, or of seeds that repeat one run.
    """
    merged = merged_repeats(problem).problem
    costs: dict[str, dict[int, float]] = {}
    for trial in reaches([merged], target, axis):
        costs.setdefault(trial.variant, {})[trial.seed] = trial.cost
    seeds = sorted({seed for own in costs.values() for seed in own})
    whole = {variant: own for variant, own in costs.items() if len(own) == len(seeds)}
    if len(seeds) < 2 or len(whole) < 2:
        return {}
    drawn = multiplicities(seeds, seed=seed)
    medians = np.stack(
        [median(np.array([own[s] for s in seeds]), drawn) for own in whole.values()], axis=1
    )
    leads = np.isfinite(medians) & (medians == medians.min(axis=1, keepdims=True))
    shares = leads / np.maximum(leads.sum(axis=1, keepdims=True), 1)
    return dict(zip(whole, shares.mean(axis=0).tolist(), strict=True))


class RankChange(NamedTuple):
    """Two methods whose order differs between two axes.

    Attributes:
      ahead: cheaper on `axis`. behind: dearer there, but cheaper on `other`.
      on_axis, on_other: cost(ahead) / cost(behind).
      certain: whether both ratios exclude equality; otherwise the change is not separable.
    """

    ahead: str
    behind: str
    axis: str
    other: str
    on_axis: Ratio
    on_other: Ratio
    certain: bool


def rank_changes(problem: ProblemScore, target: float, axes: Sequence[str]) -> list[RankChange]:
    """Every pair of methods that changes order between two of the axes: cost is not one number."""
    variants = list(dict.fromkeys(curve.variant for curve in problem.curves))
    trials = {
        (variant, axis): reaches([problem], target, axis, variant)
        for variant in variants
        for axis in axes
    }
    found = []
    for i, first in enumerate(variants):
        for second in variants[i + 1 :]:
            ratios = {axis: cost_ratio(trials[first, axis], trials[second, axis]) for axis in axes}
            found += [
                _change(first, second, axis, other, ratios)
                for j, axis in enumerate(axes)
                for other in axes[j + 1 :]
                if (ratios[axis].interval.estimate - 1) * (ratios[other].interval.estimate - 1) < 0
            ]
    return found


def _change(first: str, second: str, axis: str, other: str, ratios: dict[str, Ratio]) -> RankChange:
    a, b = ratios[axis], ratios[other]
    certain = a.separable and b.separable
    if a.interval.estimate < 1:
        return RankChange(first, second, axis, other, a, b, certain)
    return RankChange(second, first, axis, other, _inverse(a), _inverse(b), certain)


def _inverse(ratio: Ratio) -> Ratio:
    estimate, low, high, units = ratio.interval
    return ratio._replace(
        interval=ratio.interval._replace(
            estimate=1 / estimate, low=1 / high, high=1 / low, units=units
        ),
        first_only=ratio.second_only,
        second_only=ratio.first_only,
    )
