"""Hyperparameter lanes: many settings of one method on one problem as one program under `jax.vmap`.

Each lane has its own parameters, key, state, ledger, status and snapshots, those of a run by itself
up to rounding: a lane that has ended keeps its state while the others go on. What the batch
executes is more than what its lanes asked for: a loop runs until its last lane is done, and a
conditional becomes both branches. So counts are kept apart: a lane's own are logical, and the
batch's executed ones are recorded beside them.

There is one clock for all. The seconds of a chunk are shared equally by the lanes that were still
running in it, so that shares add up to what was spent; but no share is what a lane would have taken
by itself, and the clock of every lane is marked invalid: no time to a target is taken from it.
"""

import functools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optikit.bench import clock
from optikit.bench.cost import Cost, count_cost, mark
from optikit.bench.execute import (
    TRACE_ROWS,
    Judge,
    Run,
    final_status,
    kept,
    snapshot_of,
    trace_of,
    warm_run,
)
from optikit.bench.programs import compiled, functions
from optikit.bench.refine import Goal, Point, point_of, search
from optikit.bench.repeats import Warm, repeated
from optikit.bench.replay import Along
from optikit.bench.snapshot import Snapshot
from optikit.bench.spec import Budget, Measure
from optikit.core import Status
from optikit.optimizers import Optimizer
from optikit.problems import Problem
from optikit.solve.loop import Progress

Make = Callable[[Mapping[str, Any]], Optimizer]
"""Varying hyperparameters -> the method; what it is given may be traced."""

SHARED = "lanes"
"""The mark of a clock that lanes share."""


class Lanes(NamedTuple):
    """Settings that share a program.

    Attributes:
      make: see `Make`.
      varied: by hyperparameter, one number per lane.
      keys: of each lane's trial; lanes of one seed have the same start.
    """

    make: Make
    varied: dict[str, list[float]]
    keys: list[jax.Array]


def shareable(problem: Problem, lanes: Lanes) -> list[str]:
    """The varied hyperparameters that may be traced; the others change the program's shape.

    A factory that branches on a number, or computes with it outside JAX, cannot take a traced one.
    """
    names = list(lanes.varied)
    if _traces(problem, lanes, names):
        return names
    able = [name for name in names if _traces(problem, lanes, [name])]
    return able if _traces(problem, lanes, able) else []


def _traces(problem: Problem, lanes: Lanes, names: list[str]) -> bool:
    if not names:
        return True
    first = {name: values[0] for name, values in lanes.varied.items()}
    start_key, run_key = jax.random.split(lanes.keys[0])

    def program(traced, params, key):
        start, go = functions(problem, lanes.make(first | traced))
        return go(start(params, problem.args, key), problem.args, jnp.asarray(1, jnp.int32))

    try:
        traced = {name: jnp.asarray(first[name]) for name in names}
        jax.eval_shape(program, traced, problem.start(start_key), run_key)
    except Exception:  # whatever a factory says of what it cannot take
        return False
    return True


def measure_lanes(
    problem: Problem,
    lanes: Lanes,
    *,
    budget: Budget,
    how: Measure,
    judge: Judge,
    goals: Sequence[Goal | None],
) -> tuple[list[Run], float]:
    """Run all lanes together: a `Run` for each, and the seconds that the batch took, warm.

    The budget is each lane's; that of seconds is taken in common, so that the batch may use as many
    as its lanes together. Joules are not measured.

    Args:
      goals: of each lane.
    """
    number = len(lanes.keys)
    rows = min(budget.steps, TRACE_ROWS) + 1 if how.trace else 0
    params, keys = _starts(problem, lanes)
    args = jax.block_until_ready(problem.args)
    begin, advance = _batched(problem, lanes, trace_rows=rows)
    built = compiled(begin, advance, problem, params, keys, jnp.zeros(number, jnp.int32))

    def start() -> Progress:
        return jax.block_until_ready(built.start(params, args, keys))

    def go(progress: Progress, limits: int | Sequence[int]) -> Progress:
        bounds = jnp.broadcast_to(jnp.asarray(limits, jnp.int32), number)
        return jax.block_until_ready(built.go(progress, args, bounds))

    go(start(), 0)  # discarded: first-touch costs belong to no solver
    grid, stamps, found, last = _first(start, go, budget, how.growth, number)
    memory = {"program_bytes": built.memory_bytes, **clock.memory()}
    built.seconds["begin"] = stamps[0]
    found = [[s._replace(judged=judge(s.params)) for s in lane] for lane in found]
    added = _refined(found, goals, start, go, judge)
    with clock.Watch() as watch:
        warm = repeated(lambda: warm_run(start, go, grid, stamps), least=how.repeats)
    seen = watch.seen | {key: [*watch.seen[key], SHARED] for key in ("marks", "invalid")}
    running = [sum(len(lane) > i for lane in found) for i in range(len(grid))]
    traces = jax.device_get((last.trace, last.steps))
    runs = []
    for i, (own, more) in enumerate(zip(found, added, strict=True)):
        steps = [s.step for s in own]
        snapshots = sorted([*own, *more], key=lambda s: s.step)
        every = [s.step for s in snapshots]

        def shares(column: Sequence[float], every=every, steps=steps) -> list[float]:
            mine = np.cumsum(np.diff(column, prepend=0.0) / running)[: len(steps)]
            return np.interp(every, steps, mine).tolist()

        runs.append(
            Run(
                snapshots=snapshots,
                first_seconds=shares(stamps),
                warm=Warm(
                    shares(warm.median), shares(warm.low), shares(warm.high), warm.runs,
                    warm.coverage,
                ),
                status=final_status(own[-1], budget),
                seconds={stage: spent / number for stage, spent in built.seconds.items()},
                memory=memory,
                clock=seen,
                joules=None,
                trace=trace_of(jax.tree.map(lambda x, i=i: x[i], traces)),
            )
        )  # fmt: skip
    return runs, warm.median[-1]


