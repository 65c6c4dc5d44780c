"""Derivatives of a solution with respect to the data, by the implicit function theorem.

At a solution grad f(x, theta) = 0, so that with the full Hessian H = d2f/dx2 (for least squares of
|r|^2 / 2, not J^T J)

    dx = -H^-1 (d grad f / d theta) dtheta,    df = (d f / d theta) dtheta,

the second by the envelope theorem. Parameters that a bound holds move with their bound, and the
others respond among themselves. The solver's loop is never differentiated. One rule serves jvp and
grad: it is linear in dtheta, and the solve is one that can be transposed and, for second
derivatives, differentiated again.

References: Blondel et al. (2022), "Efficient and modular implicit differentiation", section 2;
Fiacco (1983), "Introduction to sensitivity and stability analysis", section 3.2, for bounds.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int

from optikit.calculus import Objective, bind
from optikit.calculus.closures import Closure, held_tracers, opened
from optikit.calculus.objective import value_and_aux
from optikit.calculus.oracle import columns
from optikit.calculus.structured import add_penalty_diagonal, structured_curvature
from optikit.core import Box, Params, Status, tree
from optikit.core.compiled import under_transformation
from optikit.core.tree import HIGHEST
from optikit.linalg.least_norm import least_norm
from optikit.linalg.symmetric import factorized
from optikit.solve.solution import Solution

DENSE = 512
"""Parameters up to which the Hessian is built from products and factorised."""

DENSE_STRUCTURED = 2000
"""Parameters up to which a linear model's Hessian, at one Gram product, is factorised."""

DENSE_RESORT = 2000
"""Parameters up to which a Hessian is factorised where MINRES has used up its products: it is
ill-conditioned in any units, or singular in bad ones."""

Run = Callable[..., Solution]
"""(objective, params, args, captured, **rest) -> Solution; what is followed is args, captured and
rest["box"]."""


def differentiable(
    run: Run, objective: Objective, params: Params, args: tuple, *, box: Any = None, **rest: Any
) -> Solution:
    """run(objective, params, args, (), **rest), with a derivative where one may be asked for.

    Outside of any transformation this is the run itself.

    Args:
      box: bounds (lower, upper) that the solution keeps, each like params; given to the run too.

    Raises:
      TypeError: what is differentiated enters by the method, which a solution does not depend on.
    """
    if box is not None:
        rest["box"] = box
    if not under_transformation():
        return run(objective, params, args, (), **rest)
    tracers = held_tracers(objective, params, args)
    subject = Closure(objective, tracers) if tracers else objective
    try:
        return _solved(run, subject, params, args, tracers, rest)
    except jax.errors.UnexpectedTracerError as error:
        msg = (
            "this solve is differentiated with respect to a value that reaches it by neither args "
            "nor the objective, for instance a hyperparameter of the method. The solution does not "
            "depend on it: pass jax.lax.stop_gradient(value)."
        )
        raise TypeError(msg) from error


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _solved(run: Run, objective: Objective | Closure, params, args, captured, rest) -> Solution:
    return run(objective, params, args, captured, **rest)


@functools.partial(_solved.defjvp, symbolic_zeros=True)
def _rule(run: Run, objective: Objective | Closure, primals: tuple, tangents: tuple):
    solution = _solved(run, objective, *primals)
    data, structure = jax.tree.flatten(primals[1:3])
    moves = jax.tree.leaves(tangents[1:3])
    moved = tuple(i for i, m in enumerate(moves) if not isinstance(m, SymbolicZero))
    response = zero_from_primal(solution, symbolic_zeros=True)
    box, box_moves = primals[3].get("box"), tangents[3].get("box")
    if moved or any(not isinstance(m, SymbolicZero) for m in jax.tree.leaves(box_moves)):
        params, value, aux, _ = response_at(
            solution.params, data, tuple(moves[i] for i in moved),
            held(solution.params, solution.grad, box, box_moves),
            objective=objective, structure=structure, moved=moved,
        )  # fmt: skip
        response = dataclasses.replace(response, params=params, value=value, aux=aux)
    return solution, response


def held(x: Params, grad: Params, box: Any, moves: Any) -> tuple[Params, Params] | None:
    """Which parameters a bound holds, and how it moves them; None without bounds."""
    if box is None:
        return None

    def forced(x: Array, low: Array, held: Array, low_move: Array, high_move: Array) -> Array:
        return jnp.where(held, jnp.where(x <= low, low_move, high_move), 0)

    low, high = box
    mask = Box(low, high).held(x, grad)
    moves = jax.tree.map(
        lambda b, m: jnp.zeros_like(b) if isinstance(m, SymbolicZero) else m,
        tuple(box),
        tuple(moves),
    )
    return mask, jax.tree.map(forced, x, low, mask, *moves)


