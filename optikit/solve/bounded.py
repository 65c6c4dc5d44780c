"""Solves in a box: which methods of `minimize` take bounds, and the compiled run of any."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optikit.calculus import Objective, bind
from optikit.calculus.closures import opened
from optikit.calculus.validate import as_args, as_params, check_scalar
from optikit.core import Box, Key, Params, Status, as_box, start_inside, tree
from optikit.core.compiled import jit
from optikit.linalg import conjugate_gradients
from optikit.optimizers import Optimizer
from optikit.optimizers.bounded import projected_newton
from optikit.optimizers.bounded_lbfgs import projected_lbfgs
from optikit.solve.choose import DENSE_BLACK_BOX, choose
from optikit.solve.implicit import differentiable
from optikit.solve.loop import Criterion, advance, begin, finished, gradient_criterion
from optikit.solve.resume import SolveState, check_state, resumed, suspended
from optikit.solve.solution import Solution, default_tolerance


def _newton(box: Box) -> Optimizer:
    return projected_newton(box, name="newton")


def _newton_cg(box: Box) -> Optimizer:
    return projected_newton(box, solve=conjugate_gradients(), name="newton-cg")


BOUNDED: dict[str, Callable[[Box], Optimizer]] = {
    "lbfgs": projected_lbfgs,
    "newton": _newton,
    "newton-cg": _newton_cg,
}
"""The methods that take bounds."""


def minimize_in_box(
    objective: Objective,
    params: Params,
    bounds: Any,
    method: Any,
    args: tuple,
    tol: float | None,
    max_steps: int,
    trace: bool,
    key: Key | None,
    state: SolveState | None = None,
) -> Solution:
    """The body of `minimize` where bounds are given: check, choose, compile, run.

    Raises:
      TypeError, ValueError: as `minimize`, `as_box` and `start_inside` do; a method that takes no
        bounds.
    """
    params = as_params(params)
    name, reason = _named(method, objective, params, as_args(args))
    return solve_in_box(
        objective, params, bounds, BOUNDED[name], reason, args, tol, max_steps, trace, key, state,
        gradient_criterion,
    )  # fmt: skip


def solve_in_box(
    objective: Objective,
    params: Params,
    bounds: Any,
    factory: Callable[[Box], Optimizer],
    reason: str,
    args: tuple,
    tol: float | None,
    max_steps: int,
    trace: bool,
    key: Key | None,
    state: SolveState | None,
    criterion: Criterion,
) -> Solution:
    """Check, compile, run the method that `factory` makes of a box. Other bounds, same program."""
    params, args = as_params(params), as_args(args)
    box = as_box(bounds, params)
    params = start_inside(box, params)
    if isinstance(max_steps, int) and max_steps < 0:
        msg = f"max_steps must not be negative; got {max_steps}."
        raise ValueError(msg)
    if state is not None:
        check_state(state, factory(box), params)
        start_inside(box, state.params)
    run = functools.partial(
        _run,
        factory=factory,
        criterion=criterion,
        trace_rows=int(max_steps) + 1 if trace else 0,
        reason=reason,
    )
    return differentiable(
        run, objective, params, args, box=box, tol=tol, max_steps=max_steps, key=key, state=state
    )


def _named(method: Any, objective: Objective, params: Params, args: tuple) -> tuple[str, str]:
    if method == "auto":
        chosen, reason = choose(objective, params, args)
        if chosen in BOUNDED:
            return chosen, f"{reason}; bounds by projection"
        size = tree.size(params)
        chosen = "newton" if size <= DENSE_BLACK_BOX else "lbfgs"
        return chosen, f"bounds on {size} parameters"
    name = method.lower().replace("_", "-") if isinstance(method, str) else None
    if name not in BOUNDED:
        shown = repr(method) if isinstance(method, str) else type(method).__name__
        msg = (
            f"method {shown} takes no bounds: use {', '.join(map(repr, sorted(BOUNDED)))} or "
            "'auto', or least_squares(..., bounds=...) for residuals."
        )
        raise ValueError(msg)
    return name, ""


@functools.partial(
    jit,
    static_argnums=0,
    static_argnames=("factory", "criterion", "trace_rows", "reason"),
    unweighed=("state",),
)
def _run(
    objective, params, args, captured, *, box, tol, max_steps, key, state,
    factory, criterion, trace_rows, reason,
) -> Solution:  # fmt: skip
    objective = opened(objective, captured)
    value = check_scalar(objective, params, args)  # while tracing: once per compilation
    tol = jnp.asarray(default_tolerance(value.dtype) if tol is None else tol).astype(value.dtype)
    key = jax.random.key(0) if key is None else key
    oracle, optimizer = bind(objective, args), factory(box)
    if state is None:
        progress = begin(optimizer, oracle, params, key, trace_rows=trace_rows)
    else:
        progress = resumed(state, optimizer, oracle, params, tol, trace_rows=trace_rows)
    progress = advance(optimizer, oracle, progress, max_steps, tol, criterion)
    remainder = suspended(progress, tol, optimizer)
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
