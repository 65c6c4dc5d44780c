"""Traces and diagonals of symmetric operators known by their products alone.

XTrace and XDiag use half of the products to find a subspace that holds most of the operator, which
is treated exactly, and the rest for what is left; XNysTrace needs one round of products for both,
as a semidefinite operator's approximation of low rank is known from its images alone. Every test
vector takes its turn at being left out, so that none is wasted and their spread gives the error.

References: Meyer, Musco, Musco & Woodruff (2021), "Hutch++", for the idea and the rate; Epperly,
Tropp & Webber (2024), "XTrace: making the most of every sample in stochastic trace estimation",
algorithms 1 (XTrace), 2 (XDiag) and 3 (XNysTrace), section 2 for the variance.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optikit.core import Key, tree
from optikit.core.tree import HIGHEST
from optikit.core.typing import PyTree
from optikit.linalg.signs import signs

SHARED = 2**0.5
"""Estimates that each leave out one vector share all others: their spread alone claims 0.65 to 1 of
the error, by spectra from flat to exponential and 10 to 60 products of 200 unknowns."""


class Estimate(NamedTuple):
    """A mean over left-out test vectors, and its standard error, of the same shape.

    The errors are exact where the products span the space. Attributes: products: that were made.
    """

    value: PyTree
    error: PyTree
    products: int


class _Sketch(NamedTuple):
    """What one test vector leaves to the others: A's range as they see it."""

    vectors: Float[Array, "n k"]  # test vectors, length sqrt(n)
    images: Float[Array, "n k"]  # A @ vectors
    basis: Float[Array, "n k"]  # of the range of the images
    based: Float[Array, "n k"]  # A @ basis
    left_out: Float[Array, "k k"]  # column i: what only image i has, in the basis


def xtrace(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    n: int,
    key: Key,
    *,
    dtype: jnp.dtype,
    num_products: int,
) -> Estimate:
    """The trace from `num_products` products (rounded down to even), unbiased.

    Exact from 2 n products on, by n unit vectors. Memory: 2 `num_products` vectors. The error falls
    like 1 / products for any positive semidefinite operator (Hutchinson's like its square root),
    and as fast as the eigenvalues where they decay faster. The standard error is 0.95 to 1.4 times
    the true one.

    Raises:
      ValueError: fewer than 4 products.

    Example:
      >>> d = 0.5 ** jnp.arange(40.0)
      >>> found = xtrace(lambda v: d * v, 40, jax.random.key(0), dtype=d.dtype, num_products=20)
      >>> abs(float(found.value) - 2) < 0.02, found.products
      (True, 20)
    """
    _check(num_products)
    if num_products >= 2 * n:
        value = jnp.trace(_matrix(product, n, dtype))
        return Estimate(value, jnp.zeros_like(value), n)
    k = num_products // 2
    g = jax.random.normal(key, (n, k), dtype)
    s = _sketch(product, g * (n**0.5 / jnp.linalg.norm(g, axis=0, keepdims=True)))
    h = jnp.matmul(s.basis.T, s.based, precision=HIGHEST)
    w = jnp.matmul(s.basis.T, s.vectors, precision=HIGHEST)
    r = jnp.matmul(s.basis.T, s.images, precision=HIGHEST)
    out = s.left_out
    x = w - out * jnp.sum(out * w, axis=0, keepdims=True)
    # omega - Q x is what the others' subspace does not hold of omega
    rest = jnp.sum(s.vectors * s.images, axis=0) - 2 * jnp.sum(x * r, axis=0) + _form(h, x)
    length = n - jnp.sum(x**2, axis=0)  # its squared length: n - k + 1 on average
    seen = jnp.trace(h) - _form(h, out)
    left = jnp.where(length > 0, rest * (n - k + 1) / jnp.where(length > 0, length, 1), 0)
    return _of_left_out(seen + left, 2 * k)


