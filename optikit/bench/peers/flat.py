"""A problem as other libraries want it: functions of one vector."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from optikit.calculus.objective import fingerprint, residual_vector, value_and_aux
from optikit.core import Key, Params
from optikit.problems import Problem


class Flat(NamedTuple):
    """A problem over the vector of its parameters, in `ravel_pytree` order.

    Attributes:
      start: (n,); unravel: from (n,) to the problem's own parameters.
      value: (vector, *args) -> f, without auxiliary output.
      residuals: (vector, *args) -> r with f = |r|^2 / 2; None where the objective is no such sum.
    """

    problem: Problem
    start: jax.Array
    unravel: Callable[[jax.Array], Params]
    value: Callable[..., Any]
    residuals: Callable[..., Any] | None


def flat(problem: Problem, key: Key) -> Flat:
    """A problem whose objective is an Objective (as `Problem.cast` leaves it), at a key's start."""
    objective: Any = problem.objective
    start, unravel = ravel_pytree(problem.start(key))
    vector = None if objective.robust is not None else residual_vector(objective)

    def value(v, *args):
        return value_and_aux(objective, unravel(v), args)[0]

    def residuals(v, *args):
        assert vector is not None
        return vector(unravel(v), *args)

    return Flat(problem, jnp.asarray(start), unravel, value, residuals if vector else None)


def residuals_of(problem: Flat, method: str) -> Callable[..., Any]:
    """The residual function.

    Raises:
      TypeError: the objective is no sum of squares, or a robust one.
    """
    if problem.residuals is None:
        objective: Any = problem.problem.objective
        msg = (
            f"{method} needs a sum of squares, and not a robust one; got {fingerprint(objective)}."
        )
        raise TypeError(msg)
    return problem.residuals
