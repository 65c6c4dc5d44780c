"""MINRES: symmetric systems from products alone, indefinite and singular ones too.

On a consistent system the iterates stay in the range of A and end at the solution of least norm,
A^+ b. Where b has a part outside the range they drift along the null space, and the residual ends
at that part; `optikit.linalg.least_norm` says what to do then.

Reference: Paige & Saunders (1975), "Solution of sparse indefinite systems of linear equations",
section 4.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from optikit.core import Scalar, tree
from optikit.core.tree import HIGHEST

Vector = Float[Array, " n"]
Product = Callable[[Vector], Vector]


class Minres(NamedTuple):
    """Where a run ended."""

    x: Vector  # the iterate of least |A r|, NaN if anything was not finite
    consistent: Bool[Array, ""]  # its residual is small: b is in the range of A
    ended: Bool[Array, ""]  # and not cut off by its budget
    products: Int[Array, ""]


class _Run(NamedTuple):
    """The iterations, for a b of length 1."""

    x: Vector
    best: Vector  # the iterate of least |A r|
    best_slope: Scalar  # its |A r|
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
    product: Product, b: Vector, *, floor: Scalar | float, max_iters: Int[Array, ""] | int
) -> Minres:
    """One run from zero; of A x = b the solution of least norm if there is one.

    Args:
      product: v -> A v, symmetric.
      floor: ends where |b - A x| <= floor |b|.
      max_iters: products at most.

    It also ends where the residual is seen to leave the range of A, or |x| the precision.
    Memory: eight vectors.

    Example:
      >>> a = jnp.array([[2.0, 2.0], [2.0, 2.0]])
      >>> run = minres(lambda v: a @ v, jnp.array([4.0, 4.0]), floor=1e-6, max_iters=9)
      >>> [round(float(v), 5) for v in run.x], bool(run.consistent)
      ([1.0, 1.0], True)
    """
    eps = tree.eps(b.dtype)
    # |A r| / |A| |r| of a residual outside the range; 1 / |A| |A^+| that is too far
    flat = eps**0.7
    size = _norm(b)
    unit = jnp.where(size > 0, size, 1)

    def running(r: _Run) -> Array:
        return ~r.done & (r.iterations < max_iters)

    def body(r: _Run) -> _Run:
        p = product(r.v) - r.beta * r.v_last
        alpha = _dot(r.v, p)
        p = p - alpha * r.v
        beta = _norm(p)
        scale = jnp.maximum(r.scale, jnp.hypot(alpha, jnp.hypot(r.beta, beta)))
        delta = r.c * r.dbar + r.s * alpha
        gbar = r.s * r.dbar - r.c * alpha
        dbar, epsilon = -r.c * beta, r.s * beta
        steepness = jnp.hypot(gbar, dbar)  # |A r| / |r| at r.x
        better = steepness * r.phi < r.best_slope
        lost = (steepness <= flat * scale) | (flat * _norm(r.x) * scale > 1)
        gamma = jnp.hypot(gbar, beta)
        gamma = jnp.where(gamma > 0, gamma, 1)
        c, s = gbar / gamma, beta / gamma
        d = (r.v - delta * r.d - r.epsilon * r.d_last) / gamma
        x = r.x + c * r.phi * d
        phi = s * r.phi
        solved = ~lost & (phi <= floor)
        best = jnp.where(solved, x, jnp.where(better, r.x, r.best))
        best_slope = jnp.where(better, steepness * r.phi, r.best_slope)
        return _Run(
            x, best, jnp.where(solved, 0, best_slope), p / jnp.where(beta > 0, beta, 1), r.v, d,
            r.d, beta, c, s, dbar, epsilon, jnp.where(lost, r.phi, phi), scale, r.iterations + 1,
            lost | solved | ~jnp.isfinite(phi),
        )  # fmt: skip

    zero, zeros = jnp.zeros((), b.dtype), jnp.zeros_like(b)
    start = _Run(
        x=zeros, best=zeros, best_slope=jnp.full((), jnp.inf, b.dtype),
        v=b / unit, v_last=zeros, d=zeros, d_last=zeros, beta=zero,
        c=-jnp.ones((), b.dtype), s=zero, dbar=zero, epsilon=zero, phi=size / unit, scale=zero,
        iterations=jnp.asarray(0, jnp.int32), done=size == 0,
    )  # fmt: skip
    run = lax.while_loop(running, body, start)
    x = jnp.where(jnp.isfinite(run.phi), unit * run.best, jnp.nan)
    return Minres(x, run.phi <= eps**0.5, run.done, run.iterations)


def _dot(a: Vector, b: Vector) -> Scalar:
    return jnp.vdot(a, b, precision=HIGHEST)


def _norm(a: Vector) -> Scalar:
    return tree.norm(a).astype(a.dtype)
