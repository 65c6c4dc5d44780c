"""A lower bound of the smallest eigenvalue from a Lanczos process, with a probability of failure.

A residual places *an* eigenvalue near a Ritz value; that no smaller one was missed can only be
said with a probability, over the random start b. The component z_j of the j-th Lanczos vector on
the eigenvector of the smallest eigenvalue mu follows the recurrence itself,

    beta_j z_{j+1} = (mu - alpha_j) z_j - beta_{j-1} z_{j-1},

so |z_{j+1}| = |z_1| prod_{i<=j} D_i(mu) / beta_i with D the pivots of T - mu I, and |z| <= 1 bounds
the product by 1 / |z_1|. A mu at which it is larger is no eigenvalue unless the start had less than
that of its eigenvector, which for a start uniform on the sphere has the probability
P(|z_1| < t) <= t sqrt(2 n / pi). The argument is about one component of the recurrence, so it needs
no orthogonality: it holds for the three-term recurrence as well.

References: Kuczynski & Wozniakowski (1992), "Estimating the largest eigenvalue by the power and
Lanczos algorithms with a random start", for the question and the bound in advance; van Dorsselaer,
Hochstenbach & van der Vorst (2000), "Computing probabilistic bounds for extreme eigenvalues of
symmetric matrices with the Lanczos method", for the bound afterwards, which is sharper.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from optikit.core import Scalar, tree

GAPS = 512
"""Candidates for the distance of the bound to the smallest Ritz value, on a geometric grid."""


def lower_bound(
    alphas: Float[Array, " k"],
    betas: Float[Array, " k"],
    n: int,
    confidence: Scalar | float,
    *,
    start_norm: Scalar | float = 1.0,
) -> Scalar:
    """A number that the smallest eigenvalue is not below, but with probability 1 - confidence.

    Args:
      alphas, betas: diagonal and off-diagonal of the tridiagonal matrix, the last beta included; a
        beta of zero is where the Krylov space closed, and what follows is not used.
      start_norm: the start was (u + c) / start_norm with u uniform on the unit sphere and c
        anything that does not depend on it.

    Example:
      >>> d = np.linspace(1.0, 2.0, 50)  # three steps on a known spectrum
      >>> q, before, beta, a, b = np.ones(50) / 50**0.5, 0.0, 0.0, [], []
      >>> for _ in range(3):
      ...     w = d * q - beta * before
      ...     a.append(float(q @ w)); w = w - a[-1] * q
      ...     before, beta = q, float(np.linalg.norm(w)); b.append(beta); q = w / beta
      >>> 0.0 < float(lower_bound(jnp.asarray(a), jnp.asarray(b), 50, 0.9)) < 1.0
      True
    """
    dtype = alphas.dtype
    eps = tree.eps(dtype)
    t = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    smallest = jnp.linalg.eigvalsh(jnp.where(jnp.all(jnp.isfinite(t)), t, 0))[0]
    scale = jnp.max(jnp.abs(alphas)) + jnp.max(betas)
    floor = jnp.maximum(10 * n**0.5 * eps * scale, jnp.finfo(dtype).tiny)
    failure = jnp.maximum(1 - jnp.asarray(confidence, dtype), eps)
    least = failure * math.sqrt(math.pi / (2 * n)) / start_norm  # of |z_1|
    # the first pivot alone reaches 1 / least within this distance
    widest = alphas[0] - smallest + jnp.maximum(betas[0], floor) / least
    narrow = jnp.maximum(eps * scale, jnp.finfo(dtype).tiny)
    share = jnp.asarray(np.linspace(0, 1, GAPS), dtype)
    gaps = narrow * jnp.maximum(2 * widest / narrow, 2) ** share
    candidates = smallest - gaps

    def step(carry, xs):
        pivot, before, total, best, open_ = carry
        alpha, beta = xs
        pivot = (alpha - candidates) - before * (before / pivot)  # squares might vanish
        sound = open_ & (pivot > 0)
        growth = jnp.log(jnp.where(sound, pivot, 1) / jnp.maximum(beta, floor))
        total = jnp.where(sound, total + growth, total)
        best = jnp.where(sound, jnp.maximum(best, total), best)
        pivot = jnp.where(sound, pivot, 1)
        return (pivot, beta, total, best, sound & (beta > floor)), None

    zero = jnp.zeros_like(candidates)
    first = (zero + 1, jnp.zeros((), dtype), zero, zero - jnp.inf, zero == 0)
    (_, _, _, best, _), _ = lax.scan(step, first, (alphas, betas))
    excluded = best > -jnp.log(least)
    gap = jnp.min(jnp.where(excluded, gaps, jnp.inf))
    # an inner product of n terms is off by this much itself
    return smallest - gap - eps * n**0.5 * scale
