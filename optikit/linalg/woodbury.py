"""Damped least-squares systems from rows, in whichever space is smaller.

(R^T R + M) y = R^T w + q with a positive diagonal M, by Cholesky of the (n, n) matrix, or, with
fewer rows than columns, of the (m, m) kernel matrix I + R M^-1 R^T (the matrix inversion lemma):
y = M^-1 q + M^-1 R^T (I + R M^-1 R^T)^-1 (w - R M^-1 q).

References: Golub & Van Loan (2013), section 2.1.4; Chen & Heyl (2024), "Empowering deep neural
quantum states through efficient optimization", eq. 5, for the kernel form.
"""

import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from optikit.core.tree import HIGHEST


def damped_solve(
    rows: Float[Array, "m n"],
    diagonal: Float[Array, " n"],
    w: Float[Array, " m"],
    q: Float[Array, " n"],
) -> Float[Array, " n"]:
    """The solution y; NaN where rounding makes the matrix indefinite.

    Cost: m n min(m, n) + min(m, n)^3 / 3 flops, and as much memory as the rows.

    Args:
      rows: R. diagonal: that of M, positive.
      w, q: the two parts of the right-hand side; kept apart, since R^T w needs no division by M.
    """
    m, n = rows.shape
    if m < n:
        scaled = rows / diagonal[None, :]
        kernel = jnp.matmul(scaled, rows.T, precision=HIGHEST) + jnp.eye(m, dtype=rows.dtype)
        free = q / diagonal
        right = w - jnp.matmul(rows, free, precision=HIGHEST)
        return free + jnp.matmul(_solve(kernel, right), scaled, precision=HIGHEST)
    matrix = jnp.matmul(rows.T, rows, precision=HIGHEST) + jnp.diag(diagonal)
    return _solve(matrix, jnp.matmul(w, rows, precision=HIGHEST) + q)


def _solve(matrix: Float[Array, "k k"], right: Float[Array, " k"]) -> Float[Array, " k"]:
    return cho_solve((jnp.linalg.cholesky(matrix), True), right)
