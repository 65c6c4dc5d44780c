"""Stochastic Lanczos quadrature: the spectral density of a symmetric operator, and its integrals.

A random vector's spectral measure puts the weight (v_i . z)^2 at each eigenvalue; its mean over
random z is the density of eigenvalues. Lanczos gives its Gauss quadrature: k nodes and weights that
integrate every polynomial up to degree 2 k - 1 as the measure itself does. Without a basis held,
three vectors suffice: ghost copies of eigenvalues that have converged share their weight.

References: Golub & Meurant (2010), "Matrices, moments and quadrature", chapter 7; Ubaru, Chen &
Saad (2017), "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature"; Knizhnerman (1996) for
quadrature in finite precision.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optikit.core import Key, Scalar, tree
from optikit.core.typing import PyTree
from optikit.linalg.signs import signs


class Quadrature(NamedTuple):
    """Gauss quadratures of the spectral measures of random vectors.

    Attributes:
      nodes, weights: (probes, k); the weights of a probe sum to 1.
      size: n, the number of eigenvalues.
    """

    nodes: Float[Array, "p k"]
    weights: Float[Array, "p k"]
    size: int

    def trace(self, function: Callable[[Array], Array]) -> tuple[Scalar, Scalar]:
        """(tr f(A), its standard error over the probes); NaN for the error of a single probe."""
        values = function(self.nodes)
        each = self.size * jnp.sum(jnp.where(self.weights > 0, self.weights * values, 0), axis=1)
        p = each.shape[0]
        spread = jnp.std(each, ddof=1) if p > 1 else jnp.full((), jnp.nan, each.dtype)
        return jnp.mean(each), spread / p**0.5


def lanczos_quadrature(
    product: Callable[[PyTree], PyTree],
    like: PyTree,
    key: Key,
    *,
    num_probes: int,
    num_products: int,
) -> Quadrature:
    """Quadratures of `num_probes` random vectors of signs, with `num_products` products each.

    Memory: three vectors. They are pytrees throughout: a copy into one flat vector and back, for
    each product, would take as much again. Probes run one after another.

    Args:
      product: of a symmetric operator on pytrees of the structure of `like`.
      like: arrays, or their shapes and dtypes.

    Raises:
      ValueError: no probe, no product.

    Example:
      >>> d = jnp.arange(1.0, 9.0)
      >>> found = lanczos_quadrature(lambda v: d * v, d, jax.random.key(0), num_probes=2,
      ...                            num_products=8)
      >>> [round(float(found.trace(lambda x: x)[0]), 3), found.nodes.shape]
      [36.0, (2, 8)]
    """
    if num_probes < 1 or num_products < 1:
        msg = f"num_probes={num_probes}, num_products={num_products}: give 1 or more of each."
        raise ValueError(msg)
    n = tree.size(like)
    k = min(num_products, n)

    def probe(key: Key) -> tuple[Array, Array]:
        z = tree.scale(1 / n**0.5, signs(key, like))
        return tridiagonal_quadrature(*_lanczos(product, z, k))

    nodes, weights = lax.map(probe, jax.random.split(key, num_probes))
    return Quadrature(nodes, weights, n)


def tridiagonal_quadrature(alphas: Array, betas: Array) -> tuple[Array, Array]:
    """Nodes and weights of a tridiagonal matrix: diagonal (k,), and off-diagonal (k,), the last
    unused.

    A beta of zero ends the process: what stands behind it has no weight.
    """
    t = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    finite = jnp.all(jnp.isfinite(t))
    nodes, vectors = jnp.linalg.eigh(jnp.where(finite, t, 0))
    return jnp.where(finite, nodes, jnp.nan), vectors[0] ** 2


def _lanczos(product: Callable[[PyTree], PyTree], start: PyTree, k: int) -> tuple[Array, Array]:
    """The three-term recurrence alone: diagonal and off-diagonal."""
    n, dtype = tree.size(start), tree.inner_dtype(start)
    eps = max(tree.eps(x.dtype) for x in jax.tree.leaves(start))

    def step(carry, _):
        before, q, beta, scale = carry
        w = tree.add_scaled(product(q), -beta, before)
        alpha = tree.vdot(q, w)
        w = tree.add_scaled(w, -alpha, q)
        w = tree.add_scaled(w, -tree.vdot(q, w), q)  # Paige's variant, once more
        size = tree.norm(w)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(alpha), size))
        closed = ~(size > 10 * n**0.5 * eps * scale)  # and so on: zeros have no weight
        after = tree.scale(1 / jnp.where(closed, 1, size), w)
        after = tree.where(closed & jnp.isfinite(size), tree.zeros_like(w), after)
        size = jnp.where(closed & jnp.isfinite(size), 0, size)
        return (q, after, size, scale), (alpha, size)

    zero = jnp.zeros((), dtype)
    first = (tree.zeros_like(start), start, zero, zero)
    _, (alphas, betas) = lax.scan(step, first, length=k)
    return alphas, betas