def costs_of_lanes(problem: Problem, lanes: Lanes, steps: Sequence[list[int]]) -> list[Along]:
    """What each lane asked for at its own snapshots: logical costs, by a replay off the clock.

    Args:
      steps: of each lane, from 0 on.
    """
    params, keys = _starts(problem, lanes)
    unknown: set[str] = set()
    every = sorted(set().union(*steps))
    costs: list[list[Cost]] = [[] for _ in steps]
    agree = [True] * len(steps)
    with jax.enable_x64(True):  # the counters are float64; the program's own dtypes are explicit
        counting = functools.partial(count_cost, unknown=unknown)
        start, go = map(_replayed, _batched(problem, lanes, tap=mark, each=counting))
        progress, spent = start(params, problem.args, keys)
        total = jax.tree.map(np.asarray, spent)
        for step in every:
            if step:
                bounds = jnp.full(len(steps), step, jnp.int32)
                progress, spent = go(progress, problem.args, bounds)
                total = jax.tree.map(lambda a, b: a + np.asarray(b), total, spent)
            told = jax.device_get(progress.counts)
            for i, own in enumerate(steps):
                if step in own:
                    costs[i].append(jax.tree.map(lambda x, i=i: float(x[i]), total))
                    pairs = zip(told, costs[i][-1].calls, strict=True)
                    agree[i] &= all(int(a[i]) == int(b) for a, b in pairs)
    return [Along(own, good, sorted(unknown)) for own, good in zip(costs, agree, strict=True)]


def executed(problem: Problem, lanes: Lanes, steps: int) -> Cost:
    """What the batch did in all, in a run of at most so many steps; `calls` are of all lanes each.

    A call that the batch makes evaluates every lane, also those that did not ask for it.
    """
    params, keys = _starts(problem, lanes)
    with jax.enable_x64(True):
        start, go = (
            _replayed(count_cost(function)) for function in _batched(problem, lanes, tap=mark)
        )
        progress, first = start(params, problem.args, keys)
        bounds = jnp.full(len(lanes.keys), steps, jnp.int32)
        _, rest = go(progress, problem.args, bounds)
        total = jax.tree.map(lambda a, b: float(a) + float(b), first, rest)
    return total._replace(calls=jax.tree.map(lambda n: n * len(lanes.keys), total.calls))


def _replayed(function: Callable) -> Callable:
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 1})


def _starts(problem: Problem, lanes: Lanes) -> tuple[Any, jax.Array]:
    """Every lane's first parameters and the key of its run, as those of a run by itself."""
    pairs = [jax.random.split(key) for key in lanes.keys]
    starts = [problem.start(start_key) for start_key, _ in pairs]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *starts), jnp.stack([k for _, k in pairs])


