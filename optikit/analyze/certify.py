"""What kind of point this is: a statement about a local optimum, with its evidence.

The statement rests on the gradient and the extreme eigenvalues of the Hessian: all of them where
the Hessian is small enough to be dense, the ends of the spectrum by Lanczos where it is not. An
eigenvalue within `flat` of zero, relative to the largest, says nothing about its direction: the
point is then degenerate, whatever the others say.
"""

import enum
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from optikit.calculus import bind
from optikit.calculus.derivatives import Fun
from optikit.calculus.validate import as_args, as_objective, as_params, check_scalar
from optikit.core import Counts, Key, Params, tally, times, tree
from optikit.core.compiled import jit
from optikit.core.tree import HIGHEST
from optikit.linalg import lanczos

DENSE_UP_TO = 1000
"""Parameters up to which the whole Hessian is built."""


class Kind(enum.StrEnum):
    """The kinds of points that can be told apart by first and second derivatives."""

    MINIMUM = "minimum"
    SADDLE = "saddle"
    MAXIMUM = "maximum"
    DEGENERATE = "degenerate"
    NOT_STATIONARY = "not-stationary"
    CANNOT_TELL = "cannot-tell"


class Certificate(NamedTuple):
    """The kind of a point and what it rests on.

    Attributes:
      kind: a `Kind`, which compares equal to its string.
      value: f at the point.
      grad_norm: max|g|.
      smallest, largest: the extreme eigenvalues of the Hessian.
      smallest_error, largest_error: an eigenvalue lies within this distance of each (rounding for
        a dense Hessian, the Lanczos residual otherwise).
      step_norm: |H^-1 g| over the directions that are not flat: how far the stationary point is.
      decrement: g^T H^-1 g / 2 over directions of positive curvature: an estimate of f - f*.
      direction: for anything but a minimum, a unit direction in which f decreases; else None.
      gain: f(params) - f(better), evaluated, not predicted; 0 without a better point.
      better: a better point along `direction`; None if there is none.
      dense: whether the whole Hessian was used.
      counts: what it cost.
      message: the statement in words.
    """

    kind: Kind
    value: float
    grad_norm: float
    smallest: float
    largest: float
    smallest_error: float
    largest_error: float
    step_norm: float
    decrement: float
    direction: Params | None
    gain: float
    better: Params | None
    dense: bool
    counts: Counts
    message: str

    def __str__(self) -> str:
        return self.message


class _Spectrum(NamedTuple):
    """What is known of the Hessian: eigenpairs, all of them or the ends."""

    values: np.ndarray  # ascending
    errors: np.ndarray
    along: np.ndarray  # g in the eigenvectors
    lowest: Float[Array, " n"]  # the eigenvector of the smallest
    step: Float[Array, " n"]  # -|H|^-1 g over the directions known and not flat


def certify(
    fun: Fun,
    params: Params,
    args: tuple = (),
    *,
    has_aux: bool = False,
    tol: float | None = None,
    num_products: int = 80,
    key: Key | None = None,
) -> Certificate:
    """Say what kind of point params is for fun: minimum, saddle, maximum, degenerate, or none.

    Args:
      fun: a function (params, *args) -> scalar, or an Objective.
      tol: a stationary point is one whose Newton step is at most tol max(1, |params|); by default
        1e-4 in float64 and 1e-2 in float32.
      num_products: Hessian products for Lanczos, above 1000 parameters.
      key: for the Lanczos start; fixed by default.

    Returns: a Certificate; `print` it for the statement in words. Cost: one grad and one hessian
      up to 1000 parameters, else 2 grads and `num_products` hvps; 33 values for a way out.

    Raises:
      TypeError: fun is not scalar, or a parameter not floating point.
      FloatingPointError: fun or its derivatives are not finite at params.

    Example:
      >>> cert = certify(lambda x: x[0] ** 2 - x[1] ** 2, jnp.zeros(2))
      >>> str(cert.kind), round(cert.smallest), cert.gain > 0
      ('saddle', -2, True)
    """
    objective, params, args = as_objective(fun, has_aux=has_aux), as_params(params), as_args(args)
    check_scalar(objective, params, args)
    n = tree.size(params)
    dense = n <= DENSE_UP_TO
    at, counts = _evaluate(params, args, objective=objective)
    if not bool(jnp.isfinite(at.value) & tree.all_finite(at.grad)):
        msg = f"the function is {float(at.value)} at params, or its gradient is not finite."
        raise FloatingPointError(msg)
    gradient, unravel = ravel_pytree(at.grad)
    eps = tree.eps(gradient.dtype)
    if dense:
        spectrum, price = _dense_spectrum(params, args, gradient, objective=objective)
    else:
        spectrum, price = _ends(params, args, gradient, num_products, key, objective=objective)
    counts = tally(counts, price)
    if not np.all(np.isfinite(spectrum.values)):
        msg = "the Hessian is not finite at params."
        raise FloatingPointError(msg)
    reach = max(1.0, float(tree.norm(params)))
    if tol is None:
        tol = 1e-4 if gradient.dtype.itemsize > 4 else 1e-2
    verdict = _judge(spectrum, float(at.value), reach, tol, eps, dense)
    direction = better = None
    gain = 0.0
    if verdict.kind != Kind.MINIMUM:
        direction, better, gain, price = _way_out(
            objective, params, args, at, spectrum, verdict, reach, unravel
        )
        counts = tally(counts, price)
    return Certificate(
        kind=verdict.kind,
        value=float(at.value),
        grad_norm=float(tree.max_abs(at.grad)),
        smallest=float(spectrum.values[0]),
        largest=float(spectrum.values[-1]),
        smallest_error=float(spectrum.errors[0]),
        largest_error=float(spectrum.errors[-1]),
        step_norm=verdict.step_norm,
        decrement=verdict.decrement,
        direction=direction,
        gain=gain,
        better=better,
        dense=dense,
        counts=counts,
        message=_in_words(verdict, spectrum, at, dense, gain),
    )


