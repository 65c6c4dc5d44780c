"""What an objective closes over while a transformation is under way, made explicit.

`jax.grad(lambda t: minimize(lambda x: f(x, t), x0).value)` hides t from any rule of
differentiation. Tracing the objective once shows which outer tracers it holds; they are then handed
over as arguments, and every function of the objective is replayed with them in place of the
originals, so that its structure (residuals, composite, penalty) is kept.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import core

from optikit.calculus.objective import Objective, split_data, value_and_aux
from optikit.core import Params


class Closure:
    """An objective that holds tracers of an outer transformation, and which they are.

    Equal only to itself, like the functions inside.
    """

    def __init__(self, objective: Objective, tracers: tuple):
        self.objective = objective
        self.tracers = tracers

    def opened(self, values: tuple) -> Objective:
        """The objective on other values in place of its tracers."""
        new = {id(t): v for t, v in zip(self.tracers, values, strict=True)}
        return jax.tree.map(
            lambda part: _replaying(part, new) if callable(part) else part, self.objective
        )


def opened(objective: Objective | Closure, values: tuple) -> Objective:
    """The objective itself, or a Closure opened on values."""
    return objective.opened(values) if isinstance(objective, Closure) else objective


def held_tracers(objective: Objective, params: Params, args: tuple) -> tuple:
    """The outer tracers that an objective closes over, found by tracing it once."""
    loss, penalty = objective.loss, objective.penalty

    def every_part(p: Params, a: tuple) -> list:
        found: list[Any] = []
        if loss is None:
            found.append(value_and_aux(objective._replace(penalty=None), p, a))
        else:
            inputs, targets, _ = split_data(objective, a)
            found.append(objective.fun(p, inputs))
            outputs = found[0][0] if objective.has_aux else found[0]
            found += [loss.value(outputs, targets), loss.hvp(outputs, targets, outputs)]
            if loss.fisher is not None:
                found.append(loss.fisher(outputs, outputs))
            if loss.residual is not None:
                found.append(loss.residual(outputs, targets))
        if penalty is not None:
            parts = (penalty.value, penalty.diagonal, penalty.residual)
            found += [part(p) for part in parts if part is not None]
        return found

    try:
        consts = jax.make_jaxpr(every_part)(params, args).consts
    except (TypeError, ValueError):
        return ()  # a wrong objective: the solve's own checks say what is wrong with it
    return tuple(c for c in consts if isinstance(c, core.Tracer))


def _replaying(function: Callable, new: dict[int, Any]) -> Callable:
    @functools.wraps(function)
    def replayed(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        consts = [new.get(id(c), c) for c in closed.consts]
        leaves = core.eval_jaxpr(closed.jaxpr, consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return replayed
