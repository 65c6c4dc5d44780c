"""A pool of independent problems, advanced in blocks; those that have ended retire.

Under `vmap` a batch runs until its slowest problem is done, every lane paying for every step. Here
the batch stands in a pool on the device, and the host drives it in rounds of a few steps: the
problems that still run are gathered into blocks of a fixed number of lanes, advanced, and put back;
the last of them in ever smaller blocks. The programs depend on the number of lanes of a block, of
which there is a handful of sizes, not on the size of the batch. On a CPU a block leaves most of the
cores idle, so that several are under way at once.
"""

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optikit.calculus import Eval, Objective, bind
from optikit.calculus.validate import check_scalar
from optikit.core import Box, Counts, Key, Params, Scalar, Status
from optikit.core.compiled import jit
from optikit.optimizers import Bounded, Optimizer
from optikit.optimizers.protocol import keep
from optikit.solve.drive import in_box
from optikit.solve.loop import Criterion, Progress, advance, begin, finished
from optikit.solve.resume import SolveState, key_of, resumed, suspended
from optikit.solve.solution import Solution, default_tolerance

CPU_BLOCK = (512, 2**22)
"""Lanes of a block and bytes of their data, at most: what a cache holds."""
DEVICE_BLOCK = (2**17, 2**31)
"""The same on a GPU, which wants width."""
SHRINK = 16
"""A block gives way to one this many times smaller as soon as that holds all that still run."""
FEWEST_LANES = 16
"""Smaller blocks take as long: what remains is the overhead of a step."""
STRAGGLING = 32
"""Steps after which a small block shrinks too: for less, another program is not worth compiling."""
SMALL_BLOCK = 2**24
"""Bytes of a small block."""
WORTHWHILE = 7 / 8
"""The share of the lanes to which a new cut must come down to be worth its moves."""
FIRST_STEPS = 4
"""Steps of the first round; a later one takes a quarter of the steps taken before, at least 2."""


class Data(NamedTuple):
    """What problems differ in besides their start."""

    args: tuple
    box: Box | None = None


class Task(NamedTuple):
    """What the programs are compiled for."""

    objective: Objective
    method: Optimizer | Bounded
    criterion: Criterion
    shared: bool = False  # whether all problems have the same data, without a problem axis

    @property
    def simple(self) -> bool:
        """Whether the current point of a problem is its answer."""
        method = self.method
        if isinstance(method, Bounded):  # those are monotone
            return True
        return method.monotone and method.readout is keep

    def map(self, function: Callable, *batched: Any, data: Data) -> Any:
        """function(*batched[i], oracle, optimizer) for every lane."""

        def one(data: Data, *lane: Any) -> Any:
            return function(*lane, bind(self.objective, data.args), in_box(self.method, data.box))

        axes = (None if self.shared else 0, *(0 for _ in batched))
        return jax.vmap(one, axes)(data, *batched)


class _Outcome(NamedTuple):
    """What a Solution shows."""

    at: Eval
    largest: Scalar
    counts: Counts


