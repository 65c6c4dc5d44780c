"""Preconditioners for conjugate gradients, as a change of variables s = C t with C = M^(-1/2).

"diagonal" takes the diagonal of H where it is at hand, and else estimates it from products with
random signs. "nystrom" approximates the
leading eigenspace from products with random vectors, block by block, until the eigenvalues that
remain are small against the largest, or alike: what is left then suits conjugate gradients.

Where H is not positive definite, M is built from the sizes of the diagonal, or from the positive
part of the sketch; M itself always is. A trust region is measured in the norm of M.

References: Bekas, Kokiopoulou & Saad (2007), "An estimator for the diagonal of a matrix";
Frangella, Tropp & Udell (2023), "Randomized Nystrom preconditioning", Algorithms 2.1 and 5.1.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.core import Counts, Key, Params, times, tree
from optikit.core.tree import HIGHEST

Precondition = Literal["none", "diagonal", "nystrom"]

PROBES = 12
"""Products for the estimate of a diagonal."""

BLOCK = 10
"""Products by which a sketch grows."""

MAX_RANK = 80

SMALL, ALIKE = 1e-4, 0.8
"""A sketch ends where its least eigenvalue is so small against the largest, or where a block has
lowered it by no more than this factor."""


REFRESH = 10
"""Steps that one preconditioner serves: an old one is slower, never wrong."""


class Memory(NamedTuple):
    """I + sum_i weights_i v_i v_i^T (nystrom), or the diagonal factor (one row), and its age."""

    vectors: Float[Array, "m n"]
    weights: Float[Array, " m"]
    age: Int[Array, ""]  # steps since it was built; 0 if it never was


class Change(NamedTuple):
    """A symmetric positive definite change of variables, and what it cost."""

    apply: Callable[[Params], Params]
    counts: Counts
    memory: Memory

    def around(self, product: Callable[[Params], Params]) -> Callable[[Params], Params]:
        """C H C from H."""
        return lambda v: self.apply(product(self.apply(v)))


class _Sketch(NamedTuple):
    images: Float[Array, "m n"]  # rows H omega, zero where not yet reached
    vectors: Float[Array, "m n"]  # approximate eigenvectors as rows, zero where unused
    values: Float[Array, " m"]  # their eigenvalues, 0 where unused
    least: Float[Array, ""]  # the smallest used
    rank: Int[Array, ""]
    done: Bool[Array, ""]


def blank(kind: Precondition, like: Params) -> Memory:
    """The memory before the first step."""
    flat = ravel_pytree(like)[0]
    rows = 1 if kind == "diagonal" else _rows(flat.size)
    zeros = jnp.zeros((rows, flat.size), flat.dtype)
    return Memory(zeros, jnp.zeros(rows, flat.dtype), jnp.asarray(0, jnp.int32))


def remember(
    kind: Precondition,
    product: Callable[[Params], Params],
    price: Counts,
    like: Params,
    key: Key,
    memory: Memory,
    known: Callable[[], Array] | None = None,
) -> Change:
    """The preconditioner in memory, built anew from products where it is too old.

    Args:
      price: of one product.
      like: parameters, for their structure.
      known: the diagonal itself, (n,), for no more than the price of a product: "diagonal" then
        builds from it at each step.
    """
    unravel = ravel_pytree(like)[1]
    flat = ravel_pytree(like)[0]

    def image(v: Array) -> Array:
        return ravel_pytree(product(unravel(v)))[0]

    def build() -> tuple[Memory, Array]:
        one = jnp.asarray(1, jnp.int32)
        if kind == "diagonal" and known is not None:
            return Memory(_root_of_inverse(known())[None], memory.weights, one), one
        if kind == "diagonal":
            factor = _root_of_inverse(_estimated(image, flat, key))
            return Memory(factor[None], memory.weights, one), jnp.asarray(PROBES, jnp.int32)
        sketch = _sketch(image, flat, key)
        used = sketch.values > 0
        shrink = jnp.sqrt(sketch.least / jnp.where(used, sketch.values, 1))
        return Memory(sketch.vectors, jnp.where(used, shrink - 1, 0), one), sketch.rank

    def keep() -> tuple[Memory, Array]:
        return memory._replace(age=memory.age + 1), jnp.asarray(0, jnp.int32)

    if kind == "diagonal" and known is not None:
        new, products = build()
    else:
        new, products = lax.cond((memory.age == 0) | (memory.age >= REFRESH), build, keep)

    def apply(v: Params) -> Params:
        x = ravel_pytree(v)[0]
        if kind == "diagonal":
            return unravel(new.vectors[0] * x)
        inside = new.weights * jnp.matmul(new.vectors, x, precision=HIGHEST)
        return unravel(x + jnp.matmul(inside, new.vectors, precision=HIGHEST))

    return Change(apply, times(products, price), new)


def _rows(n: int) -> int:
    """The largest rank of a sketch: whole blocks, at most n."""
    block = min(BLOCK, n)
    return block * max(1, min(MAX_RANK, n) // block)


def _estimated(image, flat: Array, key: Key) -> Float[Array, " n"]:
    """The diagonal from products with random signs; what is below their noise is lifted to it."""
    signs = jax.random.rademacher(key, (PROBES, flat.size), flat.dtype)
    estimate = jnp.abs(jnp.mean(lax.map(lambda v: v * image(v), signs), axis=0))
    sizes = jnp.where(jnp.isfinite(estimate), estimate, 0)
    return jnp.maximum(sizes, tree.eps(flat.dtype) ** 0.5 * jnp.max(sizes))


def _root_of_inverse(diagonal: Float[Array, " n"]) -> Float[Array, " n"]:
    """|D|^(-1/2), scaled to a geometric mean of 1; entries without curvature count as the mean."""
    used = jnp.isfinite(diagonal) & (diagonal != 0)
    logs = jnp.where(used, jnp.log(jnp.where(used, jnp.abs(diagonal), 1)), 0)
    mean = jnp.sum(logs) / jnp.maximum(jnp.sum(used), 1).astype(logs.dtype)
    return jnp.where(used, jnp.exp((mean - logs) / 2), 1)


def _sketch(image, flat: Array, key: Key) -> _Sketch:
    n, dtype = flat.size, flat.dtype
    block = min(BLOCK, n)
    m = _rows(n)
    omegas = jax.random.normal(key, (m, n), dtype) / n**0.5

    def body(c: _Sketch) -> _Sketch:
        rows = lax.dynamic_slice(omegas, (c.rank, jnp.zeros_like(c.rank)), (block, n))
        fresh = lax.map(image, rows)
        images = lax.dynamic_update_slice(c.images, fresh, (c.rank, jnp.zeros_like(c.rank)))
        rank = c.rank + block
        values, vectors = _eigenpairs(omegas, images, rank)
        largest = jnp.max(values)
        least = jnp.min(jnp.where(values > 0, values, jnp.inf))
        least = jnp.where(jnp.isfinite(least), least, 1)
        done = (rank == m) | (least <= SMALL * largest) | (least >= ALIKE * c.least)
        return _Sketch(images, vectors, values, least, rank, done)

    empty = jnp.zeros((m, n), dtype)
    return lax.while_loop(
        lambda c: ~c.done,
        body,
        _Sketch(
            empty, empty, jnp.zeros(m, dtype), jnp.full((), jnp.inf, dtype),
            jnp.asarray(0, jnp.int32), jnp.asarray(False),
        ),
    )  # fmt: skip


def _eigenpairs(omegas: Array, images: Array, rank: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors (rows) of the positive part of Y (omega^T Y)^+ Y^T, else 0."""
    reached = (jnp.arange(images.shape[0], dtype=jnp.int32) < rank)[:, None]
    omegas, images = jnp.where(reached, omegas, 0), jnp.where(reached, images, 0)
    images = jnp.where(jnp.all(jnp.isfinite(images)), images, 0)
    eps = tree.eps(images.dtype)
    core = jnp.matmul(omegas, images.T, precision=HIGHEST)
    weights, mix = jnp.linalg.eigh((core + core.T) / 2, symmetrize_input=False)
    kept = weights > 100 * eps * jnp.max(jnp.abs(weights))
    scale = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, weights, 1)), 0)
    rows = scale[:, None] * jnp.matmul(mix.T, images, precision=HIGHEST)
    gram = jnp.matmul(rows, rows.T, precision=HIGHEST)
    values, turn = jnp.linalg.eigh(gram, symmetrize_input=False)
    used = values > 100 * eps * jnp.max(values)
    size = jnp.where(used, 1 / jnp.sqrt(jnp.where(used, values, 1)), 0)
    vectors = size[:, None] * jnp.matmul(turn.T, rows, precision=HIGHEST)
    return jnp.where(used, values, 0), vectors
