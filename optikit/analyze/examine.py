"""What the gradient and the extreme eigenvalues of the Hessian say about a point.

All eigenvalues where the Hessian is small enough to be dense, the ends of the spectrum by Lanczos
where it is not. An eigenvalue within `flat` of zero, relative to the largest, says nothing about
its direction: the point is then degenerate, whatever the others say.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.analyze.certificate import KINDS, Certificate, Kind
from optikit.calculus import Eval, Objective, bind
from optikit.core import Counts, Key, Params, Scalar, tally, times, tree
from optikit.core.tree import HIGHEST
from optikit.linalg import lanczos

LENGTHS = 2.0 ** -np.arange(-3, 30)
"""Where a better point is looked for, in units of the parameters' size."""


class _Spectrum(NamedTuple):
    """What is known of the Hessian: eigenpairs, all of them or the ends."""

    values: Float[Array, " k"]  # ascending
    errors: Float[Array, " k"]
    along: Float[Array, " k"]  # g in the eigenvectors
    lowest: Float[Array, " n"]  # the eigenvector of the smallest
    step: Float[Array, " n"]  # -|H|^-1 g over the directions known and not flat
    flat: Scalar


def examine(
    params: Params,
    args: tuple,
    tol: Scalar | float | None,
    key: Key | None,
    *,
    objective: Objective,
    dense: bool,
    num_products: int,
) -> Certificate:
    """The certificate of a point, in arrays; `cannot-tell` where something is not finite."""
    at = bind(objective, args).value_and_grad(params)
    gradient, unravel = ravel_pytree(at.grad)
    dtype = gradient.dtype
    usable = jnp.isfinite(at.value) & tree.all_finite(at.grad)
    gradient = jnp.where(usable, gradient, 0)
    if dense:
        spectrum, price = _dense_spectrum(objective, params, args, gradient)
    else:
        spectrum, price = _ends(objective, params, args, gradient, num_products, key)
    finite = usable & jnp.all(jnp.isfinite(spectrum.values))
    reach = jnp.maximum(1, tree.norm(params)).astype(dtype)
    if tol is None:
        tol = 1e-4 if dtype.itemsize > 4 else 1e-2
    code, step_norm, decrement = _judge(spectrum, at.value, reach, tol, dense)
    code = jnp.where(finite, code, KINDS.index(Kind.CANNOT_TELL))
    searched = finite & (code != KINDS.index(Kind.MINIMUM))
    way, point, gain = _way_out(objective, params, args, at, spectrum, reach, searched)
    values, errors = spectrum.values, spectrum.errors
    looked = times(jnp.where(searched, len(LENGTHS), 0), Counts(value=1))
    return Certificate(
        code=code.astype(jnp.int32),
        value=at.value,
        grad_norm=tree.max_abs(at.grad),
        smallest=values[0],
        largest=values[-1],
        smallest_error=errors[0],
        largest_error=errors[-1],
        flat=spectrum.flat,
        step_norm=step_norm,
        decrement=decrement,
        gain=gain,
        way=unravel(way),
        point=point,
        counts=tally(Counts(grad=1), price, looked),
        dense=dense,
        products=0 if dense else values.size,
    )


def _flat(values: Array) -> Scalar:
    """The size up to which an eigenvalue is indistinguishable from zero."""
    return tree.eps(values.dtype) ** (2 / 3) * jnp.max(jnp.abs(values))


def _dense_spectrum(
    objective: Objective, params: Params, args: tuple, gradient: Array
) -> tuple[_Spectrum, Counts]:
    matrix = bind(objective, args).curvature("hessian", params).dense()
    finite = jnp.all(jnp.isfinite(matrix))
    values, vectors = jnp.linalg.eigh(jnp.where(finite, matrix, 0), symmetrize_input=False)
    values = jnp.where(finite, values, jnp.nan)
    flat = _flat(values)
    rounding = tree.eps(values.dtype) * values.size**0.5 * jnp.max(jnp.abs(values))
    along = jnp.matmul(gradient, vectors, precision=HIGHEST)
    step = -jnp.matmul(vectors, _divided(along, jnp.abs(values), flat), precision=HIGHEST)
    errors = jnp.full_like(values, rounding)
    return _Spectrum(values, errors, along, vectors[:, 0], step, flat), Counts(hessian=1)