def xnystrace(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    n: int,
    key: Key,
    *,
    dtype: jnp.dtype,
    num_products: int,
) -> Estimate:
    """The trace of a positive semidefinite operator from `num_products` products, unbiased.

    Exact from n products on, by unit vectors, and to rounding where the rank is below
    `num_products`. Memory: 3 `num_products` vectors. The error is smaller than XTrace's where
    eigenvalues decay, and the more the faster; where they stand on an even floor, as a penalty
    makes it, which XTrace takes off exactly, it is larger. The standard error is twice the spread
    of the left out, by which it is 0.9 to 1.4 times the true one on spectra from flat to
    exponential, 1.9 times with two products, and 0.6 times where they nearly span the space;
    infinite where the test vectors show the operator to be indefinite.

    Raises:
      ValueError: fewer than 2 products.

    Example:
      >>> d = 0.5 ** jnp.arange(40.0)
      >>> found = xnystrace(lambda v: d * v, 40, jax.random.key(0), dtype=d.dtype, num_products=20)
      >>> round(float(found.value), 3), found.products
      (2.0, 20)
    """
    m = num_products
    _check(m, 2)
    if m >= n:
        value = jnp.trace(_matrix(product, n, dtype))
        return Estimate(value, jnp.zeros_like(value), n)
    g = jax.random.normal(key, (n, m), dtype)
    vectors = g * (n**0.5 / jnp.linalg.norm(g, axis=0, keepdims=True))
    images, unit = _scaled(_apply(product, vectors))
    # of A + shift I, whose form on the test vectors is definite to rounding
    eps = tree.eps(dtype)
    shift = 4 * eps * jnp.linalg.norm(images) / n**0.5
    images = images + shift * vectors
    form = jnp.matmul(vectors.T, images, precision=HIGHEST)
    sizes, turn = jnp.linalg.eigh((form + form.T) / 2)
    indefinite = sizes[0] < -(eps**0.5) * jnp.max(jnp.abs(sizes))
    sizes = jnp.maximum(sizes, jnp.maximum(shift * n / 4, jnp.finfo(dtype).tiny))
    # Nystrom: Y H^-1 Y^T, with Y = Q R and H = U S U^T
    turned = jnp.matmul(jnp.linalg.qr(images, mode="r"), turn, precision=HIGHEST)
    columns = jnp.matmul(turned / sizes[None], turn.T, precision=HIGHEST)  # Q^T Y H^-1
    others = _inverse_transposed(jnp.linalg.qr(vectors, mode="r"))
    # without vector i it loses c c^T / H^-1_ii with c the column i of Y H^-1; what it then does not
    # see of its omega is 1 / H^-1_ii, and the squared length of what the others do not hold of
    # omega, 1 / (X^T X)^-1_ii for the vectors X, is scaled to its mean
    inverse = jnp.sum(turn**2 / sizes[None], axis=1)
    lost = jnp.sum(columns**2, axis=0) / inverse
    left = (n - m + 1) * jnp.sum(others**2, axis=0) / inverse
    found = _mean(jnp.sum(turned**2 / sizes[None]) - shift * n - lost + left, m)
    # a vector counts as a test and in what the others see: their spread shows the one alone
    error = jnp.where(indefinite, jnp.inf, 2 * found.error)
    return Estimate(unit * found.value, unit * error, m)


def xdiagonal(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    n: int,
    key: Key,
    *,
    dtype: jnp.dtype,
    num_products: int,
) -> Estimate:
    """The diagonal, (n,), from `num_products` products (rounded down to even), unbiased.

    As `xtrace`, also in its standard error, but with random signs; exact for a rank below half of
    the products.

    Raises:
      ValueError: fewer than 6 products: two signs of an entry do not differ on what they share.

    Example:
      >>> d = 0.5 ** jnp.arange(40.0)
      >>> found = xdiagonal(lambda v: d * v, 40, jax.random.key(0), dtype=d.dtype, num_products=30)
      >>> bool(jnp.all(jnp.abs(found.value - d) < 0.01))
      True
    """
    _check(num_products, min(6, 2 * n))
    if num_products >= 2 * n:
        value = jnp.diagonal(_matrix(product, n, dtype))
        return Estimate(value, jnp.zeros_like(value), n)
    k = num_products // 2
    s = _sketch(product, jax.random.rademacher(key, (n, k), dtype))
    out = s.left_out
    alone = jnp.matmul(s.basis, out, precision=HIGHEST)  # (n, k)
    answers = jnp.matmul(s.based, out, precision=HIGHEST)
    whole = jnp.sum(s.basis * s.based, axis=1, keepdims=True)
    r = jnp.matmul(s.basis.T, s.images, precision=HIGHEST)
    left = s.vectors * alone * jnp.sum(out * r, axis=0, keepdims=True)
    return _of_left_out(whole - alone * answers + left, 2 * k)


