"""Verdicts in words: does second order pay here, in what, by how much, how sure, and up to where?

A claim is made only where the interval of a paired ratio excludes equality, which takes more than
one seed, and seeds that change something; otherwise the sentence says "not separable" or gives the
measured numbers of the one seed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from optikit.bench.score.curves import ProblemScore
from optikit.bench.score.fronts import front, on_front, standings
from optikit.bench.score.intervals import LEVEL
from optikit.bench.score.rating import LIMIT, rating_table, ratings
from optikit.bench.score.reach import (
    CLOCK_AXES,
    Ratio,
    Reach,
    cost_ratio,
    on_one_machine,
    reaches,
    typical,
)
from optikit.bench.score.repeats import merged_repeats
from optikit.bench.score.scaling import Crossover, Sweep, crossover, exponents, sweeps

SPOKEN = {
    "warm": "warm seconds",
    "cold": "seconds with compilation",
    "gradients": "gradient equivalents",
    "flops": "FLOPs",
}
"""The axes that verdicts speak of, warm seconds first."""


class Rival(NamedTuple):
    """The best of an order on an axis: its trials, and their median cost."""

    variant: str
    trials: list[Reach]
    cost: float


def verdicts(
    problems: Sequence[ProblemScore], target: float, *, reference: str | None = None
) -> list[str]:
    """What each problem says, each sweep, all problems together; and what was left out."""
    chosen, note = on_one_machine(problems)
    told = [verdict(problem, target) for problem in chosen if problem.curves]
    chosen = [merged_repeats(problem).problem for problem in chosen]
    for sweep in sweeps(chosen):
        axes = dict.fromkeys((main_axis(sweep.problems), "gradients"))
        told += [said for axis in axes if (said := scaling_verdict(sweep, target, axis))]
    told += [overall] if (overall := rating_verdict(chosen, target, reference)) else []
    return told + ([note] if note else [])


def verdict(problem: ProblemScore, target: float) -> str:
    """What one problem says: which order is ahead in what, with what confidence, and who missed.

    In warm seconds where they were measured, else in the first axis that was.
    """
    (problem,), note = on_one_machine([problem])
    problem, repeats = merged_repeats(problem)
    axis = main_axis([problem])
    seeds = len({curve.seed for curve in problem.curves})
    where = f"On {problem.label}"
    missed = _missed(problem, target)
    tails = [f"Not within the budget: {listed(missed)}."] if missed else []
    tails += [f"The {repeats} seeds repeat one run: nothing depends on them."] * (repeats > 1)
    tails += [note] if note else []
    if problem.curves and all(curve.gaps[0] == 0 for curve in problem.curves):
        return (
            f"{where}, every trial starts at the best known value and none found a lower one: "
            "nothing to compare."
        )
    second, first = _rivals(problem, target, axis)
    if second is None and first is None:
        best = min(problem.curves, key=lambda c: min(c.gaps), default=None)
        closest = f"; {best.variant} came closest, at {min(best.gaps):.1e}" if best else ""
        return f"{where}, no method reached {target:g} of the optimum within the budget{closest}."
    said = [_front(problem, axis), _level(problem, target, axis), *tails]
    if second is None or first is None:
        alone = second or first
        assert alone is not None
        kind = "second" if second else "first"
        cold = typical(reaches([problem], target, "cold", alone.variant))
        unit = "warm" if axis == "warm" else SPOKEN.get(axis, axis)
        compiled = f", {_seconds(cold)} with compilation" if math.isfinite(cold) else ""
        lead = (
            f"only {kind}-order methods reached {target:g} of the optimum, {alone.variant} "
            f"soonest: {_amount(alone.cost, axis)} {unit}{compiled}{_certainty(seeds)}"
        )
    else:
        lead = _lead(second, first, axis, target, seeds)
        said.insert(0, _other_axes(problem, target, axis, seeds))
    return " ".join([f"{where}, {lead}.", *filter(None, said)])


def main_axis(problems: Sequence[ProblemScore]) -> str:
    """The axis that verdicts lead with: warm seconds if every trial's clock is good."""
    axes = ("warm", "gradients", "flops")
    return next((axis for axis in axes if is_known(problems, axis)), "steps")


def is_known(problems: Sequence[ProblemScore], axis: str) -> bool:
    """Whether every trial has a cost on an axis, by a good clock if it is one of time."""
    curves = [c for p in problems for c in p.curves]
    clock = axis not in CLOCK_AXES or not any(c.facts.get("invalid") for c in curves)
    return clock and all(math.isfinite(c.costs[axis][-1]) for c in curves)


