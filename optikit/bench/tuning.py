"""The tuning protocol: equal trials for every method, and what they say.

Each optimizer with a search space gets the same number of quasi-random settings on each problem,
with seeds of their own. The best one is then run with the report's seeds as `label (tuned)`, beside
`label (default)`. Choosing uses the tuning records alone, so that the choice can be repeated;
reports show how good the best of k settings would have been, and flag a best setting at the edge of
its space.

References: Sivaprasad, Mai, Vogels, Jaggi & Fleuret (2020), ICML (best of k); Choi, Shallue, Nado,
Lee, Maddison & Dahl (2019), arXiv:1910.05446 (the search space decides); Dodge, Gururangan, Card,
Schwartz & Smith (2019), EMNLP.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from optikit.bench.job import DEFAULT, TUNED, Job
from optikit.bench.score import Curve, ProblemScore, main_target, reach, score
from optikit.bench.score.reach import Reach, typical
from optikit.bench.spaces import Space, settings, spaces
from optikit.bench.spec import OptimizerUse, Study, Tuning
from optikit.bench.store import Record

STILL_IMPROVING = 0.1
"""More trials would help where the best of half of them costs this much more, relative."""


def sample(use: OptimizerUse, tuning: Tuning) -> list[dict[str, Any]]:
    """The settings that are tried for an optimizer: all its arguments, one dict per trial.

    A scrambled Sobol or Halton sequence over the unit cube; more trials go on where fewer ended.

    Example:
      >>> use = OptimizerUse(use="adam", learning_rate={"log_uniform": [1e-4, 1.0]})
      >>> [1e-4 <= s["learning_rate"] <= 1.0 for s in sample(use, Tuning(trials=3))]
      [True, True, True]
      >>> sample(use, Tuning(trials=2)) == sample(use, Tuning(trials=3))[:2]
      True
    """
    from scipy.stats import qmc

    declared = spaces(use.arguments)
    if tuning.sampler == "sobol":
        sequence = qmc.Sobol(len(declared), rng=np.random.default_rng(tuning.seed))
        points = sequence.random_base2(
            math.ceil(math.log2(tuning.trials)) if tuning.trials > 1 else 0
        )
    else:
        points = qmc.Halton(len(declared), rng=np.random.default_rng(tuning.seed)).random(
            tuning.trials
        )
    return [fixed(use) | chosen for chosen in settings(declared, points[: tuning.trials])]


def fixed(use: OptimizerUse) -> dict[str, Any]:
    """An optimizer's arguments that are not searched: with these alone it has its defaults."""
    searched = {space.name for space in spaces(use.arguments)}
    return {name: value for name, value in use.arguments.items() if name not in searched}


def choose(
    study: Study, jobs: Sequence[Job], records: Mapping[str, Record]
) -> dict[tuple[str, str], dict[str, Any]]:
    """The best setting by (problem, optimizer label), from the records of tuning trials alone.

    With the criterion "cost", the least median cost to the target over the tuning seeds, settings
    that mostly missed it compared by their gap; with "gap", the least gap when the budget ended.
    Trials that failed or left no record lose. The optimum is the best that tuning found, so that
    later trials do not change the choice.
    """
    trials = [job for job in jobs if job.kind == "problem" or job.role == "tune"]
    chosen = {}
    for problem in score(trials, dict(records)):
        for label, found in _by_optimizer(problem.tuning).items():
            best = _ranked(found, study)[0]
            chosen[problem.label, label] = dict(best[0].arguments)
    return chosen


def _by_optimizer(curves: Sequence[Curve]) -> dict[str, list[list[Curve]]]:
    """Curves by optimizer and setting."""
    found: dict[str, dict[str, list[Curve]]] = {}
    for curve in curves:
        found.setdefault(curve.optimizer, {}).setdefault(curve.variant, []).append(curve)
    return {label: list(of.values()) for label, of in found.items()}


def _ranked(trials: list[list[Curve]], study: Study) -> list[list[Curve]]:
    """Settings, best first."""
    return sorted(trials, key=lambda curves: _merit(curves, study))


