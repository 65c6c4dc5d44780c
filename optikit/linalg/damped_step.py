"""Damped Gauss-Newton steps of a linear model, by orthogonalisation alone.

A damped step solves min |[S; sqrt(lambda) I] y + [c; 0]| with S the scaled model and y the scaled
step: nothing is squared and float32 keeps its digits. lambda is found from a radius by Hebden's
iteration; the full Gauss-Newton step is taken when it fits. A damping floor of rounding size,
relative to the columns of the current J, replaces rank decisions. With more parameters than
residuals the same step is found in the row space of J (the kernel or dual form): y = Q z with
(J D^-1)^T = Q R, so that no matrix is larger than J.

References: Moré (1978), "The Levenberg-Marquardt algorithm: implementation and theory"; Golub & Van
Loan (2013), section 5.6 for the wide system.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from optikit.core import Scalar, tree
from optikit.core.tree import HIGHEST
from optikit.linalg.least_squares import column_norms
from optikit.linalg.small import solve_upper, solve_upper_transposed, triangularize

HEBDEN_STEPS = 12
"""Bound on the iterations for lambda; two or three are usual."""

REGULAR = 1e4
"""Least squared pivot over the damping floor at which the floor is left out."""


class LinearModel(NamedTuple):
    """The linear model |r + J s| of a point: R and Q^T r, or J and r where J is wide."""

    upper: Float[Array, "p n"]
    projected: Float[Array, " p"]


class Scaled(NamedTuple):
    """A linear model in scaled steps y: J s = A y with |D s| = |y|."""

    matrix: Float[Array, "p q"]
    least: Float[Array, " q"]  # the damping of each y that stands for none
    basis: Float[Array, "n q"] | None  # of the row space of a wide J; D s = basis y

    def lift(self, y: Float[Array, " q"]) -> Float[Array, " n"]:
        """D s of a step y."""
        return y if self.basis is None else jnp.matmul(self.basis, y, precision=HIGHEST)

    def drop(self, v: Float[Array, " n"]) -> Float[Array, " q"]:
        """The transposed map."""
        return v if self.basis is None else jnp.matmul(v, self.basis, precision=HIGHEST)


class Damped(NamedTuple):
    """A damped step, and the search for its damping."""

    damping: Scalar
    lower: Scalar  # bounds on the damping
    upper: Scalar
    step: Float[Array, " q"]  # y
    size: Scalar  # |y|
    iterations: Int[Array, ""]
    done: Bool[Array, ""]


def linear_model(jacobian: Float[Array, "m n"], r: Float[Array, " m"]) -> LinearModel:
    """The model of a point, factorised unless it is wide: 2 m n^2 flops."""
    if jacobian.shape[0] < jacobian.shape[1]:
        return LinearModel(jacobian, r)
    upper, projected = triangularize(jacobian, r)
    return LinearModel(_without_rounding(upper), projected)


def _without_rounding(upper: Float[Array, "p p"]) -> Float[Array, "p p"]:
    """R with 0 on its diagonal where a column depends on earlier ones to rounding.

    What stands there instead is rounding, and so is the direction of Q that it belongs to: left in,
    it would turn a residual that does not vanish into long steps along the null space of J.
    """
    smallest = 16 * upper.shape[0] * tree.eps(upper.dtype) * column_norms(upper)
    diagonal = jnp.diagonal(upper)
    return upper - jnp.diag(jnp.where(jnp.abs(diagonal) <= smallest, diagonal, 0))


def scaled_by(model: LinearModel, d: Float[Array, " n"]) -> Scaled:
    """The model in steps scaled by d; of a wide J, 2 n p^2 flops."""
    upper = model.upper
    floor = _floor(upper.dtype)
    if upper.shape[0] >= upper.shape[1]:
        norms = column_norms(upper)
        least = floor * jnp.where(norms > 0, norms / d, 1) ** 2
        return Scaled(upper / d[None, :], least, None)
    q, triangle = jnp.linalg.qr((upper / d[None, :]).T)
    triangle = _without_rounding(triangle)
    least = jnp.full(upper.shape[0], floor * jnp.max(column_norms(triangle)) ** 2)
    return Scaled(triangle.T, least, q)


def _floor(dtype: jnp.dtype) -> float:
    """The damping that stands for none, relative to the columns of J.

    Its root is large against rounding, so that nothing drifts along a null space of J, and small
    against any singular value that means something.
    """
    return tree.eps(dtype) ** (4 / 3)


def within(scaled: Scaled, projected: Float[Array, " p"], radius: Scalar) -> Damped:
    """The step y of least |projected + A y| among |y| <= radius, to 10 % in the radius."""
    dtype = scaled.matrix.dtype
    radius = radius.astype(dtype)
    steepness = norm(jnp.sum(projected[:, None] * scaled.matrix, axis=0))

    def running(c: Damped) -> Array:
        return ~c.done & (c.iterations < HEBDEN_STEPS)

    def body(c: Damped) -> Damped:
        return judged(c, *stacked(scaled, projected, c.damping))

    def judged(c: Damped, triangle: Array, rotated: Array) -> Damped:
        step = -solve_upper(triangle, rotated)
        size = norm(step)
        excess = size - radius
        fits = (excess <= 0.1 * radius) & ((excess >= -0.1 * radius) | (c.damping <= 0))
        # Newton's method on 1/radius - 1/size, safeguarded by the bounds
        w = solve_upper_transposed(triangle, step / jnp.where(size > 0, size, 1))
        ratio = excess / radius / jnp.where(size > 0, jnp.sum(w**2), 1)
        lower = jnp.where(excess > 0, jnp.maximum(c.lower, c.damping), c.lower)
        upper = jnp.where(excess < 0, jnp.minimum(c.upper, c.damping), c.upper)
        damping = c.damping + ratio
        inside = (damping > lower) & (damping < upper)
        damping = jnp.where(inside, damping, jnp.maximum(1e-3 * upper, jnp.sqrt(lower * upper)))
        return Damped(
            jnp.where(fits, c.damping, damping), lower, upper, step, size, c.iterations + 1, fits
        )

    zero = jnp.zeros((), dtype)
    start = Damped(
        zero, zero, steepness / radius, jnp.zeros_like(scaled.least), zero,
        jnp.asarray(0, jnp.int32), jnp.asarray(False),
    )  # fmt: skip
    if scaled.basis is None:
        # R itself is the first triangle wherever the floor changes nothing that counts
        pivots = jnp.diagonal(scaled.matrix) ** 2
        start = tree.where(
            jnp.all(pivots > REGULAR * jnp.max(scaled.least)),
            judged(start, scaled.matrix, projected),
            start,
        )
    return lax.while_loop(running, body, start)


def stacked(
    scaled: Scaled, projected: Float[Array, " p"], damping: Scalar
) -> tuple[Float[Array, "q q"], Float[Array, " q"]]:
    """R and Q^T [c; 0] of the damped model [A; sqrt(damping + least)]."""
    matrix, least = scaled.matrix, scaled.least
    rhs = jnp.concatenate([projected, jnp.zeros_like(least)])
    return triangularize(jnp.concatenate([matrix, jnp.diag(jnp.sqrt(damping + least))]), rhs)


def damped_by(scaled: Scaled, projected: Float[Array, " p"], damping: Scalar) -> Damped:
    """The step of a given damping."""
    damping = damping.astype(scaled.matrix.dtype)
    triangle, rotated = stacked(scaled, projected, damping)
    step = -solve_upper(triangle, rotated)
    one = jnp.asarray(1, jnp.int32)
    return Damped(damping, damping, damping, step, norm(step), one, jnp.asarray(True))


def corrected(scaled: Scaled, damping: Scalar, slope: Float[Array, " q"]) -> Float[Array, " q"]:
    """-(A^T A + damping)^-1 slope, by the seminormal equations."""
    triangle, _ = stacked(scaled, jnp.zeros_like(scaled.matrix[:, 0]), damping)
    return -solve_upper(triangle, solve_upper_transposed(triangle, slope))


def decrease(scaled: Scaled, damped: Damped) -> Scalar:
    """The decrease that the linear model promises for the damped step."""
    moved = jnp.matmul(scaled.matrix, damped.step, precision=HIGHEST)
    return jnp.sum(moved**2) / 2 + damped.damping * damped.size**2


def norm(v: Array) -> Scalar:
    """|v| of a vector in the units of the residuals, whose squares are in the value as well."""
    return jnp.sqrt(jnp.sum(v**2))
