"""What can be known of the Hessian at a point: all eigenpairs, or the ends by Lanczos.

Up to `BASIS_UP_TO` numbers in its basis, Lanczos is orthogonalised in full and answers for the
gradient too, which is mixed into its start. Beyond, memory is that of a few vectors: the three-term
recurrence from a random start for the ends, another from the gradient for the Newton step, and the
vectors by running a recurrence a second time (Golub & Meurant, 2010, for what its quadrature says).
Parameters held by bounds are taken out: their rows and columns are zero but for a positive
diagonal, as a bound that holds is a minimum in its own direction.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from optikit.calculus import Objective, bind
from optikit.core import Counts, Key, Params, Scalar, tally, times, tree
from optikit.core.tree import HIGHEST
from optikit.linalg import lanczos, lower_bound
from optikit.linalg.recurrence import combined, recurrence

BASIS_UP_TO = 2**26
"""Numbers in a Lanczos basis up to which it is held."""


class Evidence(NamedTuple):
    """What is known of the Hessian over the parameters that may move.

    Attributes:
      values: ascending, all or Ritz values. errors: an eigenvalue is within these of each.
      along: g in the vectors of `values`, or in those of another recurrence, `sizes`.
      sizes: the eigenvalues that belong to `along`.
      lowest: the vector of the smallest. step: -|H|^-1 g over what is known and not flat.
      newton: -H^-1 g likewise, or zero where it is not known.
      rows: up to m flat directions, unit rows, or zero.
      flat: the size up to which an eigenvalue is indistinguishable from zero.
      lower: not above the smallest eigenvalue, with the confidence asked (always, if dense).
      smallest, largest: the extreme values of directions that may move.
      num_negative, num_flat: at least so many; exactly, if dense.
    """

    values: Float[Array, " k"]
    errors: Float[Array, " k"]
    along: Float[Array, " j"]
    sizes: Float[Array, " j"]
    lowest: Float[Array, " n"]
    step: Float[Array, " n"]
    newton: Float[Array, " n"]
    rows: Float[Array, "m n"]
    flat: Scalar
    lower: Scalar
    smallest: Scalar
    largest: Scalar
    num_negative: Int[Array, ""]
    num_flat: Int[Array, ""]


def threshold(values: Array) -> Scalar:
    """The size up to which an eigenvalue is indistinguishable from zero."""
    return tree.eps(values.dtype) ** (2 / 3) * jnp.max(jnp.abs(values))


def divided(along: Array, sizes: Array, flat: Scalar) -> Array:
    """Along / sizes where the sizes are above flat, else zero."""
    return jnp.where(sizes > flat, along / jnp.where(sizes > flat, sizes, 1), 0)


def _steps(along: Array, sizes: Array, flat: Scalar) -> Array:
    """Coefficients of -|H|^-1 g and of -H^-1 g, in columns."""
    step = -divided(along, jnp.abs(sizes), flat)
    return jnp.stack([step, jnp.sign(sizes) * step], axis=1)


def dense_evidence(
    objective: Objective,
    params: Params,
    args: tuple,
    gradient: Float[Array, " n"],
    free: Float[Array, " n"] | None,
    rows: int,
) -> tuple[Evidence, Counts]:
    """All eigenpairs."""
    matrix = bind(objective, args).curvature("hessian", params).dense()
    finite = jnp.all(jnp.isfinite(matrix))
    matrix = jnp.where(finite, matrix, 0)
    last = gradient.size - 1
    if free is not None:
        matrix = matrix * free[:, None] * free[None, :]
        # above every other eigenvalue: the held come last
        above = 2 * jnp.max(jnp.sum(jnp.abs(matrix), axis=1))
        above = jnp.where(above > 0, above, 1)
        matrix = matrix + jnp.diag((1 - free) * above)
        last = jnp.maximum(jnp.sum(free).astype(jnp.int32) - 1, 0)
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    values = jnp.where(finite, values, jnp.nan)
    smallest, largest = values[0], values[last]
    size = jnp.maximum(jnp.abs(smallest), jnp.abs(largest))
    flat = tree.eps(values.dtype) ** (2 / 3) * size
    rounding = tree.eps(values.dtype) * values.size**0.5 * size
    along = jnp.matmul(gradient, vectors, precision=HIGHEST)
    step, newton = jnp.matmul(vectors, _steps(along, values, flat), precision=HIGHEST).T
    nearest = jnp.argsort(jnp.abs(values))[:rows]
    zero = jnp.abs(values) <= flat
    basis = jnp.where(zero[nearest, None], vectors[:, nearest].T, 0)
    found = Evidence(
        values, jnp.full_like(values, rounding), along, values, vectors[:, 0], step, newton, basis,
        flat, smallest - rounding, smallest, largest, _count(values < -flat), _count(zero),
    )  # fmt: skip
    return found, Counts(hessian=1)


def krylov_evidence(
    objective: Objective,
    params: Params,
    args: tuple,
    gradient: Float[Array, " n"],
    free: Float[Array, " n"] | None,
    rows: int,
    num_products: int,
    confidence: Scalar | float,
    key: Key,
) -> tuple[Evidence, Counts]:
    """The ends of the spectrum, from `num_products` products."""
    start_key, krylov_key = jax.random.split(key)
    noise = jax.random.normal(start_key, gradient.shape, gradient.dtype)
    if free is not None:
        noise = jnp.where(jnp.any(free > 0), free * noise, noise)
    noise = noise / _norm(noise)
    product = _product(objective, params, args, free)
    if gradient.size * num_products > BASIS_UP_TO:
        return _few_vectors(product, gradient, noise, num_products, confidence, rows)
    # the gradient mixed in: H^-1 g is then in the Krylov space too
    start = noise + gradient / _norm(gradient)
    ritz = lanczos(product, start, num_products, krylov_key)
    values, errors = ritz.values, ritz.residuals
    flat = threshold(values)
    projected = jnp.matmul(ritz.basis, gradient, precision=HIGHEST)
    along = jnp.matmul(projected, ritz.coefficients, precision=HIGHEST)
    inside = jnp.matmul(ritz.coefficients, _steps(along, values, flat), precision=HIGHEST)
    step, newton = jnp.matmul(inside.T, ritz.basis, precision=HIGHEST)
    zero = jnp.abs(values) + errors <= flat
    nearest = jnp.argsort(jnp.where(zero, jnp.abs(values), jnp.inf))[:rows]
    chosen = jnp.where(zero[nearest, None], ritz.coefficients[:, nearest].T, 0)
    lower = lower_bound(
        ritz.diagonal, ritz.off_diagonal, gradient.size, confidence, start_norm=_norm(start)
    )
    # Ritz values below a number are at most as many as eigenvalues (Cauchy's interlacing)
    found = Evidence(
        values, errors, along, values, ritz.vector(0), step, newton,
        jnp.matmul(chosen, ritz.basis, precision=HIGHEST), flat, lower, values[0], values[-1],
        _count(values < -flat), _count(zero),
    )  # fmt: skip
    return found, tally(Counts(grad=1), times(values.size, Counts(hvp=1)))


def _few_vectors(
    product: Callable[[Array], Array],
    gradient: Array,
    noise: Array,
    num_products: int,
    confidence: Scalar | float,
    rows: int,
) -> tuple[Evidence, Counts]:
    """The same from recurrences alone; half as many products go to the gradient.

    `lowest` and the steps are one vector: the first where curvature is negative, else the others.
    """
    n = gradient.size
    alphas, betas = recurrence(product, noise, num_products)
    values, vectors = _tridiagonal(alphas, betas)
    errors = jnp.abs(betas[-1] * vectors[-1])
    flat = threshold(values)
    lower = lower_bound(alphas, betas, n, confidence)
    bent = values[0] < -flat
    short = max(num_products // 2, 1)
    size = tree.norm(gradient)
    toward = gradient / _norm(gradient)
    diagonal, off = recurrence(product, toward, short)
    sizes, turned = _tridiagonal(diagonal, off)
    along = size * turned[0]
    inner = jnp.matmul(turned, divided(along, jnp.abs(sizes), flat), precision=HIGHEST)
    # only one of them is of use: where the curvature is negative the Newton step says nothing
    main = lax.cond(
        bent,
        lambda: combined(product, noise, alphas, betas, vectors[:, 0]),
        lambda: -combined(product, toward, diagonal, off, inner),
    )
    main = main / jnp.where(bent, _norm(main), 1)
    step = jnp.where(bent, 0, main)
    spent = num_products + short + jnp.where(bent, num_products, short)
    # copies of converged eigenvalues appear without orthogonality: one negative is all that is sure
    found = Evidence(
        values, errors, along, sizes, main, step, step, jnp.zeros((0 * rows, n), noise.dtype),
        flat, lower, values[0], values[-1], bent.astype(jnp.int32),
        jnp.any(jnp.abs(values) + errors <= flat).astype(jnp.int32),
    )  # fmt: skip
    return found, tally(Counts(grad=1), times(spent, Counts(hvp=1)))


def _product(
    objective: Objective, params: Params, args: tuple, free: Array | None
) -> Callable[[Array], Array]:
    unravel = ravel_pytree(params)[1]
    linear = bind(objective, args).curvature("hessian", params).mv

    def product(v: Array) -> Array:
        return ravel_pytree(linear(unravel(v)))[0]

    if free is None:
        return product
    return lambda v: free * product(free * v) + (1 - free) * v


def _tridiagonal(alphas: Array, betas: Array) -> tuple[Array, Array]:
    t = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    finite = jnp.all(jnp.isfinite(t))
    values, vectors = jnp.linalg.eigh(jnp.where(finite, t, 0))
    return jnp.where(finite, values, jnp.nan), vectors


def _norm(v: Array) -> Scalar:
    """Its length, or 1."""
    size = tree.norm(v)
    return jnp.where(size > 0, size, 1)


def _count(where: Array) -> Int[Array, ""]:
    return jnp.sum(where, dtype=jnp.int32)