class _Verdict(NamedTuple):
    kind: Kind
    step_norm: float
    decrement: float
    flat: float  # eigenvalues up to this size say nothing


@functools.partial(jit, static_argnames="objective")
def _evaluate(params, args, *, objective):
    return bind(objective, args).value_and_grad(params), tally(Counts(grad=1))


@functools.partial(jit, static_argnames="objective")
def _value_along(params, direction, lengths, args, *, objective):
    door = bind(objective, args)
    return jax.lax.map(lambda t: door.value(tree.add_scaled(params, t, direction)), lengths)


@functools.partial(jit, static_argnames="objective")
def _eigenpairs(params, args, *, objective):
    matrix = bind(objective, args).curvature("hessian", params).dense()
    finite = jnp.all(jnp.isfinite(matrix))
    values, vectors = jnp.linalg.eigh(jnp.where(jnp.isfinite(matrix), matrix, 0))
    return jnp.where(finite, values, jnp.nan), vectors


def _flat(values: np.ndarray, eps: float) -> float:
    """The size up to which an eigenvalue is indistinguishable from zero."""
    return float(eps ** (2 / 3) * np.max(np.abs(values)))


def _dense_spectrum(params, args, gradient, *, objective) -> tuple[_Spectrum, Counts]:
    values, vectors = _eigenpairs(params, args, objective=objective)
    eps = tree.eps(gradient.dtype)
    host = np.asarray(values, float)
    errors = np.full(host.size, eps * host.size**0.5 * np.max(np.abs(host), initial=0))
    along = jnp.matmul(gradient, vectors, precision=HIGHEST)
    curved = jnp.abs(values) > _flat(host, eps)
    step = -jnp.matmul(vectors, jnp.where(curved, along / jnp.abs(values), 0), precision=HIGHEST)
    spectrum = _Spectrum(host, errors, np.asarray(along, float), vectors[:, 0], step)
    return spectrum, Counts(hessian=1)


@functools.partial(jit, static_argnames=("num_products", "objective"))
def _krylov(params, args, start, key, *, num_products, objective):
    """Ritz pairs of the Hessian; eigenvectors enter through the ends alone."""
    _, unravel = ravel_pytree(params)
    product = bind(objective, args).curvature("hessian", params).mv
    ritz = lanczos(lambda v: ravel_pytree(product(unravel(v)))[0], start, num_products, key)
    return ritz, ritz.vector(0)


def _ends(params, args, gradient, num_products, key, *, objective) -> tuple[_Spectrum, Counts]:
    start_key, krylov_key = jax.random.split(jax.random.key(0) if key is None else key)
    # a random start with the gradient mixed in: H^-1 g is then in the Krylov space too
    noise = jax.random.normal(start_key, gradient.shape, gradient.dtype)
    size = jnp.linalg.norm(gradient)
    start = noise / jnp.linalg.norm(noise) + gradient / jnp.where(size > 0, size, 1)
    ritz, lowest = _krylov(
        params, args, start, krylov_key, num_products=num_products, objective=objective
    )
    values = np.asarray(ritz.values, float)
    projected = jnp.matmul(ritz.basis, gradient, precision=HIGHEST)
    along = jnp.matmul(projected, ritz.coefficients, precision=HIGHEST)
    curved = jnp.abs(ritz.values) > _flat(values, tree.eps(gradient.dtype))
    inner = jnp.where(curved, along / jnp.abs(ritz.values), 0)
    step = -jnp.matmul(
        jnp.matmul(ritz.coefficients, inner, precision=HIGHEST), ritz.basis, precision=HIGHEST
    )
    spectrum = _Spectrum(
        values, np.asarray(ritz.residuals, float), np.asarray(along, float), lowest, step
    )
    return spectrum, tally(Counts(grad=1), times(len(values), Counts(hvp=1)))


