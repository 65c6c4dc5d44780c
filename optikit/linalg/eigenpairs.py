"""A few eigenpairs of a symmetric operator: block Lanczos with thick restart.

A basis of m vectors is grown by blocks, orthogonalised twice against everything held; the
projected matrix is collected from the very inner products that do so, so that nothing about its
form (tridiagonal, arrow, block) is assumed. When the basis is full, the wanted Ritz vectors and
some more are kept and the process goes on from the last residual block. Blocks see eigenvalues as
multiple as they are wide; where a Krylov space closes early, random vectors go on.

References: Wu & Simon (2000), "Thick-restart Lanczos method for large symmetric eigenvalue
problems"; Stewart (2001), "A Krylov-Schur algorithm", for the projected matrix; Parlett (1998),
section 11.5, for residuals as bounds.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from optikit.core import Key, tree
from optikit.core.tree import HIGHEST

Which = Literal["largest", "smallest", "magnitude", "ends"]


class Eigenpairs(NamedTuple):
    """Approximate eigenpairs, the most wanted first.

    Attributes:
      values: (k,).
      vectors: (k, n), orthonormal rows.
      residuals: (k,), |A v - theta v|: a true eigenvalue lies within this distance of theta.
      converged: whether every residual is within the tolerance asked.
      products: products with the operator that were made.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k n"]
    residuals: Float[Array, " k"]
    converged: Bool[Array, ""]
    products: Int[Array, ""]


class _Space(NamedTuple):
    basis: Float[Array, "m n"]  # orthonormal rows, zero from `held` on
    projected: Float[Array, "m m"]  # basis A basis^T
    block: Float[Array, "b n"]  # the next rows, orthonormal and orthogonal to the basis
    key: Key


class _Found(NamedTuple):
    space: _Space
    values: Float[Array, " k"]
    residuals: Float[Array, " k"]
    scale: Float[Array, ""]  # of the operator: its largest Ritz value
    products: Int[Array, ""]
    restarts: Int[Array, ""]
    done: Bool[Array, ""]


