"""Factorisation and solves of small systems: LAPACK for one, plain arithmetic for a batch.

A batch of tiny matrices is slow through LAPACK or cuSOLVER: one call per matrix, and a Q that
nobody needs. Unrolled over the columns, the same arithmetic is a few wide operations on CPU and GPU
alike; but its program is larger, so a lone system stays with LAPACK.

References: Björck (1967), "Solving linear least squares problems by Gram-Schmidt
orthogonalization": modified Gram-Schmidt with the right-hand side as the last column is as stable
as Householder's method; Golub & Van Loan (2013), sections 3.1, 4.2.5 and 5.2.8.
"""

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float

from optikit.core.tree import HIGHEST

SMALL_COLUMNS = 16
"""Columns up to which a batch is unrolled; beyond, LAPACK's blocking pays."""

SMALL_ROWS = 1024
"""Rows likewise."""


@custom_vmap
def triangularize(
    matrix: Float[Array, "m n"], rhs: Float[Array, " m"]
) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
    """R and Q^T rhs of the thin factorisation matrix = Q R, m > n, without Q.

    Columns that depend on earlier ones give diagonal entries of rounding size or 0; the diagonal
    may have any signs. Cost: 2 m n^2 flops.

    Example:
      >>> upper, rotated = triangularize(jnp.array([[3.0], [4.0]]), jnp.array([5.0, 0.0]))
      >>> round(float(rotated[0] / upper[0, 0]), 6)  # the least-squares solution
      0.6
    """
    n = matrix.shape[1]
    upper = jnp.linalg.qr(jnp.concatenate([matrix, rhs[:, None]], axis=1), mode="r")
    return upper[:n, :n], upper[:n, n]


@triangularize.def_vmap
def _triangularize_batch(axis_size, in_batched, matrix, rhs):
    matrix, rhs = (
        x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        for x, batched in zip((matrix, rhs), in_batched, strict=True)
    )
    m, n = matrix.shape[1:]
    small = n <= SMALL_COLUMNS and m <= SMALL_ROWS
    function = _gram_schmidt if small else triangularize.fun
    return jax.vmap(function)(matrix, rhs), (True, True)


def _gram_schmidt(matrix: Array, rhs: Array) -> tuple[Array, Array]:
    """Modified Gram-Schmidt on the columns, kept as rows so that sums run along memory."""
    n = matrix.shape[1]
    rows = jnp.concatenate([matrix.T, rhs[None, :]])
    result = []
    for k in range(n):
        pivot = rows[0]
        inner = jnp.matmul(rows, pivot, precision=HIGHEST)
        size = jnp.sqrt(inner[0])
        safe = jnp.where(size > 0, size, 1)
        along = inner[1:] / safe
        rows = rows[1:] - (along / safe)[:, None] * pivot[None, :]
        result.append(jnp.concatenate([jnp.zeros(k, matrix.dtype), size[None], along]))
    stacked = jnp.stack(result)
    return stacked[:, :n], stacked[:, n]


@custom_vmap
def solve_upper(upper: Float[Array, "n n"], rhs: Float[Array, " n"]) -> Float[Array, " n"]:
    """R^-1 rhs by back substitution, n^2 flops."""
    return solve_triangular(upper, rhs)


@solve_upper.def_vmap
def _solve_upper_batch(axis_size, in_batched, upper, rhs):
    del axis_size
    n = rhs.shape[-1]
    function = _substitute if n <= SMALL_COLUMNS else solve_triangular
    return jax.vmap(function, [0 if b else None for b in in_batched])(upper, rhs), True


def _substitute(upper: Array, rhs: Array) -> Array:
    solution = []
    for k in reversed(range(rhs.size)):
        x = rhs[k] / upper[k, k]
        rhs = rhs[:k] - x * upper[:k, k]
        solution.append(x)
    return jnp.stack(solution[::-1])


@custom_vmap
def solve_scaled(
    matrix: Float[Array, "n n"], rhs: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """matrix^-1 rhs and the least squared pivot, for a symmetric matrix, by Cholesky.

    At a unit diagonal, so that units do not matter: that pivot is at most 1, and 0 or less (or NaN)
    where the matrix is not positive definite and the solution means nothing. n^3/3 flops.

    Example:
      >>> x, pivot = solve_scaled(jnp.array([[4.0, 0.0], [0.0, 9.0]]), jnp.array([4.0, 18.0]))
      >>> x.tolist(), float(pivot)
      ([1.0, 2.0], 1.0)
    """
    scaled, scale = _unit_diagonal(matrix)
    factor = jnp.linalg.cholesky(scaled, symmetrize_input=False)
    smallest = jnp.min(jnp.diagonal(factor) ** 2)
    x = scale * cho_solve((factor, True), scale * rhs)
    return x, jnp.where(jnp.isfinite(smallest), smallest, 0)


@solve_scaled.def_vmap
def _solve_scaled_batch(axis_size, in_batched, matrix, rhs):
    matrix, rhs = (
        x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        for x, batched in zip((matrix, rhs), in_batched, strict=True)
    )
    function = _outer_products if rhs.shape[-1] <= SMALL_COLUMNS else solve_scaled.fun
    return jax.vmap(function)(matrix, rhs), (True, True)


def _unit_diagonal(matrix: Array) -> tuple[Array, Array]:
    diagonal = jnp.diagonal(matrix)
    scale = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1))
    return scale[:, None] * matrix * scale[None, :], scale


def _outer_products(matrix: Array, rhs: Array) -> tuple[Array, Array]:
    """Cholesky's method column by column, with the right-hand side as the last row."""
    n = rhs.size
    scaled, scale = _unit_diagonal(matrix)
    left = jnp.concatenate([scaled, (scale * rhs)[None, :]])
    columns, pivots = [], []
    for k in range(n):
        pivot = left[0, 0]
        root = jnp.sqrt(jnp.where(pivot > 0, pivot, 1))
        column = left[1:, 0] / root
        left = left[1:, 1:] - column[:, None] * column[None, :-1]
        pivots.append(pivot)
        columns.append(jnp.concatenate([jnp.zeros(k, rhs.dtype), root[None], column]))
    rows = jnp.stack(columns)  # L^T, and L^-1 rhs as its last column
    return scale * _substitute(rows[:, :n], rows[:, n]), jnp.min(jnp.stack(pivots))


def solve_upper_transposed(
    upper: Float[Array, "n n"], rhs: Float[Array, " n"]
) -> Float[Array, " n"]:
    """R^-T rhs by forward substitution, n^2 flops."""
    return solve_upper(upper.T[::-1, ::-1], rhs[::-1])[::-1]
