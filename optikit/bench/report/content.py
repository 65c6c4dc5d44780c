"""What the page draws, as plain data: curves, fronts, profiles, tuning, trials."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optikit.bench.axes import AXES, MIB, Axis, compile_seconds, known_axes
from optikit.bench.peers.catalogue import COUNTED
from optikit.bench.report.table import COLUMNS, memory_of
from optikit.bench.report.thin import kept, share, short
from optikit.bench.score import (
    MACHINE_AXES,
    Curve,
    FrontPoint,
    ProblemScore,
    Steps,
    cost_table,
    data_profile,
    ecdf,
    front,
    hit,
    on_one_machine,
    performance_profile,
    placement,
    tunes,
    with_portfolio,
)
from optikit.bench.tuning import Tuned

FLOOR = 1e-17
"""No gap is drawn below this."""

PROFILE_POINTS = 60


Fronts = Mapping[tuple[str, str], list[FrontPoint]]
"""By problem and axis."""


def content(
    problems: Sequence[ProblemScore],
    targets: Sequence[float],
    target: float,
    tuned: list[Tuned],
    fronts: Fronts,
) -> dict[str, Any]:
    """Everything the script of the page needs, JSON-ready.

    Args:
      target: the relative suboptimality that tables speak of.
      fronts: from `all_fronts`.
    """
    axes = axes_of(problems)
    variants = variant_names(problems)
    index = {name: i for i, name in enumerate(variants)}
    clocked, _ = on_one_machine(problems)
    machine = {c.machine for p in clocked for c in p.curves}
    most = share(sum(len(p.curves) for p in problems))
    least = {p.label: floor(p) for p in problems}
    profiles = _profiles(clocked, axes, targets, index)  # which may add a portfolio
    return {
        "axes": [
            {"key": a.key, "label": a.label, "meaning": a.meaning, "whole": a.whole} for a in axes
        ],
        "targets": sorted(targets, reverse=True),
        "target": target,
        "variants": [
            {"name": name, "second": any(c.second_order for c in curves_of(problems, name))}
            for name in index
        ],
        "problems": [
            {
                "label": p.label,
                "curves": [
                    _curve(
                        c,
                        index[c.variant],
                        axes,
                        targets,
                        most,
                        c.machine in machine,
                        least[p.label],
                    )
                    for c in p.curves
                ],
                "spectra": p.facts.get("spectra", []),
                "fronts": {
                    a.key: _front(fronts[p.label, a.key], index, least[p.label]) for a in axes
                },
            }
            for p in problems
        ],
        "profiles": profiles,
        "roofline": [p for q in clocked for c in q.curves for p in _placed(c, index)],
        "tuning": [_tuning(t) for t in tuned],
        "trials": _trials(problems, target),
    }


def floor(problem: ProblemScore) -> float:
    """Where gaps of zero are drawn, which a logarithmic axis has not: at half the least above zero.

    Where the best value known is that of a trial, as of a network, its own gap is zero while all
    others are far from it.
    """
    above = (gap for curve in problem.curves for gap in curve.gaps if gap > FLOOR)
    return max(min(above, default=FLOOR) / 2, FLOOR)


def axes_of(problems: Sequence[ProblemScore]) -> list[Axis]:
    """The axes on which some reported trial has a cost."""
    return known_axes(c.costs for p in problems for c in p.curves)


def variant_names(problems: Sequence[ProblemScore]) -> list[str]:
    """Every variant of the report, in the study's order."""
    return list(dict.fromkeys(c.variant for p in problems for c in p.curves))


def curves_of(problems: Sequence[ProblemScore], variant: str) -> list[Curve]:
    """A variant's curves on all problems."""
    return [c for p in problems for c in p.curves if c.variant == variant]


def _curve(
    curve: Curve, variant: int, axes: list[Axis], targets: Sequence[float], most: int,
    clocked: bool, least: float,
) -> dict[str, Any]:  # fmt: skip
    at = kept(curve.costs["steps"], curve.gaps, targets, most)
    untimed = not clocked or bool(curve.facts.get("invalid"))
    shown = [a.key for a in axes if not (untimed and a.key in MACHINE_AXES)]
    return {
        "v": variant,
        "kind": (curve.facts.get("certificate") or {}).get("kind", ""),
        "seed": curve.seed,
        "gap": [short(max(curve.gaps[i], least)) for i in at],
        "grad": [short(curve.grad_norms[i]) for i in at],
        "cost": {key: [short(curve.costs[key][i]) for i in at] for key in shown},
    }


def all_fronts(problems: Sequence[ProblemScore]) -> Fronts:
    """The Pareto fronts of every problem on every axis, of one machine's trials."""
    chosen, _ = on_one_machine(problems)
    return {(p.label, a.key): front(p, a.key) for p in chosen for a in axes_of(problems)}


