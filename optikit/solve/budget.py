"""What a fit may use, and how far it may go before the host has to look again."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from optikit.core import Status

LOOK_EVERY_SECONDS = 0.1
CHUNK = 8
"""Steps of a dispatch, at most: as many batches are held at once."""


class Budget(NamedTuple):
    """What a fit may use; whichever is used up first ends it. None means no bound.

    Attributes:
      steps: optimizer steps, those skipped included.
      seconds: of wall clock, compilation included; of a resumed fit those of all its runs.
      gradients: gradient evaluations, each Hessian or Gauss-Newton product counted as one.
    """

    steps: int | None = None
    seconds: float | None = None
    gradients: int | None = None


DEFAULT_BUDGET = Budget(steps=1000)


def exhausted(budget: Budget, steps: int, seconds: float, gradients: int) -> Status:
    """Which bound ends the fit before the next step, if any."""
    if budget.steps is not None and steps >= budget.steps:
        return Status.MAX_STEPS
    if budget.gradients is not None and gradients >= budget.gradients:
        return Status.OUT_OF_BUDGET
    if budget.seconds is not None and seconds >= budget.seconds:
        return Status.OUT_OF_BUDGET
    return Status.RUNNING


def stride(
    budget: Budget, taken: int, seconds: float, pace: float | None, periods: Iterable[int]
) -> int:
    """How many steps may go in one dispatch.

    Args:
      pace: seconds a step, None where that is not known yet; 0 to leave time out of it.
      periods: the host has something to do at every multiple of each.
    """
    if pace is None:
        return 1
    left = np.inf if budget.seconds is None else budget.seconds - seconds
    steps = min(CHUNK, int(min(left, LOOK_EVERY_SECONDS) / max(pace, 1e-9)))
    steps = min([steps, *(period - taken % period for period in periods)])
    return max(1, steps if budget.steps is None else min(steps, budget.steps - taken))
