"""The common body of the deterministic drivers: check, compile, run, with a derivative."""

import functools

import jax.numpy as jnp

from optikit.calculus import Objective, bind
from optikit.calculus.closures import opened
from optikit.calculus.validate import as_key, check_scalar
from optikit.core import Box, Key, Params, Status
from optikit.core.compiled import jit
from optikit.optimizers import Bounded, Optimizer
from optikit.optimizers.protocol import keep
from optikit.solve.implicit import differentiable
from optikit.solve.loop import Criterion, advance, begin, finished
from optikit.solve.resume import SolveState, check_state, resumed, suspended
from optikit.solve.solution import Solution, default_tolerance


def drive(
    method: Optimizer | Bounded,
    objective: Objective,
    params: Params,
    args: tuple,
    tol: float | None,
    max_steps: int,
    trace: bool,
    key: Key | None,
    criterion: Criterion,
    state: SolveState | None,
    reason: str,
    box: Box | None = None,
) -> Solution:
    """A solve whose parameters, arguments and start have been checked.

    Args:
      method: an Optimizer, or with a box one that takes it.

    Raises:
      ValueError: a negative budget, a state of another solve.
      TypeError: a key that is none.
    """
    if isinstance(max_steps, int) and max_steps < 0:
        msg = f"max_steps must not be negative; got {max_steps}."
        raise ValueError(msg)
    if state is not None:
        check_state(state, method, params)
    key = None if key is None else as_key(key)
    run = functools.partial(
        _run,
        method=method,
        criterion=criterion,
        trace_rows=int(max_steps) + 1 if trace else 0,
        reason=reason,
    )
    return differentiable(
        run, objective, params, args, box=box, tol=tol, max_steps=max_steps, key=key, state=state
    )


def _in_products(objective, params, args, captured, *, method, **rest) -> bool:
    del captured, rest
    asked = method.in_products if isinstance(method, Optimizer) else None
    return asked is not None and asked(objective, params, args)


@functools.partial(
    jit,
    static_argnums=0,
    static_argnames=("method", "criterion", "trace_rows", "reason"),
    parameters=1,
    unweighed=("state",),
    products=_in_products,
)
def _run(
    objective, params, args, captured, *, tol, max_steps, key, state, box=None,
    method, criterion, trace_rows, reason,
) -> Solution:  # fmt: skip
    objective = opened(objective, captured)
    value = check_scalar(objective, params, args)  # while tracing: once per compilation
    tol = jnp.asarray(default_tolerance(value.dtype) if tol is None else tol).astype(value.dtype)
    key = as_key(key)
    oracle, optimizer = bind(objective, args), in_box(method, box)
    if state is None:
        progress = begin(optimizer, oracle, params, key, trace_rows=trace_rows)
    else:
        progress = resumed(state, optimizer, oracle, params, tol, trace_rows=trace_rows)
    progress = advance(optimizer, oracle, progress, max_steps, tol, criterion)
    simple = optimizer.monotone and optimizer.readout is keep
    remainder = suspended(progress, tol, simple=simple, name=optimizer.name)
    at, progress = finished(progress, optimizer, oracle)
    ended = progress.status != Status.RUNNING.value
    return Solution(
        params=at.params,
        value=at.value,
        aux=at.aux,
        grad=at.grad,
        grad_norm=optimizer.measure(at),
        status=jnp.where(ended, progress.status, Status.MAX_STEPS.value).astype(jnp.int32),
        steps=progress.steps,
        counts=progress.counts,
        trace=progress.trace,
        method=optimizer.name,
        reason=reason,
        remainder=remainder,
    )


def in_box(method: Optimizer | Bounded, box: Box | None) -> Optimizer:
    """The Optimizer that a method is on this box."""
    if isinstance(method, Optimizer):
        return method
    assert box is not None
    return method.inside(box)
