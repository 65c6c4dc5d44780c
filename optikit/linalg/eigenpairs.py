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

CHECKED = 6
"""Products between two looks at whether the pairs have settled."""

COLUMNS = 2**16
"""Of the basis, that are turned at a time."""

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


class _Found(NamedTuple):
    basis: Float[Array, "m n"]  # orthonormal rows; from `held` on what is no longer of use
    projected: Float[Array, "m m"]  # basis A basis^T, its upper triangle
    block: Float[Array, "b n"]  # the next rows, orthonormal and orthogonal to the basis
    held: Int[Array, ""]
    values: Float[Array, " m"]  # Ritz values, the most wanted first
    turn: Float[Array, "m m"]  # what makes Ritz vectors of the basis, in columns
    residuals: Float[Array, " m"]
    scale: Float[Array, ""]  # of the operator: its largest Ritz value
    products: Int[Array, ""]
    restarts: Int[Array, ""]
    done: Bool[Array, ""]
    key: Key


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
      basis: vectors held; by default 2 k + 16 (or two blocks, if more) and a block, at most n.
      tol: residuals asked, relative to the largest |eigenvalue|; by default 10 eps^(2/3).
      max_restarts: after which the pairs are returned as they are.

    Once the basis was full, every `CHECKED` products it is seen whether the pairs have settled.
    Memory: basis + kept + block vectors, and a few.

    Raises:
      ValueError: k or block not between 1 and n, a basis too small for them, an unknown `which`.

    Example:
      >>> d = jnp.arange(1.0, 101.0)
      >>> top = eigenpairs(lambda v: d * v, 100, 2, jax.random.key(0), dtype=d.dtype)
      >>> [round(float(v), 2) for v in top.values]
      [100.0, 99.0]
    """
    m = 2 * k + max(16, 2 * block) + block if basis is None else basis
    m = n if m + block > n else m  # no room for a block beside the basis
    _check(n, k, block, m)
    asked = 10 * tree.eps(dtype) ** (2 / 3) if tol is None else tol
    order = _order(which)
    if m == n:
        return _by_matrix(product, n, k, dtype, order)
    kept = _kept(k, block, m)
    column = jnp.arange(m, dtype=jnp.int32)

    def decomposed(f: _Found, coupling: Array) -> _Found:
        upper = jnp.triu(f.projected)
        whole = upper + jnp.triu(upper, 1).T
        # places without a vector get eigenvalues of their own, above all others
        beyond = 4 * jnp.max(jnp.abs(whole)) + 1
        values, turn = jnp.linalg.eigh(whole + jnp.diag(jnp.where(column < f.held, 0, beyond)))
        wanted = order(values, f.held)
        values, turn = values[wanted], turn[:, wanted]
        last = lax.dynamic_slice_in_dim(turn, f.held - block, block)
        left = _lengths(jnp.matmul(coupling, last, precision=HIGHEST).T)
        real = column < f.held  # the others were put last
        scale = jnp.maximum(f.scale, jnp.max(jnp.where(real, jnp.abs(values), 0)))
        residuals = jnp.where(real, left, jnp.inf)
        # a multiple eigenvalue comes up again only when rounding has grown: not too soon
        enough = (f.held + block > m) | (f.restarts > 0)
        settled = enough & jnp.all(residuals[:k] <= asked * scale)
        done = settled | ~jnp.all(jnp.isfinite(values))
        return f._replace(values=values, turn=turn, residuals=residuals, scale=scale, done=done)

    def restarted(f: _Found) -> _Found:
        full = f.held + block > m
        known = jnp.zeros_like(f.projected)
        known = known.at[column[:kept], column[:kept]].set(f.values[:kept])
        return f._replace(
            basis=_turned(f.basis, f.turn[:, :kept], full),
            projected=jnp.where(full, known, f.projected),
            held=jnp.where(full, kept, f.held),
            restarts=f.restarts + full.astype(jnp.int32),
        )

    def going(f: _Found) -> Array:
        return ~f.done & ((f.held < m) | (f.restarts < max_restarts))

    def body(f: _Found) -> _Found:
        f = restarted(f)
        steps = jnp.minimum(-(-CHECKED // block), (m - f.held) // block)
        none = jnp.zeros((block, block), dtype)
        f, coupling = lax.fori_loop(0, steps, lambda _, c: _grow(product, c[0]), (f, none))
        return decomposed(f, coupling)

    first_key, key = jax.random.split(key)
    empty, none, zero = jnp.zeros((m, n), dtype), jnp.asarray(0, jnp.int32), jnp.zeros((), dtype)
    begun = jax.random.normal(first_key, (block, n), dtype)
    start = _orthonormal(begun, empty[:1], jnp.zeros((1, 1), dtype), first_key)[0]
    square = jnp.zeros((m, m), dtype)
    far = jnp.full((m,), jnp.inf, dtype)
    found = _Found(
        empty, square, start, none, jnp.zeros_like(far), square, far, zero, none, none,
        jnp.asarray(False), key,
    )  # fmt: skip
    found = lax.while_loop(going, body, found)
    rows = jnp.matmul(found.turn[:, :k].T, found.basis, precision=HIGHEST)
    # three times: products are off by as much, and vectors are not of length one exactly
    residuals = found.residuals[:k] + 3 * _rounding(n, found.scale)
    underflow = jnp.where(found.scale > 0, _rounding(n, zero), 0)
    converged = jnp.all(found.residuals[:k] + underflow <= asked * found.scale)
    return Eigenpairs(found.values[:k], rows, residuals, converged, found.products)


def _turned(
    basis: Float[Array, "m n"], turn: Float[Array, "m kept"], really: Bool[Array, ""]
) -> Float[Array, "m n"]:
    """The basis with `turn.T @ basis` for its first rows, if really; some columns at a time.

    A whole product beside the basis would be as large as half of it, and a branch would copy it.
    """
    m, n = basis.shape
    kept, width = turn.shape[1], min(n, COLUMNS)
    column, zero = jnp.arange(width, dtype=jnp.int32), jnp.asarray(0, jnp.int32)

    def piece(i: Array, basis: Array) -> Array:
        at = jnp.minimum(i * width, n - width)  # the last piece overlaps the one before
        old = lax.dynamic_slice(basis, (zero, at), (m, width))
        new = jnp.matmul(turn.T, old, precision=HIGHEST)
        rows = jnp.where(at + column >= i * width, new, old[:kept])
        return lax.dynamic_update_slice(basis, rows, (zero, at))

    pieces = jnp.where(really, jnp.asarray(-(-n // width), jnp.int32), zero)
    return lax.fori_loop(zero, pieces, piece, basis)


def _by_matrix(product: Callable, n: int, k: int, dtype: jnp.dtype, order: Callable) -> Eigenpairs:
    """All of the matrix where there is no room for a block beside the basis."""
    matrix = lax.map(product, jnp.eye(n, dtype=dtype), batch_size=8)
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    wanted = order(values, jnp.asarray(n, jnp.int32))[:k]
    rounding = jnp.full((k,), n**0.5 * _rounding(n, jnp.max(jnp.abs(values))))
    finite = jnp.all(jnp.isfinite(values))
    return Eigenpairs(
        values[wanted], vectors[:, wanted].T, rounding, finite, jnp.asarray(n, jnp.int32)
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
    grown = min(-(-(m - kept) // block), (m - k) // block)  # blocks; never fewer kept than wanted
    return m - grown * block


def _order(which: Which) -> Callable[[Array, Array], Array]:
    """(ascending values, how many of the first are real) -> the most wanted first, others last."""

    def by(key: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
        def order(values: Array, real: Array) -> Array:
            at = jnp.arange(values.size, dtype=jnp.int32)
            return jnp.argsort(jnp.where(at < real, key(values), jnp.inf))

        return order

    def ends(values: Array, real: Array) -> Array:
        at = jnp.arange(values.size, dtype=jnp.int32)
        return jnp.where(at < real, jnp.where(at % 2 == 0, real - 1 - at // 2, at // 2), at)

    known = {
        "largest": by(lambda values: -values),
        "smallest": by(lambda values: values),
        "magnitude": by(lambda values: -jnp.abs(values)),
        "ends": ends,
    }
    if which not in known:
        msg = f"unknown which={which!r}: use one of {', '.join(map(repr, known))}."
        raise ValueError(msg)
    return known[which]


def _grow(product: Callable, f: _Found) -> tuple[_Found, Array]:
    """One block more in the basis, and the coupling of that block to the next."""
    key, fresh = jax.random.split(f.key)
    zero = jnp.zeros_like(f.held)
    block = f.block.shape[0]
    basis = lax.dynamic_update_slice(f.basis, f.block, (f.held, zero))
    images = jax.vmap(product)(f.block) if block > 1 else product(f.block[0])[None]
    real = jnp.arange(basis.shape[0], dtype=jnp.int32) < f.held + block
    real = real.astype(basis.dtype)[:, None]
    inner = real * jnp.matmul(basis, images.T, precision=HIGHEST)  # (m, b)
    projected = lax.dynamic_update_slice(f.projected, inner, (zero, f.held))
    left = images - jnp.matmul(inner.T, basis, precision=HIGHEST)
    following, coupling = _orthonormal(left, basis, real, fresh)
    return f._replace(
        basis=basis, projected=projected, block=following, held=f.held + block,
        products=f.products + block, key=key,
    ), coupling  # fmt: skip


def _orthonormal(rows: Array, basis: Array, real: Array, key: Key) -> tuple[Array, Array]:
    """Orthonormal rows with the span of those given, orthogonal to the basis; and R in rows^T = QR.

    Rows without anything of their own are replaced by random ones, with zeros in R.
    """
    b, n = rows.shape
    scale = jnp.max(_lengths(rows))

    def clear(rows: Array) -> Array:
        # in this order: XLA on a CPU copies a transposed basis, all of it
        inner = real * jnp.matmul(basis, rows.T, precision=HIGHEST)
        return rows - jnp.matmul(inner.T, basis, precision=HIGHEST)

    def filled(q: Array, r: Array) -> tuple[Array, Array]:
        noise = clear(clear(jax.random.normal(key, (b, n), rows.dtype)))
        q, turn = _qr(clear(clear(jnp.where(empty[:, None], noise / n**0.5, q))))
        # q @ turn spans the sound rows as before; the replaced ones have no part in the coupling
        sound = jnp.where(empty[:, None], 0, r)
        return q, jnp.matmul(turn, sound, precision=HIGHEST)

    once = clear(rows)
    before, after = (_lengths(x) for x in (rows, once))
    # twice is enough, and once where little was taken away: Parlett (1998), section 6.9
    rows = lax.cond(jnp.all(after > before / 2), lambda x: x, clear, once)
    q, r = _qr(rows)
    if b > 1:  # a row that the others nearly make up has become mostly rounding
        q, turn = _qr(clear(q))
        r = jnp.matmul(turn, r, precision=HIGHEST)
    empty = jnp.abs(jnp.diag(r)) <= 10 * _rounding(n, scale)
    return lax.cond(jnp.any(empty), filled, lambda q, r: (q, r), q, r)


def _qr(rows: Array) -> tuple[Array, Array]:
    """(Q^T, R) of the rows as columns."""
    if rows.shape[0] == 1:
        size = _lengths(rows)[0]
        return rows / jnp.where(size > 0, size, 1), size[None, None]
    q, r = jnp.linalg.qr(rows.T)
    return q.T, r


def _lengths(rows: Float[Array, "b n"]) -> Float[Array, " b"]:
    """Euclidean norms, also where squares overflow or vanish, as products' may."""
    return jax.vmap(tree.norm)(rows)


def _rounding(n: int, scale: Array) -> Array:
    """The error of an inner product of n terms of this size, no less than underflow makes it."""
    return n**0.5 * jnp.maximum(tree.eps(scale.dtype) * scale, jnp.finfo(scale.dtype).tiny)
