"""Damped least-squares systems from rows, in whichever space is smaller.

(R^T R + M) y = R^T w + q with a positive diagonal M, by Cholesky of the (n, n) matrix, or, with
fewer rows than columns, of the (m, m) kernel matrix I + R M^-1 R^T (the matrix inversion lemma):
y = M^-1 q + M^-1 R^T (I + R M^-1 R^T)^-1 (w - R M^-1 q).

Either matrix squares the condition number of R. In float32 no damping below 1e-6 of it would be
resolved, so float32 rows are multiplied and factorised in float64 where JAX has it enabled (on
hardware whose float64 products are as fast as float32 ones at no loss); else R is orthogonalised
together with the damping, and nothing is squared.

Rows that do not fit in memory are asked for block by block; the kernel then takes each block with
each before it, so that two are held at a time.

References: Golub & Van Loan (2013), sections 2.1.4 and 5.3; Chen & Heyl (2024), "Empowering deep
neural quantum states through efficient optimization", eq. 5, for the kernel form.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, Int

from optikit.core import Scalar
from optikit.core.tree import HIGHEST


class Blocks(NamedTuple):
    """Rows R in `number` blocks of `size`; the last is filled up with zeros."""

    block: Callable[[Int[Array, ""]], Float[Array, "size n"]]
    number: int
    size: int


def gram_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which Gram matrices of such rows are formed and factorised."""
    wide = jax.config.jax_enable_x64 or jnp.dtype(dtype).itemsize > 4  # pyright: ignore[reportAttributeAccessIssue]
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def damped_solve(
    rows: Float[Array, "m n"],
    diagonal: Float[Array, " n"],
    w: Float[Array, " m"],
    q: Float[Array, " n"],
) -> Float[Array, " n"]:
    """The solution y in the rows' dtype; NaN where rounding makes the matrix indefinite.

    Cost: m n min(m, n) + min(m, n)^3 / 3 flops, and as much memory as the rows; about four times
    that by orthogonalisation, in float32 without float64.

    Args:
      rows: R. diagonal: that of M, positive.
      w, q: the two parts of the right-hand side; kept apart, since R^T w needs no division by M.
    """
    wide = gram_dtype(rows.dtype)
    if wide.itemsize <= 4:
        return orthogonal_solve(rows, diagonal, w, q)
    dtype = rows.dtype
    rows, diagonal, w, q = (x.astype(wide) for x in (rows, diagonal, w, q))
    m, n = rows.shape
    if m < n:
        scaled = rows / diagonal[None, :]
        kernel = jnp.matmul(scaled, rows.T, precision=HIGHEST) + jnp.eye(m, dtype=wide)
        free = q / diagonal
        right = w - jnp.matmul(rows, free, precision=HIGHEST)
        y = free + jnp.matmul(_solve(kernel, right), scaled, precision=HIGHEST)
    else:
        matrix = jnp.matmul(rows.T, rows, precision=HIGHEST) + jnp.diag(diagonal)
        y = _solve(matrix, jnp.matmul(w, rows, precision=HIGHEST) + q)
    return y.astype(dtype)


def orthogonal_solve(
    rows: Float[Array, "m n"],
    diagonal: Float[Array, " n"],
    w: Float[Array, " m"],
    q: Float[Array, " n"],
) -> Float[Array, " n"]:
    """The same by a QR factorisation of [R M^(-1/2), I] or its transpose: nothing is squared."""
    m, n = rows.shape
    root = jnp.sqrt(diagonal)
    scaled = rows / root[None, :]
    free = q / root
    right = w - jnp.matmul(scaled, free, precision=HIGHEST)
    if m < n:
        # K = A A^T + I = T^T T of [A^T; I] = Q T, and A^T K^-1 = Q_1 T^-T
        basis, factor = jnp.linalg.qr(jnp.concatenate([scaled.T, jnp.eye(m, dtype=rows.dtype)]))
        inside = solve_triangular(factor, right, trans=1)
        step = jnp.matmul(basis[:n], inside, precision=HIGHEST)
    else:
        stacked = jnp.concatenate([scaled, jnp.eye(n, dtype=rows.dtype)])
        basis, factor = jnp.linalg.qr(stacked)
        step = solve_triangular(factor, jnp.matmul(right, basis[:m], precision=HIGHEST))
    return (free + step) / root


