"""Profiles over a set of problems: performance profiles, data profiles, ECDFs.

A performance profile compares each solver with the best of those shown, so it changes with the
company: read it beside the pairwise table and the leave-one-solver-out check. Data profiles and
ECDFs do not: they show the share of problems solved within a cost.

References: Dolan & More (2002), Math. Program. 91; More & Wild (2009), SIAM J. Optim. 20; Gould &
Scott (2016), ACM TOMS 43 (why to compare in pairs); Hansen et al. (2021), COCO (ECDF).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from optikit.bench.score.curves import ProblemScore
from optikit.bench.score.reach import reach, reaches, typical

HORIZON = 100.0
"""Ratios to the best beyond this count as unsolved in the area under a performance profile."""


class CostTable(NamedTuple):
    """Cost of meeting a target: one row per problem, one column per solver.

    Attributes:
      values: (problems, solvers); medians over seeds, infinite where most seeds missed.
      parameters: the number of unknowns n of each problem.
      left_out: (solver, reason) of those that were not run, or not measured, on every problem.
    """

    target: float
    axis: str
    problems: list[str]
    solvers: list[str]
    values: np.ndarray
    parameters: list[int]
    left_out: list[tuple[str, str]]

    def only(self, solvers: Sequence[str]) -> "CostTable":
        """The same table with some of the solvers, in the given order."""
        columns = [self.solvers.index(solver) for solver in solvers]
        return self._replace(solvers=list(solvers), values=self.values[:, columns])


class Steps(NamedTuple):
    """A solver's step function: `share[i]` from `x[i]` on, 0 before."""

    solver: str
    x: list[float]
    share: list[float]

    def at(self, x: float) -> float:
        """The share at a cost or ratio."""
        i = int(np.searchsorted(self.x, x, side="right"))
        return self.share[i - 1] if i else 0.0


def cost_table(problems: Sequence[ProblemScore], target: float, axis: str) -> CostTable:
    """The costs of all solvers that were run on every problem.

    Raises:
      ValueError: the axis is a clock and the trials come from several machines.
    """
    solvers = list(dict.fromkeys(c.variant for p in problems for c in p.curves))
    left_out, columns, kept = [], [], []
    for solver in solvers:
        column, reason = [], ""
        for problem in problems:
            found = reaches([problem], target, axis, solver)
            if not found:
                ran = any(c.variant == solver for c in problem.curves)
                reason = (
                    f"{axis} unknown on {problem.label}" if ran else f"not run on {problem.label}"
                )
                break
            column.append(typical(found))
        if reason:
            left_out.append((solver, reason))
        else:
            kept.append(solver)
            columns.append(column)
    values = np.array(columns, float).T.reshape(len(problems), len(kept))
    sizes = [int(p.facts.get("parameters", 0)) for p in problems]
    return CostTable(target, axis, [p.label for p in problems], kept, values, sizes, left_out)


def performance_profile(table: CostTable) -> list[Steps]:
    """For each solver: the share of problems it solved within x times the best solver's cost.

    A problem that nobody solved counts against everybody.
    """
    ratios = _ratios(table.values)
    return [_steps(name, ratios[:, j]) for j, name in enumerate(table.solvers)]


def data_profile(table: CostTable) -> list[Steps]:
    """For each solver: the share of problems solved within x * (n + 1) units of cost.

    With gradient equivalents as cost this is More & Wild's profile: n + 1 values make a simplex
    gradient, so x counts what a derivative-free method would call gradients.
    """
    scaled = table.values / (np.array(table.parameters, float)[:, None] + 1)
    return [_steps(name, scaled[:, j]) for j, name in enumerate(table.solvers)]


def ecdf(
    problems: Iterable[ProblemScore], targets: Sequence[float], axis: str
) -> dict[int, list[Steps]]:
    """For each n, each solver's share of (problem, seed, target) triples solved within a cost.

    Problems of different n are never pooled: with n grows the cost, and an average over sizes is
    about none of them.
    """
    by_size: dict[int, dict[str, list[float]]] = {}
    for problem in problems:
        size = by_size.setdefault(int(problem.facts.get("parameters", 0)), {})
        for curve in problem.curves:
            found = [reach(curve, target, axis) for target in targets]
            if not any(math.isnan(t.cost) for t in found):
                size.setdefault(curve.variant, []).extend(t.cost for t in found)
    return {
        n: [_steps(name, np.array(costs)) for name, costs in by_size[n].items()]
        for n in sorted(by_size)
    }


class Pair(NamedTuple):
    """Two solvers beside each other on the problems of a table.

    Attributes:
      wins, losses, ties: problems where the first was cheaper, dearer, or neither.
      profiles: their performance profile with nobody else in it.
    """

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    profiles: list[Steps]


def pairwise(table: CostTable) -> list[Pair]:
    """Every two solvers with only each other for company: independent of who else takes part."""
    found = []
    for i, first in enumerate(table.solvers):
        for second in table.solvers[i + 1 :]:
            two = table.only([first, second])
            a, b = two.values.T
            wins, losses = int(np.sum(a < b)), int(np.sum(b < a))
            ties = len(table.problems) - wins - losses
            found.append(Pair(first, second, wins, losses, ties, performance_profile(two)))
    return found


def ranking(table: CostTable) -> list[tuple[str, float]]:
    """Solvers by the area under their performance profile, best first.

    The area is over log2 of the ratio up to `HORIZON`, scaled to [0, 1]: 1 for a solver that is the
    best everywhere.
    """
    ratios = np.minimum(_ratios(table.values), HORIZON)
    area = 1 - np.log2(ratios).mean(axis=0) / math.log2(HORIZON) if len(table.problems) else []
    ranked = zip(table.solvers, map(float, area), strict=True)
    return sorted(ranked, key=lambda pair: -pair[1])


class LeftOut(NamedTuple):
    """What leaving one solver out does to the others: pairs (was ahead, is now behind)."""

    solver: str
    swapped: list[tuple[str, str]]


def leave_one_solver_out(table: CostTable) -> list[LeftOut]:
    """Whose absence would change the order of the others in `ranking`; empty if nobody's.

    A ranking that changes when a rival leaves says more about the company than about the solvers.
    """
    found = []
    full = dict(ranking(table))
    for solver in table.solvers:
        rest = [s for s in table.solvers if s != solver]
        part = dict(ranking(table.only(rest)))
        swapped = [(a, b) for a in rest for b in rest if full[a] > full[b] and part[a] < part[b]]
        if swapped:
            found.append(LeftOut(solver, swapped))
    return found


def _ratios(values: np.ndarray) -> np.ndarray:
    """Costs over the best of the row; infinite where a solver, or everybody, missed."""
    if not values.size:
        return values
    best = values.min(axis=1, keepdims=True)
    safe = np.maximum(best, np.finfo(float).tiny)
    with np.errstate(over="ignore", invalid="ignore"):
        ratios = np.where(values == best, 1.0, values / safe)
    return np.where(np.isfinite(values), ratios, np.inf)


def _steps(solver: str, costs: np.ndarray) -> Steps:
    solved = np.sort(costs[np.isfinite(costs)])
    x, last = np.unique(solved, return_index=True)
    share = np.append(last[1:], solved.size) / max(costs.size, 1)
    return Steps(solver, x.tolist(), share.tolist() if solved.size else [])
