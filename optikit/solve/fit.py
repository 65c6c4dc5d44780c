"""`fit`: a stream of minibatches, several steps a dispatch, budgets that are kept.

The device runs ahead of the host: steps are dispatched in chunks without waiting, and their
outcomes are looked at every so often. A step that meets NaN or infinity leaves parameters and state
as they were, on the device, and every later step is void, so nothing is lost by looking late.
"""

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from optikit.calculus import Objective, bind
from optikit.calculus.validate import as_args, as_objective, as_params, check_scalar
from optikit.core import Counts, Key, Params, Scalar, Status, tally, times, tree
from optikit.core.compiled import jit
from optikit.optimizers import Optimizer
from optikit.optimizers.protocol import folded
from optikit.solve.history import ROWS, Page, Row, collect
from optikit.solve.minimize import Method, as_optimizer
from optikit.solve.solution import Solution

LOOK_EVERY_SECONDS = 0.1
CHUNK = 8
"""Steps of a dispatch, at most: as many batches are held at once."""
CHUNK_BYTES = 2**25
"""A chunk's batches are copied side by side, so large ones go one by one; a step on them is long
enough to hide its dispatch."""


class Budget(NamedTuple):
    """What a fit may use; whichever is used up first ends it. None means no bound.

    Attributes:
      steps: optimizer steps.
      seconds: of wall clock, compilation included.
      gradients: gradient evaluations, each Hessian or Gauss-Newton product counted as one.
    """

    steps: int | None = None
    seconds: float | None = None
    gradients: int | None = None


DEFAULT_BUDGET = Budget(steps=1000)


class _Last(NamedTuple):
    """The last evaluation, without the parameters, which are gone by then."""

    value: Scalar
    grad: Params
    aux: Any


class _Course(NamedTuple):
    """What a fit carries on the device, in buffers that each step reuses."""

    params: Params
    last: _Last
    size: Scalar
    state: Any
    counts: Counts
    steps: Int[Array, ""]
    status: Int[Array, ""]
    key: Key
    page: Page


def fit(
    fun: Objective | Callable[..., Any],
    params: Params,
    batches: Iterable[tuple],
    *,
    method: Method,
    budget: Budget = DEFAULT_BUDGET,
    key: Key | None = None,
    has_aux: bool = False,
    progress: bool | None = None,
) -> Solution:
    """Minimise the expectation of fun(params, *batch) over a stream of batches.

    Args:
      fun: as for `minimize`.
      batches: args tuples. A collection that can be iterated again (a list, a data set) is, epoch
        after epoch; a one-shot iterator that ends before the budget ends the fit with
        Status.OUT_OF_DATA. Batches of one shape share one executable.
      method: a name, an Optimizer or an optax transformation.
      budget: at least one bound; steps are the default.
      key: for methods that draw random numbers.
      progress: a bar on stderr; by default only on a terminal.

    Returns: a Solution at the last finite parameters. Its value, gradient and aux are of the last
      batch, before its step (of the first batch if the last was not finite); row k of its trace is
      step k, with the batch value before that step.

    Raises:
      ValueError: there is no batch, no budget, or an unknown method.
      TypeError: a batch is not a tuple, or as for `minimize`.

    Example:
      >>> import optikit as ok
      >>> batches = [(jnp.full(4, t),) for t in (1.0, 3.0)]
      >>> run = fit(lambda x, b: jnp.mean((x - b) ** 2), jnp.array(0.0), batches,
      ...           method=ok.optimizers.adam(0.05), budget=ok.Budget(steps=400))
      >>> abs(float(run.params) - 2.0) < 0.1
      True
    """
    if all(bound is None for bound in budget):
        msg = "the budget is empty: give ok.Budget(steps=...), seconds= or gradients=."
        raise ValueError(msg)
    started = time.perf_counter()
    params, objective = as_params(params), as_objective(fun, has_aux=has_aux)
    stream = _stream(batches)
    first = next(stream, None)
    if first is None:
        msg = "batches is empty: there is no batch to take a step on."
        raise ValueError(msg)
    optimizer, reason = as_optimizer(method, objective, params, first)
    optimizer = folded(optimizer)
    key = jax.random.key(0) if key is None else key
    course = _begin(params, first, key, objective, optimizer)
    chunks = _Chunks(itertools.chain([first], stream), 1 if budget.gradients else _capacity(first))
    pages: list[Page] = []
    taken, on_page, gradients, ended = 0, 0, 0, Status.RUNNING
    pace, looked = None, time.perf_counter()
    with _bar(budget, progress) as report:
        while ended == Status.RUNNING:
            now = time.perf_counter()
            ended = _exhausted(budget, taken, now - started, gradients)
            if ended != Status.RUNNING:
                break
            chunk, steps = chunks.next(_steps(budget, taken, now - started, pace))
            if steps == 0:
                ended = Status.OUT_OF_DATA
                break
            if on_page + steps > ROWS:
                pages.append(course.page)
                course, on_page = course._replace(page=Page.blank(course.page.measures.dtype)), 0
            course = _take(course, chunk, steps, objective=objective, optimizer=optimizer)
            taken, on_page = taken + steps, on_page + steps
            always = budget.gradients is not None or budget.seconds is not None or pace is None
            if always or now - looked > LOOK_EVERY_SECONDS:
                row = course.page.last()
                looked = time.perf_counter()
                if always and taken > 1:  # the first step compiles, and others queue behind others
                    pace = (looked - now) / steps
                report(taken, row)
                gradients, ended = row.gradients, row.status
    if int(course.status) == Status.NOT_FINITE.value:
        ended = Status.NOT_FINITE
    if taken == 0 or ended == Status.NOT_FINITE:  # the last step's own evaluation is of no use
        course = _look(course, first, objective=objective, optimizer=optimizer)
    return Solution(
        params=course.params,
        value=course.last.value,
        aux=course.last.aux,
        grad=course.last.grad,
        grad_norm=course.size,
        status=jnp.asarray(ended.value, jnp.int32),
        steps=course.steps,
        counts=course.counts,
        trace=collect([*pages, course.page]),
        method=optimizer.name,
        reason=reason,
    )


