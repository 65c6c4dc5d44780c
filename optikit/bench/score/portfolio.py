"""The portfolio of defaults: on each problem the best of all methods as they come, untuned.

Trying several optimizers with their defaults does about as well as tuning one of them, so what
tuning is worth is judged beside it. Its cost has two ends. That of the best alone is what a reader
pays who knows beforehand which one it will be: a bound that nobody reaches without luck. That of
all tried is what finding it out costs: each is run until it meets the target or its budget ends.

Reference: Schmidt, Schneider & Hennig (2021), ICML, Descending through a crowded valley.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optikit.bench.axes import AXES
from optikit.bench.job import DEFAULT, TUNED
from optikit.bench.score.curves import Curve, ProblemScore
from optikit.bench.score.profiles import CostTable
from optikit.bench.score.reach import reaches, typical

NAME = "portfolio of defaults"


class Portfolio(NamedTuple):
    """The untuned methods of one problem, taken together.

    Attributes:
      tried: the untuned variants. best: that of them with the least median cost; "" if most
        trials of each missed.
      alone: the cost of the best alone; infinite if none met the target.
      total: what all of them spent, medians added (of memory the greatest); infinite likewise.
    """

    problem: str
    axis: str
    tried: list[str]
    best: str
    alone: float
    total: float


def tunes(problems: Sequence[ProblemScore]) -> bool:
    """Whether a study has tuned methods."""
    return any(c.variant.endswith(TUNED) for p in problems for c in p.curves)


def portfolio(problem: ProblemScore, target: float, axis: str) -> Portfolio | None:
    """The methods with their defaults as one; None where no cost of theirs is known.

    A method without a search space is its own default; of one with a grid no setting is.
    """
    spent: dict[str, float] = {}
    costs: dict[str, float] = {}
    for variant in dict.fromkeys(c.variant for c in problem.curves if _is_default(c)):
        if trials := reaches([problem], target, axis, variant):
            costs[variant] = typical(trials)
            spent[variant] = float(np.median([t.spent for t in trials]))
    if not costs:
        return None
    best = min(costs, key=lambda variant: costs[variant])
    if math.isinf(costs[best]):
        return Portfolio(problem.label, axis, list(costs), "", math.inf, math.inf)
    total = max(spent.values()) if AXES[axis].whole else math.fsum(spent.values())
    return Portfolio(problem.label, axis, list(costs), best, costs[best], total)


def _is_default(curve: Curve) -> bool:
    return curve.variant in (curve.optimizer, f"{curve.optimizer} {DEFAULT}")


def names(tried: Sequence[int]) -> tuple[str, str]:
    """What the two rows of a portfolio are called, given how many it tried on each problem.

    Example:
      >>> names([3])
      ('portfolio of defaults: the best of 3 alone', 'portfolio of defaults: all 3 tried')
    """
    low, high = min(tried), max(tried)
    count = f"{low}" if low == high else f"{low} to {high}"
    return f"{NAME}: the best of {count} alone", f"{NAME}: all {count} tried"


def with_portfolio(table: CostTable, problems: Sequence[ProblemScore]) -> CostTable:
    """A table of costs with the portfolio as two more solvers, if its cost is known everywhere.

    It is made of the table's own solvers, so it moves nobody's performance profile: neither of the
    two is cheaper than the best of them.

    Args:
      problems: those of the table.
    """
    own = [p._replace(curves=[c for c in p.curves if c.variant in table.solvers]) for p in problems]
    found = [portfolio(problem, table.target, table.axis) for problem in own]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return table
    costs = np.array([[one.alone, one.total] for one in known])
    return table._replace(
        solvers=[*table.solvers, *names([len(one.tried) for one in known])],
        values=np.hstack([table.values, costs]),
    )
