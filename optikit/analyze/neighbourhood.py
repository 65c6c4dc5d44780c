"""What values and gradients near by say of a point: rounding noise, kinks, NaN, and the bracket.

Noise is read off high differences along a random line, where what is smooth has cancelled: the
k-th difference of independent errors of variance s^2 has the variance (2k choose k) s^2. The
gradient enters by its product with random signs, whose error has the size of the
gradient's in the Euclidean norm. A gradient that differs between x + h d and x - h d as much for a
smaller h as for a larger one jumps at x, and a value likewise; a gradient whose differences to
either side do not cancel as h^2 has a Hessian that jumps. Around the stationary point that the
Newton step p = -H^-1 g points to, gradients must be mirrored: that of x + 2 p is about -g, where
along an inflection such as x^3 it is not.

Reference: Moré & Wild (2011), "Estimating computational noise".
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from optikit.calculus import Eval, Objective, bind
from optikit.core import Counts, Key, Params, Scalar, tree
from optikit.core.box import Box
from optikit.core.tree import HIGHEST

ALONG = 7
"""Points on each of the two scales of the line on which noise is measured."""

ORDERS = (4, 5, 6)
"""Orders of the differences; the middle one of their answers is taken: smooth parts add to the
lowest order, and the highest has a single difference to go by, which is small by chance.
"""

JUMP = 30.0
"""Times the noise that a change of the gradient must be to count as a jump."""

POINTS = 2 * ALONG + 6


class Neighbourhood(NamedTuple):
    """Near a point, in the function's own precision.

    Attributes:
      value_noise: the standard deviation of the values' rounding error.
      grad_noise: that of the gradient's, in the Euclidean norm.
      finite: whether all values and gradients were.
      smooth: whether neither value nor gradient jumps at the point.
      curved: whether the Hessian does not.
      resolved: whether the gradient changes at all on the line on which noise is measured.
      mirrored: whether the gradient along the Newton step changes as the Hessian says.
      beyond: (n,), the whole gradient where the Newton step ends; (0,) without bounds.
    """

    value_noise: Scalar
    grad_noise: Scalar
    finite: Bool[Array, ""]
    smooth: Bool[Array, ""]
    curved: Bool[Array, ""]
    resolved: Bool[Array, ""]
    mirrored: Bool[Array, ""]
    beyond: Float[Array, " m"]


def look_around(
    objective: Objective,
    params: Params,
    args: tuple,
    at: Eval,
    newton: Float[Array, " n"],
    descent: Float[Array, " n"],
    free: Float[Array, " n"] | None,
    box: Box | None,
    key: Key,
) -> tuple[Neighbourhood, Counts]:
    """The neighbourhood of params, from 20 gradients one after another and three vectors.

    Args:
      newton: -H^-1 g, on whose line gradients are looked at, and descent: -|H|^-1 g, along which
        every eigenvector's part of g counts with the same sign; equal where H is definite.
      free: ones where a parameter may move, zeros where a bound holds it.
    """
    x, unravel = ravel_pytree(params)
    gradient = ravel_pytree(at.grad)[0]
    gradient = gradient if free is None else free * gradient
    dtype = x.dtype
    eps = tree.eps(dtype)
    door = bind(objective, args)
    signs, d = _direction(x, free, box, key)
    count = np.arange(1, ALONG + 1)
    noisy = [*(2 * eps**0.5 * count), *(2 * eps**0.25 * count)]
    coarse, fine = eps ** (5 / 8), eps ** (3 / 4)
    along = jnp.asarray([*noisy, -coarse, coarse, -fine, fine, 0, 0], dtype)
    forward = jnp.asarray([0.0] * (2 * ALONG + 4) + [1.0, 2.0], dtype)

    def one(carry: tuple[Array, Array], ts: tuple[Array, Array]):
        (before, beyond), (a, b) = carry, ts
        wanted = unravel(x + a * d + b * newton)
        point = wanted if box is None else box.project(wanted)
        found = door.value_and_grad(point)
        g = ravel_pytree(found.grad)[0]
        if free is not None:
            beyond, g = jnp.where(b == 1, g, beyond), free * g
        outcome = (
            found.value,
            jnp.vdot(signs, g, precision=HIGHEST),
            jnp.vdot(descent, g, precision=HIGHEST),
            tree.norm(g - before),
            tree.norm((g - gradient) + (before - gradient)),
            jnp.isfinite(found.value) & jnp.all(jnp.isfinite(g)),
            tree.max_abs(tree.subtract(point, wanted)) == 0,
        )
        return (g, beyond), outcome

    begun = gradient, gradient[:0] if free is None else gradient
    (_, beyond), seen = lax.scan(one, begun, (along, forward))
    values, signed, slopes, changes, lopsided, finite, reached = seen
    size = tree.norm(gradient)
    value_noise = _noise(values, jnp.abs(jnp.diff(values[:ALONG])))
    value_noise = jnp.maximum(value_noise, eps * jnp.abs(at.value) / 4)
    grad_noise = jnp.maximum(_noise(signed, changes[1:ALONG]), eps * size / 4)
    wide, close = changes[2 * ALONG + 1], changes[2 * ALONG + 3]
    far, by = lopsided[2 * ALONG + 1], lopsided[2 * ALONG + 3]

    def slower(close: Array, wide: Array, power: float, noise: Array) -> Array:
        """Whether it falls as h to less than that power, above noise."""
        return (close > wide * (fine / coarse) ** power) & (close > JUMP * noise)

    # a smooth gradient changes as h, a kink's as h^0, and so does a value that jumps; differences
    # to either side cancel as h^2 around a smooth Hessian, and as h where it jumps. A line that a
    # bound cuts off has one side; the points' own rounding is a per cent of the finer step in
    # float32
    rises = jnp.abs(values[2 * ALONG : 2 * ALONG + 4] - at.value)
    jumps = slower(close, wide, 0.4, grad_noise)
    jumps |= slower(jnp.max(rises[2:]), jnp.max(rises[:2]), 0.4, value_noise)
    both = jnp.all(reached[2 * ALONG : 2 * ALONG + 4])
    bends = slower(by, far, 1.4, grad_noise) & (by > close / 10) & both
    start = jnp.vdot(descent, gradient, precision=HIGHEST)  # -g^T |H|^-1 g, and its mirror image
    middle, end = slopes[-2], slopes[-1]
    slack = 3 * grad_noise * tree.norm(descent)
    mirrored = (middle >= start - slack) & (end >= middle - slack) & (end >= -start / 4 - slack)
    resolved = jnp.any(changes[1 : 2 * ALONG] > 0) | jnp.all(d == 0)
    return Neighbourhood(
        value_noise, grad_noise, jnp.all(finite), ~jumps, ~bends, resolved, mirrored, beyond
    ), Counts(grad=POINTS)


def _direction(x: Array, free: Array | None, box: Box | None, key: Key) -> tuple[Array, Array]:
    """Random signs, and a step of every parameter's own size, away from a bound near by.

    The sizes are random too: steps that are equal but for their signs lie in the very surfaces on
    which sums or differences of parameters have a kink.
    """
    sign_key, size_key = jax.random.split(key)
    signs = jax.random.rademacher(sign_key, x.shape, x.dtype)
    typical = jnp.linalg.norm(x) / max(x.size, 1) ** 0.5
    typical = jnp.where(typical > float(jnp.finfo(x.dtype).tiny) ** 0.5, typical, 1)
    length = jnp.maximum(jnp.abs(x), typical)
    if box is not None:
        below = x - ravel_pytree(box.lower)[0]
        above = ravel_pytree(box.upper)[0] - x
        bounded = jnp.isfinite(below) | jnp.isfinite(above)
        signs = jnp.where(bounded, jnp.where(below < above, 1, -1).astype(x.dtype), signs)
        length = jnp.minimum(length, jnp.maximum(below, above))
    moved = signs * length * jax.random.uniform(size_key, x.shape, x.dtype, 0.5, 1.0)
    return signs, moved if free is None else free * moved


def _noise(values: Array, changes: Array) -> Scalar:
    """The standard deviation of the error of values on two scales, the second where the first is so
    small that half of the values do not even change.
    """

    def of(values: Array) -> Scalar:
        found = [
            tree.norm(jnp.diff(values, n=k)) / math.sqrt((ALONG - k) * math.comb(2 * k, k))
            for k in ORDERS
        ]
        middle = jnp.median(jnp.stack(found))
        return jnp.where(jnp.isfinite(middle), middle, 0)

    stuck = jnp.sum(changes == 0) * 2 >= changes.size
    small, large = of(values[:ALONG]), of(values[ALONG : 2 * ALONG])
    return jnp.where(stuck, jnp.maximum(small, large), small)