def eigenpairs(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    n: int,
    k: int,
    key: Key,
    *,
    dtype: jnp.dtype,
    which: Which = "largest",
    block: int = 1,
    basis: int | None = None,
    tol: float | None = None,
    max_restarts: int = 100,
) -> Eigenpairs:
    """K eigenpairs of the symmetric operator v -> product(v) on vectors of length n.

    Args:
      which: the algebraically largest or smallest, the largest in magnitude, or "ends": half of
        them (rounded up) from the top and the others from the bottom.
      block: products made side by side (under `vmap`); at least the multiplicity to be resolved
        surely, though one at a time finds multiple eigenvalues too, later.
      basis: vectors held; by default 2 k + 16 and a block, at most n.
      tol: residuals asked, relative to the largest |eigenvalue|; by default 10 eps^(2/3).
      max_restarts: after which the pairs are returned as they are.

    Memory: basis + block vectors. A trip costs basis - kept products.

    Raises:
      ValueError: k or block not between 1 and n, or a basis too small for them.

    Example:
      >>> d = jnp.arange(1.0, 101.0)
      >>> top = eigenpairs(lambda v: d * v, 100, 2, jax.random.key(0), dtype=d.dtype)
      >>> [round(float(v), 2) for v in top.values]
      [100.0, 99.0]
    """
    m = 2 * k + 16 + block if basis is None else basis
    m = n if m + block > n else m  # no room for a block beside the basis
    _check(n, k, block, m)
    asked = 10 * tree.eps(dtype) ** (2 / 3) if tol is None else tol
    kept = _kept(k, block, m)
    order = _order(which)
    grow_key, first_key = jax.random.split(key)
    empty = jnp.zeros((m, n), dtype)
    start = _orthonormal(jax.random.normal(first_key, (block, n), dtype), empty, first_key)[0]
    none = jnp.asarray(0, jnp.int32)
    space = _Space(empty, jnp.zeros((m, m), dtype), start, grow_key)
    zero = jnp.zeros((), dtype)

    def trip(space: _Space, held: int) -> tuple[_Space, Array, Array, Array, Array]:
        space, last = _grow(product, space, held, block)
        values, vectors = jnp.linalg.eigh(space.projected)
        wanted = order(values)
        values, vectors = values[wanted], vectors[:, wanted]
        left = jnp.matmul(last, vectors[m - block :], precision=HIGHEST)
        residuals = jnp.linalg.norm(left, axis=0)
        return space, values, vectors, residuals, jnp.max(jnp.abs(values))

    def settled(values: Array, residuals: Array, scale: Array) -> Array:
        small = residuals[:k] <= asked * scale
        return jnp.all(small) | ~jnp.all(jnp.isfinite(values))

    def restart(space: _Space, values: Array, vectors: Array) -> _Space:
        rows = jnp.matmul(vectors[:, :kept].T, space.basis, precision=HIGHEST)
        held = jnp.zeros_like(space.basis).at[:kept].set(rows)
        known = jnp.zeros_like(space.projected)
        known = known.at[jnp.arange(kept), jnp.arange(kept)].set(values[:kept])
        return space._replace(basis=held, projected=known)

    if m == n:  # the whole space: nothing is left over
        space, values, vectors, residuals, scale = trip(space, 0)
        rows = jnp.matmul(vectors[:, :k].T, space.basis, precision=HIGHEST)
        rounding = jnp.full((k,), n * tree.eps(dtype) * scale)
        spent = jnp.asarray(n, jnp.int32)
        return Eigenpairs(values[:k], rows, rounding, jnp.all(jnp.isfinite(values)), spent)

    def going(f: tuple[_Found, Array]) -> Array:
        return ~f[0].done & (f[0].restarts < max_restarts)

    def body(f: tuple[_Found, Array]) -> tuple[_Found, Array]:
        found, vectors = f
        space = restart(found.space, found.values, vectors)
        space, values, vectors, residuals, scale = trip(space, kept)
        scale = jnp.maximum(scale, found.scale)
        return _Found(
            space, values, residuals, scale,
            found.products + (m - kept), found.restarts + 1, settled(values, residuals, scale),
        ), vectors  # fmt: skip

    space, values, vectors, residuals, scale = trip(space, 0)
    found = _Found(
        space, values, residuals, jnp.maximum(scale, zero), none + m, none,
        settled(values, residuals, scale),
    )  # fmt: skip
    found, vectors = lax.while_loop(going, body, (found, vectors))
    rows = jnp.matmul(vectors[:, :k].T, found.space.basis, precision=HIGHEST)
    converged = jnp.all(found.residuals[:k] <= asked * found.scale)
    # an inner product of n terms is off by this much itself
    rounding = tree.eps(dtype) * n**0.5 * found.scale
    return Eigenpairs(
        found.values[:k], rows, found.residuals[:k] + rounding, converged, found.products
    )


def _check(n: int, k: int, block: int, m: int) -> None:
    if not 1 <= k <= n:
        msg = f"{k} eigenpairs of an operator on {n} numbers: give k between 1 and {n}."
        raise ValueError(msg)
    if not 1 <= block <= n:
        msg = f"a block of {block} vectors of {n} numbers: give block between 1 and {n}."
        raise ValueError(msg)
    if m < n and m < k + 2 * block:
        least = k + 2 * block
        msg = f"a basis of {m} vectors is too small for k={k}, block={block}: give {least} or more."
        raise ValueError(msg)