def _batched(
    problem: Problem,
    lanes: Lanes,
    *,
    trace_rows: int = 0,
    tap: Callable[[str], None] = lambda name: None,
    each: Callable[[Callable], Callable] = lambda function: function,
) -> tuple[Callable, Callable]:
    """The start and the chunk of all lanes; `each` transforms the programs of one."""
    varied = {name: jnp.asarray(values) for name, values in lanes.varied.items()}

    def programs(chosen):
        return functions(problem, lanes.make(chosen), trace_rows=trace_rows, tap=tap)

    def start(params, args, keys):
        def one(chosen, p, k):
            return each(lambda p, k: programs(chosen)[0](p, args, k))(p, k)

        return jax.vmap(one)(varied, params, keys)

    def go(progress, args, limits):
        def one(chosen, p, limit):
            return each(lambda p, limit: programs(chosen)[1](p, args, limit))(p, limit)

        return jax.vmap(one)(varied, progress, limits)

    return start, go


def _first(
    start: Callable[[], Progress],
    go: Callable[[Progress, int], Progress],
    budget: Budget,
    growth: float,
    number: int,
) -> tuple[list[int], list[float], list[list[Snapshot]], Progress]:
    """The first run, on the grid of a run by itself: the grid, its stamps, each lane's snapshots.

    A lane that has ended in a chunk has its last snapshot there.
    """
    before = time.perf_counter()
    progress = start()
    stamps, grid = [time.perf_counter() - before], [0]
    found = [[snapshot] for snapshot in _snapshots(progress, number)]
    limit = 0
    while limit < budget.steps and stamps[-1] < number * budget.seconds:
        running = [lane for lane in range(number) if found[lane][-1].status == Status.RUNNING]
        if not running:
            break
        limit = min(budget.steps, max(limit + 1, int(growth * limit)))
        before = time.perf_counter()
        progress = go(progress, limit)
        stamps.append(stamps[-1] + time.perf_counter() - before)
        grid.append(limit)
        now = _snapshots(progress, number)
        for lane in running:
            found[lane].append(now[lane])
    return grid, stamps, found, progress


def _snapshots(progress: Progress, number: int) -> list[Snapshot]:
    host = jax.device_get(kept(progress))
    return [snapshot_of(jax.tree.map(lambda x, i=i: x[i], host)) for i in range(number)]


def _refined(
    found: list[list[Snapshot]],
    goals: Sequence[Goal | None],
    start: Callable[[], Progress],
    go: Callable[[Progress, Sequence[int]], Progress],
    judge: Judge,
) -> list[list[Snapshot]]:
    """Snapshots to add to each lane: all lanes bisect at once, each between its own steps."""
    hunts: dict[int, Generator[tuple[int, int], Point, list[Point]]] = {}
    scales = {}
    for lane, (snapshots, goal) in enumerate(zip(found, goals, strict=True)):
        scale = snapshots[0].judged[0] - goal.optimum if goal is not None else 0.0
        if goal is not None and scale > 0:
            scales[lane] = scale
            points = [point_of(s, goal, scale) for s in snapshots]
            hunts[lane] = search(points, goal.targets)
    added: list[list[Snapshot]] = [[] for _ in found]
    asked: dict[int, tuple[int, int]] = {}

    def ask(lane: int, point: Point | None) -> None:
        hunt = hunts[lane]
        try:
            asked[lane] = next(hunt) if point is None else hunt.send(point)
        except StopIteration as ended:
            asked.pop(lane, None)
            added[lane] = [p.content for p in ended.value]

    for lane in hunts:
        ask(lane, None)
    if not asked:
        return added
    number = len(found)
    begin = base = tried = start()
    at, reached = [0] * number, [0] * number
    while asked:
        lows = [asked[i][0] if i in asked else at[i] for i in range(number)]
        ahead = [i in asked and reached[i] == lows[i] for i in range(number)]
        back = [not ahead[i] and at[i] > lows[i] for i in range(number)]
        base = _picked(back, begin, _picked(ahead, tried, base))
        if any(a != low for a, low, known in zip(at, lows, ahead, strict=True) if not known):
            base = go(base, lows)
        at = lows
        reached = [asked[i][1] if i in asked else at[i] for i in range(number)]
        tried = go(base, reached)
        now = _snapshots(tried, number)
        for lane in list(asked):
            goal = goals[lane]
            assert goal is not None
            judged = now[lane]._replace(judged=judge(now[lane].params), refined=True)
            ask(lane, point_of(judged, goal, scales[lane]))
    return added


def _picked(chosen: list[bool], yes: Progress, no: Progress) -> Progress:
    """Each lane from one batch or the other."""
    mask = jnp.asarray(chosen)

    def pick(a, b):
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)
