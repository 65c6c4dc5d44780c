"""How a Levenberg-Marquardt method chooses its damping from trial to trial.

"ratio": a radius is kept, and shrinks or grows by the ratio of actual to predicted decrease; the
damping is what makes the step fit. "nielsen": the damping itself is kept and follows the ratio
smoothly; rejected in a row, it grows ever faster. The first costs two to four small factorisations
a step and knows the length it trusts; the second costs one.

References: Moré (1978), section 4; Nielsen (1999), "Damping parameter in Marquardt's method".
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from optikit.core import Scalar, tree
from optikit.linalg.damped_step import Damped, Scaled, damped_by, within

Damping = Literal["ratio", "nielsen"]


class Trial(NamedTuple):
    """What a trial came to."""

    size: Scalar  # |D s|
    actual: Scalar
    predicted: Scalar
    finite: Bool[Array, ""]
    in_noise: Bool[Array, ""]  # neither decrease can be told from rounding
    accepted: Bool[Array, ""]
    full: Bool[Array, ""]  # it was not damped
    steeper: Bool[Array, ""]  # the slope rose, and the value did not fall


class Rule(NamedTuple):
    """A way to choose the damping. What it keeps is one scalar, and how fast that grows.

    Attributes:
      first: |D x| at the start -> the scalar.
      propose: (scaled model, Q^T r, scalar) -> the damped step.
      judge: (scalar, growth, trial) -> both for the next trial.
    """

    first: Callable[[Scalar], Scalar]
    propose: Callable[[Scaled, Float[Array, " p"], Scalar], Damped]
    judge: Callable[[Scalar, Scalar, Trial], tuple[Scalar, Scalar]]


def by_ratio(radius: float) -> Rule:
    """The radius of a trust region, at first `radius` times |D x|."""

    def judge(kept: Scalar, growth: Scalar, t: Trial) -> tuple[Scalar, Scalar]:
        new = next_radius(kept, t.size, t.actual, t.predicted, t.finite, t.in_noise, t.full)
        by_slope = jnp.where(t.steeper, t.size / 2, 2 * t.size)
        return jnp.where(t.accepted & t.in_noise, by_slope, new), growth

    return Rule(lambda reach: radius * jnp.where(reach > 0, reach, 1), within, judge)


def by_nielsen(first: float) -> Rule:
    """The damping in units of the squared columns of J; of rounding size it is none."""

    def none(damping: Scalar) -> Scalar:
        return jnp.where(damping > tree.eps(damping.dtype), damping, 0)

    def judge(kept: Scalar, growth: Scalar, t: Trial) -> tuple[Scalar, Scalar]:
        ratio = t.actual / jnp.where(t.predicted > 0, t.predicted, 1)
        lower = jnp.maximum(1 / 3, 1 - (2 * jnp.clip(ratio, 0, 1) - 1) ** 3)
        factor = jnp.where(t.in_noise, jnp.where(t.steeper, 2, 1 / 3), lower)
        factor = jnp.where(t.accepted, factor, growth)
        known = jnp.maximum(kept, tree.eps(kept.dtype))
        return (factor * known).astype(kept.dtype), jnp.where(t.accepted, 2, 2 * growth)

    return Rule(
        lambda reach: jnp.full_like(reach, first),
        lambda scaled, projected, kept: damped_by(scaled, projected, none(kept)),
        judge,
    )


def next_radius(radius, size, actual, predicted, finite, in_noise, full) -> Scalar:
    """The radius after a trial, by the ratio of actual to predicted decrease."""
    # after a rise, to the minimum of the interpolating parabola
    factor = 0.5 * predicted / (predicted - actual / 2)
    after_rise = jnp.where(finite & jnp.isfinite(factor), jnp.clip(factor, 0.1, 0.5), 0.1)
    shorter = jnp.where(finite & (actual > 0), 0.5, after_rise) * jnp.minimum(radius, size)
    poor = ~finite | ((actual < predicted / 4) & ~in_noise)
    good = finite & ((actual >= 0.75 * predicted) | full)
    return jnp.where(poor, shorter, jnp.where(good, 2 * size, radius)).astype(radius.dtype)