def _judge(
    s: _Spectrum, value: float, reach: float, tol: float, eps: float, dense: bool
) -> _Verdict:
    flat = _flat(s.values, eps)
    curved = np.abs(s.values) > flat
    step_norm = float(np.linalg.norm(s.along[curved] / s.values[curved]))
    convex = s.values > flat
    decrement = float(np.sum(s.along[convex] ** 2 / s.values[convex]) / 2)
    # along flat directions there is no step to measure: the slope itself must be negligible
    slope = float(np.max(np.abs(s.along[~curved]), initial=0))
    still = slope * reach <= 100 * np.sqrt(eps) * max(1.0, abs(value))
    smallest, largest = s.values[0], s.values[-1]
    settled = (
        s.errors[0] <= max(flat, 0.1 * abs(smallest)) or smallest - s.errors[0] > 0.5 * smallest
    )
    if step_norm > tol * reach or not still:
        kind = Kind.NOT_STATIONARY
    elif smallest < -flat - s.errors[0]:
        # negative curvature is certain wherever it was seen; a maximum needs the whole spectrum
        if largest > flat:
            kind = Kind.SADDLE
        else:
            kind = Kind.MAXIMUM if dense and largest < -flat else Kind.DEGENERATE
    elif not settled:
        kind = Kind.CANNOT_TELL
    elif smallest > flat:
        kind = Kind.MINIMUM
    else:
        kind = Kind.DEGENERATE
    return _Verdict(kind, step_norm, decrement, flat)


def _way_out(objective, params, args, at, s: _Spectrum, verdict: _Verdict, reach, unravel):
    """A direction down, the best of a geometric grid of points along it, and the price."""
    if s.values[0] < -verdict.flat:
        sign = -1.0 if float(jnp.vdot(s.lowest, ravel_pytree(at.grad)[0])) > 0 else 1.0
        vector = sign * s.lowest
    else:
        size = jnp.linalg.norm(s.step)
        gradient = ravel_pytree(at.grad)[0]
        steep = jnp.linalg.norm(gradient)
        vector = jnp.where(
            size > 0, s.step / jnp.where(size > 0, size, 1),
            -gradient / jnp.where(steep > 0, steep, 1),
        )  # fmt: skip
    direction = unravel(vector)
    lengths = jnp.asarray(reach * 2.0 ** -np.arange(-3, 30), vector.dtype)
    values = np.asarray(_value_along(params, direction, lengths, args, objective=objective), float)
    values = np.where(np.isfinite(values), values, np.inf)
    price = times(len(lengths), Counts(value=1))
    best = int(np.argmin(values))
    gain = float(at.value) - float(values[best])
    if gain <= 4 * tree.eps(vector.dtype) * abs(float(at.value)):
        return (direction if s.values[0] < -verdict.flat else None), None, 0.0, price
    return direction, tree.add_scaled(params, lengths[best], direction), gain, price


def _in_words(v: _Verdict, s: _Spectrum, at, dense: bool, gain: float) -> str:
    source = "dense Hessian" if dense else f"Lanczos, {len(s.values)} products"
    ends = f"eigenvalues from {s.values[0]:.4g} to {s.values[-1]:.4g} ({source})"
    sentence = {
        Kind.MINIMUM: f"a strict local minimum: f - f* is about {v.decrement:.2g}",
        Kind.SADDLE: "a saddle: the curvature has both signs",
        Kind.MAXIMUM: "a strict local maximum",
        Kind.DEGENERATE: f"degenerate: an eigenvalue is zero to within {v.flat:.2g}",
        Kind.NOT_STATIONARY: "not stationary: "
        + (
            f"the Newton step is {v.step_norm:.3g} long"
            if v.step_norm > 0
            else "there is a slope along directions without curvature"
        ),
        Kind.CANNOT_TELL: "undecided: the smallest eigenvalue is not resolved; raise num_products",
    }[v.kind]
    out = f"; a better point, lower by {gain:.3g}, is in .better" if gain > 0 else ""
    return f"{sentence}. max|g| {float(tree.max_abs(at.grad)):.2g}, {ends}{out}."
