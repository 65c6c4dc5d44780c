"""Running an optimizer under the clock: compiled chunks, synchronised stamps, snapshots.

One executable, whose length is an argument, runs every chunk of a geometric grid of steps. The
clock runs only while a chunk does; the parameters are copied out between chunks. Tolerances are
off: what counts as solved is decided afterwards, by the referee, for every solver alike. Tracing,
lowering, compiling, the first run and the warm runs are measured apart.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optikit.bench.cost import count_flops
from optikit.bench.spec import Budget
from optikit.calculus import bind
from optikit.core import Counts, Status
from optikit.core.compiled import compiler_options
from optikit.optimizers import Optimizer
from optikit.problems import Problem
from optikit.solve.loop import Progress, advance, begin, gradient_criterion

UNINTERRUPTED_SECONDS = 0.05
"""Snapshots that a run reaches sooner than this are timed by runs of their own."""


class Run(NamedTuple):
    """A measured run, one entry per snapshot; snapshot 0 is the start.

    Attributes:
      steps: steps taken.
      params: parameters, on the host.
      values: the solver's own objective values.
      counts: cumulative oracle calls.
      first_seconds: cumulative running time of the first run.
      warm_seconds: one row per warm run.
      status: how it ended.
      seconds: trace, lower, compile and begin.
      memory_bytes: of the compiled step: arguments, outputs and temporaries; None if unknown.
    """

    steps: list[int]
    params: list[Any]
    values: list[float]
    counts: list[Counts]
    first_seconds: list[float]
    warm_seconds: list[list[float]]
    status: Status
    seconds: dict[str, float]
    memory_bytes: int | None


class Programs(NamedTuple):
    """The two compiled programs of a run: start(params, args, key), go(progress, args, limit)."""

    start: Callable[..., Progress]
    go: Callable[..., Progress]
    seconds: dict[str, float]
    memory_bytes: int | None


def programs(problem: Problem, optimizer: Optimizer, params: Any, key: jax.Array) -> Programs:
    """Compile, with a stamp after each stage."""
    spent = {"trace": 0.0, "lower": 0.0, "compile": 0.0}
    options = dict(compiler_options((params, problem.args), params)) or None

    def build(function, *args):
        marks = [time.perf_counter()]
        traced = jax.jit(function).trace(*args)
        marks.append(time.perf_counter())
        lowered = traced.lower()
        marks.append(time.perf_counter())
        compiled = lowered.compile(options)
        marks.append(time.perf_counter())
        for stage, a, b in zip(spent, marks[:-1], marks[1:], strict=True):
            spent[stage] += b - a
        return compiled

    start_function, go_function = functions(problem, optimizer)
    start = build(start_function, params, problem.args, key)
    shapes = jax.eval_shape(start_function, params, problem.args, key)
    go = build(go_function, shapes, problem.args, jnp.asarray(0, jnp.int32))
    return Programs(start, go, spent, _memory(go))


def functions(problem: Problem, optimizer: Optimizer):
    """The start and the chunk of a run, uncompiled."""
    objective: Any = problem.objective

    def start(params, args, key) -> Progress:
        return begin(optimizer, bind(objective, args), params, key)

    def go(progress: Progress, args, limit) -> Progress:
        never = jnp.zeros((), progress.at.value.dtype)
        oracle = bind(objective, args)
        return advance(optimizer, oracle, progress, limit, never, gradient_criterion)

    return start, go


def measure(
    problem: Problem,
    optimizer: Optimizer,
    key: jax.Array,
    *,
    budget: Budget,
    repeats: int,
    growth: float,
) -> Run:
    """Run within a budget and measure it; see `Run`."""
    start_key, run_key = jax.random.split(key)
    params = jax.block_until_ready(problem.start(start_key))
    built = programs(problem, optimizer, params, run_key)
    start, go = built.start, built.go
    args = jax.block_until_ready(problem.args)
    none = jnp.asarray(0, jnp.int32)
    # one discarded execution of each program: first-touch costs belong to no solver
    jax.block_until_ready(go(start(params, args, run_key), args, none))

    begun = time.perf_counter()
    progress = jax.block_until_ready(start(params, args, run_key))
    built.seconds["begin"] = time.perf_counter() - begun
    clock = built.seconds["begin"]
    snapshots = [_snapshot(progress)]
    stamps = [clock]
    limit = 0
    while snapshots[-1].status == Status.RUNNING and limit < budget.steps:
        if clock >= budget.seconds:
            break
        limit = min(budget.steps, max(limit + 1, int(growth * limit)))
        bound = jnp.asarray(limit, jnp.int32)
        before = time.perf_counter()
        progress = jax.block_until_ready(go(progress, args, bound))
        clock += time.perf_counter() - before
        snapshots.append(_snapshot(progress))
        stamps.append(clock)
    steps = [s.steps for s in snapshots]
    warm = [_again(start, go, params, args, run_key, steps, stamps) for _ in range(repeats)]
    last = snapshots[-1].status
    if last == Status.RUNNING:
        last = Status.MAX_STEPS if steps[-1] >= budget.steps else Status.OUT_OF_BUDGET
    return Run(
        steps=steps,
        params=[s.params for s in snapshots],
        values=[s.value for s in snapshots],
        counts=[s.counts for s in snapshots],
        first_seconds=stamps,
        warm_seconds=warm,
        status=last,
        seconds=built.seconds,
        memory_bytes=built.memory_bytes,
    )


class _Snapshot(NamedTuple):
    steps: int
    params: Any
    value: float
    counts: Counts
    status: Status


def _snapshot(progress: Progress) -> _Snapshot:
    """What the host keeps of a point: its best parameters so far and the ledger."""
    best = progress.at if progress.best is None else progress.best
    host = jax.device_get(
        (progress.steps, best.params, best.value, progress.counts, progress.status)
    )
    steps, params, value, counts, status = host
    whole = Counts(*(int(n) for n in counts))
    return _Snapshot(int(steps), params, float(value), whole, Status(int(status)))


def _again(start, go, params, args, key, steps: list[int], first: list[float]) -> list[float]:
    """Cumulative seconds of a warm run at the same snapshots.

    While a run is short, each snapshot is timed by an uninterrupted run up to it, so that the cost
    of dispatching many small chunks is charged to nobody; beyond that, chunk by chunk.
    """
    stamps: list[float] = []
    progress, clock = None, 0.0
    for limit, expected in zip(steps, first, strict=True):
        bound = jnp.asarray(limit, jnp.int32)
        if expected < UNINTERRUPTED_SECONDS or progress is None:
            before = time.perf_counter()
            progress = jax.block_until_ready(go(start(params, args, key), args, bound))
            clock = max(clock, time.perf_counter() - before)
        else:
            before = time.perf_counter()
            progress = jax.block_until_ready(go(progress, args, bound))
            clock += time.perf_counter() - before
        stamps.append(clock)
    return stamps


def flops_along(
    problem: Problem, optimizer: Optimizer, key: jax.Array, steps: list[int]
) -> list[float]:
    """Cumulative model FLOPs at each snapshot: the run replayed with a counter, off the clock."""
    start_key, run_key = jax.random.split(key)
    start_function, go_function = functions(problem, optimizer)
    params = problem.start(start_key)
    with jax.enable_x64(True):  # the counter is float64; the program's own dtypes are explicit
        options = {"xla_backend_optimization_level": 1}
        start = jax.jit(count_flops(start_function))
        go = jax.jit(count_flops(go_function), compiler_options=options)
        progress, total = start(params, problem.args, run_key)
        totals = [float(total)]
        for limit in steps[1:]:
            progress, more = go(progress, problem.args, jnp.asarray(limit, jnp.int32))
            totals.append(totals[-1] + float(more))
    return totals


def _memory(compiled: Any) -> int | None:
    try:
        stats = compiled.memory_analysis()
    except (NotImplementedError, RuntimeError):
        return None
    if stats is None:
        return None
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    total = sum(getattr(stats, part, 0) for part in parts)
    return int(total - getattr(stats, "alias_size_in_bytes", 0))


def time_call(function: Callable[[], Any], *, seconds: float = 0.1, least: int = 5) -> float:
    """Median seconds of a synchronised call, over at least `least` calls and about `seconds`."""
    jax.block_until_ready(function())
    stamps: list[float] = []
    begun = time.perf_counter()
    while len(stamps) < least or (time.perf_counter() - begun < seconds and len(stamps) < 1000):
        before = time.perf_counter()
        jax.block_until_ready(function())
        stamps.append(time.perf_counter() - before)
    return float(np.median(stamps))
