"""What it costs to get as far as a reference solver got with its whole budget.

Where nobody knows the optimum, as of a network, a fraction of the way to it says little, and the
question is another: the seconds (steps, FLOPs) to the value at which the tuned baseline ended.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optikit.bench.score.curves import Curve, ProblemScore
from optikit.bench.score.rating import reference_variant
from optikit.bench.score.reach import reach, typical


class Matched(NamedTuple):
    """One variant on one problem.

    Attributes:
      cost: median over seeds of the cost to the reference's end; infinite if most miss it.
      ratio: that over the reference's own cost to the same; NaN where either is infinite or zero.
      reached: trials that got there, of so many.
      gap: median over seeds of the least gap that a trial came to.
    """

    problem: str
    variant: str
    cost: float
    ratio: float
    reached: int
    trials: int
    gap: float


def matched(
    problems: Sequence[ProblemScore], axis: str, reference: str | None = None
) -> list[Matched]:
    """Every variant against the reference's end, on the problems that the reference was run on.

    The end is the median, over the reference's trials, of the least gap each of them came to; so
    half of its own trials get there, some before they ended.

    Args:
      axis: of cost. On a clock, give trials of one machine only (`on_one_machine`).
      reference: a variant or optimizer label, as for ratings; by default the study's first.

    Raises:
      ValueError: no such reference.
    """
    fixed = reference_variant(problems, reference)
    found = []
    for problem in problems:
        own: dict[str, list[Curve]] = {}
        for curve in problem.curves:
            own.setdefault(curve.variant, []).append(curve)
        if fixed not in own:
            continue
        goal = float(np.median([min(curve.gaps) for curve in own[fixed]]))
        costs = {name: _cost(curves, goal, axis) for name, curves in own.items()}
        base = costs[fixed]
        for name, curves in own.items():
            least = [min(curve.gaps) for curve in curves]
            comparable = 0 < costs[name] < math.inf and 0 < base < math.inf
            found.append(
                Matched(
                    problem.label,
                    name,
                    costs[name],
                    costs[name] / base if comparable else math.nan,
                    sum(gap <= goal for gap in least),
                    len(curves),
                    float(np.median(least)),
                )
            )
    return found


def _cost(curves: list[Curve], goal: float, axis: str) -> float:
    """The median cost; misses count as infinite, trials without a clock do not count."""
    trials = [reach(curve, goal, axis) for curve in curves]
    return typical([t for t in trials if not math.isnan(t.cost)])