def hutchinson(
    product: Callable[[PyTree], PyTree], like: PyTree, key: Key, *, num_products: int
) -> Estimate:
    """The diagonal, like `like`, by the plain mean of z * A z over random signs.

    Memory: four vectors, whatever the number of products; the error is that of the diagonal's
    entries. Vectors are pytrees throughout, as in `lanczos_quadrature`.

    Reference: Bekas, Kokiopoulou & Saad (2007); Hutchinson (1990) for the trace.
    """
    _check(num_products, 1)

    def step(carry, one):
        mean, square, count = carry
        z = signs(one, like)

        def updated(z: Array, image: Array, mean: Array, square: Array) -> tuple[Array, Array]:
            sample = z * image
            change = sample - mean  # Welford's recurrence: no cancellation
            mean = mean + change / (count + 1).astype(mean.dtype)
            return mean, square + change * (sample - mean)

        pairs = jax.tree.map(updated, z, product(z), mean, square)
        mean, square = jax.tree.transpose(structure, jax.tree.structure((0, 0)), pairs)
        return (mean, square, count + 1), None

    structure = jax.tree.structure(like)
    zero = tree.zeros_like(like)
    first = (zero, zero, jnp.asarray(0, jnp.int32))
    (mean, square, _), _ = lax.scan(step, first, jax.random.split(key, num_products))

    def error(square: Array) -> Array:
        one = jnp.sqrt(square / max(num_products - 1, 1) / num_products)
        return one if num_products > 1 else jnp.full_like(one, jnp.nan)

    return Estimate(mean, jax.tree.map(error, square), num_products)


def hutchinson_trace(
    product: Callable[[PyTree], PyTree], like: PyTree, key: Key, *, num_products: int
) -> Estimate:
    """The trace by the plain mean of z^T A z over random signs. Memory: two vectors, pytrees.

    Variance: 2 (|A|_F^2 - the diagonal's squares) / products. Reference: Hutchinson (1990).
    """
    _check(num_products, 1)

    def sample(one: Key) -> Array:
        z = signs(one, like)
        return tree.vdot(z, product(z))

    samples = lax.map(sample, jax.random.split(key, num_products))
    return _mean(samples, num_products)


def _check(num_products: int, least: int = 4) -> None:
    if num_products < least:
        msg = f"num_products={num_products}: too few, give {least} products or more."
        raise ValueError(msg)


def _matrix(product, n: int, dtype: jnp.dtype) -> Float[Array, "n n"]:
    return lax.map(product, jnp.eye(n, dtype=dtype), batch_size=min(n, 64))


def _sketch(product, vectors: Float[Array, "n k"]) -> _Sketch:
    """Two rounds of products, and what each test vector alone contributes."""
    n, k = vectors.shape
    images = _apply(product, vectors)
    # an operator of lower rank leaves images without a basis: a little noise completes it
    scaled, _ = _scaled(images)
    size = jnp.linalg.norm(scaled) / k**0.5
    noise = jax.random.normal(jax.random.key(1), (n, k), images.dtype) / n**0.5
    floor = jnp.where(size > 0, size, 1)
    filled = scaled + 4 * tree.eps(images.dtype) * floor * noise
    basis, r = jnp.linalg.qr(filled)
    out = _inverse_transposed(r)
    out = out / jnp.linalg.norm(out, axis=0, keepdims=True)
    return _Sketch(vectors, images, basis, _apply(product, basis), out)


def _scaled(images: Array) -> tuple[Array, Array]:
    """Numbers whose squares neither overflow nor vanish, and what they were divided by."""
    largest = jnp.max(jnp.abs(images))
    unit = jnp.where(largest > 0, largest, 1)
    return images / unit, unit


def _inverse_transposed(r: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """R^-T by forward substitution, all columns at once.

    Not by LAPACK: under vmap on a CPU, its batched kernels spread over the threads that they run
    on, and beside other work they can wait for each other for ever.
    """
    k = r.shape[0]

    def row(i: Array, x: Array) -> Array:
        unit = (jnp.arange(k) == i).astype(r.dtype)
        rest = unit - jnp.matmul(r[:, i], x, precision=HIGHEST)  # rows from i on are still zero
        return x.at[i].set(rest / r[i, i])

    return lax.fori_loop(0, k, row, jnp.zeros_like(r))


def _apply(product, columns: Float[Array, "n k"]) -> Float[Array, "n k"]:
    return lax.map(product, columns.T).T


def _form(h: Array, x: Array) -> Array:
    """x_i^T H x_i for each column."""
    return jnp.sum(x * jnp.matmul(h, x, precision=HIGHEST), axis=0)


def _mean(samples: Array, products: int) -> Estimate:
    """Over the last axis."""
    k = samples.shape[-1]
    samples, unit = _scaled(samples)
    error = jnp.std(samples, axis=-1, ddof=1) / k**0.5
    return Estimate(unit * jnp.mean(samples, axis=-1), unit * error, products)


def _of_left_out(samples: Array, products: int) -> Estimate:
    found = _mean(samples, products)
    return found._replace(error=SHARED * found.error)