def _merit(curves: list[Curve], study: Study) -> tuple[float, float]:
    """What is to be least: cost to the target, then the gap that was left."""
    left = float(np.median([min(curve.gaps) for curve in curves]))
    if study.tuning.criterion == "gap":
        return left, 0.0
    return _cost(curves, study), left


def _cost(curves: list[Curve], study: Study) -> float:
    """Median cost to the target over seeds; in steps where the axis was not measured."""
    found = [reach(curve, tuning_target(study), study.tuning.axis) for curve in curves]
    if any(math.isnan(t.cost) for t in found):
        found = [reach(curve, tuning_target(study), "steps") for curve in curves]
    return typical(found)


def tuning_target(study: Study) -> float:
    """The target that tuning aims at: its own, else the main one of the study."""
    return main_target(study.targets) if study.tuning.target is None else study.tuning.target


class BestOfK(NamedTuple):
    """What the best of k settings, drawn from those tried, would cost.

    Attributes:
      reached: probability that one of the k meets the target at all.
      expected: expected cost of the best one, where one does; infinite if none ever does.
      median: half of all draws do as well or better; infinite if half of them miss.
    """

    k: int
    reached: float
    expected: float
    median: float


def best_of_k(costs: Sequence[float], k: int) -> BestOfK:
    """The distribution of the best of k costs drawn without replacement; misses are infinite.

    The i-th cheapest of K is the best of k draws with probability C(K - i, k - 1) / C(K, k).

    Example:
      >>> best_of_k([4.0, 2.0, 6.0], 1).expected, best_of_k([4.0, 2.0, 6.0], 3).expected
      (4.0, 2.0)
      >>> best_of_k([1.0, math.inf], 1)
      BestOfK(k=1, reached=0.5, expected=1.0, median=1.0)
    """
    ranked = sorted(costs)
    total = len(ranked)
    if not 1 <= k <= total:
        msg = f"the best of {k} cannot be drawn from {total} settings: k must be 1 to {total}."
        raise ValueError(msg)
    draws = math.comb(total, k)
    shares = [math.comb(total - i, k - 1) / draws for i in range(1, total + 1)]
    met = [(p, c) for p, c in zip(shares, ranked, strict=True) if math.isfinite(c)]
    reached = min(math.fsum(p for p, _ in met), 1.0)
    expected = math.fsum(p * c for p, c in met) / reached if reached else math.inf
    below, median = 0.0, math.inf
    for p, c in zip(shares, ranked, strict=True):
        below += p
        if below >= 0.5 - 1e-12:
            median = c
            break
    return BestOfK(k, reached, expected, median)


class Tuned(NamedTuple):
    """How the tuning of one optimizer on one problem went.

    Attributes:
      chosen: the best setting's arguments. searched: those of them that were searched.
      costs: of every setting, in the order of the trials; infinite where the target was missed.
      curve: best-of-k for every k up to the number of trials.
      charge: by axis, what all tuning trials together cost.
      flags: what should make a reader doubt the tuning, in words; empty if nothing does.
      lanes: which trials shared programs, in words; empty if none did.
    """

    problem: str
    optimizer: str
    chosen: dict[str, Any]
    searched: dict[str, Any]
    costs: list[float]
    axis: str
    target: float
    curve: list[BestOfK]
    charge: dict[str, float]
    flags: list[str]
    lanes: str


def tuning_report(study: Study, problems: Sequence[ProblemScore]) -> list[Tuned]:
    """How tuning went, for every tuned optimizer on every problem."""
    made = []
    for problem in problems:
        for label, trials in _by_optimizer(problem.tuning).items():
            use = study.optimizers.get(label)
            if use is not None:
                made.append(_tuned(study, problem, label, spaces(use.arguments), trials))
    return made


