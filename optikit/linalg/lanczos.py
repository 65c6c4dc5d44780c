"""Symmetric Lanczos with full reorthogonalisation: extreme eigenvalues with error bounds.

Reference: Golub & Van Loan (2013), section 10.1; Parlett (1998), section 13.2 for the residual
bound |A v - theta v| = beta_k |y_k|, which places an eigenvalue within that distance of theta.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optikit.core import Key, tree
from optikit.core.tree import HIGHEST


class Ritz(NamedTuple):
    """Ritz pairs of a symmetric operator, ascending.

    Attributes:
      values: theta_i.
      residuals: |A v_i - theta_i v_i|: an eigenvalue lies within this distance of theta_i.
      weights: squared first components of the eigenvectors of T, which sum to 1 (the weights of
        the Gauss quadrature of the start vector's spectral measure).
      coefficients: eigenvectors of T as columns.
      basis: the orthonormal Lanczos vectors as rows.
      diagonal, off_diagonal: of T; the last of the off-diagonal couples to the vector that would
        be next, and a zero is where the Krylov space closed.
    """

    values: Float[Array, " k"]
    residuals: Float[Array, " k"]
    weights: Float[Array, " k"]
    coefficients: Float[Array, "k k"]
    basis: Float[Array, "k n"]
    diagonal: Float[Array, " k"]
    off_diagonal: Float[Array, " k"]

    def vector(self, i: int) -> Float[Array, " n"]:
        """The i-th Ritz vector."""
        return jnp.matmul(self.coefficients[:, i], self.basis, precision=HIGHEST)


def lanczos(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    start: Float[Array, " n"],
    num_products: int,
    key: Key,
) -> Ritz:
    """Ritz pairs from `num_products` products, at most n.

    Where the Krylov space closes early, the process goes on from a random orthogonal vector, so
    multiple eigenvalues appear as often as the products allow. Memory: k n numbers.
    """
    n, dtype = start.size, start.dtype
    k = min(num_products, n)
    eps = tree.eps(dtype)
    keys = jax.random.split(key, k)

    def orthogonal(w: Array, basis: Array) -> Array:
        for _ in range(2):  # twice is enough: Parlett (1998), section 6.9
            w = w - jnp.matmul(jnp.matmul(basis, w, precision=HIGHEST), basis, precision=HIGHEST)
        return w

    def body(carry, xs):
        basis, q, scale = carry
        i, one = xs
        basis = basis.at[i].set(q)
        w = product(q)
        alpha = jnp.vdot(q, w, precision=HIGHEST)
        scale = jnp.maximum(scale, tree.norm(w))
        w = orthogonal(w, basis)
        beta = tree.norm(w)
        closed = beta <= 10 * n**0.5 * jnp.maximum(eps * scale, jnp.finfo(dtype).tiny)
        fresh = orthogonal(jax.random.normal(one, (n,), dtype), basis)
        q = jnp.where(closed, fresh / jnp.linalg.norm(fresh), w / jnp.where(closed, 1, beta))
        return (basis, q, scale), (alpha, jnp.where(closed, 0, beta))

    first = start / tree.norm(start)
    empty = jnp.zeros((k, n), dtype)
    zero = jnp.zeros((), dtype)
    steps = jnp.arange(k, dtype=jnp.int32)
    (basis, _, _), (alphas, betas) = lax.scan(body, (empty, first, zero), (steps, keys))
    t = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    values, vectors = jnp.linalg.eigh(t)
    last = jnp.where(k == n, 0, betas[-1])  # the whole space leaves no residual
    residuals = jnp.abs(last * vectors[-1])
    return Ritz(values, residuals, vectors[0] ** 2, vectors, basis, alphas, betas)
