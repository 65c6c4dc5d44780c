"""How often a run is timed, and what its timings say: a median and an interval around it."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

SETTLE_SECONDS = 0.3
"""Warm runs go on until they have taken so long together: short ones are repeated more."""

MOST = 60
"""Warm runs after which more would tell little."""

LEVEL = 0.95
"""Asked of an interval for a median."""


class Warm(NamedTuple):
    """Cumulative seconds at each snapshot over some runs: median, and an interval around it.

    Attributes:
      median, low, high: one number per snapshot, none less than the one before.
      runs: how many.
      coverage: the probability with which the interval holds the true median, if the runs are
        independent.
    """

    median: list[float]
    low: list[float]
    high: list[float]
    runs: int
    coverage: float


def repeated(once: Callable[[], list[float]], *, least: int) -> Warm:
    """Time a run `least` times, and a short one more often; exactly once if `least` is 1."""
    stamps: list[list[float]] = []
    begun = time.perf_counter()
    while len(stamps) < least or (
        least > 1 and len(stamps) < MOST and time.perf_counter() - begun < SETTLE_SECONDS
    ):
        stamps.append(once())
    return summary(stamps)


def summary(stamps: Sequence[Sequence[float]]) -> Warm:
    """The medians of some runs, column by column.

    A slow run of a short prefix is noise; so that a cumulative cost never falls, medians and limits
    are raised to those before them.
    """
    ordered = np.sort(np.asarray(stamps, float), axis=0)
    below, coverage = median_ranks(len(ordered))
    columns = (np.median(ordered, axis=0), ordered[below], ordered[len(ordered) - 1 - below])
    middle, low, high = (np.maximum.accumulate(column).tolist() for column in columns)
    return Warm(middle, low, high, len(ordered), coverage)


def median_ranks(number: int, level: float = LEVEL) -> tuple[int, float]:
    """(k, coverage): the order statistics k and number - 1 - k hold the median between them.

    k, counted from 0, is the largest for which the coverage is at least `level`; below six values
    no pair reaches 95 %, and the whole range is taken with the coverage it has. Exact for any
    continuous distribution (David & Nagaraja 2003, Order Statistics, section 7.1).
    """

    def coverage(k: int) -> float:
        tail = sum(math.comb(number, i) for i in range(k + 1)) / 2**number
        return max(1 - 2 * tail, 0.0)

    best = 0
    while best + 1 <= (number - 1) // 2 and coverage(best + 1) >= level:
        best += 1
    return best, coverage(best)
