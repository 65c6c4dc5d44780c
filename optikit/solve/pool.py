"""A pool of independent problems, advanced in blocks; those that have ended retire.

Under `vmap` a batch runs until its slowest problem is done, every lane paying for every step. Here
the batch stands in a pool on the device, and the host drives it in rounds of a few steps: the
problems that still run are gathered into blocks of a fixed number of lanes, advanced, and put back;
the last of them in ever smaller blocks. The programs depend on the number of lanes of a block, of
which there is a handful of sizes, not on the size of the batch.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optikit.calculus import Objective, bind
from optikit.calculus.validate import check_scalar
from optikit.core import Key, Params, Status, tree
from optikit.core.compiled import jit
from optikit.optimizers import Optimizer
from optikit.optimizers.protocol import keep
from optikit.solve.loop import Criterion, Progress, advance, begin, finished
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


class Task(NamedTuple):
    """What the programs are compiled for."""

    objective: Objective
    optimizer: Optimizer
    criterion: Criterion
    shared: bool = False  # whether all problems have the same args, without a problem axis

    def map(self, function: Callable, *batched: Any, args: Any) -> Any:
        """function(*batched[i], args[i]) for every lane."""
        axes = (*(0 for _ in batched), None if self.shared else 0)
        return jax.vmap(function, axes)(*batched, args)


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
    task: Task, params: Params, args: tuple, size: int, key: Key, tol, max_steps: int, reason: str
) -> Solution:
    """Rounds of steps until every problem has ended; the arguments have been checked."""
    lanes = (params,) if task.shared else (params, args)
    lane_bytes = sum(x.nbytes for x in jax.tree.leaves(lanes)) // size
    blocks = _Blocks.fitting(size, 2 * lane_bytes, jax.default_backend())
    pool = _run(task, blocks, params, args, size, key, tol, max_steps)
    return _collect(pool, size=size, method=task.optimizer.name, reason=reason)


def _run(task, blocks: _Blocks, params, args, size, key, tol, max_steps) -> Progress:
    """The pool, one lane a problem (and idle ones up to a power of two), when all have ended."""

    def gathered(arrays, lanes):
        if task.shared:
            return _take(arrays, lanes), args
        return _take((arrays, args), lanes)

    capacity = max(_power_of_two(size), blocks.widths[0])
    cut = list(blocks.cut(np.arange(size), capacity))
    held = []
    for lanes in cut:
        start, data = gathered(params, lanes)
        held.append((_begin(start, data, lanes < size, key, task=task), data))
    pool = _blank_pool(held[0][0], capacity=capacity)
    taken = 0
    while cut:
        steps = max(2, taken // 4) if taken else FIRST_STEPS
        # all are under way before the first is waited for
        outcome = [_advance(p, data, key, steps, max_steps, tol, task=task) for p, data in held]
        held = [(p, data) for (p, _), (_, data) in zip(outcome, held, strict=True)]
        taken += steps
        running = np.concatenate([np.asarray(mask) for _, mask in outcome])
        left = list(blocks.cut(np.concatenate(cut)[running], capacity, taken))
        if sum(map(len, left)) > WORTHWHILE * sum(map(len, cut)):
            continue
        for lanes, (progress, _) in zip(cut, held, strict=True):
            pool = _put(pool, lanes, progress)
        cut, held = left, [gathered(pool, lanes) for lanes in left]
    optimizer = task.optimizer
    if optimizer.monotone and optimizer.readout is keep:
        return pool
    for lanes in blocks.cut(np.arange(size), capacity):
        pool = _put(pool, lanes, _finish(*gathered(pool, lanes), key, task=task))
    return pool


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
def _begin(params, args, used, key, *, task):
    def one(p, used, a):
        check_scalar(task.objective, p, a)  # while tracing: once per compilation
        progress = begin(task.optimizer, bind(task.objective, a), p, key)
        status = jnp.where(used, progress.status, Status.MAX_STEPS.value).astype(jnp.int32)
        return progress._replace(status=status, key=None)

    return task.map(one, params, used, args=args)


@functools.partial(jit, static_argnames="task", donate_argnames="progress")
def _advance(progress, args, key, steps, max_steps, tol, *, task):
    def one(p, a):
        dtype = p.at.value.dtype
        tolerance = jnp.asarray(default_tolerance(dtype) if tol is None else tol).astype(dtype)
        limit = jnp.minimum(p.steps + steps, max_steps)
        oracle = bind(task.objective, a)
        p = advance(
            task.optimizer, oracle, p._replace(key=key), limit, tolerance, task.criterion
        )  # fmt: skip
        running = (p.status == Status.RUNNING.value) & (p.steps < max_steps)
        return p._replace(key=None), running

    return task.map(one, progress, args=args)


@functools.partial(jit, static_argnames="task")
def _finish(progress, args, key, *, task):
    def one(p, a):
        at, p = finished(p._replace(key=key), task.optimizer, bind(task.objective, a))
        return p._replace(at=at, key=None)

    return task.map(one, progress, args=args)


@functools.partial(jit, static_argnames=("size", "method", "reason"))
def _collect(pool: Progress, *, size: int, method: str, reason: str) -> Solution:
    p = jax.tree.map(lambda x: x[:size], pool)
    ended = p.status != Status.RUNNING.value
    return Solution(
        params=p.at.params,
        value=p.at.value,
        aux=p.at.aux,
        grad=p.at.grad,
        grad_norm=jax.vmap(tree.max_abs)(p.at.grad).astype(p.at.value.dtype),
        status=jnp.where(ended, p.status, Status.MAX_STEPS.value).astype(jnp.int32),
        steps=p.steps,
        counts=p.counts,
        trace=None,
        method=method,
        reason=reason,
    )


def _power_of_two(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << (n - 1).bit_length()