class _Blocks(NamedTuple):
    """Ways to cut the pool."""

    widths: tuple[int, ...]  # of blocks, the widest first
    patience: int  # steps before any but the widest is used

    @classmethod
    def fitting(cls, size: int, lane_bytes: int, platform: str) -> "_Blocks":
        lanes, capacity = CPU_BLOCK if platform == "cpu" else DEVICE_BLOCK
        affordable = 2 ** int(np.log2(max(capacity // max(lane_bytes, 1), 1)))
        widest = min(lanes, max(affordable, 1), _power_of_two(size))
        widths = [widest]
        while widths[-1] // SHRINK >= min(FEWEST_LANES, widest):
            widths.append(widths[-1] // SHRINK)
        return cls(tuple(widths), STRAGGLING if widest * lane_bytes <= SMALL_BLOCK else 0)

    def cut(self, active: np.ndarray, nobody: int, taken: int = 0) -> Iterator[np.ndarray]:
        """Blocks of lane numbers after so many steps, the last filled up with `nobody`."""
        widths = self.widths if taken >= self.patience else self.widths[:1]
        for start in range(0, len(active), widths[0]):
            lanes = active[start : start + widths[0]]
            width = min(w for w in widths if w >= len(lanes))
            yield np.concatenate([lanes, np.full(width - len(lanes), nobody)]).astype(np.int32)


def run(
    task: Task,
    params: Params,
    data: Data,
    size: int,
    key: Key,
    tol: float | None,
    max_steps: int,
    reason: str,
    state: SolveState | None = None,
) -> Solution:
    """Rounds of steps until every problem has ended; the arguments have been checked."""
    lanes = (params,) if task.shared else (params, data)
    lane_bytes = sum(x.nbytes for x in jax.tree.leaves(lanes)) // size
    platform = jax.default_backend()
    blocks = _Blocks.fitting(size, 2 * lane_bytes, platform)
    if state is not None:
        key = key_of(jax.tree.map(lambda x: x[0], state))  # the same for all
    tolerance = None if tol is None else jnp.asarray(tol)
    workers = min(_cores(), -(-size // blocks.widths[0])) if platform == "cpu" else 1
    with contextlib.ExitStack() as stack:
        threads = None
        if workers > 1:
            threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(workers))
        crew = _Crew(task, threads)
        limits = (key, jnp.asarray(max_steps, jnp.int32), tolerance)
        pool = _rounds(crew, blocks, (params, state), data, size, limits)
        outcome = None if task.simple else _outcomes(crew, blocks, pool, data, size)
    return _collect(pool, outcome, key, tolerance, size=size, task=task, reason=reason)


class _Crew:
    """Runs programs on blocks; on the cores of a CPU several at once.

    Programs are looked up in the caller's thread, whose settings (64 bits, precision) are those
    they are traced under; the others only execute them.
    """

    def __init__(self, task: Task, threads: concurrent.futures.Executor | None):
        self.task, self.threads = task, threads
        self.programs: dict[tuple, Any] = {}

    def start(self, function: Any, width: int, *args: Any) -> Callable[[], Any]:
        """What waits for function(*args) on a block of that many lanes."""
        if self.threads is None:
            result = function(*args, task=self.task)
            return lambda: result
        known = function, width
        if known not in self.programs:
            self.programs[known] = function.compiled(*args, task=self.task)
        return self.threads.submit(_complete, self.programs[known], args).result


def _complete(program: Any, args: tuple) -> Any:
    return jax.block_until_ready(program(*args))


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rounds(
    crew: _Crew, blocks: _Blocks, starts: Any, data: Data, size: int, limits: tuple
) -> Progress:
    """The pool, one lane a problem (and idle ones up to a power of two), when all have ended."""
    key, max_steps, tol = limits
    shared = crew.task.shared
    capacity = max(_power_of_two(size), blocks.widths[0])
    cut = list(blocks.cut(np.arange(size), capacity))
    begun = []
    for lanes in cut:
        (start, old), rows = _gathered(starts, data, lanes, shared)
        arguments = start, rows, jnp.asarray(lanes < size), key, tol, old
        begun.append((crew.start(_begin, len(lanes), *arguments), rows))
    held = [(wait(), rows) for wait, rows in begun]
    pool = _blank_pool(held[0][0], capacity=capacity)
    taken = 0
    while cut:
        steps = max(2, taken // 4) if taken else FIRST_STEPS
        few = jnp.asarray(steps, jnp.int32)
        # all are under way before the first is waited for
        under_way = [
            (crew.start(_advance, len(lanes), p, rows, key, few, max_steps, tol), rows)
            for lanes, (p, rows) in zip(cut, held, strict=True)
        ]
        outcome = [(*wait(), rows) for wait, rows in under_way]
        held = [(p, rows) for p, _, rows in outcome]
        taken += steps
        running = np.concatenate([np.asarray(mask) for _, mask, _ in outcome])
        left = list(blocks.cut(np.concatenate(cut)[running], capacity, taken))
        if sum(map(len, left)) > WORTHWHILE * sum(map(len, cut)):
            continue
        for lanes, (progress, _) in zip(cut, held, strict=True):
            pool = _put(pool, lanes, progress)
        cut, held = left, [_gathered(pool, data, lanes, shared) for lanes in left]
    return pool


def _outcomes(
    crew: _Crew, blocks: _Blocks, pool: Progress, data: Data, size: int
) -> _Outcome | None:
    """What there is to say of each problem whose last point need not be its answer."""
    capacity = max(_power_of_two(size), blocks.widths[0])
    found = None
    for lanes in blocks.cut(np.arange(size), capacity):
        block = _finish(*_gathered(pool, data, lanes, crew.task.shared), task=crew.task)
        if found is None:
            found = _blank_pool(block, capacity=capacity)
        found = _put(found, lanes, block)
    return found


def _gathered(arrays: Any, data: Data, lanes: np.ndarray, shared: bool) -> tuple[Any, Data]:
    """Rows of arrays and of the data."""
    if shared:
        return _take(arrays, lanes), data
    return _take((arrays, data), lanes)


@jit
def _take(arrays, lanes):
    return jax.tree.map(lambda x: jnp.take(x, lanes, axis=0, mode="clip"), arrays)


@functools.partial(jit, donate_argnames="pool")
def _put(pool, lanes, block):
    return jax.tree.map(
        lambda x, new: x.at[lanes].set(new, mode="drop", unique_indices=False), pool, block
    )


@functools.partial(jit, static_argnames="capacity")
def _blank_pool(block, *, capacity):
    return jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), block)


@functools.partial(jit, static_argnames="task")
def _begin(params, data, used, key, tol, state, *, task):
    def one(start, used, oracle, optimizer):
        p, old = start
        value = check_scalar(
            oracle.objective, p, oracle.args
        )  # while tracing: once per compilation
        if old is None:
            progress = begin(optimizer, oracle, p, key)
        else:
            progress = resumed(old, optimizer, oracle, p, _tolerance(tol, value.dtype))
        status = jnp.where(used, progress.status, Status.MAX_STEPS.value).astype(jnp.int32)
        return progress._replace(status=status, key=None)

    return task.map(one, (params, state), used, data=data)


@functools.partial(jit, static_argnames="task", donate_argnames="progress")
def _advance(progress, data, key, steps, max_steps, tol, *, task):
    def one(p, oracle, optimizer):
        tolerance = _tolerance(tol, p.at.value.dtype)
        limit = jnp.minimum(p.steps + steps, max_steps)
        p = advance(optimizer, oracle, p._replace(key=key), limit, tolerance, task.criterion)
        running = (p.status == Status.RUNNING.value) & (p.steps < max_steps)
        return p._replace(key=None), running

    return task.map(one, progress, data=data)


def _tolerance(tol: Scalar | None, dtype: jnp.dtype) -> Scalar:
    return jnp.asarray(default_tolerance(dtype) if tol is None else tol).astype(dtype)


@functools.partial(jit, static_argnames="task")
def _finish(progress, data, *, task):
    def one(p, oracle, optimizer):
        at, p = finished(p, optimizer, oracle)
        return _Outcome(at, optimizer.measure(at), p.counts)

    return task.map(one, progress, data=data)


@functools.partial(jit, static_argnames=("size", "task", "reason"))
def _collect(pool, outcome, key, tol, *, size: int, task: Task, reason: str) -> Solution:
    pool, outcome = jax.tree.map(lambda x: x[:size], (pool, outcome))

    def one(p: Progress, shown: _Outcome | None) -> Solution:
        if shown is None:
            shown = _Outcome(p.at, p.largest, p.counts)
        ended = p.status != Status.RUNNING.value
        at = shown.at
        tolerance = _tolerance(tol, at.value.dtype)
        return Solution(
            params=at.params,
            value=at.value,
            aux=at.aux,
            grad=at.grad,
            grad_norm=shown.largest,
            status=jnp.where(ended, p.status, Status.MAX_STEPS.value).astype(jnp.int32),
            steps=p.steps,
            counts=shown.counts,
            trace=None,
            method=task.method.name,
            reason=reason,
            remainder=suspended(
                p._replace(key=key), tolerance, simple=task.simple, name=task.method.name
            ),
        )

    return jax.vmap(one)(pool, outcome)


def _power_of_two(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << (n - 1).bit_length()
