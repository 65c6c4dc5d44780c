"""Intervals: Wilson's for a share, the bootstrap for everything else.

The bootstrap resamples whole groups (families of problems, or seeds), since what belongs together
is not independent. Its percentiles are widened for few groups, as a t interval is wider than a
normal one: with the plain percentiles an interval from five groups covers far less than it says.

References: Wilson (1927), J. Am. Stat. Assoc. 22; Efron & Tibshirani (1993), chapter 13; Hesterberg
(2015), The American Statistician 69, section 4.1 (expanded percentiles).
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(values (n,), multiplicities (resamples, n)) -> (resamples,)."""


class Interval(NamedTuple):
    """An estimate and where the truth lies with the stated confidence.

    Attributes:
      units: independent units that it rests on. With one unit the bounds say how finely it was
        measured, not how much it varies: no claim can rest on it.
    """

    estimate: float
    low: float
    high: float
    units: int

    def excludes(self, value: float) -> bool:
        """Whether a claim "not `value`" can be made: several units, all of the interval beside it.

        Example:
          >>> Interval(2.0, 1.5, 2.6, units=10).excludes(1.0)
          True
          >>> Interval(2.0, 1.5, 2.6, units=1).excludes(1.0)
          False
        """
        return self.units > 1 and (self.low > value or self.high < value)


def wilson(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """The share of successes with Wilson's score interval, right also at 0 and at 1.

    Example:
      >>> [round(x, 3) for x in wilson(10, 10)[:3]]
      [1.0, 0.722, 1.0]
    """
    from scipy.special import ndtri

    if trials == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    z2 = float(ndtri((1 + level) / 2)) ** 2
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * trials)) / trials) / (1 + z2 / trials)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(share, low, high, trials)


def multiplicities(
    groups: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """How often each unit is drawn when whole groups are drawn with replacement.

    Returns: (resamples, units); the columns of one group are equal.
    """
    index = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    return _drawn(len(index), resamples, seed)[:, [index[group] for group in groups]]


@functools.lru_cache(maxsize=64)
def _drawn(count: int, resamples: int, seed: int) -> np.ndarray:
    """Multiplicities of groups; a report asks for the same ones hundreds of times."""
    shares = np.full(count, 1 / count)
    drawn = np.random.default_rng(seed).multinomial(count, shares, size=resamples)
    drawn.flags.writeable = False
    return drawn


def bootstrap(
    statistic: Statistic,
    values: Sequence[float] | np.ndarray,
    *,
    low: Sequence[float] | np.ndarray | None = None,
    high: Sequence[float] | np.ndarray | None = None,
    groups: Sequence[Hashable] | None = None,
    student: bool = False,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A statistic with its bootstrap interval.

    Args:
      statistic: such as `mean` or `median`, increasing in the values.
      values: one per unit.
      low, high: bounds of each value where it is known within an interval only; the lower end of
        the result comes from `low`, the upper from `high`, so it covers both kinds of doubt.
      groups: of each unit, resampled whole; by default each unit is its own.
      student: for statistics that may take any value, such as means of logarithms: no narrower
        than Student's interval with the bootstrap's standard error. Resamples of two or three units
        cannot leave their range, which holds the truth far less often than 95 times in 100.
      seed: of the resampling: the same data give the same interval.

    Example:
      >>> found = bootstrap(mean, [1.0, 2.0, 3.0, 4.0, 5.0])
      >>> found.low < found.estimate < found.high
      True
    """
    from scipy.special import ndtr, stdtrit

    x = np.asarray(values, float)
    below = x if low is None else np.asarray(low, float)
    above = x if high is None else np.asarray(high, float)
    if x.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    groups = list(range(x.size)) if groups is None else groups
    count = len(set(groups))
    once = np.ones((1, x.size))
    estimate = float(statistic(x, once)[0])
    if count == 1:
        return Interval(
            estimate, float(statistic(below, once)[0]), float(statistic(above, once)[0]), 1
        )
    drawn = multiplicities(groups, resamples=resamples, seed=seed)
    beneath, atop = statistic(below, drawn), statistic(above, drawn)
    wide = math.sqrt(count / (count - 1))
    t = float(stdtrit(count - 1, (1 - level) / 2))  # negative
    tail = float(ndtr(wide * t))  # its normal quantile is this t quantile
    ends = (
        float(np.quantile(beneath, tail, method="lower")),
        float(np.quantile(atop, 1 - tail, method="higher")),
    )
    if student:
        centres = float(statistic(below, once)[0]), float(statistic(above, once)[0])
        ends = (
            min(ends[0], centres[0] + wide * t * float(np.std(beneath))),
            max(ends[1], centres[1] - wide * t * float(np.std(atop))),
        )
    return Interval(estimate, *ends, count)


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means, one per row of weights."""
    return weights @ values / weights.sum(axis=1)


def median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted medians, one per row of weights; infinite values are misses and sort last."""
    order = np.argsort(values)
    ranked = values[order]
    below = np.cumsum(weights[:, order], axis=1)
    half = below[:, -1:] / 2
    lower = ranked[np.argmax(below >= half, axis=1)]
    upper = ranked[np.argmax(below > half, axis=1)]
    return (lower + upper) / 2