def _kept(k: int, block: int, m: int) -> int:
    """Ritz vectors kept at a restart: the wanted, and a share of the rest; the remainder is grown
    by whole blocks.
    """
    kept = k + (m - k - block) // 3
    return m - -(-(m - kept) // block) * block if (m - kept) % block else kept


def _order(which: Which) -> Callable[[Array], Array]:
    """The permutation that puts the most wanted of ascending eigenvalues first."""

    def ends(values: Array) -> Array:
        m = values.size
        down, up = jnp.arange(m - 1, -1, -1), jnp.arange(m)
        return jnp.stack([down, up], axis=1).ravel()[:m]

    return {
        "largest": lambda values: jnp.argsort(-values),
        "smallest": lambda values: jnp.argsort(values),
        "magnitude": lambda values: jnp.argsort(-jnp.abs(values)),
        "ends": ends,
    }[which]


def _grow(product, space: _Space, held: int, block: int) -> tuple[_Space, Array]:
    """The basis filled up from `held` rows on, and the coupling of the last block to the next."""
    m = space.basis.shape[0]

    def step(space: _Space, at: Array) -> tuple[_Space, Array]:
        key, fresh = jax.random.split(space.key)
        basis = lax.dynamic_update_slice(space.basis, space.block, (at, jnp.zeros_like(at)))
        images = jax.vmap(product)(space.block) if block > 1 else product(space.block[0])[None]
        inner = jnp.matmul(basis, images.T, precision=HIGHEST)  # (m, b)
        projected = lax.dynamic_update_slice(space.projected, inner, (jnp.zeros_like(at), at))
        left = images - jnp.matmul(inner.T, basis, precision=HIGHEST)
        following, coupling = _orthonormal(left, basis, fresh)
        return _Space(basis, projected, following, key), coupling

    steps = (m - held) // block
    rest = (m - held) - steps * block  # only where the basis is the whole space
    starts = held + block * jnp.arange(steps, dtype=jnp.int32)
    space, couplings = lax.scan(step, space, starts)
    if rest:
        basis = space.basis.at[m - rest :].set(space.block[:rest])
        images = jax.vmap(product)(basis[m - rest :])
        inner = jnp.matmul(basis, images.T, precision=HIGHEST)
        space = space._replace(basis=basis, projected=space.projected.at[:, m - rest :].set(inner))
    # a column holds what was known when it was made: the upper triangle is complete
    upper = jnp.triu(space.projected)
    whole = upper + jnp.triu(upper, 1).T
    return space._replace(projected=whole), couplings[-1]


def _orthonormal(rows: Array, basis: Array, key: Key) -> tuple[Array, Array]:
    """Orthonormal rows with the span of those given, orthogonal to the basis; and R in rows^T = QR.

    Rows without anything of their own are replaced by random ones, with zeros in R.
    """
    b, n = rows.shape
    eps = tree.eps(rows.dtype)
    scale = jnp.max(jnp.linalg.norm(rows, axis=1))

    def clear(rows: Array) -> Array:
        for _ in range(2):  # twice is enough: Parlett (1998), section 6.9
            inner = jnp.matmul(rows, basis.T, precision=HIGHEST)
            rows = rows - jnp.matmul(inner, basis, precision=HIGHEST)
        return rows

    rows = clear(rows)
    q, r = _qr(rows)
    empty = jnp.abs(jnp.diag(r)) <= 10 * n**0.5 * eps * scale
    noise = clear(jax.random.normal(key, (b, n), rows.dtype))
    filled = clear(jnp.where(empty[:, None], noise / n**0.5, q))
    q, turn = _qr(filled)
    # q @ turn spans the sound rows as before; the replaced ones have no part in the coupling
    sound = jnp.where(empty[:, None], 0, r)
    return q, jnp.matmul(turn, sound, precision=HIGHEST)


def _qr(rows: Array) -> tuple[Array, Array]:
    """(Q^T, R) of the rows as columns."""
    if rows.shape[0] == 1:
        size = jnp.linalg.norm(rows)
        return rows / jnp.where(size > 0, size, 1), size[None, None]
    q, r = jnp.linalg.qr(rows.T)
    return q.T, r
