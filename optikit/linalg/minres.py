"""MINRES: symmetric systems from products alone, indefinite and singular ones too.

Where the right-hand side has a part outside the range, the residual of the least-squares solution
is that part, and the iterate's share of the null space is a multiple of it: taking it out gives the
solution of least norm. On a consistent system the iterates never leave the range.

References: Paige & Saunders (1975), "Solution of sparse indefinite systems of linear equations",
section 4; Liu, Milzarek & Roosta (2023), "Obtaining pseudo-inverse solutions with MINRES",
Theorem 1, for the lifting.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from optikit.core import Scalar, tree
from optikit.core.tree import HIGHEST

Vector = Float[Array, " n"]


class _Run(NamedTuple):
    x: Vector
    v: Vector  # Lanczos vectors v_k and v_{k-1}
    v_last: Vector
    d: Vector  # columns of V R^-1
    d_last: Vector
    beta: Scalar  # off-diagonal of T
    c: Scalar  # the last rotation
    s: Scalar
    dbar: Scalar
    epsilon: Scalar
    phi: Scalar  # |b - A x|
    scale: Scalar  # largest column of T, a bound below |A|
    iterations: Int[Array, ""]
    done: Bool[Array, ""]


def minres(
    product: Callable[[Vector], Vector], b: Vector, *, max_iters: int | None = None
) -> Vector:
    """The solution of A x = b of least norm, or of least |A x - b| where there is none.

    Args:
      product: v -> A v, symmetric.
      max_iters: products at most, besides two at the end; by default 4 n + 50, at most 10,000.

    Stops when the residual is of rounding size, or orthogonal to the range. Memory: six vectors.

    Example:
      >>> a = jnp.array([[2.0, 2.0], [2.0, 2.0]])
      >>> [round(float(v), 5) for v in minres(lambda v: a @ v, jnp.array([4.0, 4.0]))]
      [1.0, 1.0]
    """
    n, dtype = b.size, b.dtype
    eps = tree.eps(dtype)
    limit = min(4 * n + 50, 10_000) if max_iters is None else max_iters
    size = _norm(b)
    floor, flat = 4 * eps * size, eps**0.75

    def running(r: _Run) -> Array:
        return ~r.done & (r.iterations < limit)

    def body(r: _Run) -> _Run:
        p = product(r.v) - r.beta * r.v_last
        alpha = _dot(r.v, p)
        p = p - alpha * r.v
        beta = _norm(p)
        scale = jnp.maximum(r.scale, jnp.sqrt(alpha**2 + r.beta**2 + beta**2))
        delta = r.c * r.dbar + r.s * alpha
        gbar = r.s * r.dbar - r.c * alpha
        dbar, epsilon = -r.c * beta, r.s * beta
        # |A r| / |r| of the residual so far: none of it is left in the range
        outside = jnp.hypot(gbar, dbar) <= flat * scale
        gamma = jnp.hypot(gbar, beta)
        gamma = jnp.where(outside, 1, gamma)
        c, s = gbar / gamma, beta / gamma
        d = (r.v - delta * r.d - r.epsilon * r.d_last) / gamma
        x = jnp.where(outside, r.x, r.x + c * r.phi * d)
        phi = jnp.where(outside, r.phi, s * r.phi)
        done = outside | (phi <= floor) | ~jnp.isfinite(phi)
        v = p / jnp.where(beta > 0, beta, 1)
        return _Run(
            x, v, r.v, d, r.d, beta, c, s, dbar, epsilon, phi, scale, r.iterations + 1, done
        )

    zero, zeros = jnp.zeros((), dtype), jnp.zeros_like(b)
    start = _Run(
        x=zeros, v=b / jnp.where(size > 0, size, 1), v_last=zeros, d=zeros, d_last=zeros,
        beta=zero, c=-jnp.ones((), dtype), s=zero, dbar=zero, epsilon=zero, phi=size, scale=zero,
        iterations=jnp.asarray(0, jnp.int32), done=size == 0,
    )  # fmt: skip
    run = lax.while_loop(running, body, start)
    return _lifted(product, b, run, eps)


def _lifted(product: Callable[[Vector], Vector], b: Vector, run: _Run, eps: float) -> Vector:
    """The iterate without its share of the residual, where the residual is a null vector."""
    r = b - product(run.x)
    size = _norm(r)
    null = _norm(product(r)) <= eps**0.5 * run.scale * size
    real = size > eps**0.5 * _norm(b)  # not the rounding error of a consistent system
    share = _dot(r, run.x) / jnp.where(size > 0, size**2, 1)
    return jnp.where(null & real, run.x - share * r, run.x)


def _dot(a: Vector, b: Vector) -> Scalar:
    return jnp.vdot(a, b, precision=HIGHEST)


def _norm(a: Vector) -> Scalar:
    return jnp.sqrt(_dot(a, a))
