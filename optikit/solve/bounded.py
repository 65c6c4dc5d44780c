"""Solves in a box: which methods of `minimize` take bounds."""

from collections.abc import Callable
from typing import Any

from optikit.calculus import Objective
from optikit.calculus.validate import as_args, as_params
from optikit.core import Box, Key, Params, as_box, start_inside, tree
from optikit.linalg import conjugate_gradients
from optikit.optimizers import Optimizer
from optikit.optimizers.bounded import projected_newton
from optikit.optimizers.bounded_lbfgs import projected_lbfgs
from optikit.solve.choose import DENSE_BLACK_BOX, DENSE_STRUCTURED, choose
from optikit.solve.drive import drive
from optikit.solve.loop import Criterion, gradient_criterion
from optikit.solve.resume import SolveState
from optikit.solve.solution import Solution


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
    if state is not None:
        start_inside(box, state.params)
    return drive(
        factory, objective, params, args, tol, max_steps, trace, key, criterion, state, reason, box
    )


def _named(method: Any, objective: Objective, params: Params, args: tuple) -> tuple[str, str]:
    if method == "auto":
        chosen, reason = choose(objective, params, args)
        size = tree.size(params)
        if chosen == "newton" and size > DENSE_STRUCTURED:  # in a box its Hessian is dense
            chosen = "newton-cg"
        if chosen in BOUNDED:
            return chosen, f"{reason}; bounds by projection"
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
