"""Gradient descent with a line search, whose first trial is twice the last accepted step."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Key, Scalar, memoized, times, tree
from optikit.globalize import backtracking, hager_zhang, wolfe
from optikit.linalg import Direction
from optikit.optimizers.protocol import Optimizer, info_from_search


class GradientDescentState(NamedTuple):
    """What the next step needs."""

    step_size: Scalar  # the step length of the first trial, per unit of gradient
    search: Any


@memoized
def gradient_descent(
    *,
    line_search: Literal["backtracking", "wolfe", "hager-zhang"] = "backtracking",
    growth: float = 2.0,
) -> Optimizer:
    """Steepest descent, x - t grad f(x), with t from a line search.

    The first trial of the first step moves by min(1, 1 / max|g|) per unit; later first trials are
    `growth` times the step accepted last.

    Args:
      line_search: "backtracking" (Armijo: one value a trial, then one grad), "wolfe" (strong
        Wolfe) or "hager-zhang": one grad a trial.
      growth: at least 1.

    Reference: Nocedal & Wright (2006), section 3.5 ("initial step length").
    """
    searches = {"wolfe": wolfe, "hager-zhang": hager_zhang}
    if line_search != "backtracking" and line_search not in searches:
        msg = (
            f"line_search must be 'backtracking' or 'wolfe' or 'hager-zhang'; got {line_search!r}."
        )
        raise ValueError(msg)
    values_only = line_search == "backtracking"
    search_along = backtracking(gradients=False) if values_only else searches[line_search]()

    def init(at: Eval) -> GradientDescentState:
        largest = tree.max_abs(at.grad).astype(at.value.dtype)
        first = jnp.minimum(1, 1 / jnp.where(largest > 0, largest, 1))
        return GradientDescentState(first, search_along.init(at))

    def step(oracle: Oracle, at: Eval, state: GradientDescentState, key: Key):
        del key
        dtype = at.value.dtype
        zero, no, yes = jnp.zeros((), dtype), jnp.asarray(False), jnp.asarray(True)
        step = tree.scale(-state.step_size, at.grad)
        slope = tree.vdot(at.grad, step).astype(dtype)  # a square of the gradient might overflow
        direction = Direction(step, slope, zero, no, yes, zero, times(0, Counts()))
        search = search_along.search(oracle, at, lambda radius: direction, state.search)
        taken = state.step_size * search.step_size
        grown = jnp.where(search.accepted, growth * taken, state.step_size)
        new = GradientDescentState(grown, search.state)
        info = info_from_search(search._replace(step_size=taken))
        return search.params, search.next, new, info._replace(predicted=None)

    return Optimizer(init, step, monotone=True, name="gradient-descent")
