"""Conjugate gradients preconditioned by a Cholesky factor of the same matrix at an earlier point.

From step to step a convex Hessian A^T D A changes by the ratios of its weights D alone, and its
earlier factor stays a good preconditioner: a few products with A and A^T do what another Gram
product and factorisation would. Where they take more than that would cost, the factor is built
anew at the current point, and the iteration goes on from where it was.

The matrix that is factorised consists of diagonal blocks (one, if it is the whole Hessian), is
brought to a unit diagonal, so that units of parameters do not matter, and moved off singularity by
rounding size. Or the diagonal alone takes its place, or a Kronecker product, B x A + penalty, whose
blocks stand on the diagonal once the outputs are turned to the eigenvectors of B. What is
factorised changes how long the iteration takes, never where it ends.

References: Golub & Van Loan (2013), section 11.5; Nocedal & Wright (2006), Algorithm 7.1; Martens &
Grosse (2015), section 3, for the Kronecker product.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, Int

from optikit.core import Scalar, tree
from optikit.core.tree import HIGHEST
from optikit.linalg.cg import truncated
from optikit.linalg.subproblem import Inner, unlimited

Blocks = Float[Array, "blocks size"]
"""Parameters, or a vector like them, in the order of the blocks."""


class Lagged(NamedTuple):
    """M = T S^-1 L L^T S^-1 T^T, block by block but for the turn T, which mixes the blocks.

    L is the identity where only the diagonal is known, T where blocks are as they come.
    """

    scale: Blocks
    lower: Float[Array, "blocks size size"] | None
    built: Bool[Array, ""]
    turn: Float[Array, "blocks blocks"] | None = None  # orthogonal

    def whiten(self, vector: Blocks) -> Blocks:
        """L^-1 S T^T v: gradients, to the variables in which M is the identity."""
        if self.turn is not None:
            vector = jnp.matmul(self.turn.T, vector, precision=HIGHEST)
        scaled = self.scale * vector
        return scaled if self.lower is None else _solve(self.lower, scaled, 0)

    def colour(self, vector: Blocks) -> Blocks:
        """T S L^-T v: steps, back from these variables."""
        scaled = self.scale * (vector if self.lower is None else _solve(self.lower, vector, 1))
        return self._turned_back(scaled)

    def unwhiten(self, vector: Blocks) -> Blocks:
        """T S^-1 L v, the inverse of `whiten`."""
        if self.lower is not None:
            vector = jnp.einsum("bij,bj->bi", self.lower, vector, precision=HIGHEST)
        return self._turned_back(vector / self.scale)

    def _turned_back(self, vector: Blocks) -> Blocks:
        if self.turn is None:
            return vector
        return jnp.matmul(self.turn, vector, precision=HIGHEST)


def blank(blocks: int, size: int, dtype: jnp.dtype, *, dense: bool, turned: bool = False) -> Lagged:
    """A factor that has not been built."""
    lower = jnp.zeros((blocks, size, size), dtype) if dense else None
    turn = jnp.eye(blocks, dtype=dtype) if turned else None
    return Lagged(jnp.ones((blocks, size), dtype), lower, jnp.asarray(False), turn)


def kronecker(
    outer: Float[Array, "blocks blocks"], inner: Float[Array, "size size"], extra: Blocks
) -> Lagged:
    """The factor of outer x inner + diag(extra), with the outputs turned to outer's eigenvectors.

    Exact where `extra` is the same in all blocks; else what it adds beside the turned diagonal is
    left out. Eigenvalues of `outer` count by their size, and those of rounding size (softmax has
    one, along equal changes of all outputs) are moved off zero.
    """
    values, turn = jnp.linalg.eigh(outer, symmetrize_input=False)
    sizes = jnp.abs(values)
    floor = tree.eps(outer.dtype) ** 0.5 * jnp.max(sizes)
    sizes = jnp.maximum(sizes, jnp.where(floor > 0, floor, 1))
    added = jnp.matmul((turn**2).T, extra, precision=HIGHEST)
    eye = jnp.eye(inner.shape[0], dtype=inner.dtype)[None]
    blocks = sizes[:, None, None] * inner[None] + added[:, :, None] * eye
    return factorized(blocks)._replace(turn=turn)


def factorized(matrices: Float[Array, "blocks size size"]) -> Lagged:
    """The factor of symmetric positive semidefinite blocks; the diagonal's where one is not."""
    scale = _unit_scale(jnp.diagonal(matrices, axis1=1, axis2=2))
    unit = scale[:, :, None] * matrices * scale[:, None, :]
    eye = jnp.eye(matrices.shape[1], dtype=matrices.dtype)[None]
    rounding = 4 * matrices.shape[1] * tree.eps(matrices.dtype)
    # a parameter without curvature of its own has a zero on the diagonal: there M is S^-2
    shift = jnp.where(jnp.diagonal(unit, axis1=1, axis2=2) > 0, rounding, 1).astype(unit.dtype)
    lower = jnp.linalg.cholesky(unit + shift[:, :, None] * eye, symmetrize_input=False)
    sound = jnp.all(jnp.isfinite(lower), axis=(1, 2), keepdims=True)
    return Lagged(scale, jnp.where(sound, lower, eye), jnp.asarray(True))


