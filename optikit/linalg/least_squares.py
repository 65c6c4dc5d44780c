"""Gauss-Newton steps from residuals and their Jacobian, without forming J^T J.

Working on J keeps half the digits that the normal equations lose, which float32 needs.
Reference: Golub & Van Loan (2013), section 5.3 (QR) and 5.5 (rank deficiency by SVD).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from optikit.calculus import Eval, Oracle
from optikit.calculus.objective import penalty_residuals, robust_weights
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Counts, Key, Params, Scalar, memoized, tally, tree
from optikit.core.tree import HIGHEST
from optikit.linalg.subproblem import Direction, Inner, Model, Subproblem


@memoized
def qr() -> Subproblem:
    """The Gauss-Newton step min |r + J s| as a Subproblem for residuals; the radius is ignored.

    Full rank: Householder QR, 2 m n^2 flops. Rank-deficient, or fewer residuals than parameters:
    the step of least norm, by SVD. Cost: nothing beyond the evaluation, which is one jacobian.
    """

    def prepare(oracle: Oracle, at: Eval, kind: CurvatureKind, key: Key) -> Model:
        del oracle, kind, key
        r, jacobian = at.local
        step = gauss_newton_step(jacobian, r)
        unravel = ravel_pytree(at.params)[1]

        def propose(radius: Scalar, inner: Inner) -> Direction:
            del radius, inner
            moved = jnp.matmul(jacobian, step, precision=HIGHEST)
            slope = jnp.vdot(r, moved, precision=HIGHEST).astype(at.value.dtype)
            curvature = jnp.vdot(moved, moved, precision=HIGHEST).astype(at.value.dtype)
            no, yes = jnp.asarray(False), jnp.asarray(True)
            return Direction(
                unravel(step), slope, curvature, no, yes, jnp.zeros_like(slope), tally(Counts())
            )

        return Model(propose, tally(Counts()))

    return Subproblem(prepare, evaluate_residuals)


def evaluate_residuals(oracle: Oracle, params: Params) -> tuple[Eval, Counts]:
    """Value and gradient from residuals and Jacobian, kept in `local`. One jacobian.

    Of a robust objective, `local` holds both scaled by its loss. With auxiliary output, one more
    grad, since the Jacobian's sweep does not return it.
    """
    objective = oracle.objective
    r, jacobian = oracle.residuals_and_jacobian(params)
    if objective.robust is None:
        value = jnp.vdot(r, r, precision=HIGHEST) / 2
    else:
        rows = penalty_residuals(objective, params)
        value, a, b = robust_weights(objective, r, rows)
        r, jacobian = a * r, b[:, None] * jacobian
    unravel = ravel_pytree(params)[1]
    gradient = unravel(jnp.matmul(r, jacobian, precision=HIGHEST))
    if objective.has_aux:
        at = oracle.value_and_grad(params)
        return at._replace(local=(r, jacobian)), Counts(jacobian=1, grad=1)
    return Eval(params, value, gradient, None, (r, jacobian)), Counts(jacobian=1)


def gauss_newton_step(jacobian: Float[Array, "m n"], r: Float[Array, " m"]) -> Float[Array, " n"]:
    """Argmin |r + J s|: of least |s| where J is wide, of least |D s| where it is not of full rank.

    D_j = |J_j|, and the rank is that of J D^-1: the units of the parameters do not decide it.
    """
    m, n = jacobian.shape
    if m < n:
        return _minimum_norm_step(jacobian, r)
    norms = column_norms(jacobian)
    d = jnp.where(norms > 0, norms, 1)
    scaled = jacobian / d[None, :]
    q, upper = jnp.linalg.qr(scaled)
    pivots = jnp.abs(jnp.diagonal(upper))
    full_rank = jnp.min(pivots) > max(m, n) * tree.eps(jacobian.dtype) * jnp.max(pivots)

    def direct() -> Array:
        projected = jnp.matmul(r, q, precision=HIGHEST)
        return -jax.scipy.linalg.solve_triangular(upper, projected)

    return lax.cond(full_rank, direct, lambda: _minimum_norm_step(scaled, r)) / d


def _minimum_norm_step(jacobian: Array, r: Array) -> Array:
    u, values, vt = jnp.linalg.svd(jacobian, full_matrices=False)
    threshold = max(jacobian.shape) * tree.eps(jacobian.dtype) * values[0]
    inverse = jnp.where(values > threshold, 1 / jnp.where(values > threshold, values, 1), 0)
    return -jnp.matmul(inverse * jnp.matmul(r, u, precision=HIGHEST), vt, precision=HIGHEST)


def column_norms(jacobian: Float[Array, "m n"]) -> Float[Array, " n"]:
    """|J_j| for every column j, safe against overflow and underflow of the squares."""
    largest = jnp.max(jnp.abs(jacobian), axis=0, initial=0)
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return safe * jnp.sqrt(jnp.sum((jacobian / safe[None, :]) ** 2, axis=0))
