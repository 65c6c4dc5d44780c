"""The secular equation: global minimisers of a quadratic in a ball, or under a cubic term.

In the eigenbasis of H, with pole = max(0, -lambda_1) and nu >= 0, the minimiser of
<g, s> + <s, H s> / 2 is s(nu) = -(H + (pole + nu) I)^-1 g where |s(nu)| = T(nu): in a ball T is its
radius (or nu = 0 if H is convex and the full step fits), and under sigma |s|^3 / 3 it is
(pole + nu) / sigma. Since 1/|s| is concave in nu and 1/T is convex, Newton's method on 1/|s| - 1/T
rises monotonically to the root from any point below it; each eigendirection alone gives such a
point, and the largest of them is at most a factor sqrt(n) short in |s|. Counting from the pole
keeps the relative accuracy of nu however near the hard case is; in the hard case itself, where g
has no part along lambda_1, a part of rounding size is added, which is the limit of its solutions.

References: Conn, Gould & Toint (2000), section 7.3; Moré & Sorensen (1983); Cartis, Gould & Toint
(2011), part I, section 6.1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from optikit.core import Scalar, tree

MAX_PASSES = 40
"""Bound on the iterations for nu; three to six are usual."""


class Spectrum(NamedTuple):
    """A quadratic model in its eigenbasis."""

    values: Float[Array, " n"]  # lambda_i, ascending
    along: Float[Array, " n"]  # the gradient's coefficients
    gaps: Float[Array, " n"]  # lambda_i + pole, bounded below if nothing is bent
    pull: Float[Array, " n"]  # `along`, with a part along lambda_1 < 0 that is never zero
    pole: Scalar
    bent: Bool[Array, ""]  # negative curvature beyond rounding: every minimiser is at the bound
    convex: Bool[Array, ""]  # no negative curvature that would unmask a false minimum
    exact: Bool[Array, ""]  # positive definite beyond rounding


class Shift(NamedTuple):
    """A solution of the secular equation."""

    coefficients: Float[Array, " n"]  # of the step
    nu: Scalar


class _Pass(NamedTuple):
    nu: Scalar
    passes: Int[Array, ""]
    short: Bool[Array, ""]


def spectrum(
    values: Float[Array, " n"],
    along: Float[Array, " n"],
    safe: Bool[Array, ""] | None = None,
) -> Spectrum:
    """The model with eigenvalues `values`, ascending, and gradient coefficients `along`.

    Where H is singular to rounding, its eigenvalues are bounded below by eps^(2/3) of the largest,
    so that nothing drifts along a null space. Negative ones beyond rounding are followed; only
    those below that size forbid to call a point a minimum.

    Args:
      safe: H is known to be positive definite by better means than these eigenvalues.
    """
    eps = tree.eps(values.dtype)
    safe = jnp.asarray(False) if safe is None else safe
    largest = jnp.max(jnp.abs(values))
    floor, rounding = eps ** (2 / 3) * largest, values.size * eps * largest
    bent = ~safe & (values[0] < -8 * rounding)
    exact = safe | (values[0] > rounding)
    bounded = jnp.maximum(values, jnp.where(exact, rounding, floor))
    pole = jnp.where(bent, -values[0], 0)
    gaps = jnp.where(bent, values - values[0], bounded)
    least = eps * jnp.maximum(jnp.max(jnp.abs(along)), eps * largest)
    lowest = jnp.where(along[0] < 0, -1, 1) * jnp.maximum(jnp.abs(along[0]), least)
    pull = along.at[0].set(jnp.where(bent, lowest, along[0]))
    return Spectrum(values, along, gaps, pull, pole, bent, safe | (values[0] >= -floor), exact)


def in_ball(model: Spectrum, radius: Scalar) -> Shift:
    """The global minimiser within |s| <= radius, which must be finite if the model is bent."""
    below = jnp.max(jnp.abs(model.pull) / radius - model.gaps)
    found = _solved(model, lambda nu: (radius, jnp.zeros_like(nu)), below)
    size = jnp.linalg.norm(found.coefficients)
    fit = jnp.where(size > radius, radius / size, 1)  # the last digits
    return found._replace(coefficients=fit * found.coefficients)


def under_cubic(model: Spectrum, sigma: Scalar) -> Shift:
    """The global minimiser of the quadratic plus sigma |s|^3 / 3, for sigma > 0."""
    # one direction alone: (gap + nu) (pole + nu) = sigma |pull|, in the form that does not cancel
    push = jnp.sqrt(sigma) * jnp.sqrt(jnp.abs(model.pull))  # the root of that, against overflow
    whole = model.gaps + model.pole + jnp.hypot(model.gaps - model.pole, 2 * push)
    whole = jnp.where(whole > 0, whole, 1)
    below = 2 * (push * (push / whole) - model.gaps * (model.pole / whole))
    return _solved(model, lambda nu: ((model.pole + nu) / sigma, 1 / sigma), jnp.max(below))


def _solved(
    model: Spectrum, target: Callable[[Scalar], tuple[Scalar, Scalar]], below: Scalar
) -> Shift:
    """The least nu >= 0 with |s(nu)| <= T(nu), from a point below it; target gives T and T'."""
    tolerance = tree.eps(below.dtype) ** 0.75

    def shifted(nu: Scalar) -> tuple[Array, Array]:
        poles = model.gaps + nu
        poles = jnp.where(poles > 0, poles, 1)
        return model.pull / poles, poles

    def running(c: _Pass) -> Array:
        return c.short & (c.passes < MAX_PASSES)

    def body(c: _Pass) -> _Pass:
        step, poles = shifted(c.nu)
        size = jnp.linalg.norm(step)
        limit, growth = target(c.nu)
        above = size > limit
        fall = jnp.sum((step / jnp.where(size > 0, size, 1)) ** 2 / poles)
        advance = (size - limit) / (limit * fall + size * growth / limit)
        nu = jnp.where(above & jnp.isfinite(advance), c.nu + advance, c.nu)
        return _Pass(nu, c.passes + 1, (size > (1 + tolerance) * limit) & (nu > c.nu))

    start = _Pass(jnp.maximum(below, 0), jnp.asarray(0, jnp.int32), jnp.asarray(True))
    nu = lax.while_loop(running, body, start).nu
    return Shift(-shifted(nu)[0], nu)
