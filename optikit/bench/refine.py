"""Narrowing the first hit of each target to a step, by replaying the run from the snapshot before.

Snapshots lie on a geometric grid, so a target is first known to be met somewhere between two of
them. The same executable, run again to lengths in between, finds the step by bisection, in at most
as many further steps as the interval has. Of a run whose judged value rises again within an
interval, bisection finds a crossing of the target, not surely the first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from optikit.bench.snapshot import Snapshot


class Goal(NamedTuple):
    """What first hits are narrowed for: gaps (f - optimum) / (f0 - optimum) to be reached."""

    optimum: float
    targets: Sequence[float]


class Point(NamedTuple):
    """A snapshot as the search sees it: its step, how far from the optimum, and its content."""

    step: int
    gap: float
    content: Any


def narrow(
    known: Sequence[Point],
    targets: Sequence[float],
    restart: Callable[[], Any],
    go: Callable[[Any, int], Any],
    look: Callable[[Any], Point],
) -> list[Point]:
    """The points to add to some snapshots so that every target's first hit is known to the step.

    They are the first hits and, right before each, the last miss.

    Args:
      known: snapshots by step, from the start on.
      restart: the state of the run at its start.
      go: (state, step) -> the state at that step, leaving the given one as it is.
      look: judges a state.
    """
    points = {point.step: point for point in known}
    wanted: set[int] = set()
    state, at = None, -1
    for target in sorted(set(targets), reverse=True):  # the loosest is met first
        steps = sorted(points)
        hit = next((s for s in steps if points[s].gap <= target), None)
        if hit is None or hit == steps[0]:
            continue
        low, high = steps[steps.index(hit) - 1], hit
        while high - low > 1:
            if at != low:
                state = go(restart() if state is None or at > low else state, low)
                at = low
            middle = (low + high) // 2
            tried = go(state, middle)
            point = look(tried)
            if point.step != middle:  # a run that does not repeat itself is left as it is
                return []
            points[middle] = point
            if point.gap <= target:
                high = middle
            else:
                low, state, at = middle, tried, middle
        wanted |= {low, high}
    return [points[step] for step in sorted(wanted - {point.step for point in known})]


def refined(
    snapshots: Sequence[Snapshot],
    goal: Goal,
    restart: Callable[[], Any],
    go: Callable[[Any, int], Any],
    look: Callable[[Any], Snapshot],
) -> list[Snapshot]:
    """Snapshots to add so that the first hits of the goal's targets are known to the step.

    None if the start is at the optimum already. restart, go: as for `narrow`.

    Args:
      look: a judged snapshot of a state.
    """
    scale = snapshots[0].judged[0] - goal.optimum
    if not scale > 0:
        return []

    def seen(snapshot: Snapshot) -> Point:
        above = snapshot.judged[0] - goal.optimum
        return Point(snapshot.step, above / scale if np.isfinite(above) else np.inf, snapshot)

    known = [seen(s) for s in snapshots]
    found = narrow(known, goal.targets, restart, go, lambda state: seen(look(state)))
    return [point.content for point in found]
