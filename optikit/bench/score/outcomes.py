"""What each method came to on a problem: how often it met the target, and what that costs."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from optikit.bench.axes import AXES
from optikit.bench.score.curves import ProblemScore
from optikit.bench.score.fronts import (
    RankChange,
    off_every_front,
    probability_cheapest,
    rank_changes,
)
from optikit.bench.score.intervals import Interval
from optikit.bench.score.reach import (
    Ratio,
    expected_running_time,
    median_cost,
    reaches,
    success_rate,
    typical,
)
from optikit.bench.score.repeats import merged_repeats
from optikit.bench.score.verdicts import SPOKEN, is_known, listed

MOST_COMPARED = 8
"""Methods whose order is compared on every pair of axes: the cheapest ones."""

MOST_TOLD = 2
"""Pairs of methods that a sentence names."""

NAMES = {**SPOKEN, "calls": "oracle calls", "memory": "program memory"}
"""How a sentence calls an axis."""


class Outcome(NamedTuple):
    """One variant on one problem, target and axis.

    Attributes:
      reached, trials: how many of its trials met the target; repeats of one run are one trial.
      success: their share, with Wilson's interval.
      median: the median cost of meeting the target, misses counted as infinite.
      expected: the expected running time, restarts after misses included.
      best: the share of resamples of seeds in which its median is the least; None from one seed.
    """

    problem: str
    variant: str
    axis: str
    target: float
    reached: int
    trials: int
    success: Interval
    median: Interval
    expected: Interval
    best: float | None

    def plain(self) -> dict[str, Any]:
        """For JSON: an interval is [estimate, low, high], what is not finite is None."""
        return {
            name: [x if math.isfinite(x) else None for x in value[:3]]
            if isinstance(value, Interval)
            else value
            for name, value in self._asdict().items()
        }


def outcomes(problem: ProblemScore, target: float, axis: str) -> list[Outcome]:
    """Every variant's outcome, those left out whose cost on the axis is unknown.

    Raises:
      ValueError: the axis is of one machine and the trials come from several.
    """
    merged = merged_repeats(problem).problem
    best = probability_cheapest(merged, target, axis)
    found = []
    for variant in dict.fromkeys(curve.variant for curve in merged.curves):
        if trials := reaches([merged], target, axis, variant):
            found.append(
                Outcome(
                    problem.label, variant, axis, target,
                    reached=sum(t.reached for t in trials),
                    trials=len(trials),
                    success=success_rate(trials),
                    median=median_cost(trials),
                    expected=expected_running_time(trials),
                    best=best.get(variant),
                )
            )  # fmt: skip
    return found


def trade_offs(problem: ProblemScore, target: float, axes: Sequence[str]) -> str:
    """On which axes the order of methods changes, and who is ahead on none: a sentence or two."""
    merged, repeats = merged_repeats(problem)
    variants = {curve.variant for curve in merged.curves}
    axes = [axis for axis in axes if is_known([merged], axis)]
    if len(variants) < 2 or not axes:
        return ""
    off = off_every_front(merged, axes)
    behind = f"On the front of no axis: {listed(off)}." if off else ""
    once = repeats > 1 or len({curve.seed for curve in merged.curves}) == 1
    return " ".join(filter(None, [_changes(merged, target, axes, once=once), behind]))


def _changes(problem: ProblemScore, target: float, axes: Sequence[str], *, once: bool) -> str:
    """Which pairs change order between axes by more than what is in doubt.

    First those of which each is the cheapest on some axis, then the greatest reversals.
    """
    cheapest = _cheapest(problem, target, axes[0])
    if len({curve.variant for curve in cheapest.curves}) < 2:
        return ""
    pairs: dict[frozenset[str], list[RankChange]] = {}
    for change in rank_changes(cheapest, target, axes):
        if _apart(change.on_axis) and _apart(change.on_other):
            pairs.setdefault(frozenset((change.ahead, change.behind)), []).append(change)
    if not pairs:
        return "No two methods change order from axis to axis by more than is in doubt."
    leaders = {_cheapest(cheapest, target, axis, most=1).curves[0].variant for axis in axes}
    order = sorted(
        pairs.items(), key=lambda item: (-len(item[0] & leaders), -max(map(_reversal, item[1])))
    )
    told = "; ".join(_pair(changes) for _, changes in order[:MOST_TOLD])
    rest = len(order) - MOST_TOLD
    pairs_change = "pair changes" if rest == 1 else "pairs change"
    more = f"; {rest} more {pairs_change} places too" if rest > 0 else ""
    lead = "In one run each, the order changes" if once else "The order changes"
    return f"{lead} with the axis: {told}{more}."


def _cheapest(
    problem: ProblemScore, target: float, axis: str, *, most: int = MOST_COMPARED
) -> ProblemScore:
    """The methods that most often met the target, the cheapest of them where there are many."""
    variants = dict.fromkeys(curve.variant for curve in problem.curves)
    costs = {variant: typical(reaches([problem], target, axis, variant)) for variant in variants}
    order = sorted((v for v in costs if math.isfinite(costs[v])), key=lambda v: costs[v])
    kept = order[:most]
    return problem._replace(curves=[c for c in problem.curves if c.variant in kept])


def _apart(ratio: Ratio) -> bool:
    return ratio.interval.low > 1 or ratio.interval.high < 1


def _reversal(change: RankChange) -> float:
    """How far the ratio of two costs turns round, as a logarithm."""
    return math.log(change.on_other.interval.estimate / change.on_axis.interval.estimate)


def _pair(changes: Sequence[RankChange]) -> str:
    ahead, behind = changes[0].ahead, changes[0].behind
    sides: dict[str, dict[str, None]] = {ahead: {}, behind: {}}
    for change in changes:
        sides[change.ahead][change.axis] = None
        sides[change.behind][change.other] = None
    won, lost = (
        listed([NAMES.get(axis, axis) for axis in AXES if axis in sides[who]])
        for who in (ahead, behind)
    )
    return f"{ahead} is ahead of {behind} in {won}, behind it in {lost}"