def _rivals(problem: ProblemScore, target: float, axis: str) -> tuple[Rival | None, Rival | None]:
    """The cheapest method of second and of first order; None where most trials missed."""
    orders: dict[bool, list[Rival]] = {True: [], False: []}
    for variant in dict.fromkeys(curve.variant for curve in problem.curves):
        trials = reaches([problem], target, axis, variant)
        if math.isfinite(cost := typical(trials)):
            order = any(c.second_order for c in problem.curves if c.variant == variant)
            orders[order].append(Rival(variant, trials, cost))
    second, first = (min(orders[o], key=lambda r: r.cost, default=None) for o in (True, False))
    return second, first


def _lead(second: Rival, first: Rival, axis: str, target: float, seeds: int) -> str:
    """The two best of either order on the main axis."""
    ratio = cost_ratio(second.trials, first.trials)
    name = SPOKEN.get(axis, axis)
    amounts = [_amount(rival.cost, axis) for rival in (second, first)]
    both = f"{second.variant} {amounts[0]}, {first.variant} {amounts[1]}"
    if seeds == 1:
        low, high = ratio.interval.low, ratio.interval.high
        apart = "" if low > 1 or high < 1 else ", within what snapshots and clock leave open"
        return (
            f"one seed, so a measurement and no claim: {name} to {target:g} of the optimum "
            f"are {both} ({_factor(ratio)}{apart})"
        )
    if not ratio.separable:
        return (
            f"second order is not separable from first in {name} to {target:g} of the "
            f"optimum: {both} (ratio {_range(ratio)}, {seeds} seeds)"
        )
    pays = ratio.interval.estimate < 1
    winner, loser = (second, first) if pays else (first, second)
    won, lost = amounts if pays else amounts[::-1]
    sooner = "sooner" if axis in CLOCK_AXES else "cheaper"
    return (
        f"second order {'pays' if pays else 'does not pay'}: {winner.variant} reached {target:g} "
        f"of the optimum {_factor(ratio)} {sooner} than {loser.variant} in {name} ({won} against "
        f"{lost}; {LEVEL:.0%} interval {_range(ratio, inverse=pays)}, {seeds} seeds)"
    )


def _other_axes(problem: ProblemScore, target: float, main: str, seeds: int) -> str:
    """The best of either order on the other axes: what one pays in decides who is cheaper."""
    parts = []
    for axis, name in SPOKEN.items():
        second, first = _rivals(problem, target, axis)
        if axis == main or second is None or first is None:
            continue
        ratio = cost_ratio(second.trials, first.trials)
        if not ratio.joint:
            continue
        if seeds > 1 and not ratio.separable:
            parts.append(f"not separable in {name} ({_range(ratio)})")
        elif ratio.interval.estimate == 1:
            parts.append(f"{second.variant} and {first.variant} take the same {name}")
        else:
            cheaper = second if ratio.interval.estimate < 1 else first
            dearer = first if cheaper is second else second
            parts.append(
                f"{cheaper.variant} needs {_factor(ratio)} fewer {name} than {dearer.variant}"
            )
    return f"Best of either order on other axes: {'; '.join(parts)}." if parts else ""


def _front(problem: ProblemScore, axis: str) -> str:
    """Who is closest to the optimum at some cost: the methods worth considering."""
    names = on_front(front(problem, axis))
    if not names or len({curve.variant for curve in problem.curves}) < 3:
        return ""
    return f"On the front, as {SPOKEN.get(axis, axis)} grow: {', then '.join(names)}."


def _level(problem: ProblemScore, target: float, axis: str) -> str:
    """Who cannot be told from the cheapest, where there are seeds enough to ask."""
    order = standings(problem, target, axis)
    level = [s for s in order[1:] if s.place == 1 and s.behind and s.behind.interval.units > 1]
    if not level:
        return ""
    if len(level) > 2 and len(level) == len(order) - 1:
        return f"No method is separable from {order[0].variant}."
    return f"Not separable from {order[0].variant}: {listed([s.variant for s in level])}."


def scaling_verdict(sweep: Sweep, target: float, axis: str) -> str:
    """How the best of either order scale along a sweep, and where second order stops paying."""
    second, first = (_strongest(sweep, target, axis, second_order=o) for o in (True, False))
    powers = {e.variant: e for e in exponents(sweep, target, axis)}
    said = []
    for variant in (second, first):
        if variant in powers:
            found = powers[variant]
            doubt = (
                f" ({found.power.low:.2g} to {found.power.high:.2g})"
                if math.isfinite(found.power.low)
                else f" ({len(found.sizes)} sizes: no interval)"
            )
            upto = f", not reached at {found.missed[0]:g}" if found.missed else ""
            said.append(f"{found.power.estimate:.2g}{doubt} for {variant}{upto}")
    if not said:
        return ""
    base = (
        f"On {sweep.label}, as {sweep.name} goes from {sweep.sizes[0]:g} to {sweep.sizes[-1]:g}, "
        f"{SPOKEN.get(axis, axis)} to {target:g} grow with exponent {' and '.join(said)}"
    )
    if not second or not first:
        return f"{base}."
    return f"{base}; {_turning(crossover(sweep, second, first, target, axis), sweep)}."