def _tuned(
    study: Study,
    problem: ProblemScore,
    label: str,
    declared: list[Space],
    trials: list[list[Curve]],
) -> Tuned:
    best = _ranked(trials, study)[0][0]
    costs = [_cost(curves, study) for curves in trials]
    curve = [best_of_k(costs, k) for k in range(1, len(costs) + 1)]
    finals = [c for curves in trials for c in curves]
    charge = {axis: sum(c.costs[axis][-1] for c in finals) for axis in finals[0].costs}
    searched = {s.name: best.arguments[s.name] for s in declared if s.name in best.arguments}
    flags = [
        f"{s.name} = {searched[s.name]:.3g} is at the {s.edge(searched[s.name])} end of its range"
        for s in declared
        if s.name in searched and s.edge(searched[s.name])
    ]
    flags += _undertuned(study, problem, label, curve, charge)
    return Tuned(
        problem.label, label, dict(best.arguments), searched, costs, study.tuning.axis,
        tuning_target(study), curve, charge, flags, _told_of_lanes(finals),
    )  # fmt: skip


def _told_of_lanes(trials: list[Curve]) -> str:
    """Which trials shared programs, and what those did beyond what was asked; "" if none did."""
    lanes = [trial.facts["lanes"] for trial in trials if trial.facts.get("lanes")]
    if not lanes:
        return ""
    programs = [shared for shared in lanes if shared["lane"] == 0]
    told = f"{len(lanes)} of {len(trials)} trials as lanes of {len(programs)} " + (
        "program" if len(programs) == 1 else "programs"
    )
    counted = [shared for shared in programs if shared["executed"] is not None]
    asked, done = (
        sum(sum(shared[kind]["calls"].values()) for shared in counted)
        for kind in ("logical", "executed")
    )
    return told + (f", {done / asked:.3g}x the oracle calls asked for" if asked else "")


def _undertuned(
    study: Study,
    problem: ProblemScore,
    label: str,
    curve: list[BestOfK],
    charge: Mapping[str, float],
) -> list[str]:
    """Signs that more trials, or another space, would give another result."""
    flags = []
    missing = study.tuning.trials - len(curve)
    if missing > 0:
        flags.append(f"{missing} of {study.tuning.trials} trials left no result")
    if not curve[-1].reached:
        return [*flags, "under-tuned: no trial met the target"]
    half, full = curve[max(len(curve) // 2, 1) - 1], curve[-1]
    gain = half.expected / full.expected if full.expected else 1.0
    if half.reached < 1 - STILL_IMPROVING or gain > 1 + STILL_IMPROVING:
        flags.append(
            f"under-tuned: the best of {half.k} trials costs {gain:.2g}x the best of {full.k} "
            f"on average and meets the target in {half.reached:.0%} of draws"
        )
    costs = {
        kind: typical(found)
        for kind in (TUNED, DEFAULT)
        if (found := _trials(problem, f"{label} {kind}", study, charge))
    }
    if len(costs) == 2 and costs[DEFAULT] < costs[TUNED]:
        flags.append("under-tuned: the default settings do better")
    return flags


def _trials(
    problem: ProblemScore, variant: str, study: Study, charge: Mapping[str, float]
) -> list[Reach]:
    """A variant's trials, without what tuning they may have been charged with."""
    target, axis = tuning_target(study), study.tuning.axis
    found = []
    for curve in problem.curves:
        trial = reach(curve, target, axis)
        if curve.variant == variant and not math.isnan(trial.cost):
            due = charge[axis] if curve.costs["steps"][0] > 0 else 0.0
            found.append(trial._replace(cost=trial.cost - due))
    return found


def charged(problem: ProblemScore) -> ProblemScore:
    """The problem with the cost of tuning added to every tuned curve, on every axis."""
    bill: dict[str, dict[str, float]] = {}
    for curve in problem.tuning:
        own = bill.setdefault(curve.optimizer, {})
        for axis, costs in curve.costs.items():
            own[axis] = own.get(axis, 0.0) + costs[-1]

    def pay(curve: Curve) -> Curve:
        due = bill.get(curve.optimizer)
        if due is None or not curve.variant.endswith(TUNED):
            return curve
        return curve._replace(
            costs={axis: [c + due[axis] for c in costs] for axis, costs in curve.costs.items()},
            warm_spread=[
                (low + due["warm"], high + due["warm"]) for low, high in curve.warm_spread
            ],
        )

    return problem._replace(curves=[pay(curve) for curve in problem.curves])
