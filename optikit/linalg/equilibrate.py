"""Scaling that gives a symmetric matrix rows of equal length, found from products alone.

With x > 0 such that the rows of X A X, X = diag(x), have length 1, parameters in different units
look alike, whatever the signs of the eigenvalues and also where the diagonal is zero. For a normal
random u the mean square of (A X u)_i is sum_j A_ij^2 x_j^2; each round moves log x halfway to where
that times x_i^2 is 1, which halves its error.

Reference: Bradley & Murray (2011), "Matrix-free approximate equilibration", section 3 (whose
iteration averages x^-2; here its logarithm, which needs fewer products for scales far apart).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from optikit.core import Key

ROUNDS = 5
"""Scales 1e6 apart are then within a factor of 1.6 of each other."""

PROBES = 4
"""Products a round: their noise leaves about a fifth of error in log x."""


def equilibrating(
    product: Callable[[Array], Array], like: Float[Array, " n"], key: Key
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """(x, idle): the scaling, of geometric mean 1, and which rows of the matrix are zero.

    Cost: ROUNDS x PROBES products.

    Example:
      >>> units = jnp.array([1e-3, 1.0, 1e3])
      >>> x, idle = equilibrating(lambda v: units**2 * v, units, jax.random.key(0))
      >>> bool(jnp.all(jnp.abs(jnp.log(x * units)) < 1.5)), int(jnp.sum(idle))
      (True, 0)
    """

    def turn(logs: Array, key: Key) -> tuple[Array, Array]:
        probes = jax.random.normal(key, (PROBES, like.size), like.dtype)
        images = lax.map(lambda u: product(jnp.exp(logs) * u), probes)
        largest = jnp.max(jnp.abs(images), axis=0)
        seen = (largest > 0) & jnp.isfinite(largest)
        largest = jnp.where(seen, largest, 1)
        shares = jnp.where(
            seen[None], images / largest[None], 1
        )  # squares would leave the range of float32
        lengths = jnp.log(largest) + jnp.log(jnp.mean(shares**2, axis=0)) / 2
        moved = (logs - lengths) / 2
        mean = jnp.sum(jnp.where(seen, moved, 0)) / jnp.maximum(jnp.sum(seen), 1).astype(like.dtype)
        return jnp.where(seen, moved - mean, 0), ~seen

    logs, idle = lax.scan(turn, jnp.zeros_like(like), jax.random.split(key, ROUNDS))
    return jnp.exp(logs), idle[-1]
