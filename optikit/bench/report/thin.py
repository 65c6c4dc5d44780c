"""Fewer points, the same picture: a page must open with thousands of trials."""

import math
from collections.abc import Sequence

POINTS = 80_000
"""Snapshots drawn on a whole page; about 40 a trial with 2,000 trials."""

LEAST, MOST = 16, 120
"""Snapshots of one curve."""


def share(curves: int) -> int:
    """How many snapshots each of so many curves may keep."""
    return max(LEAST, min(MOST, POINTS // max(curves, 1)))


def kept(steps: Sequence[float], gaps: Sequence[float], targets: Sequence[float], most: int):
    """Indices of the snapshots to keep: the ends, each target's first hit, the rest evenly in log.

    Nothing is averaged: a point that is drawn was measured.
    """
    total = len(steps)
    if total <= most:
        return list(range(total))
    chosen = {0, total - 1}
    for target in targets:
        found = next((i for i, gap in enumerate(gaps) if gap <= target), None)
        if found is not None:
            chosen |= {found, max(found - 1, 0)}
    low, high = math.log(max(steps[1], 1)), math.log(max(steps[-1], 2))
    wanted = max(most - len(chosen), 2)
    at = 1
    for k in range(wanted):
        level = low + (high - low) * (k + 1) / wanted
        while at < total - 1 and math.log(max(steps[at], 1)) < level - 1e-12:
            at += 1
        chosen.add(at)
    return sorted(chosen)


def short(x: float | None, digits: int = 4) -> float | int | None:
    """A number as a page needs it: four digits, None where there is none."""
    if x is None or not math.isfinite(x):
        return None
    return int(x) if x == int(x) and abs(x) < 10**digits else float(f"{x:.{digits}g}")
