"""The compiled loop that drives any Optimizer on fixed data, and decides when it is over.

`begin` evaluates the start; `advance` steps until the status is no longer RUNNING or a traced limit
of steps is reached, so one executable serves every chunk of a run.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Key, Params, Scalar, Status, tally, tree
from optikit.globalize.search import resolution
from optikit.optimizers import Optimizer, StepInfo
from optikit.optimizers.protocol import folded, keep
from optikit.solve.solution import Trace

Criterion = Callable[[Eval, StepInfo, Scalar, "Progress", Scalar], Bool[Array, ""]]
"""(new evaluation, step report, max|g|, progress before the step, tolerance) -> converged."""


class Best(NamedTuple):
    """The best point of a method that may leave it again."""

    params: Params
    value: Scalar


class Progress(NamedTuple):
    """A solve under way: all that is needed to go on."""

    at: Eval
    best: Best | None  # a static None for monotone methods, whose current point is the best
    state: Any
    counts: Counts
    steps: Int[Array, ""]
    status: Int[Array, ""]
    still: Int[Array, ""]  # consecutive steps without movement
    largest: Scalar  # max|g| at `at`
    start_grad: Scalar  # max|g| at the start
    key: Key
    trace: Trace | None


def begin(
    optimizer: Optimizer, oracle: Oracle, params: Params, key: Key, *, trace_rows: int = 0
) -> Progress:
    """The state of a solve before its first step, with the start evaluated."""
    optimizer = folded(optimizer)
    at, price = optimizer.evaluate(oracle, params)
    counts = tally(price)
    largest = optimizer.measure(at)
    usable = jnp.isfinite(at.value) & jnp.isfinite(largest)
    status = jnp.where(usable, Status.RUNNING.value, Status.NOT_FINITE.value).astype(jnp.int32)
    zero = jnp.asarray(0, jnp.int32)
    trace = blank_trace(at, largest, counts, trace_rows) if trace_rows else None
    return Progress(
        at=at,
        best=None if optimizer.monotone else Best(at.params, at.value),
        state=optimizer.init(at),
        counts=counts,
        steps=zero,
        status=status,
        still=zero,
        largest=largest,
        start_grad=largest,
        key=key,
        trace=trace,
    )


def advance(
    optimizer: Optimizer,
    oracle: Oracle,
    progress: Progress,
    limit: Int[Array, ""] | int,
    tol: Scalar,
    criterion: Criterion,
) -> Progress:
    """Steps until the status changes or `limit` steps have been taken in all."""

    def running(p: Progress) -> Array:
        return (p.status == Status.RUNNING.value) & (p.steps < limit)

    return lax.while_loop(
        running, lambda p: one_step(optimizer, oracle, p, tol, criterion), progress
    )


def one_step(
    optimizer: Optimizer, oracle: Oracle, p: Progress, tol: Scalar, criterion: Criterion
) -> Progress:
    """One step, evaluated, judged and entered in the books."""
    optimizer = folded(optimizer)
    key = jax.random.fold_in(p.key, p.steps)
    params, at, state, info = optimizer.step(oracle, p.at, p.state, key)
    counts = tally(p.counts, info.counts)
    kept = at
    if at is None:
        at, price = optimizer.evaluate(oracle, params)
        counts = tally(counts, price)
    largest = optimizer.measure(at)
    usable = jnp.isfinite(at.value) & jnp.isfinite(largest)
    unchanged = (at.value == p.at.value) & (largest == p.largest)
    still = jnp.where(unchanged, p.still + 1, 0)
    stalled = still >= optimizer.patience
    converged = criterion(at, info, largest, p, tol)
    if optimizer.learns:
        converged = lax.cond(
            converged, functools.partial(first_order_small, at, tol), lambda: converged
        )
    status = _judge(p, at, info, largest, usable, stalled, converged)
    if optimizer.learns:
        status = _doubted(status, at, info, largest, p.start_grad, tol)
    steps = p.steps + 1
    trace = None
    if p.trace is not None:
        trace = recorded(p.trace, steps, at.value, largest, info.step_norm, counts)
    best = None
    if p.best is not None:
        better = usable & (at.value < p.best.value)
        best = tree.where(better, Best(at.params, at.value), p.best)
    elif kept is None:  # a monotone method's own search never ends on a point that is not finite
        at = tree.where(usable, at, p.at)
        largest = jnp.where(usable, largest, p.largest)
    return Progress(
        at, best, state, counts, steps, status, still, largest, p.start_grad, p.key, trace
    )


def finished(p: Progress, optimizer: Optimizer, oracle: Oracle) -> tuple[Eval, Progress]:
    """The evaluation to report: the best point, or the method's own read-out.

    A point that was left again is evaluated once more, at the price of one evaluation.
    """
    optimizer = folded(optimizer)

    def again(params: Params) -> tuple[Eval, Counts]:
        at, price = optimizer.evaluate(oracle, params)
        return at, tally(price)

    at, spent = p.at, tally(Counts())
    if p.best is not None:
        best = p.best
        # fused into two kernels, one value may round in two ways: a point is left if it is another
        same = jax.tree.map(lambda x, y: jnp.all(x == y), p.at.params, best.params)
        worse = ~(p.at.value <= best.value) & ~functools.reduce(
            jnp.logical_and, jax.tree.leaves(same)
        )
        left = worse & (p.status != Status.CONVERGED.value)
        at, spent = lax.cond(left, lambda: again(best.params), lambda: (at, spent))
    if optimizer.readout is not keep:
        averaged, price = again(optimizer.readout(p.at.params, p.state))
        usable = jnp.isfinite(averaged.value) & tree.all_finite(averaged.grad)
        at = tree.where(usable & (averaged.value <= at.value), averaged, at)
        spent = tally(spent, price)
    return at, p._replace(counts=tally(p.counts, spent))


def gradient_criterion(
    at: Eval, info: StepInfo, largest: Scalar, p: Progress, tol: Scalar
) -> Bool[Array, ""]:
    """max|g| <= tol max(1, max|g0|), and no relative decrease beyond tol is in sight.

    What is in sight is what the method's curvature model promised at the last step. It is scaled
    down as the gradient has shrunk since, if the whole step was taken (a step that was cut short
    leaves the flat directions as they were) and the first-order change of the objective over a
    relative unit of each parameter, max |g_i| max(|x_i|, 1), is that small too (Dennis & Schnabel
    1983, section 7.2): on the floor of a valley the gradient has lost its steep part, and the way
    is as long as before. For a method without a model it is that change alone. The second test
    keeps an enormous first gradient from making a far point look solved.
    """
    small = largest <= tol * jnp.maximum(1, p.start_grad)
    enough = tol * jnp.maximum(1, jnp.abs(at.value))
    # the first-order change is looked at only where it can matter: it costs another pass
    if info.predicted is None:
        return lax.cond(small, lambda: first_order_small(at, tol), lambda: small)
    promised = jnp.abs(info.predicted)
    shrunk = jnp.where(p.largest > 0, largest / jnp.where(p.largest > 0, p.largest, 1), 1)
    if "full_norm" in info.extras:
        whole = info.step_norm >= 0.99 * info.extras["full_norm"]
        shrunk = jnp.where(whole, shrunk, 1)
    credited = small & (promised * jnp.minimum(shrunk, 1) <= enough)
    certain = credited & (promised <= enough)
    return lax.cond(credited & ~certain, lambda: first_order_small(at, tol), lambda: certain)


def first_order_small(at: Eval, tol: Scalar) -> Bool[Array, ""]:
    """Whether max |g_i| max(|x_i|, 1) <= tol max(1, |f|)."""
    sized = jax.tree.map(
        lambda g, x: g * jnp.maximum(jnp.abs(x), 1).astype(g.dtype), at.grad, at.params
    )
    return tree.max_abs(sized).astype(at.value.dtype) <= tol * jnp.maximum(1, jnp.abs(at.value))


def _judge(
    p: Progress,
    at: Eval,
    info: StepInfo,
    largest: Scalar,
    usable: Bool[Array, ""],
    stalled: Bool[Array, ""],
    converged: Bool[Array, ""],
) -> Int[Array, ""]:
    """The status after a step; the last line that applies wins."""
    status = info.status
    status = jnp.where(stalled, Status.STALLED.value, status)
    if info.predicted is not None:
        # nothing promised, nothing gained that the value could show, and the search or the gradient
        # says so too
        gained = p.at.value - at.value
        gave_up = (status == Status.LINE_SEARCH_FAILED.value) | (status == Status.STALLED.value)
        calmer = 2 * largest <= p.largest
        slack = jnp.minimum(resolution(p.at), resolution(at))
        if "noise" in info.extras:
            slack = jnp.maximum(slack, info.extras["noise"])
        resolved = (jnp.abs(info.predicted) <= slack) & (jnp.abs(gained) <= slack)
        ended = (status == Status.RUNNING.value) & ~calmer
        exhausted = resolved & (gave_up | ended)
        status = jnp.where(exhausted, Status.CONVERGED_TO_PRECISION.value, status)
    status = jnp.where(converged & usable, Status.CONVERGED.value, status)
    # while the square and the cube of such a number are still finite
    bottom = -(jnp.finfo(at.value.dtype).max ** (1 / 3)).astype(at.value.dtype)
    status = jnp.where(at.value < bottom, Status.UNBOUNDED.value, status)
    lost = ~usable & (status != Status.UNBOUNDED.value)
    return jnp.where(lost, Status.NOT_FINITE.value, status).astype(jnp.int32)


def _doubted(
    status: Int[Array, ""],
    at: Eval,
    info: StepInfo,
    largest: Scalar,
    start_grad: Scalar,
    tol: Scalar,
) -> Int[Array, ""]:
    """The status of a method that learns its curvature: an end at precision has to be shown.

    A promise of rounding size may only say that the curvature was learnt elsewhere. Either the
    first-order change is small too, or a line that was searched holds nothing more by its own
    slopes (not at a kink, where the slope turns without having shrunk).
    """
    loose, eps = jnp.maximum(tol**0.75, tree.eps(tol.dtype) ** 0.5), tree.eps(tol.dtype)
    shown = first_order_small(at, loose)
    if "left" in info.extras:
        shrunk = largest <= eps**0.5 * start_grad
        shown |= shrunk & (info.extras["left"] <= resolution(at))
    claimed = status == Status.CONVERGED_TO_PRECISION.value
    return jnp.where(claimed & ~shown, Status.STALLED.value, status).astype(jnp.int32)


def blank_trace(
    at: Eval, largest: Scalar, counts: Counts, rows: int, row: Int[Array, ""] | int = 0
) -> Trace:
    """A trace in which only the row where the loop begins is written."""
    nan = jnp.full(rows, jnp.nan, at.value.dtype)
    return Trace(
        value=nan.at[row].set(at.value),
        grad_norm=nan.at[row].set(largest),
        step_norm=nan.at[row].set(0),
        counts=jax.tree.map(lambda n: jnp.full(rows, n, jnp.int32), counts),
    )


def recorded(trace: Trace, row, value, largest, step_norm, counts: Counts) -> Trace:
    """The trace with a row written; later rows take the ledger's new state."""
    later = jnp.arange(trace.value.size, dtype=jnp.int32) >= row
    return Trace(
        value=trace.value.at[row].set(value),
        grad_norm=trace.grad_norm.at[row].set(largest),
        step_norm=None if trace.step_norm is None else trace.step_norm.at[row].set(step_norm),
        counts=jax.tree.map(lambda old, n: jnp.where(later, n, old), trace.counts, counts),
    )