def _front(points: list[FrontPoint], index: Mapping[str, int], least: float) -> list[list[Any]]:
    """[cost, gap, variant] of a Pareto front, thinned."""
    at = kept(range(len(points)), [0.0] * len(points), (), PROFILE_POINTS)
    return [
        [short(points[i].cost), short(max(points[i].gap, least)), index[points[i].variant]]
        for i in at
    ]


def _profiles(
    problems: Sequence[ProblemScore],
    axes: list[Axis],
    targets: Sequence[float],
    index: dict[str, int],
) -> dict[str, Any]:
    """Performance and data profiles by axis and target, ECDFs by axis and n.

    Where the study tunes, the portfolio of defaults joins the first two, and the index.
    """
    ran = [p for p in problems if p.curves]
    found: dict[str, Any] = {"performance": {}, "data": {}, "ecdf": {}, "left": {}}
    for axis in axes if ran else []:
        tables = {f"{t:g}": cost_table(ran, t, axis.key) for t in targets}
        if tunes(ran):
            tables = {t: with_portfolio(table, ran) for t, table in tables.items()}
        found["performance"][axis.key] = {
            t: [_steps(s, index) for s in performance_profile(table)] for t, table in tables.items()
        }
        found["data"][axis.key] = {
            t: [_steps(s, index) for s in data_profile(table)] for t, table in tables.items()
        }
        left = next(iter(tables.values())).left_out
        found["left"][axis.key] = [f"{name}: {reason}" for name, reason in left]
        found["ecdf"][axis.key] = {
            n: [_steps(s, index) for s in steps]
            for n, steps in ecdf(ran, targets, axis.key).items()
        }
    return found


def _steps(steps: Steps, index: dict[str, int]) -> dict[str, Any]:
    at = kept(range(len(steps.x)), [1.0] * len(steps.x), (), PROFILE_POINTS)
    return {
        "v": index.setdefault(steps.solver, len(index)),
        "x": [short(steps.x[i]) for i in at],
        "y": [short(steps.share[i]) for i in at],
    }


def _placed(curve: Curve, index: Mapping[str, int]) -> list[dict[str, Any]]:
    """A trial's point under the roofline, if it has one."""
    x, y, moved = placement(curve)
    if not (math.isfinite(x) and math.isfinite(y)):
        return []
    named = {"v": index[curve.variant], "problem": curve.problem, "seed": curve.seed}
    return [{**named, "x": short(x), "y": short(y), "moved": short(moved)}]


def _tuning(tuned: Tuned) -> dict[str, Any]:
    return {
        "problem": tuned.problem,
        "optimizer": tuned.optimizer,
        "axis": AXES[tuned.axis].label,
        "target": tuned.target,
        "k": [b.k for b in tuned.curve],
        "expected": [short(b.expected) for b in tuned.curve],
        "reached": [short(b.reached) for b in tuned.curve],
    }


def told(curve: Curve, at: int) -> str:
    """The problem's metrics at a snapshot, in words."""
    return ", ".join(f"{name} {column[at]:.4g}" for name, column in curve.metrics.items())


def _trials(problems: Sequence[ProblemScore], target: float) -> dict[str, Any]:
    """The table of trials: columns and rows, numbers as numbers so that they sort."""
    columns = [
        "problem",
        "optimizer",
        "seed",
        "role",
        "best gap",
        "max |g|",
        "also",
        *(f"{AXES[c].label} to {target:g}" for c in COLUMNS),
        "compile s",
        "FLOPs per byte",
        "GFLOP/s",
        "GB/s",
        "program MiB",
        "process MiB",
        "device MiB",
        "ended",
        "final point",
        "marks",
    ]
    rows = []
    for problem in problems:
        for role, curves in (("report", problem.curves), ("tuning", problem.tuning)):
            rows += [_trial(curve, role, target) for curve in curves]
    return {"columns": columns, "rows": rows}


def _trial(curve: Curve, role: str, target: float) -> list[Any]:
    found = hit(curve, target)
    best = min(range(len(curve.gaps)), key=lambda i: curve.gaps[i])
    certificate = curve.facts.get("certificate") or {}
    return [
        curve.problem,
        curve.variant,
        curve.seed,
        role,
        short(curve.gaps[best]),
        short(curve.grad_norms[best]),
        told(curve, best),
        *(short(found.cost[c]) if found else None for c in COLUMNS),
        short(compile_seconds(curve.facts)),
        *map(short, placement(curve)),
        *(None if x is None else short(x / MIB) for x in memory_of(curve.facts).values()),
        curve.facts["status"].lower().replace("_", " "),
        certificate.get("kind", "").replace("-", " "),
        ", ".join(_marks(curve.facts)),
    ]


def _marks(facts: Mapping[str, Any]) -> list[str]:
    """What to hold against a trial's numbers."""
    derived = facts.get("peer", {}).get("calls", "") not in ("", COUNTED)
    return [*(facts.get("marks") or []), *(["calls derived"] if derived else [])]
