"""Newton steps from a dense curvature matrix that may be indefinite or singular.

A Cholesky factorisation where the matrix is safely positive definite, or is so after a small
shift; otherwise an eigendecomposition, whose eigenvalues are replaced by their absolute
values, bounded below. The step then descends in every eigendirection and leaves saddles.

References: Nocedal & Wright (2006), section 3.4; Dauphin et al. (2014), "Identifying and attacking
the saddle point problem", for |H|.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from optikit.calculus import Eval, Oracle
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Key, Scalar, memoized, tally, times, tree
from optikit.core.tree import HIGHEST
from optikit.linalg.small import solve_scaled
from optikit.linalg.subproblem import Direction, Inner, Model, Subproblem

GROUP = 8
"""The least number of problems of a batch whose matrices are decomposed together."""

PASSES = 5
"""Of the equilibration: each halves the orders of magnitude that are left."""


@memoized
def cholesky() -> Subproblem:
    """The dense Newton step as a Subproblem; the radius is ignored.

    Cost: one dense curvature matrix, n^3/3 flops for its factorisation, as many again where it
    is singular to rounding, about 9 n^3 where it has negative eigenvalues.
    """

    def prepare(oracle: Oracle, at: Eval, kind: CurvatureKind, key: Key) -> Model:
        op = oracle.curvature(kind, at.params, key if kind == "fisher" else None)
        matrix = op.dense()
        gradient, unravel = ravel_pytree(at.grad)
        length = jnp.maximum(1, tree.norm(at.params)).astype(matrix.dtype)
        step, convex = newton_steps(matrix, gradient, length)

        def propose(radius: Scalar, inner: Inner) -> Direction:
            del radius, inner
            product = jnp.matmul(matrix, step, precision=HIGHEST)
            slope = jnp.vdot(gradient, step, precision=HIGHEST).astype(at.value.dtype)
            curvature = jnp.vdot(step, product, precision=HIGHEST).astype(at.value.dtype)
            free = times(0, op.price)
            no = jnp.asarray(False)
            return Direction(
                unravel(step), slope, curvature, no, convex, jnp.zeros_like(slope), free
            )

        return Model(propose, tally(op.matrix_price))

    return Subproblem(prepare)


def newton_step(
    matrix: Float[Array, "n n"], gradient: Float[Array, " n"], length: Scalar
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """-|H|^-1 g with the small eigenvalues of |H| bounded below; -H^-1 g where H is safe.

    All in parameters scaled by `equilibration`, so that their units do not matter. Also whether H
    is convex to rounding.

    Args:
      length: a typical length of the parameters: how far to go along negative curvature at a
        point where the gradient itself gives no step.
    """
    n, eps = gradient.size, tree.eps(matrix.dtype)
    d = equilibration(matrix)
    scaled, slopes = d[:, None] * matrix * d[None, :], d * gradient
    factor = jnp.linalg.cholesky(scaled)
    # the squared ratio of pivots bounds the condition number from below; the scaling itself rounds
    pivots, least = jnp.diagonal(factor), 8 * n * eps
    safe = jnp.all(jnp.isfinite(factor)) & (jnp.min(pivots) ** 2 > least * jnp.max(pivots) ** 2)

    def solve(factor: Array) -> tuple[Array, Array]:
        return -d * jax.scipy.linalg.cho_solve((factor, True), slopes), jnp.asarray(True)

    def unsafe() -> Array:
        # singular to rounding, as with a parameter the model does not need: a small shift decides,
        # large against rounding so that nothing drifts along the null space; only true negative
        # curvature is worth an eigendecomposition
        shift = eps ** (2 / 3)
        shifted = jnp.linalg.cholesky(scaled + shift * jnp.eye(n, dtype=matrix.dtype))
        convex = jnp.all(jnp.isfinite(shifted)) & jnp.any(matrix != 0)
        return lax.cond(
            convex,
            lambda: solve(shifted),
            lambda: _saddle_free_step(scaled, slopes, d, length),
        )

    return lax.cond(safe, lambda: solve(factor), unsafe)


@custom_vmap
def newton_steps(
    matrix: Float[Array, "n n"], gradient: Float[Array, " n"], length: Scalar
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """`newton_step`; of a batch at the price of Cholesky factorisations where those are safe.

    The problems that need more are worked off in groups, so that one of them does not make the
    whole batch pay for eigendecompositions.
    """
    return newton_step(matrix, gradient, length)


@newton_steps.def_vmap
def _newton_steps_of_a_batch(axis_size, in_batched, matrix, gradient, length):
    every = [
        x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        for x, batched in zip((matrix, gradient, length), in_batched, strict=True)
    ]
    found, smallest = jax.vmap(solve_scaled)(every[0], every[1])
    safe = smallest > 8 * matrix.shape[-1] * tree.eps(matrix.dtype)
    width = min(axis_size, max(GROUP, axis_size // 8))

    def group(c: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        steps, convex, done = c
        lanes = jnp.argsort(done)[:width].astype(jnp.int32)  # those that are left come first
        new_steps, new_convex = jax.vmap(newton_step)(*(x[lanes] for x in every))
        left = ~done[lanes]
        steps = steps.at[lanes].set(jnp.where(left[:, None], new_steps, steps[lanes]))
        convex = convex.at[lanes].set(jnp.where(left, new_convex, convex[lanes]))
        return steps, convex, done.at[lanes].set(True)

    start = jnp.where(safe[:, None], -found, 0), jnp.ones_like(safe), safe
    steps, convex, _ = lax.while_loop(lambda c: ~jnp.all(c[2]), group, start)
    return (steps, convex), (True, True)


def equilibration(matrix: Float[Array, "n n"]) -> Float[Array, " n"]:
    """The d > 0 with which each row of diag(d) H diag(d) has a largest entry of about 1 in size.

    For a positive definite H that is a unit diagonal. Reference: Ruiz (2001), "A scaling algorithm
    to equilibrate both rows and columns norms in matrices".
    """
    sizes = jnp.abs(matrix)

    def body(_: Array, d: Array) -> Array:
        rows = d * jnp.max(sizes * d[None, :], axis=1)
        return d / jnp.sqrt(jnp.where((rows > 0) & jnp.isfinite(rows), rows, 1))

    # from a unit diagonal, so that the units of the parameters leave no trace
    diagonal = jnp.diagonal(sizes)
    usable = (diagonal > 0) & jnp.isfinite(diagonal)
    first = 1 / jnp.sqrt(jnp.where(usable, diagonal, 1))
    return lax.fori_loop(0, PASSES, body, first)


def scaled_newton(
    matrix: Float[Array, "n n"], gradient: Float[Array, " n"]
) -> tuple[Bool[Array, ""], Float[Array, " n"]]:
    """Whether H is safely positive definite at a unit diagonal, and then -H^-1 g (else zero).

    Cholesky factorisations do not mind the units of the parameters; the test for safety does not
    either, at a unit diagonal.
    """
    n, eps = gradient.size, tree.eps(matrix.dtype)
    diagonal = jnp.diagonal(matrix)
    scale = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1))
    factor = jnp.linalg.cholesky(scale[:, None] * matrix * scale[None, :])
    pivots = jnp.diagonal(factor)
    safe = jnp.all(jnp.isfinite(factor)) & (jnp.min(pivots) ** 2 > n * eps)
    factor = jnp.where(safe, factor, jnp.eye(n, dtype=matrix.dtype))
    step = -scale * jax.scipy.linalg.cho_solve((factor, True), scale * gradient)
    return safe, jnp.where(safe, step, 0)


def _saddle_free_step(
    scaled: Array, slopes: Array, d: Array, length: Scalar
) -> tuple[Array, Array]:
    finite = jnp.isfinite(scaled)
    values, vectors = jnp.linalg.eigh(jnp.where(finite, scaled, 0))
    eps = tree.eps(scaled.dtype)
    largest = jnp.max(jnp.abs(values))
    floor = jnp.where(largest > 0, eps ** (2 / 3) * largest, 1)
    along = jnp.matmul(vectors.T, slopes, precision=HIGHEST)
    coefficients = -along / jnp.maximum(jnp.abs(values), floor)
    vectors = d[:, None] * vectors
    # the gradient may have no part along the most negative curvature, on a saddle none at all
    negative = values[0] < -floor
    size = jnp.linalg.norm(jnp.matmul(vectors, coefficients, precision=HIGHEST))
    least = 0.1 * jnp.where(size < 1e-3 * length, length, size) / jnp.linalg.norm(vectors[:, 0])
    sign = jnp.where(along[0] > 0, -1, 1).astype(scaled.dtype)
    escape = sign * jnp.maximum(jnp.abs(coefficients[0]), least)
    coefficients = coefficients.at[0].set(jnp.where(negative, escape, coefficients[0]))
    step = jnp.matmul(vectors, coefficients, precision=HIGHEST)
    return jnp.where(jnp.all(finite), step, jnp.nan), ~negative
