"""Seeds that change nothing: a deterministic method from one start runs the same each time."""

from collections.abc import Sequence
from typing import NamedTuple

from optikit.bench.score.curves import Curve, ProblemScore


class Merged(NamedTuple):
    """A problem whose repeats are one trial, and how many there were (1 where seeds differ)."""

    problem: ProblemScore
    repeats: int


def merged_repeats(problem: ProblemScore) -> Merged:
    """One trial per variant, where no seed of any variant changed a step, a value or a count.

    Such seeds are repeats of one measurement: an interval over them says how steady the clock is,
    and nothing of other starts or data.
    """
    by_variant: dict[str, list[Curve]] = {}
    for curve in problem.curves:
        by_variant.setdefault(curve.variant, []).append(curve)
    repeats = max((len(curves) for curves in by_variant.values()), default=1)
    if repeats == 1 or not all(_alike(curves) for curves in by_variant.values()):
        return Merged(problem, 1)
    curves = [_middle(curves) for curves in by_variant.values()]
    return Merged(problem._replace(curves=curves), repeats)


def _alike(curves: Sequence[Curve]) -> bool:
    """Whether all went the same way: as one of them, at most steps on record and wherever both are.

    A run that its seconds cut off ends earlier than its repeats, on a step of its own.
    """
    first, *others = [_points(curve) for curve in curves]
    for other in others:
        both = first.keys() & other.keys()
        if 2 * len(both) <= min(len(first), len(other)) or any(first[k] != other[k] for k in both):
            return False
    return len({curve.machine for curve in curves}) == 1


def _points(curve: Curve) -> dict[float, str]:
    points = zip(curve.gaps, curve.grad_norms, curve.costs["gradients"], strict=True)
    told = map(repr, points)  # which makes NaN equal to itself
    return dict(zip(curve.costs["steps"], told, strict=True))


def _middle(curves: Sequence[Curve]) -> Curve:
    """The trial that took the median time, under the first seed: pairs are formed by seed."""
    middle = sorted(curves, key=lambda curve: curve.costs["warm"][-1])[len(curves) // 2]
    return middle._replace(seed=min(curve.seed for curve in curves))