def diagonal(entries: Blocks) -> Lagged:
    """The factor of a diagonal matrix with entries that are not negative."""
    return Lagged(_unit_scale(entries), None, jnp.asarray(True))


def _unit_scale(entries: Array) -> Array:
    used = jnp.isfinite(entries) & (entries > 0)
    typical = jnp.max(jnp.where(used, entries, 0), axis=-1, keepdims=True)
    return 1 / jnp.sqrt(jnp.where(used, entries, jnp.where(typical > 0, typical, 1)))


def _solve(lower: Array, vectors: Array, trans: int) -> Array:
    return jax.vmap(lambda a, b: solve_triangular(a, b, lower=True, trans=trans))(lower, vectors)


class Solve(NamedTuple):
    """A truncated solve of H s = -g."""

    step: Blocks
    slope: Scalar  # <g, s>
    curvature: Scalar  # <s, H s>
    convex: Bool[Array, ""]  # no direction of negative curvature was met
    factor: Lagged
    products: Int[Array, ""]
    builds: Int[Array, ""]


class _Run(NamedTuple):
    step: Blocks
    residual: Blocks  # g + H s
    factor: Lagged
    convex: Bool[Array, ""]
    products: Int[Array, ""]
    builds: Int[Array, ""]
    done: Bool[Array, ""]


def lagged_solve(
    product: Callable[[Blocks], Blocks],
    gradient: Blocks,
    factor: Lagged,
    build: Callable[[], Lagged],
    forcing: Scalar,
    *,
    patience: int,
    max_iters: int,
) -> Solve:
    """S with |g + H s| <= forcing |g| in the norm of M^-1.

    Args:
      product: with H; called inside compiled loops.
      factor: from an earlier point, or blank.
      build: the factor at this point.
      patience: products with an old factor, after which a new one is worth its price.
      max_iters: products with a new factor.
    """
    dtype = gradient.dtype

    def body(c: _Run) -> _Run:
        fresh = ~c.factor.built | (c.products > 0)
        m = lax.cond(fresh, build, lambda: c.factor)
        start, now = m.whiten(gradient), m.whiten(c.residual)
        goal = forcing * jnp.linalg.norm(start)
        size = jnp.linalg.norm(now)
        inner = Inner(goal / jnp.where(size > 0, size, 1), jnp.zeros((), dtype))
        limit = jnp.where(fresh, max_iters, patience)
        run = truncated(
            lambda v: m.whiten(product(m.colour(v))), now, unlimited(goal), inner, limit
        )
        return _Run(
            c.step + m.colour(run.s),
            m.unwhiten(run.r),
            m,
            run.convex,
            c.products + run.iterations,
            c.builds + fresh.astype(jnp.int32),
            fresh | ~run.convex | ~(jnp.linalg.norm(run.r) > goal),
        )

    none = jnp.asarray(0, jnp.int32)
    no, yes = jnp.asarray(False), jnp.asarray(True)
    begin = _Run(jnp.zeros_like(gradient), gradient, factor, yes, none, none, no)
    end = lax.while_loop(lambda c: ~c.done, body, begin)
    return Solve(
        step=end.step,
        slope=tree.vdot(gradient, end.step),
        curvature=tree.vdot(end.step, end.residual - gradient),
        convex=end.convex,
        factor=end.factor,
        products=end.products,
        builds=end.builds,
    )
