"""Running an optimizer under the clock: compiled chunks, synchronised stamps, snapshots.

One executable, whose length is an argument, runs every chunk of a geometric grid of steps. The
clock runs only while a chunk does; the parameters are copied out between chunks. Tolerances are
off: what counts as solved is decided afterwards, by the referee, for every solver alike. Tracing,
lowering, compiling, the first run and the warm runs are measured apart.

In order: compile (no cache on disk), one discarded execution, the first run, the referee, replays
that narrow the first hit of each target, the warm runs at all those snapshots.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optikit.bench import clock, energy
from optikit.bench.programs import programs
from optikit.bench.refine import Goal, refined
from optikit.bench.repeats import Warm, repeated
from optikit.bench.snapshot import Snapshot
from optikit.bench.spec import Budget, Measure
from optikit.core import Counts, Status
from optikit.optimizers import Optimizer
from optikit.problems import Problem
from optikit.solve.loop import Progress

UNINTERRUPTED_SECONDS = 0.05
"""Snapshots that a run reaches sooner than this are timed by runs of their own."""

LONG_SECONDS = 5.0
"""Runs from so long on are timed chunk by chunk alone: fifty chunks cost them under 1 %."""

TRACE_ROWS = 20_000
"""Steps up to which a trace is kept."""

Judge = Callable[[Any], tuple[float, float]]
"""parameters -> (objective value, largest gradient entry), off the clock."""


class Run(NamedTuple):
    """A measured run.

    Attributes:
      snapshots: by step; the first is the start.
      first_seconds: cumulative running time of the first run at each of them; between stamps, where
        a snapshot was added later, by interpolation.
      warm: cumulative seconds of the warm runs at each of them.
      status: how it ended.
      seconds: trace, lower, compile and begin.
      memory: peaks in bytes, each None if unknown; see `clock.memory`.
      clock: the state of the machine around the warm runs; see `clock.Watch`.
      joules: of one whole warm run above idling; None if it could not be measured.
      trace: by name, one number per step from the start on; None if not asked for.
    """

    snapshots: list[Snapshot]
    first_seconds: list[float]
    warm: Warm
    status: Status
    seconds: dict[str, float]
    memory: dict[str, int | None]
    clock: dict[str, Any]
    joules: float | None
    trace: dict[str, list[float]] | None


def measure(
    problem: Problem,
    optimizer: Optimizer,
    key: jax.Array,
    *,
    budget: Budget,
    how: Measure,
    judge: Judge,
    goal: Goal | None = None,
) -> Run:
    """Run within a budget and measure it; see `Run`.

    Args:
      judge: the referee.
      goal: targets whose first hit is to be narrowed to a step; None for none.
    """
    start_key, run_key = jax.random.split(key)
    params = jax.block_until_ready(problem.start(start_key))
    rows = min(budget.steps, TRACE_ROWS) + 1 if how.trace else 0
    built = programs(problem, optimizer, params, run_key, trace_rows=rows)
    args = jax.block_until_ready(problem.args)

    def start() -> Progress:
        return jax.block_until_ready(built.start(params, args, run_key))

    def go(progress: Progress, limit: int) -> Progress:
        return jax.block_until_ready(built.go(progress, args, jnp.asarray(limit, jnp.int32)))

    go(start(), 0)  # discarded: first-touch costs belong to no solver
    snapshots, stamps, last = _first(start, go, budget, how.growth)
    memory = {"program_bytes": built.memory_bytes, **clock.memory()}
    built.seconds["begin"] = stamps[0]
    snapshots = [s._replace(judged=judge(s.params)) for s in snapshots]

    def look(progress: Progress) -> Snapshot:
        snapshot = _snapshot(progress)
        return snapshot._replace(judged=judge(snapshot.params), refined=True)

    added = refined(snapshots, goal, start, go, look) if goal is not None else []
    steps = [s.step for s in snapshots]
    snapshots = sorted([*snapshots, *added], key=lambda s: s.step)
    every = [s.step for s in snapshots]
    first = np.interp(every, steps, stamps).tolist()
    with clock.Watch() as watch:
        warm = repeated(lambda: warm_run(start, go, every, first), least=how.repeats)
    joules = energy.joules(lambda: go(start(), every[-1])) if how.energy else None
    status = final_status(snapshots[-1], budget)
    return Run(
        snapshots=snapshots,
        first_seconds=first,
        warm=warm,
        status=status,
        seconds=built.seconds,
        memory=memory,
        clock=watch.seen,
        joules=joules,
        trace=trace_of(jax.device_get((last.trace, last.steps))),
    )


def final_status(last: Snapshot, budget: Budget) -> Status:
    """How a run ended."""
    if last.status != Status.RUNNING:
        return last.status
    return Status.MAX_STEPS if last.step >= budget.steps else Status.OUT_OF_BUDGET


def _first(
    start: Callable[[], Progress],
    go: Callable[[Progress, int], Progress],
    budget: Budget,
    growth: float,
) -> tuple[list[Snapshot], list[float], Progress]:
    """The first run, on a geometric grid of steps: snapshots, their stamps, and where it ended."""
    before = time.perf_counter()
    progress = start()
    stamps = [time.perf_counter() - before]
    snapshots = [_snapshot(progress)]
    limit = 0
    while snapshots[-1].status == Status.RUNNING and limit < budget.steps:
        if stamps[-1] >= budget.seconds:
            break
        limit = min(budget.steps, max(limit + 1, int(growth * limit)))
        before = time.perf_counter()
        progress = go(progress, limit)
        stamps.append(stamps[-1] + time.perf_counter() - before)
        snapshots.append(_snapshot(progress))
    return snapshots, stamps, progress


def _snapshot(progress: Progress) -> Snapshot:
    """What the host keeps of a point: its best parameters so far and the ledger."""
    return snapshot_of(jax.device_get(kept(progress)))


def kept(progress: Progress) -> Any:
    """What a snapshot is made of, on the device."""
    best = progress.at if progress.best is None else progress.best
    rejected = progress.state.rejected
    return progress.steps, best.params, best.value, progress.counts, rejected, progress.status


def snapshot_of(host: Any) -> Snapshot:
    """A snapshot of what was kept, once it is on the host."""
    step, params, value, counts, rejected, status = host
    whole = Counts(*(int(n) for n in counts))
    return Snapshot(int(step), params, float(value), whole, int(rejected), Status(int(status)))


def warm_run(
    start: Callable[[], Progress],
    go: Callable[[Progress, int], Progress],
    steps: list[int],
    first: list[float],
) -> list[float]:
    """Cumulative seconds of a warm run at the same snapshots.

    The cost of dispatching chunks (on the order of a millisecond with its fresh buffers) is no
    solver's. While a run is short, each snapshot is timed by an uninterrupted run up to it. Beyond
    that it goes chunk by chunk; unless the run is so long that it does not matter, what a chunk
    without a step takes is taken off each, and they are stretched alike to add up to one
    uninterrupted run of the whole: the machine may have been faster or slower then.
    """
    stamps: list[float] = []
    progress, chunks = None, 0
    for limit, expected in zip(steps, first, strict=True):
        before = time.perf_counter()
        if expected < UNINTERRUPTED_SECONDS or progress is None:
            progress = go(start(), limit)
            stamps.append(time.perf_counter() - before)
        else:
            progress = go(progress, limit)
            stamps.append(stamps[-1] + time.perf_counter() - before)
            chunks += 1
    if chunks and stamps[-1] < LONG_SECONDS:
        before = time.perf_counter()
        ended = go(start(), steps[-1])
        whole = time.perf_counter() - before
        empty = min(_seconds(lambda: go(ended, steps[-1])) for _ in range(3))
        base = stamps[-1 - chunks]
        own = np.maximum(np.diff(stamps[-1 - chunks :]) - empty, 0)
        stretch = max(whole - base, 0.0) / own.sum() if own.sum() > 0 else 0.0
        stamps[-chunks:] = (base + stretch * np.cumsum(own)).tolist()
    return stamps


def _seconds(call: Callable[[], Any]) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def trace_of(host: tuple[Any, Any]) -> dict[str, list[float]] | None:
    """The columns of a run's own trace, a number per step from the start on.

    Args:
      host: the trace, or None, and the steps taken.
    """
    trace, rows = host[0], int(host[1]) + 1
    if trace is None:
        return None
    columns = {"value": trace.value, "grad_norm": trace.grad_norm, "step_norm": trace.step_norm}
    columns |= {f"count_{kind}": n for kind, n in trace.counts._asdict().items() if n[-1]}
    return {name: np.asarray(column)[:rows].tolist() for name, column in columns.items()}
