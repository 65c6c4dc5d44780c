"""Lanczos without a basis: the three-term recurrence, and vectors by running it again.

Orthogonality is lost as eigenvalues converge, which repeats them but does not displace them
(Paige, 1980). What Q y with a short y needs is a second run, not memory. Reference: Golub & Van
Loan (2013), section 10.1; Cullum & Willoughby (1985) for the second run.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optikit.core import tree
from optikit.core.tree import HIGHEST


def recurrence(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    start: Float[Array, " n"],
    num_products: int,
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Diagonal and off-diagonal of T, the last coupling to a vector that is not in it.

    A zero is where the Krylov space closed: what follows has no part in it. Memory: three vectors.

    Args:
      start: a unit vector, or zero.
    """
    alphas, betas, _ = _run(product, start, min(num_products, start.size), None)
    return alphas, betas


def combined(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    start: Float[Array, " n"],
    alphas: Float[Array, " k"],
    betas: Float[Array, " k"],
    coefficients: Float[Array, " k"],
) -> Float[Array, " n"]:
    """The sum of the Lanczos vectors with these coefficients, by the same products again."""
    return _run(product, start, alphas.size, (alphas, betas, coefficients))[2]


def _run(product, start: Array, k: int, known: tuple[Array, Array, Array] | None):
    n, eps = start.size, tree.eps(start.dtype)
    zero = jnp.zeros((), start.dtype)

    def step(carry, told):
        before, q, beta, scale, middle, total = carry
        if told is not None:
            total = total + told[2] * q
        w = product(q) - beta * before
        alpha = jnp.vdot(q, w, precision=HIGHEST) if told is None else told[0]
        # behind a closed space stands a number inside the spectrum, which displaces no end of it
        lost = (beta == 0) & (scale > 0)
        alpha = jnp.where(lost, middle, alpha)
        middle = jnp.where(scale > 0, middle, alpha)
        w = w - alpha * q
        size = tree.norm(w) if told is None else told[1]
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(alpha), size))
        closed = size <= 10 * n**0.5 * eps * scale
        size = jnp.where(closed, 0, size)
        after = jnp.where(closed, 0, w / jnp.where(closed, 1, size))
        return (q, after, size, scale, middle, total), (alpha, size)

    total = zero if known is None else jnp.zeros_like(start)
    first = (jnp.zeros_like(start), start, zero, zero, zero, total)
    (*_, total), (alphas, betas) = lax.scan(step, first, known, length=k)
    return alphas, betas, total