def _strongest(sweep: Sweep, target: float, axis: str, *, second_order: bool) -> str:
    """The variant of an order that met the target at most sizes, at the least cost."""
    best, name = (0, -math.inf), ""
    for variant in dict.fromkeys(c.variant for p in sweep.problems for c in p.curves):
        curves = [c for p in sweep.problems for c in p.curves if c.variant == variant]
        if any(c.second_order for c in curves) != second_order:
            continue
        trials = [reaches([p], target, axis, variant) for p in sweep.problems]
        costs = [c for t in trials if math.isfinite(c := typical(t))]
        logs = [math.log(max(c, 1e-9)) for c in costs]
        rank = (len(costs), -sum(logs) / len(logs) if logs else -math.inf)
        if costs and rank > best:
            best, name = rank, variant
    return name


def _turning(found: Crossover, sweep: Sweep) -> str:
    """Where the lead changes hands, in words."""
    names = {"first": found.first, "second": found.second}
    if max((r.interval.units for r in found.ratios if r), default=0) <= 1:
        ratios = ", ".join(
            f"{r.interval.estimate:.2g} at {s:g}"
            for s, r in zip(found.sizes, found.ratios, strict=True)
            if r
        )
        return (
            "one seed, so no claim where it pays "
            f"(cost of {found.first} over {found.second}: {ratios})"
        )
    if found.between:
        return " and ".join(
            f"{names[lead]} takes the lead between {sweep.name} = {a:g} and {b:g}"
            for a, b, lead in found.between
        )
    leaders = {lead for lead in found.leads if lead}
    if not leaders:
        return f"{found.first} and {found.second} are not separable at any size"
    (leader,) = leaders
    where = [s for s, lead in zip(found.sizes, found.leads, strict=True) if lead]
    pays = "pays" if leader == "first" else "does not pay"
    if len(where) == len(found.sizes):
        return f"second order {pays} over the whole range ({names[leader]} leads)"
    listed = ", ".join(f"{s:g}" for s in where)
    return f"second order {pays} at {listed} ({names[leader]} leads) and is not separable elsewhere"


def rating_verdict(
    problems: Sequence[ProblemScore],
    target: float,
    reference: str | None = None,
    axis: str = "warm",
) -> str:
    """Who rates best against the reference solver over all problems, and how firmly."""
    if len({p.label for p in problems if p.curves}) < 3:
        return ""
    try:
        table = rating_table(problems, [target], axis, reference)
    except ValueError:
        return ""  # the reference was never run, or no trial came through
    ranked = [r for r in ratings(table) if not math.isnan(r.best)]
    if len(ranked) < 2 or ranked[0].solver == table.reference:
        leader = ranked[0] if ranked else None
        return (
            f"Over {len(table.problems)} problems nobody rates above {leader.solver}."
            if leader
            else ""
        )
    top = ranked[0]
    lead, low, high = (2.0**x for x in top.score[:3])
    firm = "" if top.score.excludes(0.0) else ", which is not separable from it"
    doubt = f"{low:.2g} to {high:.2g}, best in {top.best:.0%} of resamples"
    return (
        f"Over {len(table.problems)} problems, against {table.reference} in "
        f"{SPOKEN.get(axis, axis)}, {top.solver} rates best: {lead:.3g}x cheaper ({doubt}){firm}; "
        f"place {top.places[0]} to {top.places[1]} when any one problem is left out. A target that "
        f"only one of the two met counts as {LIMIT:g}x."
    )


def _missed(problem: ProblemScore, target: float) -> list[str]:
    """Variants that missed the target with some of their seeds, saying how many."""
    found = []
    for variant in dict.fromkeys(curve.variant for curve in problem.curves):
        met = [min(c.gaps) <= target for c in problem.curves if c.variant == variant]
        if not all(met):
            found.append(
                variant + (f" ({len(met) - sum(met)} of {len(met)} seeds)" if any(met) else "")
            )
    return found


def _factor(ratio: Ratio) -> str:
    x = ratio.interval.estimate
    return f"{max(x, 1 / x) if x > 0 else math.inf:.3g}x"


def _range(ratio: Ratio, *, inverse: bool = False) -> str:
    low, high = ratio.interval.low, ratio.interval.high
    if inverse:
        low, high = 1 / high, 1 / low
    return f"{low:.3g} to {high:.3g}"


def _certainty(seeds: int) -> str:
    return " (one seed: no claim)" if seeds == 1 else f" ({seeds} seeds)"


def _amount(cost: float, axis: str) -> str:
    return _seconds(cost) if axis in CLOCK_AXES else f"{cost:.4g}"


def _seconds(x: float) -> str:
    if not math.isfinite(x):
        return "unknown"
    return f"{x * 1e3:.3g} ms" if x < 1 else f"{x:.3g} s"


def listed(names: Sequence[str]) -> str:
    """Names in words: a, b and c."""
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} and {unique[-1]}"