def blocked_solve(
    rows: Blocks,
    diagonal: Float[Array, " n"],
    w: Float[Array, " m"],
    q: Float[Array, " n"] | None,
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """(y, R y) with rows that are computed block by block; m counts all blocks, zeros included.

    Memory: two blocks and min(m, n)^2 numbers. By Cholesky: in float32 without float64, damping
    has to stay above rounding. Every pass asks for all blocks once: see `passes`.

    Args:
      q: None for zero, which saves a pass.
    """
    n, m, dtype = diagonal.size, rows.number * rows.size, diagonal.dtype
    wide = gram_dtype(dtype)
    diagonal, w = diagonal.astype(wide), w.astype(wide)
    free = None if q is None else q.astype(wide) / diagonal

    def block(i: Array) -> Array:
        return rows.block(i).astype(wide)

    if m < n:
        kernel = _kernel(block, rows, diagonal)
        image = jnp.zeros(m, wide) if free is None else _forward(block, rows, free)
        u = _solve(kernel + jnp.eye(m, dtype=wide), w - image)
        y = _backward(block, rows, u, n) / diagonal
        moved = image + jnp.matmul(kernel, u, precision=HIGHEST)
        y = y if free is None else y + free
        return y.astype(dtype), moved.astype(dtype)

    def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        part = block(i)
        mine = lax.dynamic_slice_in_dim(w, i * rows.size, rows.size)
        gram = jnp.matmul(part.T, part, precision=HIGHEST)
        return sums[0] + gram, sums[1] + jnp.matmul(mine, part, precision=HIGHEST)

    start = (jnp.diag(diagonal), jnp.zeros(n, wide) if q is None else q.astype(wide))
    matrix, right = lax.fori_loop(0, rows.number, add, start)
    y = _solve(matrix, right)
    return y.astype(dtype), _forward(block, rows, y).astype(dtype)


def kernel_solve(
    gram: Float[Array, "m m"],
    level: Scalar,
    w: Float[Array, " m"],
    q: Float[Array, " n"],
    forward: Callable[[Float[Array, " n"]], Float[Array, " m"]],
    backward: Callable[[Float[Array, " m"]], Float[Array, " n"]],
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """(y, R y) with M = level I and no rows, from R R^T, v -> R v and u -> R^T u, each used once.

    By Cholesky, in the dtype of `gram`.
    """
    wide = gram.dtype
    kernel = gram / level.astype(wide)
    image = forward(q / level.astype(q.dtype)).astype(wide)
    u = _solve(kernel + jnp.eye(w.size, dtype=wide), w.astype(wide) - image)
    y = (q + backward(u.astype(w.dtype)).astype(q.dtype)) / level.astype(q.dtype)
    moved = image + jnp.matmul(kernel, u, precision=HIGHEST)
    return y, moved.astype(q.dtype)


def passes(count: int, m: int, n: int, *, with_q: bool) -> int:
    """How many times `blocked_solve` asks for all rows, on average over the blocks."""
    if m >= n:
        return 2
    return (count + 2) // 2 + 1 + with_q


def _kernel(block: Callable, rows: Blocks, diagonal: Array) -> Float[Array, "m m"]:
    """R M^-1 R^T: block (i, j) for j <= i, and its transpose."""
    m, size = rows.number * rows.size, rows.size

    def fill(i: Array, kernel: Array) -> Array:
        scaled = block(i) / diagonal[None]

        def beside(j: Array, kernel: Array) -> Array:
            part = jnp.matmul(scaled, block(j).T, precision=HIGHEST)
            kernel = lax.dynamic_update_slice(kernel, part.T, (j * size, i * size))
            return lax.dynamic_update_slice(kernel, part, (i * size, j * size))

        return lax.fori_loop(0, i + 1, beside, kernel)

    return lax.fori_loop(0, rows.number, fill, jnp.zeros((m, m), diagonal.dtype))


def _forward(block: Callable, rows: Blocks, v: Array) -> Float[Array, " m"]:
    index = jnp.arange(rows.number, dtype=jnp.int32)
    return lax.map(lambda i: jnp.matmul(block(i), v, precision=HIGHEST), index).ravel()


def _backward(block: Callable, rows: Blocks, u: Array, n: int) -> Float[Array, " n"]:
    def add(i: Array, total: Array) -> Array:
        mine = lax.dynamic_slice_in_dim(u, i * rows.size, rows.size)
        return total + jnp.matmul(mine, block(i), precision=HIGHEST)

    return lax.fori_loop(0, rows.number, add, jnp.zeros(n, u.dtype))


def _solve(matrix: Float[Array, "k k"], right: Float[Array, " k"]) -> Float[Array, " k"]:
    return cho_solve((jnp.linalg.cholesky(matrix), True), right)
