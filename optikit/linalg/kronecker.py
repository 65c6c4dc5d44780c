"""Many symmetric factors at once: damped inverses and eigenbases, by batches of one shape.

A model has few factors of many sizes, and each alone is too small to fill a device. Factors of one
size are stacked, and sizes that nearly agree may be padded by an identity to the larger one, which
leaves both of its blocks exact. Inverses come from Cholesky factors, or from products alone by
Newton's iteration X <- X (2 I - A X), which doubles the digits of a warm start at every turn.

References: Martens & Grosse (2015), section 6 (factored Tikhonov damping); Higham (2008),
"Functions of Matrices", section 7.3 and problem 7.2 (Newton-Schulz, and its first iterate).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float, Int

from optikit.core import Scalar, tree
from optikit.core.tree import HIGHEST
from optikit.linalg.in_turn import after

Inversion = Literal["cholesky", "newton-schulz"]
Factor = Float[Array, "k d d"]
Shift = Float[Array, " k"]

MAX_TURNS = 60
"""Of Newton's iteration: a cold start takes 2 log2(condition) and a few more."""


def damped_inverses(
    factors: Sequence[Factor],
    shifts: Sequence[Shift],
    *,
    method: Inversion = "cholesky",
    warm: Sequence[Factor] | None = None,
    slack: float = 0.0,
) -> list[Factor]:
    """(A + s I)^-1 of each matrix of each factor, symmetric; NaN where that is not positive.

    Args:
      factors: positive semi-definite matrices, a stack of k each.
      shifts: s, one a matrix.
      method: "cholesky", 7/3 d^3 flops a matrix; or "newton-schulz", 4 d^3 for each of
        2 log2(condition) turns from nothing, two to four from a warm start: for devices on which
        products are far faster than factorisations.
      warm: earlier inverses, for "newton-schulz"; where one is too far off it is not used.
      slack: share by which a size may fall short of one that it is padded to.

    Example:
      >>> (inverse,) = damped_inverses([jnp.diag(jnp.array([1.0, 3.0]))[None]], [jnp.ones(1)])
      >>> jnp.round(inverse[0], 3).tolist()
      [[0.5, 0.0], [0.0, 0.25]]
    """
    shifted = [a + s[:, None, None] * _eye(a) for a, s in zip(factors, shifts, strict=True)]
    if method == "cholesky":
        return _in_batches(_by_cholesky, [shifted], slack)
    if warm is None:
        warm = [jnp.zeros_like(a) for a in shifted]
    return _in_batches(_by_newton, [shifted, list(warm)], slack)


def eigenbases(
    factors: Sequence[Factor],
) -> tuple[list[Float[Array, "k d"]], list[Factor]]:
    """(eigenvalues, eigenvectors in columns) of each matrix, ascending; about 9 d^3 flops each."""
    values: list = [None] * len(factors)
    vectors: list = [None] * len(factors)
    found = (None, None)
    for places in buckets([a.shape[1] for a in factors]):
        stack = jnp.concatenate([factors[i] for i in places])
        found = jnp.linalg.eigh(after(found[0], stack))
        sizes = [factors[i].shape[0] for i in places]
        for out, part in ((values, found[0]), (vectors, found[1])):
            for i, piece in zip(places, _split(part, sizes), strict=True):
                out[i] = piece
    return values, vectors


