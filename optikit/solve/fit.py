"""`fit`: a stream of minibatches, one compiled step, budgets that are kept.

The device runs ahead of the host: steps are dispatched without waiting, and their outcomes are
looked at every so often. A step that meets NaN or infinity leaves parameters and state as they
were, on the device, and every later step is void, so nothing is lost by looking late.
"""

import functools
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
from optikit.solve.minimize import Method, as_optimizer
from optikit.solve.solution import Solution, Trace

LOOK_EVERY_SECONDS = 0.1
LOOK_EVERY_STEPS = 100


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


class _Course(NamedTuple):
    """What a fit carries on the device."""

    params: Params
    state: Any
    counts: Counts
    steps: Int[Array, ""]
    status: Int[Array, ""]
    key: Key


class _Row(NamedTuple):
    value: Scalar
    grad_norm: Scalar
    step_norm: Scalar
    counts: Counts
    status: Int[Array, ""]


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
    check_scalar(objective, params, first)
    optimizer, reason = as_optimizer(method, objective, params, first)
    key = jax.random.key(0) if key is None else key
    course = _begin(params, first, key, objective, optimizer)
    rows: list[_Row] = []
    last = None
    batch: tuple | None = first
    taken, gradients, looked = 0, 0, time.perf_counter()
    with _bar(budget, progress) as report:
        while True:
            seconds = time.perf_counter() - started
            status = _exhausted(budget, taken, seconds, gradients, batch)
            if status != Status.RUNNING:
                break
            course, row, last = _step(course, batch, objective=objective, optimizer=optimizer)
            rows.append(row)
            taken += 1
            due = time.perf_counter() - looked > LOOK_EVERY_SECONDS or taken % LOOK_EVERY_STEPS == 0
            if due or budget.gradients is not None:
                looked = time.perf_counter()
                report(taken, row)
                gradients = _gradients_used(row.counts)
                status = Status(int(row.status))
                if status != Status.RUNNING:
                    break
            batch = next(stream, None)
    ended = Status(int(course.status))
    if ended == Status.NOT_FINITE:  # void steps that were dispatched before the host looked
        rows = rows[: 1 + next(k for k, r in enumerate(rows) if int(r.status) == ended)]
    if last is None or ended == Status.NOT_FINITE:
        course, row, last = _look(course, first, objective=objective, optimizer=optimizer)
        rows = [*rows, row]
    return Solution(
        params=course.params,
        value=last.value,
        aux=last.aux,
        grad=last.grad,
        grad_norm=rows[-1].grad_norm,
        status=jnp.asarray((ended if ended != Status.RUNNING else status).value, jnp.int32),
        steps=course.steps,
        counts=course.counts,
        trace=_trace(rows),
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


def _begin(params, batch, key, objective, optimizer) -> _Course:
    """The start, with a blank state: the first step fills it from its own evaluation."""

    def initial(p: Params, args: tuple):
        return optimizer.init(optimizer.evaluate(bind(objective, args, fixed=False), p)[0])

    shapes = jax.eval_shape(initial, params, batch)
    zero = jnp.asarray(0, jnp.int32)
    return _Course(
        jax.tree.map(jnp.copy, params),  # the step donates its input, which is the user's here
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
        times(0, Counts()),
        zero,
        jnp.asarray(Status.RUNNING.value, jnp.int32),
        key,
    )


@functools.partial(jax.jit, static_argnames=("objective", "optimizer"), donate_argnames=("course",))
def _step(course, batch, *, objective, optimizer):
    oracle = bind(objective, batch, fixed=False)
    at, price = optimizer.evaluate(oracle, course.params)
    key = jax.random.fold_in(course.key, course.steps)
    state = tree.where(course.steps == 0, optimizer.init(at), course.state)
    params, _, state, info = optimizer.step(oracle, at, state, key)
    alive = course.status == Status.RUNNING.value
    usable = jnp.isfinite(at.value) & tree.all_finite(at.grad) & tree.all_finite(params)
    # a batch on which a search fails is skipped; another batch may do
    status = jnp.where(usable, Status.RUNNING.value, Status.NOT_FINITE.value)
    status = jnp.where(alive, status, course.status).astype(jnp.int32)
    keep = alive & usable
    counts = tree.where(alive, tally(course.counts, price, info.counts), course.counts)
    new = _Course(
        tree.where(keep, params, course.params),
        tree.where(keep, state, course.state),
        counts,
        course.steps + keep.astype(jnp.int32),
        status,
        course.key,
    )
    size = tree.max_abs(at.grad).astype(at.value.dtype)
    row = _Row(at.value, size, jnp.where(keep, info.step_norm, 0), counts, status)
    return new, row, at._replace(params=None, local=None)


def _exhausted(budget: Budget, steps: int, seconds: float, gradients: int, batch: Any) -> Status:
    """Which bound ends the fit before the next step, if any."""
    if budget.steps is not None and steps >= budget.steps:
        return Status.MAX_STEPS
    if batch is None:
        return Status.OUT_OF_DATA
    if budget.gradients is not None and gradients >= budget.gradients:
        return Status.OUT_OF_BUDGET
    if budget.seconds is not None and seconds >= budget.seconds:
        return Status.OUT_OF_BUDGET
    return Status.RUNNING


@functools.partial(jax.jit, static_argnames=("objective", "optimizer"))
def _look(course, batch, *, objective, optimizer):
    """An evaluation at the parameters kept, where the last step's own is of no use."""
    at, price = optimizer.evaluate(bind(objective, batch, fixed=False), course.params)
    counts = tally(course.counts, price)
    size = tree.max_abs(at.grad).astype(at.value.dtype)
    row = _Row(at.value, size, jnp.zeros_like(at.value), counts, course.status)
    return course._replace(counts=counts), row, at._replace(params=None, local=None)


def _gradients_used(counts: Counts) -> int:
    return int(counts.grad) + int(counts.hvp) + int(counts.ggnvp)


def _trace(rows: list[_Row]) -> Trace:
    def column(values: list) -> Array:
        return jnp.asarray(np.stack([np.asarray(v) for v in values]))

    host = jax.device_get(rows)
    return Trace(
        value=column([r.value for r in host]),
        grad_norm=column([r.grad_norm for r in host]),
        step_norm=column([r.step_norm for r in host]),
        counts=jax.tree.map(lambda *ns: column(list(ns)), *[r.counts for r in host]),
    )


class _bar:
    """A progress bar on stderr, or nothing."""

    def __init__(self, budget: Budget, wanted: bool | None):
        self.budget = budget
        self.wanted = sys.stderr.isatty() if wanted is None else wanted

    def __enter__(self) -> Callable[[int, _Row], None]:
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
        return lambda taken, row: self.progress.update(task, completed=taken, loss=float(row.value))

    def __exit__(self, *_) -> None:
        if self.wanted:
            self.progress.stop()
