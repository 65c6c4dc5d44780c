"""PAR-2, the penalised average cost: a trial that missed the target counts as twice its budget.

One number of both speed and reliability. It changes with the budget and is ruled by the misses, so
read it beside the solve counts.

Reference: Hutter, Hoos, Leyton-Brown & Stuetzle (2009), J. Artif. Intell. Res. 36 (PAR-10).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from optikit.bench.score.curves import ProblemScore
from optikit.bench.score.intervals import Interval, bootstrap, mean
from optikit.bench.score.reach import reaches

PENALTY = 2.0
"""A miss counts as so many budgets."""


class Par2(NamedTuple):
    """A method over all problems of a study.

    Attributes:
      budget: of one trial, in units of the axis.
      solved, trials: how many met the target; trials that failed are misses.
      score: mean over problems of the mean over trials; groups of problems are resampled.
    """

    variant: str
    axis: str
    budget: float
    solved: int
    trials: int
    score: Interval


def par2(
    problems: Sequence[ProblemScore],
    target: float,
    axis: str,
    budget: float,
    failed: Mapping[tuple[str, str], int] | None = None,
) -> list[Par2]:
    """Every method that was run on every problem, the least penalised cost first.

    What a trial cost counts as no more than a miss does, also where tuning is charged to it. Trials
    without a cost on the axis (an invalid clock) do not count.

    Args:
      problems: on a clock, with the trials of one machine (`on_one_machine`).
      failed: by (problem, variant), how many trials left no result.
    """
    lost = failed or {}
    ran = [p for p in problems if p.curves]
    variants = dict.fromkeys(
        [*(c.variant for p in ran for c in p.curves), *(variant for _, variant in lost)]
    )
    found = []
    for variant in variants:
        means, solved, trials = [], 0, 0
        for problem in ran:
            own = reaches([problem], target, axis, variant)
            missing = lost.get((problem.label, variant), 0)
            count = len(own) + missing
            if not count:
                break
            costs = [min(t.cost, PENALTY * budget) for t in own]
            means.append((math.fsum(costs) + missing * PENALTY * budget) / count)
            solved += sum(t.reached for t in own)
            trials += count
        if len(means) == len(ran) > 0:
            groups = [p.group or p.label for p in ran]
            score = bootstrap(mean, means, groups=groups)
            found.append(Par2(variant, axis, budget, solved, trials, score))
    return sorted(found, key=lambda one: one.score.estimate)
