"""Randomized Nystrom approximation of a positive semidefinite operator, and its inverse.

A is approximated by V Lambda V^T of rank r from r products with random vectors. With a damping rho
the approximation's inverse (V Lambda V^T + rho I)^-1 is a preconditioner that flattens the leading
r eigenvalues of A + rho I to rho and leaves the others.

Reference: Frangella, Tropp & Udell (2023), "Randomized Nystrom preconditioning", Algorithm 2.1
(with its shift against rounding) and eq. 5.3.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optikit.core import Key, tree
from optikit.core.tree import HIGHEST


class Nystrom(NamedTuple):
    """V Lambda V^T."""

    vectors: Float[Array, "r n"]  # orthonormal rows, zero where the value is
    values: Float[Array, " r"]  # descending, not negative

    def inverse(self, damping: Array, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """(V Lambda V^T + damping I)^-1 v."""
        # 1 / (l + rho) = (1 - l / (l + rho)) / rho
        return self._along(-self.values / (self.values + damping), v) / damping

    def root(self, damping: Array, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """(V Lambda V^T + damping I)^(-1/2) v."""
        weights = jnp.sqrt(damping / (self.values + damping)) - 1
        return self._along(weights, v) / jnp.sqrt(damping)

    def flattened(self, damping: Array, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """((l_r + damping) V (Lambda + damping I)^-1 V^T + I - V V^T) v, for conjugate gradients:
        what the sketch has not seen is taken to be as large as the least that it has.
        """
        least = self.values[-1] + damping
        return self._along(least / (self.values + damping) - 1, v)

    def _along(self, weights: Array, v: Array) -> Array:
        """(I + V diag(weights) V^T) v."""
        inside = weights * jnp.matmul(self.vectors, v, precision=HIGHEST)
        return v + jnp.matmul(inside, self.vectors, precision=HIGHEST)


def blank(rank: int, n: int, dtype: jnp.dtype) -> Nystrom:
    """The zero operator, in the shape of a sketch of that rank."""
    r = min(rank, n)
    return Nystrom(jnp.zeros((r, n), dtype), jnp.zeros(r, dtype))


def nystrom(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    rank: int,
    n: int,
    dtype: jnp.dtype,
    key: Key,
) -> Nystrom:
    """A sketch of rank min(rank, n) from as many products with A.

    Cost besides: 6 n r^2 flops. Memory: 3 n r numbers. Of an indefinite A the positive part that
    the sketch sees; zero where a product is not finite.
    """
    r = min(rank, n)
    test = jnp.linalg.qr(jax.random.normal(key, (n, r), dtype))[0].T
    images = lax.map(product, test)
    images = jnp.where(jnp.all(jnp.isfinite(images)), images, 0)
    shift = tree.eps(dtype) * n**0.5 * jnp.linalg.norm(images)
    images = images + shift * test
    core = jnp.matmul(test, images.T, precision=HIGHEST)
    weights, turn = jnp.linalg.eigh((core + core.T) / 2, symmetrize_input=False)
    # B = Y (Omega^T Y)^(-1/2), with what is not positive left out
    kept = weights > r * tree.eps(dtype) * jnp.max(jnp.abs(weights))
    scale = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, weights, 1)), 0)
    half = scale[:, None] * jnp.matmul(turn.T, images, precision=HIGHEST)
    basis, factor = jnp.linalg.qr(half.T)
    left, sizes, _ = jnp.linalg.svd(factor)
    values = jnp.maximum(sizes**2 - shift, 0)
    used = values > 0
    vectors = jnp.matmul(left.T, basis.T, precision=HIGHEST)
    return Nystrom(jnp.where(used[:, None], vectors, 0), jnp.where(used, values, 0))
