"""Newton steps by modified Cholesky: H + tau I with the first tau that makes it positive definite.

tau grows tenfold from rounding size, so it exceeds what is needed by at most ten, and convex models
are hardly touched. No eigendecomposition: the direction of negative curvature that leaves saddles
comes from inverse iteration with the factor at hand.

Reference: Nocedal & Wright (2006), Algorithm 3.3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Counts, Key, Scalar, memoized, tally, times, tree
from optikit.core.tree import HIGHEST
from optikit.linalg.cg import or_probe
from optikit.linalg.subproblem import Direction, Inner, Model, Subproblem

MAX_SHIFTS = 16
"""Tries of tau, from rounding size to far above |H|."""

INVERSE_ITERATIONS = 20


class _Try(NamedTuple):
    factor: Float[Array, "n n"]
    tries: Int[Array, ""]
    safe: Bool[Array, ""]


@memoized
def modified_cholesky() -> Subproblem:
    """The shifted Newton step as a Subproblem; the radius is ignored.

    Cost: one dense curvature matrix, n^3/3 flops for each shift tried: one where the matrix is
    safely positive definite, up to 16 where it is not.
    """

    def prepare(oracle: Oracle, at: Eval, kind: CurvatureKind, key: Key) -> Model:
        op = oracle.curvature(kind, at.params, key if kind == "fisher" else None)
        matrix = op.dense()
        gradient, unravel = ravel_pytree(at.grad)
        length = jnp.maximum(1, tree.norm(at.params)).astype(matrix.dtype)
        probe = ravel_pytree(or_probe(at._replace(grad=tree.zeros_like(at.grad))))[0]
        step, convex = shifted_newton_step(matrix, gradient, length, probe)
        dtype = at.value.dtype

        def propose(radius: Scalar, inner: Inner) -> Direction:
            del radius, inner
            image = jnp.matmul(matrix, step, precision=HIGHEST)
            return Direction(
                step=unravel(step),
                slope=jnp.vdot(gradient, step, precision=HIGHEST).astype(dtype),
                curvature=jnp.vdot(step, image, precision=HIGHEST).astype(dtype),
                at_boundary=jnp.asarray(False),
                convex=convex,
                scale=jnp.zeros((), dtype),
                counts=times(0, Counts()),
            )

        return Model(propose, tally(op.matrix_price))

    return Subproblem(prepare)


def shifted_newton_step(
    matrix: Float[Array, "n n"],
    gradient: Float[Array, " n"],
    length: Scalar,
    probe: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """-(H + tau I)^-1 g, with a part along negative curvature; and whether H is convex to rounding.

    Args:
      length: how far to go along negative curvature where the gradient itself gives no step.
      probe: where inverse iteration starts.
    """
    n, eps = gradient.size, tree.eps(matrix.dtype)
    largest = jnp.max(jnp.abs(matrix))
    floor = eps ** (2 / 3) * jnp.where(largest > 0, largest, 1)
    identity = jnp.eye(n, dtype=matrix.dtype)

    def body(c: _Try) -> _Try:
        shift = jnp.where(c.tries == 0, 0, floor * 10.0 ** (c.tries - 1).astype(matrix.dtype))
        factor = jnp.linalg.cholesky(matrix + shift * identity)
        pivots = jnp.diagonal(factor)
        apart = jnp.min(pivots) ** 2 > n * eps * jnp.max(pivots) ** 2
        return _Try(factor, c.tries + 1, jnp.all(jnp.isfinite(factor)) & apart)

    found = lax.while_loop(
        lambda c: ~c.safe & (c.tries < MAX_SHIFTS),
        body,
        _Try(identity, jnp.asarray(0, jnp.int32), jnp.asarray(False)),
    )

    def solve(v: Array) -> Array:
        return jax.scipy.linalg.cho_solve((found.factor, True), v)

    def iterate(_: Array, v: Array) -> Array:
        v = solve(v)
        return v / jnp.linalg.norm(v)

    convex = found.tries <= 2  # at most the shift of rounding size
    step = -solve(gradient)
    start = probe / jnp.linalg.norm(probe)
    bent = lax.fori_loop(0, jnp.where(convex, 0, INVERSE_ITERATIONS), iterate, start)
    along = jnp.vdot(gradient, bent, precision=HIGHEST)
    image = jnp.matmul(matrix, bent, precision=HIGHEST)
    useful = ~convex & (jnp.vdot(bent, image, precision=HIGHEST) < 0)
    size = jnp.linalg.norm(step)
    reach = 0.1 * jnp.where(size < 1e-3 * length, length, size)
    return step + jnp.where(useful, jnp.where(along > 0, -reach, reach), 0) * bent, convex
