"""How a library on the host is measured: its runs started anew, judged and timed like any other.

What the library does on the host, conversions included, is its own time, and so is the
synchronisation with the device that every call needs. Tolerances are off: a run ends by its budget,
or when the library gives up. BLAS has one thread or its default, whichever made a short run faster:
its threads and XLA's may wait for each other, and a rival is not to lose by that.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from optikit.bench import clock
from optikit.bench.execute import Judge, Run
from optikit.bench.refine import Goal, refined
from optikit.bench.repeats import repeated
from optikit.bench.snapshot import Snapshot
from optikit.bench.spec import Budget, Measure
from optikit.core import Counts, Status

PROBED = 5
"""Steps of the runs that choose the number of BLAS threads."""


class Stop(NamedTuple):
    """Where a run was: steps, parameters, calls, seconds since it began."""

    step: int
    params: Any
    counts: Counts
    seconds: float


class Session(Protocol):
    """A library's method on a problem, ready to run as often as it is asked to."""

    @property
    def seconds(self) -> dict[str, float]:
        """Trace, lower, compile."""
        ...

    def explore(self, budget: Budget, growth: float) -> tuple[list[Stop], Status]:
        """A run on a geometric grid within a budget: its stops from the start on, and its end."""
        ...

    def again(self, steps: Sequence[int]) -> list[Stop]:
        """A run like that, stopping at given steps; fewer if it ends before."""
        ...

    def value(self, params: Any) -> float:
        """The objective in the problem's own precision, off the clock."""
        ...


def measure_session(
    session: Session, *, budget: Budget, how: Measure, judge: Judge, goal: Goal | None
) -> Run:
    """As `execute.measure`."""
    with _quietly(), _fastest_blas(session) as threads:
        stops, status = session.explore(budget, how.growth)
        memory = {"program_bytes": None, **clock.memory()}
        snapshots = [_snapshot(session, stop, judge) for stop in stops]
        if goal is not None:
            snapshots += refined(
                snapshots,
                goal,
                restart=lambda: snapshots[0],
                go=lambda _, step: _snapshot(session, session.again([step])[-1], judge, late=True),
                look=lambda snapshot: snapshot,
            )
            snapshots.sort(key=lambda s: s.step)
        every = [s.step for s in snapshots]
        first = np.interp(every, [s.step for s in stops], [s.seconds for s in stops]).tolist()
        with clock.Watch() as watch:
            warm = repeated(lambda: _at(session.again(every), every), least=how.repeats)
    return Run(
        snapshots=snapshots,
        first_seconds=first,
        warm=warm,
        status=status,
        seconds=session.seconds | {"begin": 0.0},
        memory=memory,
        clock=watch.seen | {"blas_threads": threads},
        joules=None,
        trace=None,
    )


def _snapshot(session: Session, stop: Stop, judge: Judge, *, late: bool = False) -> Snapshot:
    params = jax.device_get(stop.params)
    value = session.value(params)
    return Snapshot(
        stop.step, params, value, stop.counts, None, Status.RUNNING, judge(params), refined=late
    )


def _at(stops: list[Stop], steps: Sequence[int]) -> list[float]:
    """Seconds at some steps; a run that ended sooner stands still."""
    return [max((s.seconds for s in stops if s.step <= step), default=0.0) for step in steps]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings that a tolerance of zero cannot be met."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _fastest_blas(session: Session) -> Iterator[int | None]:
    """With the number of BLAS threads (None: the default) that made a run of few steps faster."""
    seconds = {}
    for limit in (1, None):
        with _blas_threads(limit):
            runs = [_at(session.again([PROBED]), [PROBED])[0] for _ in range(3)]
            seconds[limit] = min(runs[1:])  # the very first pays for what no run should
    chosen = 1 if seconds[1] < seconds[None] else None
    with _blas_threads(chosen):
        yield chosen


@contextlib.contextmanager
def _blas_threads(limit: int | None) -> Iterator[None]:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # it comes with scikit-learn; without it BLAS is as its user set it
        yield
        return
    with threadpool_limits(limit, user_api="blas"):
        yield
