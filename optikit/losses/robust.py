"""Robust losses of residuals: outliers count less than their squares.

The cost is sum_i scale^2 rho(z_i) / 2 with z_i = (r_i / scale)^2, as in scipy's `loss` and
`f_scale`: near 0 every rho is z, so a residual well below `scale` counts as in least squares.

Around a point the cost has the gradient J^T (rho' r) and the curvature J^T (rho' + 2 rho'' z) J,
so that one set of scaled residuals and Jacobian rows serves every least-squares method. Beyond its
inflection a rho curves downwards and the curvature of its row is negative; a sum of squares cannot
say that, so the row keeps a small positive share of its weight instead: the gradient stays exact.

Reference: Triggs, McLauchlan, Hartley & Fitzgibbon (2000), "Bundle adjustment: a modern synthesis",
section 4.3.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from optikit.core import memoized

SMALLEST_SHARE = 1e-4
"""Least curvature of a row against its weight rho': its square root must stay far above rounding
in float32, and the curvature it adds be small beside that of the residuals that fit."""


class Robust(NamedTuple):
    """A robust loss of residuals.

    Attributes:
      terms: z -> (rho, rho', rho''), elementwise for z >= 0.
      scale: the residual beyond which an observation begins to count as an outlier.
      name: for messages and reports.
    """

    terms: Callable[[Array], tuple[Array, Array, Array]]
    scale: float
    name: str

    def cost(self, r: Float[Array, "..."]) -> Float[Array, "..."]:
        """The cost of each residual; half its square where it is small."""
        return self.scale**2 / 2 * self.terms((r / self.scale) ** 2)[0]

    def scaled(self, r: Float[Array, " m"]) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
        """(a, b): the residuals a r and rows b J have the gradient and curvature of the cost."""
        z = jnp.minimum((r / self.scale) ** 2, float(jnp.finfo(r.dtype).max) ** 0.5 / 4)
        _, slope, bend = self.terms(z)
        curvature = jnp.maximum(slope + 2 * bend * z, SMALLEST_SHARE * slope)
        b = jnp.sqrt(curvature)
        return jnp.where(slope > 0, slope / jnp.where(b > 0, b, 1), 0), b


def _checked(scale: float) -> float:
    if not (isinstance(scale, (int, float)) and math.isfinite(scale) and scale > 0):
        msg = f"the scale of a robust loss is {scale!r}: give a positive finite number."
        raise ValueError(msg)
    return float(scale)


@memoized
def soft_l1(scale: float = 1.0) -> Robust:
    """Soft L1, 2 (sqrt(1 + z) - 1): smooth, linear in |r| far out, convex in r.

    Raises:
      ValueError: a scale that is not a positive number.

    Example:
      >>> round(float(soft_l1(1.0).cost(jnp.asarray(0.01))), 7)
      5e-05
      >>> round(float(soft_l1(2.0).cost(jnp.asarray(1000.0))))
      1996
    """

    def terms(z):
        root = jnp.sqrt(1 + z)
        return 2 * z / (1 + root), 1 / root, -0.5 / root**3

    return Robust(terms, _checked(scale), "soft_l1")


@memoized
def huber(scale: float = 1.0) -> Robust:
    """Huber's: z up to 1, 2 sqrt(z) - 1 beyond; exactly quadratic near 0, linear in |r| far out.

    Raises:
      ValueError: a scale that is not a positive number.
    """

    def terms(z):
        far = z > 1
        root = jnp.sqrt(jnp.where(far, z, 1))
        return (
            jnp.where(far, 2 * root - 1, z),
            1 / root,
            jnp.where(far, -0.5 / root**3, 0),
        )

    return Robust(terms, _checked(scale), "huber")


@memoized
def cauchy(scale: float = 1.0) -> Robust:
    """Cauchy's, ln(1 + z): outliers lose their pull as 1 / |r|. Not convex.

    Raises:
      ValueError: a scale that is not a positive number.
    """

    def terms(z):
        inverse = 1 / (1 + z)
        return jnp.log1p(z), inverse, -(inverse**2)

    return Robust(terms, _checked(scale), "cauchy")


@memoized
def arctan(scale: float = 1.0) -> Robust:
    """The arc tangent of z: bounded, so a far outlier costs a constant. Not convex.

    Raises:
      ValueError: a scale that is not a positive number.
    """

    def terms(z):
        inverse = 1 / (1 + z**2)
        return jnp.arctan(z), inverse, -2 * z * inverse**2

    return Robust(terms, _checked(scale), "arctan")


ROBUST: dict[str, Callable[..., Robust]] = {
    "arctan": arctan,
    "cauchy": cauchy,
    "huber": huber,
    "soft_l1": soft_l1,
}


def as_robust(robust: str | Robust, scale: float | None = None) -> Robust:
    """A robust loss by name and scale, or as it is given.

    Raises:
      ValueError: an unknown name, a scale that is not positive, or a scale beside a loss that has
        its own.
    """
    if isinstance(robust, Robust):
        if scale is not None:
            msg = f"{robust.name} has the scale {robust.scale:g}: leave robust_scale out."
            raise ValueError(msg)
        return robust
    if robust not in ROBUST:
        msg = f"unknown robust loss {robust!r}: choose from {sorted(ROBUST)}."
        raise ValueError(msg)
    return ROBUST[robust](1.0 if scale is None else scale)