def _ends(
    objective: Objective,
    params: Params,
    args: tuple,
    gradient: Array,
    num_products: int,
    key: Key | None,
) -> tuple[_Spectrum, Counts]:
    start_key, krylov_key = jax.random.split(jax.random.key(0) if key is None else key)
    # a random start with the gradient mixed in: H^-1 g is then in the Krylov space too
    noise = jax.random.normal(start_key, gradient.shape, gradient.dtype)
    size = jnp.linalg.norm(gradient)
    start = noise / jnp.linalg.norm(noise) + gradient / jnp.where(size > 0, size, 1)
    unravel = ravel_pytree(params)[1]
    product = bind(objective, args).curvature("hessian", params).mv
    ritz = lanczos(
        lambda v: ravel_pytree(product(unravel(v)))[0], start, num_products, krylov_key
    )  # fmt: skip
    flat = _flat(ritz.values)
    projected = jnp.matmul(ritz.basis, gradient, precision=HIGHEST)
    along = jnp.matmul(projected, ritz.coefficients, precision=HIGHEST)
    inner = _divided(along, jnp.abs(ritz.values), flat)
    inside = jnp.matmul(ritz.coefficients, inner, precision=HIGHEST)
    step = -jnp.matmul(inside, ritz.basis, precision=HIGHEST)
    price = tally(Counts(grad=1), times(ritz.values.size, Counts(hvp=1)))
    return _Spectrum(ritz.values, ritz.residuals, along, ritz.vector(0), step, flat), price


def _divided(along: Array, sizes: Array, flat: Scalar) -> Array:
    return jnp.where(sizes > flat, along / jnp.where(sizes > flat, sizes, 1), 0)


def _judge(
    s: _Spectrum, value: Scalar, reach: Scalar, tol: Scalar | float, dense: bool
) -> tuple[Int[Array, ""], Scalar, Scalar]:
    """The kind of the point, the length of the Newton step, and the decrement."""
    flat, eps = s.flat, tree.eps(s.values.dtype)
    step_norm = jnp.linalg.norm(_divided(s.along, jnp.abs(s.values), flat))
    decrement = jnp.sum(_divided(s.along**2, s.values, flat)) / 2
    # along flat directions there is no step to measure: the slope itself must be negligible
    curved = jnp.abs(s.values) > flat
    slope = jnp.max(jnp.where(curved, 0, jnp.abs(s.along)), initial=0)
    still = slope * reach <= 100 * eps**0.5 * jnp.maximum(1, jnp.abs(value)).astype(slope.dtype)
    smallest, largest = s.values[0], s.values[-1]
    settled = s.errors[0] <= jnp.maximum(flat, 0.1 * jnp.abs(smallest))
    settled |= smallest - s.errors[0] > 0.5 * smallest
    # negative curvature is certain wherever it was seen; a maximum needs the whole spectrum
    whole = (largest < -flat) & dense
    downward = jnp.where(whole, KINDS.index(Kind.MAXIMUM), KINDS.index(Kind.DEGENERATE))
    downward = jnp.where(largest > flat, KINDS.index(Kind.SADDLE), downward)
    upward = jnp.where(
        smallest > flat, KINDS.index(Kind.MINIMUM), KINDS.index(Kind.DEGENERATE)
    )  # fmt: skip
    code = jnp.where(settled, upward, KINDS.index(Kind.CANNOT_TELL))
    code = jnp.where(smallest < -flat - s.errors[0], downward, code)
    moving = (step_norm > tol * reach) | ~still
    return jnp.where(moving, KINDS.index(Kind.NOT_STATIONARY), code), step_norm, decrement


def _way_out(
    objective: Objective,
    params: Params,
    args: tuple,
    at: Eval,
    s: _Spectrum,
    reach: Scalar,
    searched: Bool[Array, ""],
) -> tuple[Array, Params, Scalar]:
    """A direction down, the best of a geometric grid of points along it, and its gain."""
    gradient, unravel = ravel_pytree(at.grad)
    door = bind(objective, args)
    bent = s.values[0] < -s.flat
    downhill = jnp.where(jnp.vdot(s.lowest, gradient) > 0, -s.lowest, s.lowest)
    size, steep = jnp.linalg.norm(s.step), jnp.linalg.norm(gradient)
    newton = s.step / jnp.where(size > 0, size, 1)
    steepest = -gradient / jnp.where(steep > 0, steep, 1)
    vector = jnp.where(bent, downhill, jnp.where(size > 0, newton, steepest))
    direction = unravel(vector)
    lengths = reach * jnp.asarray(LENGTHS, vector.dtype)

    def look() -> tuple[Scalar, Scalar]:
        values = lax.map(lambda t: door.value(tree.add_scaled(params, t, direction)), lengths)
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        best = jnp.argmin(values)
        return lengths[best], at.value - values[best]

    zero = jnp.zeros((), vector.dtype)
    length, gain = lax.cond(searched, look, lambda: (zero, jnp.zeros_like(at.value)))
    found = gain > 4 * tree.eps(vector.dtype) * jnp.abs(at.value)
    shown = searched & (found | bent)
    point = tree.add_scaled(params, jnp.where(found, length, 0), direction)
    return (
        jnp.where(shown, vector, 0),
        tree.where(found, point, params),
        jnp.where(found, gain, 0),
    )