def buckets(sizes: Sequence[int], slack: float = 0.0) -> list[list[int]]:
    """Positions by size, largest first; each size is at least 1 - slack of its bucket's largest.

    Example:
      >>> buckets([1000, 30, 951, 1000, 500], slack=0.1)
      [[0, 3, 2], [4], [1]]
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if groups and sizes[i] >= (1 - slack) * sizes[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def kronecker_product(
    left: Float[Array, "k i i"], v: Float[Array, "k i o"], right: Float[Array, "k o o"]
) -> Float[Array, "k i o"]:
    """Left V right, matrix by matrix: 2 i o (i + o) flops each."""
    # three TF32 products in place of one where float32 would be rounded to it
    precision = lax.Precision.HIGH
    return jnp.matmul(jnp.matmul(left, v, precision=precision), right, precision=precision)


def mean_eigenvalue(factor: Float[Array, "k *d"]) -> Shift:
    """Trace over size; of a diagonal factor, (k, d), the mean entry."""
    entries = factor if factor.ndim == 2 else jnp.diagonal(factor, axis1=1, axis2=2)
    return jnp.mean(entries, axis=1)


def _in_batches(
    function: Callable[..., Factor], operands: list[list[Factor]], slack: float
) -> list[Factor]:
    """The function over stacks of nearly one size, and its results in the order of the operands."""
    results: list = [None] * len(operands[0])
    found = None
    for places in buckets([a.shape[1] for a in operands[0]], slack):
        size = operands[0][places[0]].shape[1]
        first, *rest = (jnp.concatenate([_padded(o[i], size) for i in places]) for o in operands)
        found = function(after(found, first), *rest)
        pieces = _split(found, [operands[0][i].shape[0] for i in places])
        for i, piece in zip(places, pieces, strict=True):
            d = operands[0][i].shape[1]
            results[i] = piece[:, :d, :d]
    return results


def _padded(a: Factor, size: int) -> Factor:
    extra = size - a.shape[1]
    if extra == 0:
        return a
    ones = jnp.pad(jnp.ones(extra, a.dtype), (a.shape[1], 0))
    return jnp.pad(a, ((0, 0), (0, extra), (0, extra))) + jnp.diag(ones)[None]


def _split(stack: Array, sizes: list[int]) -> list[Array]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [stack[end - n : end] for end, n in zip(ends, sizes, strict=True)]


def _eye(a: Factor) -> Factor:
    return jnp.eye(a.shape[-1], dtype=a.dtype)[None]


def _by_cholesky(a: Factor) -> Factor:
    factor = jnp.linalg.cholesky(a, symmetrize_input=False)
    inverse = cho_solve((factor, True), jnp.broadcast_to(_eye(a), a.shape))
    return (inverse + jnp.swapaxes(inverse, 1, 2)) / 2


def _by_newton(a: Factor, warm: Factor) -> Factor:
    """X <- X (2 I - A X) until |I - A X| is of rounding size, or no longer falls."""
    product = jax.vmap(lambda x, y: jnp.matmul(x, y, precision=HIGHEST))
    # the largest row sum bounds the largest eigenvalue, so that |I - A X| < 1 from the start
    bound = jnp.max(jnp.sum(jnp.abs(a), axis=2), axis=1)
    cold = _eye(a) / jnp.where(bound > 0, bound, 1)[:, None, None]

    def residual(x: Factor) -> Factor:
        return _eye(a) - product(a, x)

    def size(r: Factor) -> Shift:
        return jnp.sqrt(jnp.sum(r**2, axis=(1, 2)))

    near = size(residual(warm)) < 0.9
    start = jnp.where(near[:, None, None], warm, cold)
    first = residual(start)
    enough = 4 * a.shape[-1] * tree.eps(a.dtype)

    def running(c: tuple[Factor, Factor, Shift, Bool[Array, " k"], Int[Array, ""]]) -> Scalar:
        return jnp.any(c[3]) & (c[4] < MAX_TURNS)

    def body(c):
        x, r, old, going, turns = c
        better = x + product(x, r)
        better = (better + jnp.swapaxes(better, 1, 2)) / 2
        left = residual(better)
        new = size(left)
        # below 1/2 every turn squares the residual, until rounding ends that
        keep = going & ((new < old) | (old > 0.5))
        chosen = keep[:, None, None]
        x, r = jnp.where(chosen, better, x), jnp.where(chosen, left, r)
        new = jnp.where(keep, new, old)
        return x, r, new, keep & (new > enough), turns + 1

    begun = size(first)
    zero = jnp.asarray(0, jnp.int32)
    x, _, end, _, _ = lax.while_loop(running, body, (start, first, begun, begun > enough, zero))
    return jnp.where((end < 0.5)[:, None, None], x, jnp.nan)
