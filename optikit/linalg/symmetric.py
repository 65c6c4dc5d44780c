"""Solves with a dense symmetric matrix that is usually positive definite but need not be.

By Cholesky after scaling to a unit diagonal, so that parameters in different units cost no digits;
where that fails, by the eigenvalues of the scaled matrix; and where some of these are of rounding
size, by those of the matrix itself, with such as zero: the solution of least norm.

Reference: Golub & Van Loan (2013), sections 4.2 and 5.5.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from optikit.core import Status, tree
from optikit.core.tree import HIGHEST


class Answer(NamedTuple):
    """The x of least norm among those of least |A x - b|, and how well posed the system is."""

    x: Float[Array, " n"]
    status: Int[Array, ""]  # CONVERGED, SINGULAR, INCONSISTENT, MAX_STEPS or NOT_FINITE
    products: Int[Array, ""]  # with A


def factorized(
    matrix: Float[Array, "n n"],
) -> Callable[[Float[Array, " n"]], Answer]:
    """B -> the Answer of matrix x = b, of least norm if the matrix is singular to rounding.

    A matrix with a NaN or infinite entry gives NaN. A system counts as inconsistent where more than
    eps^(1/2) of b is outside the range: less may be the rounding of b.

    Cost: n^3/3 flops, and 2 n^2 a solve; 9 n^3 a solve where Cholesky fails, twice that where the
    matrix is singular, which under `vmap` is paid only if it fails for some problem.

    Example:
      >>> solve = factorized(jnp.array([[2.0, 2.0], [2.0, 2.0]]))
      >>> [round(float(v), 5) for v in solve(jnp.array([4.0, 4.0])).x]
      [1.0, 1.0]
    """
    n = matrix.shape[0]
    negligible = 10 * n * tree.eps(matrix.dtype)
    diagonal = jnp.diagonal(matrix)
    scale = 1 / jnp.sqrt(jnp.where(jnp.abs(diagonal) > 0, jnp.abs(diagonal), 1))
    factor = jnp.linalg.cholesky(matrix * jnp.outer(scale, scale), symmetrize_input=False)
    # a squared pivot is the share of a column's length that the columns before do not explain
    pivots = jnp.diagonal(factor) ** 2
    safe = jnp.all(jnp.isfinite(factor)) & jnp.all(diagonal > 0) & (jnp.min(pivots) > negligible)
    finite = jnp.all(jnp.isfinite(matrix))

    def by_eigenvalues(b: Array, rescaled: Array) -> tuple[Array, Array, Array]:
        """X, its status, and whether the matrix is regular; first with the scaling, then without.

        The scaled matrix gives A^+ only if it is regular, which units do not hide there.
        """
        change = jnp.where(rescaled, scale, 1)
        symmetric = jnp.where(finite, matrix, 0) * jnp.outer(change, change)
        values, vectors = jnp.linalg.eigh(symmetric, symmetrize_input=False)
        real = jnp.abs(values) > negligible * jnp.max(jnp.abs(values))
        along = jnp.matmul(change * b, vectors, precision=HIGHEST)
        parts = jnp.where(real, along / jnp.where(real, values, 1), 0)
        outside = jnp.linalg.norm(jnp.where(real, 0, along))
        consistent = outside <= tree.eps(b.dtype) ** 0.5 * jnp.linalg.norm(b)
        singular = jnp.where(consistent, Status.SINGULAR.value, Status.INCONSISTENT.value)
        status = jnp.where(jnp.all(real), Status.CONVERGED.value, singular)
        x = change * jnp.matmul(vectors, parts, precision=HIGHEST)
        return x, status.astype(jnp.int32), jnp.all(real)

    def solve(b: Array) -> Answer:
        direct = scale * jax.scipy.linalg.cho_solve((factor, True), scale * b)

        def turn(c: tuple) -> tuple:
            x, status, regular = by_eigenvalues(b, c[2] == 0)
            return x, status, jnp.where(regular, 2, c[2] + 1)

        regular = jnp.asarray(Status.CONVERGED.value, jnp.int32)
        # a loop of at most two turns: a condition would run both of its sides under vmap
        turns = jnp.where(safe, 2, 0).astype(jnp.int32)
        start = jnp.where(safe, direct, 0), regular, turns
        x, status, _ = lax.while_loop(lambda c: c[2] < 2, turn, start)
        x = jnp.where(finite, x, jnp.nan)
        status = jnp.where(jnp.all(jnp.isfinite(x)), status, Status.NOT_FINITE.value)
        return Answer(x, status.astype(jnp.int32), jnp.asarray(0, jnp.int32))

    return solve
