"""How a solution answers to a move of its data, and whether that is a well-posed question."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from optikit.calculus import bind
from optikit.calculus.validate import as_args, as_objective, as_params, check_scalar
from optikit.core import Params, Scalar, as_box
from optikit.solve.implicit import held, response_at


class Response(NamedTuple):
    """The derivative of a solution along a move of its data."""

    params: Params  # dx
    value: Scalar  # df, at the solution as it moves
    aux: Any  # the derivative of the auxiliary output, None without `has_aux`
    status: Int[Array, ""]
    """A `Status`: CONVERGED where dx is the only answer; SINGULAR where it is the one of least norm
    among many; INCONSISTENT where there is none, so that the solution has no derivative along this
    move; MAX_STEPS where products did not suffice; NOT_FINITE."""


def implicit_response(
    fun: Any,
    params: Params,
    moves: tuple,
    *,
    args: tuple,
    bounds: Any = None,
    has_aux: bool = False,
) -> Response:
    """`jax.jvp` of a solution along moves of `args`, with a status: whether it is well posed.

    That is, dx = -H^+ (d grad f / d args) moves, with H the Hessian at params. Where H is singular
    to rounding, at the point given, the minimisers need not be isolated (or not smooth in args);
    `jax.jvp` and `jax.grad` of `minimize` then give this same answer of least norm, but can not say
    so.

    Args:
      fun: what was minimised, as in `minimize`; for residuals, an `ok.residuals` objective.
      params: where, usually `sol.params`.
      moves: like args, with None for an argument, or for an array in one, that does not move;
        integers can not.
      bounds: as in `minimize`; parameters that a bound holds stay there, and are no part of H.

    Cost: a gradient's derivative, and a dense Hessian up to 512 parameters (2000 of a linear
    model). Beyond, MINRES on Hessian products, equilibrated where it takes more than 50, and up to
    2000 parameters the dense Hessian after all where that does not end; and, so that a singular
    Hessian is told from a regular one, a run with a random right-hand side.

    Works under `jit`, `vmap` and differentiation. Reference: see `optikit.solve.implicit`.

    Raises:
      TypeError, ValueError: moves that are not like args; what `minimize` refuses.

    Example:
      >>> from optikit import Status
      >>> def fun(x, t):  # only the sum is determined
      ...     return (x[0] + x[1] - t) ** 2
      >>> answer = implicit_response(fun, jnp.array([3.0, -1.0]), (1.0,), args=(2.0,))
      >>> [round(float(v), 4) for v in answer.params], Status(int(answer.status)).name
      ([0.5, 0.5], 'SINGULAR')
    """
    objective = as_objective(fun, has_aux=has_aux)
    params, args = as_params(params), as_args(args)
    check_scalar(objective, params, args)
    data = jax.tree.leaves(args)
    leaves = _moves(moves, args, data)
    moved = tuple(i for i, m in enumerate(leaves) if m is not None)
    found = None
    if bounds is not None:
        box = as_box(bounds, params)
        grad = bind(objective, args).value_and_grad(params).grad
        found = held(params, grad, box, jax.tree.map(jnp.zeros_like, box))
    return Response(
        *response_at(
            params, data, tuple(leaves[i] for i in moved), found,
            objective=objective, structure=jax.tree.structure((args, ())), moved=moved,
            examine=True,
        )
    )  # fmt: skip


def _moves(moves: tuple, args: tuple, data: list) -> list[Array | None]:
    """One move for each leaf of args, in its dtype; None for those that stay."""
    if not isinstance(moves, tuple) or len(moves) != len(args):
        shown = f"{len(moves)} of them" if isinstance(moves, tuple) else type(moves).__name__
        msg = f"moves must be a tuple, one for each of the {len(args)} args; got {shown}."
        raise TypeError(msg)
    leaves: list[Any] = []
    for i, (move, arg) in enumerate(zip(moves, args, strict=True)):
        structure = jax.tree.structure(arg)
        if move is None:
            leaves += [None] * structure.num_leaves
            continue
        try:
            parts = structure.flatten_up_to(move)
        except (TypeError, ValueError) as error:
            msg = f"moves[{i}] is not structured like args[{i}]: {error}"
            raise ValueError(msg) from error
        if not jax.tree_util.all_leaves(p for p in parts if p is not None):
            msg = f"moves[{i}] is not structured like args[{i}]: parts where that has arrays."
            raise ValueError(msg)
        leaves += parts
    return [_move(m, x) for m, x in zip(leaves, data, strict=True)]


def _move(move: Any, like: Any) -> Array | None:
    if move is None:
        return None
    dtype, shape = jnp.result_type(like), jnp.shape(like)
    if not jnp.issubdtype(dtype, jnp.floating):
        msg = f"an argument of dtype {dtype.name} can not move: give None for it in moves."
        raise TypeError(msg)
    if jnp.shape(move) != shape:
        msg = f"a move has shape {jnp.shape(move)}, but what it moves has {shape}."
        raise ValueError(msg)
    return jnp.asarray(move, dtype)
