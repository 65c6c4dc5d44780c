"""Compilation against warm gains: from how many solves on a method takes less time than another.

The first solve is cold: tracing, lowering, compiling and the first run. Every later one is warm, so
n solves take cold + (n - 1) warm seconds.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from optikit.bench.score.curves import Curve, ProblemScore
from optikit.bench.score.rating import reference_variant
from optikit.bench.score.reach import Ratio, Reach, cost_ratio, reaches, typical
from optikit.bench.score.repeats import merged_repeats


class BreakEven(NamedTuple):
    """For how many solves a method takes no more time in all than the reference.

    Attributes:
      first: the least number of solves; infinite if there is none.
      last: the greatest; infinite if it stays so however many there are.
      certain: whether cold and warm seconds are each apart from the reference's, as far as seeds,
        snapshots and the clock tell; where only one of the two met the target nothing is in doubt.
    """

    problem: str
    variant: str
    reference: str
    target: float
    first: float
    last: float
    certain: bool


def break_even(
    problems: Sequence[ProblemScore], target: float, reference: str | None = None
) -> list[BreakEven]:
    """Every method against the reference, on the problems where one of the two met the target.

    Seconds are medians over seeds. Where tuning is charged, the first solve pays for it. Methods
    whose clock is worth nothing are left out.

    Args:
      problems: of one machine (`on_one_machine`).
      reference: a variant or optimizer label, as for ratings; by default the study's first.

    Raises:
      ValueError: no such reference, or trials of several machines.
    """
    fixed = reference_variant(problems, reference)
    found = []
    for problem in problems:
        merged = merged_repeats(problem).problem
        merged = merged._replace(curves=[_tuned_once(curve, problem) for curve in merged.curves])
        base = [reaches([merged], target, axis, fixed) for axis in ("cold", "warm")]
        if not all(base):
            continue
        for variant in dict.fromkeys(curve.variant for curve in merged.curves):
            own = [reaches([merged], target, axis, variant) for axis in ("cold", "warm")]
            met = any(math.isfinite(typical(trials)) for trials in (*own, *base))
            if variant != fixed and met and all(own):
                found.append(_against(problem.label, variant, fixed, target, own, base))
    return found


def _tuned_once(curve: Curve, problem: ProblemScore) -> Curve:
    """The curve without what its tuning was charged in warm seconds."""
    if curve.costs["steps"][0] == 0:
        return curve  # nothing was charged
    due = math.fsum(c.costs["warm"][-1] for c in problem.tuning if c.optimizer == curve.optimizer)
    return curve._replace(
        costs=curve.costs | {"warm": [x - due for x in curve.costs["warm"]]},
        warm_spread=[(low - due, high - due) for low, high in curve.warm_spread],
    )


def _against(
    problem: str,
    variant: str,
    reference: str,
    target: float,
    own: Sequence[list[Reach]],
    base: Sequence[list[Reach]],
) -> BreakEven:
    first, last = solves(*map(typical, (*own, *base)))
    ratios = [cost_ratio(a, b) for a, b in zip(own, base, strict=True)]
    certain = all(not ratio.joint or _apart(ratio) for ratio in ratios)
    return BreakEven(problem, variant, reference, target, first, last, certain)


def solves(cold: float, warm: float, base_cold: float, base_warm: float) -> tuple[float, float]:
    """The least and the greatest number of solves that take no longer than the base's.

    Example:
      >>> solves(5.0, 1.0, 2.0, 2.0)  # three seconds more at first, one less each later time
      (4, inf)
      >>> solves(2.0, 2.0, 5.0, 1.0), solves(5.0, 2.0, 2.0, 1.0)
      ((1, 4), (inf, inf))
    """
    if math.isinf(cold) or math.isinf(base_cold):
        return (math.inf, math.inf) if math.isinf(cold) else (1, math.inf)
    loss, gain = cold - base_cold, base_warm - warm
    if loss <= 0:
        return 1, math.inf if gain >= 0 else math.floor(1 + loss / gain)
    return (math.ceil(1 + loss / gain), math.inf) if gain > 0 else (math.inf, math.inf)


def _apart(ratio: Ratio) -> bool:
    return ratio.interval.low > 1 or ratio.interval.high < 1
