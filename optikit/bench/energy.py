"""Joules of a run: the device's own energy counter over repetitions, less what idling takes.

The counter moves only every 20 to 100 ms, so a short window says nothing: there is a figure only if
the window held enough of its movements and the run stands out from idling; else None.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from optikit.bench import nvml

WINDOW_SECONDS = 5.0
"""Runs are repeated for at least so long."""

IDLE_SECONDS = 2.0
"""How long the device is watched doing nothing."""

LEAST_TICKS = 50
"""Movements of the counter in the window, below which the figure is off by more than 2 %."""

LEAST_SHARE = 0.1
"""Of the energy, that must be the run's; below, it is the difference of two large numbers."""


class Idle(NamedTuple):
    """A device doing nothing: its power, and the seconds between movements of its counter."""

    watts: float
    tick_seconds: float


def joules(run: Callable[[], object]) -> float | None:
    """Joules above idling of one call of `run`, which waits for the device; None if unsure."""
    device = nvml.device()
    if device is None:
        return None

    def meter() -> float:
        reading = device.joules()
        return float("nan") if reading is None else reading

    idle = _idle(meter)
    if idle is None:
        return None
    energy, begun = _next_tick(meter)
    calls = 0
    while time.perf_counter() - begun < WINDOW_SECONDS:
        run()
        calls += 1
    used, ended = _next_tick(meter)
    window = ended - begun
    spent = used - energy
    own = spent - idle.watts * window
    if window / idle.tick_seconds < LEAST_TICKS or not own > LEAST_SHARE * spent:
        return None
    return own / calls


def _idle(meter: Callable[[], float]) -> Idle | None:
    """Power and pace of the counter while nothing runs; None if it does not move."""
    first, begun = _next_tick(meter)
    last, ended, ticks = first, begun, 0
    while ended - begun < IDLE_SECONDS:
        last, now = _next_tick(meter)
        if now - ended > 1 or not last > first:
            return None
        ended, ticks = now, ticks + 1
    return Idle((last - first) / (ended - begun), (ended - begun) / ticks)


def _next_tick(meter: Callable[[], float], patience: float = 1.5) -> tuple[float, float]:
    """The counter's next new reading and when it came; the old one if it does not come."""
    old, begun = meter(), time.perf_counter()
    while time.perf_counter() - begun < patience:
        reading = meter()
        if reading > old:
            return reading, time.perf_counter()
        time.sleep(0.001)
    return old, time.perf_counter()