@functools.partial(jax.jit, static_argnames=("objective", "structure", "moved", "examine"))
def response_at(
    params: Params, data: list, moves: tuple, held: Any, *, objective, structure, moved: tuple,
    examine: bool = False,
):  # fmt: skip
    """(dx, df, daux, status) at params for moves of the data leaves numbered `moved`.

    Args:
      examine: tell in the status whether the Hessian is singular; see `least_norm`.
    """

    def on(part: tuple) -> tuple[Objective, tuple]:
        leaves = list(data)
        for i, leaf in zip(moved, part, strict=True):
            leaves[i] = leaf
        args, captured = jax.tree.unflatten(structure, leaves)
        return opened(objective, captured), args

    def evaluate(x: Params, part: tuple) -> tuple:
        subject, args = on(part)
        return value_and_aux(subject, x, args)

    def value_and_grad(x: Params, part: tuple) -> tuple:
        return jax.value_and_grad(lambda x: evaluate(x, part)[0])(x)

    part = tuple(jnp.asarray(data[i]) for i in moved)
    if held is None:
        along = functools.partial(value_and_grad, params)
        _, (value, cross) = jax.jvp(along, (part,), (moves,))
        back, status = hessian_solve(*on(part), params, cross, examine=examine)
        step = tree.negative(back)
    else:
        mask, forced = held
        _, (value, cross) = jax.jvp(value_and_grad, (params, part), (forced, moves))
        back, status = hessian_solve(*on(part), params, cross, held=mask, examine=examine)
        step = tree.subtract(forced, back)
    aux = jax.jvp(lambda x, part: evaluate(x, part)[1], (params, part), (step, moves))[1]
    return step, value, aux, status


def hessian_solve(
    objective: Objective,
    args: tuple,
    params: Params,
    vector: Params,
    *,
    held: Any = None,
    examine: bool = False,
) -> tuple[Params, Int[Array, ""]]:
    """H^-1 vector with H the Hessian at params, of least norm where H is singular; and a Status.

    A dense factorisation where the Hessian is cheap to have, else MINRES on products, and where
    these do not suffice the factorisation, if the Hessian is not too large. Linear in `vector`, and
    differentiable in everything.

    Args:
      held: booleans like params: those are left out of the system, and zero in the result.
      examine: tell SINGULAR from CONVERGED by products, too.
    """
    flat, unravel = ravel_pytree(params)
    free = jnp.ones_like(flat) if held is None else (~tree.ravel(held)).astype(flat.dtype)
    b = free * tree.ravel(vector).astype(flat.dtype)
    dense = _dense_hessian(objective, args, params)
    if dense is None:
        product, solve = _by_products(objective, args, params, free, examine=examine)
    else:
        product, solve = _by_factors(dense, free)
    solution, status = lax.custom_linear_solve(product, b, solve, symmetric=True, has_aux=True)
    return unravel(solution), status


System = tuple[Callable[[Array], Array], Callable[[Any, Array], tuple[Array, Array]]]
"""A product, and the solve with it: (product, b) -> (x, status)."""


def _by_factors(dense: Array, free: Array) -> System:
    kept = jnp.where(jnp.diagonal(dense) > 0, jnp.diagonal(dense), 1)
    matrix = dense * jnp.outer(free, free) + jnp.diag((1 - free) * kept)
    solve = factorized(lax.stop_gradient(matrix))
    return lambda v: jnp.matmul(matrix, v, precision=HIGHEST), lambda _, b: solve(b)[:2]


def _by_products(
    objective: Objective, args: tuple, params: Params, free: Array, *, examine: bool
) -> System:
    hvp = bind(objective, args).curvature("hessian", params).mv
    unravel = ravel_pytree(params)[1]

    def product(v: Array) -> Array:
        return free * tree.ravel(hvp(unravel(free * v)))

    def solve(given: Callable[[Array], Array], b: Array) -> tuple[Array, Array]:
        found = least_norm(given, b, examine=examine, within=free > 0)[:2]
        if b.size > DENSE_RESORT:
            return found

        def directly(_: tuple) -> tuple:
            return _by_factors(columns(given, b), free)[1](given, b), jnp.asarray(False)

        # a loop of at most one turn: a condition would run both of its sides under vmap
        cut = found[1] == Status.MAX_STEPS.value
        return lax.while_loop(lambda c: c[1], directly, (found, cut))[0]

    return product, solve


def _dense_hessian(objective: Objective, args: tuple, params: Params) -> Array | None:
    n = tree.size(params)
    if n <= DENSE:
        return bind(objective, args).curvature("hessian", params).dense()
    if n > DENSE_STRUCTURED or objective.loss is None:
        return None
    dense = structured_curvature(objective, params, args, objective.loss.hvp)
    return None if dense is None else add_penalty_diagonal(dense, objective, params)