def _stream(batches: Iterable[tuple]) -> Iterator[tuple]:
    """Batches as args tuples; a collection is repeated, an iterator is not."""
    once = iter(batches)
    again = once is not batches
    while True:
        empty = True
        for batch in once:
            empty = False
            yield as_args(batch)
        if not again or empty:
            return
        once = iter(batches)


class _Chunks:
    """Batches of one shape, several at once."""

    def __init__(self, stream: Iterator[tuple], capacity: int):
        self.stream, self.capacity, self.held = stream, capacity, None

    def next(self, steps: int) -> tuple[tuple[tuple, ...], int]:
        """Up to `steps` batches, padded to the capacity by the last; and how many there are."""
        batches: list[tuple] = []
        while len(batches) < min(steps, self.capacity):
            batch = next(self.stream, None) if self.held is None else self.held
            self.held = None
            if batch is None:
                break
            if batches and _shapes(batch) != _shapes(batches[0]):
                self.held = batch
                break
            batches.append(batch)
        return (*batches, *batches[-1:] * (self.capacity - len(batches))), len(batches)


def _shapes(batch: tuple) -> list:
    return [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(batch)]


def _capacity(batch: tuple) -> int:
    size = sum(np.prod(shape) * dtype.itemsize for shape, dtype in _shapes(batch))
    return int(np.clip(CHUNK_BYTES // max(size, 1), 1, CHUNK))


def _steps(budget: Budget, taken: int, seconds: float, pace: float | None) -> int:
    """How many steps may go before the host has to look again."""
    if pace is None:
        return 1
    left = np.inf if budget.seconds is None else budget.seconds - seconds
    steps = min(CHUNK, int(min(left, LOOK_EVERY_SECONDS) / max(pace, 1e-9)))
    return max(1, steps if budget.steps is None else min(steps, budget.steps - taken))


def _begin(params, batch, key, objective, optimizer) -> _Course:
    """The start, with blanks that the first step fills from its own evaluation."""
    leaves, structure = jax.tree.flatten((params, batch))
    blanks = _blanks(objective, optimizer, structure, tuple(jax.typeof(x) for x in leaves))
    last, state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blanks)
    return _Course(
        params=jax.tree.map(jnp.copy, params),  # a step donates its input, which is the user's here
        last=last,
        size=jnp.zeros_like(last.value),
        state=state,
        counts=times(0, Counts()),
        steps=jnp.asarray(0, jnp.int32),
        status=jnp.asarray(Status.RUNNING.value, jnp.int32),
        key=jax.random.clone(key),
        page=Page.blank(last.value.dtype),
    )


@functools.lru_cache(maxsize=64)
def _blanks(objective: Objective, optimizer: Optimizer, structure: Any, leaves: tuple) -> Any:
    """Shapes of the first evaluation and state; tracing is as dear as many steps, so once."""
    params, batch = jax.tree.unflatten(structure, leaves)
    check_scalar(objective, params, batch)

    def initial(p: Params, args: tuple):
        at, _ = optimizer.evaluate(bind(objective, args, fixed=False), p)
        return _Last(at.value, at.grad, at.aux), optimizer.init(at)

    return jax.eval_shape(initial, params, batch)


@functools.partial(jit, static_argnames=("objective", "optimizer"), donate_argnames=("course",))
def _take(course, batches, steps, *, objective, optimizer):
    """So many steps on the first of the batches, in one dispatch."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)

    def step(k, course):
        batch = jax.tree.map(lambda x: x[k], stacked) if len(batches) > 1 else batches[0]
        return _step(course, batch, objective, optimizer)

    return jax.lax.fori_loop(0, steps, step, course)


def _step(course: _Course, batch: tuple, objective: Objective, optimizer: Optimizer) -> _Course:
    oracle = bind(objective, batch, fixed=False)
    at, price = optimizer.evaluate(oracle, course.params)
    key = jax.random.fold_in(course.key, course.steps)
    state = tree.where(course.steps == 0, optimizer.init(at), course.state)
    params, _, state, info = optimizer.step(oracle, at, state, key)
    alive = course.status == Status.RUNNING.value
    size = tree.max_abs(at.grad).astype(at.value.dtype)
    usable = jnp.isfinite(at.value) & jnp.isfinite(size)
    # a batch on which a search fails is skipped; another batch may do
    status = jnp.where(usable, Status.RUNNING.value, Status.NOT_FINITE.value)
    status = jnp.where(alive, status, course.status).astype(jnp.int32)
    keep = alive & usable
    counts = tree.where(alive, tally(course.counts, price, info.counts), course.counts)
    return _Course(
        params=tree.where(keep, params, course.params),
        last=_Last(at.value, at.grad, at.aux),
        size=size,
        state=tree.where(keep, state, course.state),
        counts=counts,
        steps=course.steps + keep.astype(jnp.int32),
        status=status,
        key=course.key,
        page=course.page.write(at.value, size, counts, status),
    )


@functools.partial(jit, static_argnames=("objective", "optimizer"), donate_argnames=("course",))
def _look(course, batch, *, objective, optimizer):
    """An evaluation at the parameters kept, where the last step's own is of no use."""
    at, price = optimizer.evaluate(bind(objective, batch, fixed=False), course.params)
    counts = tally(course.counts, price)
    size = tree.max_abs(at.grad).astype(at.value.dtype)
    return course._replace(
        counts=counts,
        last=_Last(at.value, at.grad, at.aux),
        size=size,
        page=course.page.write(at.value, size, counts, course.status),
    )


def _exhausted(budget: Budget, steps: int, seconds: float, gradients: int) -> Status:
    """Which bound ends the fit before the next step, if any."""
    if budget.steps is not None and steps >= budget.steps:
        return Status.MAX_STEPS
    if budget.gradients is not None and gradients >= budget.gradients:
        return Status.OUT_OF_BUDGET
    if budget.seconds is not None and seconds >= budget.seconds:
        return Status.OUT_OF_BUDGET
    return Status.RUNNING


class _bar:
    """A progress bar on stderr, or nothing."""

    def __init__(self, budget: Budget, wanted: bool | None):
        self.budget = budget
        self.wanted = sys.stderr.isatty() if wanted is None else wanted

    def __enter__(self) -> Callable[[int, Row], None]:
        if not self.wanted:
            return lambda taken, row: None
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("step {task.completed:.0f}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.6g}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.progress.start()
        task = self.progress.add_task("fit", total=self.budget.steps, loss=float("nan"))
        return lambda taken, row: self.progress.update(task, completed=taken, loss=row.value)

    def __exit__(self, *_) -> None:
        if self.wanted:
            self.progress.stop()
