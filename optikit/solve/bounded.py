"""Solves in a box: which methods take bounds."""

from typing import Any

from optikit.calculus import Objective
from optikit.calculus.objective import residual_vector
from optikit.calculus.validate import as_args, as_params
from optikit.core import Key, Params, as_box, start_inside, tree
from optikit.optimizers import BOUNDED, Bounded
from optikit.solve.choose import DENSE_BLACK_BOX, DENSE_STRUCTURED, choose
from optikit.solve.drive import drive
from optikit.solve.loop import Criterion
from optikit.solve.resume import SolveState
from optikit.solve.solution import Solution


def solve_in_box(
    objective: Objective,
    params: Params,
    bounds: Any,
    method: Any,
    args: tuple,
    tol: float | None,
    max_steps: int,
    trace: bool,
    key: Key | None,
    state: SolveState | None,
    criterion: Criterion,
) -> Solution:
    """Check, choose, compile, run. Other bounds, same program.

    Raises:
      TypeError, ValueError: as `minimize`, `as_box` and `start_inside` do; a method that takes no
        bounds.
    """
    params, args = as_params(params), as_args(args)
    bounded, reason = as_bounded(method, objective, params, args)
    box = as_box(bounds, params)
    params = start_inside(box, params)
    if state is not None:
        start_inside(box, state.params)
    return drive(
        bounded, objective, params, args, tol, max_steps, trace, key, criterion, state, reason, box
    )


def as_bounded(
    method: Any, objective: Objective, params: Params, args: tuple
) -> tuple[Bounded, str]:
    """A method that takes bounds, with the reason if it was chosen."""
    if isinstance(method, Bounded):
        return method, ""
    if method == "auto":
        chosen, reason = choose(objective, params, args)
        size = tree.size(params)
        chosen = "newton" if chosen == "newton-bfgs" else chosen
        if chosen == "newton" and size > DENSE_STRUCTURED:  # in a box its Hessian is dense
            chosen = "newton-cg"
        if chosen in BOUNDED:
            return BOUNDED[chosen](), f"{reason}; bounds by projection"
        chosen = "newton" if size <= DENSE_BLACK_BOX else "lbfgs"
        return BOUNDED[chosen](), f"bounds on {size} parameters"
    name = method.lower().replace("_", "-") if isinstance(method, str) else None
    if name not in BOUNDED:
        shown = (
            method if isinstance(method, str) else getattr(method, "name", type(method).__name__)
        )
        squares = residual_vector(objective) is not None
        names = [repr(n) for n in sorted(BOUNDED) if squares or n != "levenberg-marquardt"]
        msg = (
            f"method {shown!r} takes no bounds: use {', '.join(names)} or 'auto', or an "
            "ok.optimizers.bounded_* factory for hyperparameters."
        )
        raise ValueError(msg)
    return BOUNDED[name](), ""
