"""An objective as a function of some of its parameters, the others held where they are."""

from collections.abc import Sequence

import jax

from optikit.calculus.objective import Objective
from optikit.calculus.oracle import Oracle
from optikit.core import Params
from optikit.losses import Penalty


def part(params: Params, chosen: Sequence[bool]) -> Params:
    """The same tree with None for the leaves that are not chosen; other leaves keep their paths.

    Example:
      >>> part({"a": 1.0, "b": 2.0}, [True, False])
      {'a': 1.0, 'b': None}
    """
    leaves, structure = jax.tree.flatten(params)
    kept = [x if c else None for x, c in zip(leaves, chosen, strict=True)]
    return jax.tree.unflatten(structure, kept)


def completed(chosen_part: Params, params: Params, chosen: Sequence[bool]) -> Params:
    """Params with the leaves of a part in the place of their own.

    Example:
      >>> completed({"a": 3.0, "b": None}, {"a": 1.0, "b": 2.0}, [True, False])
      {'a': 3.0, 'b': 2.0}
    """
    leaves, structure = jax.tree.flatten(params)
    new = iter(jax.tree.leaves(chosen_part))
    return jax.tree.unflatten(
        structure, [next(new) if c else x for x, c in zip(leaves, chosen, strict=True)]
    )


def restricted(oracle: Oracle, params: Params, chosen: Sequence[bool]) -> Oracle:
    """The door to the same objective on the same data over a part of its parameters.

    Values, gradients and curvature are those of the whole objective with the other leaves held at
    their values in `params`: a gradient is the part of the whole one, a Hessian its block. The
    structure (model, loss, penalty) stays known; prices are the whole objective's.

    Args:
      params: the whole tree.
      chosen: for each of its leaves whether it is in the part; see `part`.
    """
    objective = oracle.objective
    fun, penalty = objective.fun, objective.penalty

    def whole(p: Params) -> Params:
        return completed(p, params, chosen)

    def on_part(p: Params, *data):
        return fun(whole(p), *data)

    on_part.__name__ = getattr(fun, "__name__", type(fun).__name__)
    held = None if penalty is None else _held(penalty, whole, chosen)
    inner: Objective = objective._replace(fun=on_part, penalty=held)
    return oracle._replace(objective=inner)


def _held(penalty: Penalty, whole, chosen: Sequence[bool]) -> Penalty:
    diagonal, residual = penalty.diagonal, penalty.residual
    return penalty._replace(
        value=lambda p: penalty.value(whole(p)),
        diagonal=None if diagonal is None else lambda p: part(diagonal(whole(p)), chosen),
        # the residuals of parameters held stay: they are a part of the value
        residual=None if residual is None else lambda p: residual(whole(p)),
    )
