"""Steps in the span of a new direction and the last step, under the exact quadratic model.

Whatever a direction was preconditioned with, how far to go along it, and how much of the last step
to keep, follows from products with the exact Gauss-Newton matrix: a linear system of two unknowns.
It corrects the scale of any approximation, and with a fixed one the two unknowns make the method a
preconditioned conjugate gradient method. Reference: Martens & Grosse (2015), sections 6.4, 6.5
and 7.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optikit.calculus import Eval, Oracle
from optikit.calculus.subspace import inner_products
from optikit.core import Counts, Params, Scalar, tree
from optikit.globalize import Search, backtracking
from optikit.linalg import Direction


class Combination(NamedTuple):
    """The minimum of the damped model over the span.

    Attributes:
      step: the combination.
      coefficients: of the directions.
      slope: <g, step>.
      curvature: <step, F step>, without damping.
      damped: <step, (F + D) step>.
    """

    step: Params
    coefficients: Float[Array, " 2"]
    slope: Scalar
    curvature: Scalar
    damped: Scalar


def best_in_span(
    oracle: Oracle, at: Eval, d: Params, last: Params, drag: Float[Array, "2 2"]
) -> tuple[Combination, Counts]:
    """Alpha d + mu last that minimises <g, s> + <s, (F + D) s> / 2.

    Args:
      d, last: of any floating dtype; last may be zero.
      drag: <u, D v> for D the damping.

    Price: a value, and a jvp each.
    """
    dtype = at.value.dtype
    pair = [_like(at.params, d), _like(at.params, last)]
    exact = inner_products(oracle, at.params, pair).astype(dtype)
    slopes = jnp.stack([tree.vdot(at.grad, v) for v in pair]).astype(dtype)
    matrix = exact + drag.astype(dtype)
    coefficients = _minimum(matrix, slopes)
    step = tree.add(tree.scale(coefficients[0], d), tree.scale(coefficients[1], last))
    slope = jnp.sum(slopes * coefficients)
    curvature = coefficients @ exact @ coefficients
    damped = coefficients @ matrix @ coefficients
    return Combination(step, coefficients, slope, curvature, damped), Counts(value=1, jvp=2)


def _minimum(matrix: Float[Array, "2 2"], slopes: Float[Array, " 2"]) -> Float[Array, " 2"]:
    """-matrix^-1 slopes, along the first direction alone where the second adds nothing."""
    bend = matrix[0, 0]
    alone = -slopes[0] / jnp.where(bend > 0, bend, jnp.maximum(jnp.abs(slopes[0]), 1))
    scale = matrix[0, 0] * matrix[1, 1]
    det = scale - matrix[0, 1] * matrix[1, 0]
    # parallel directions differ by rounding alone
    apart = (det > 1e3 * tree.eps(matrix.dtype) * scale) & (scale > 0) & (bend > 0)
    det = jnp.where(apart, det, 1)
    both = -jnp.stack(
        [
            matrix[1, 1] * slopes[0] - matrix[0, 1] * slopes[1],
            matrix[0, 0] * slopes[1] - matrix[1, 0] * slopes[0],
        ]
    ) / det  # fmt: skip
    return jnp.where(apart, both, jnp.stack([alone, jnp.zeros_like(alone)]))


def searched(oracle: Oracle, at: Eval, best: Combination) -> Search:
    """A backtracking search along a combination: monotone, and it backs away from NaN."""
    no = jnp.asarray(False)
    direction = Direction(
        step=_like(at.params, best.step),
        slope=best.slope,
        curvature=best.curvature,
        at_boundary=no,
        convex=~no,
        scale=jnp.zeros_like(best.slope),
        counts=Counts(),
    )
    return backtracking().search(oracle, at, lambda radius: direction, ())


def _like(params: Params, d: Any) -> Params:
    """A direction in the dtypes of the parameters."""
    return jax.tree.map(lambda p, x: x.astype(p.dtype), params, d)
