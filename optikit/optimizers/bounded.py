"""Newton for box bounds: the step on the free parameters, projected.

A parameter is held if it lies on a bound, or so near that a step of its own would reach it, with a
gradient that leads outside; held parameters go to their bound. The others take the step of the
unbounded method with the model restricted to them (two metrics, one for each set), and the search
follows the projection arc. At a solution the held set settles, so that the method converges as fast
as without bounds.

Reference: Bertsekas (1982), "Projected Newton methods for optimization problems with simple
constraints", SIAM J. Control Optim. 20.
"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optikit.calculus import Eval, Oracle
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Box, Key, LinearOperator, Params, PyTree, Scalar, memoized, tally, tree
from optikit.globalize import projected
from optikit.linalg import Direction, Inner, Subproblem, cholesky, conjugate_gradients
from optikit.optimizers.protocol import Bounded, Optimizer, info_from_search
from optikit.optimizers.second_order import LOOSEST, SecondOrderState, forcing, looked_ahead

NEAR = 1e-3
"""Part of a parameter's size, or of its box, within which it may count as on its bound."""


class Face(NamedTuple):
    """Which parameters are free at a point, and what becomes of the others."""

    free: PyTree  # booleans
    landing: Params  # a step beyond the bound for the held ones, 0 for the free ones
    decrease: Scalar  # what going to the bounds promises, to first order

    def restrict(self, vector: Params) -> Params:
        """The vector with zeros for held parameters."""
        return jax.tree.map(lambda f, x: jnp.where(f, x, jnp.zeros((), x.dtype)), self.free, vector)

    def complete(self, direction: Direction, at: Eval) -> Direction:
        """A direction of the free parameters, and the landing of the others.

        Its slope counts the way to the bound, not the landing beyond it.
        """
        free = self.restrict(direction.step)
        slope = tree.vdot(at.grad, free).astype(at.value.dtype) - self.decrease
        return direction._replace(step=tree.add(free, self.landing), slope=slope)


def face_at(box: Box, at: Eval, steepness: Scalar) -> Face:
    """The free and the held parameters of a point.

    Args:
      steepness: an estimate of the curvature; g / steepness is a parameter's step of its own.
    """
    dtype = at.value.dtype

    def gap(x: Array, g: Array, low: Array, high: Array) -> tuple[Array, Array]:
        # the distance to the bound the gradient leads to
        out = jnp.where(g > 0, x - low, high - x)
        own = jnp.abs(g) / jnp.where(steepness > 0, steepness, 1).astype(x.dtype)
        own = jnp.where(steepness > 0, own, jnp.inf)
        size = jnp.minimum(high - low, 1 + jnp.abs(x))
        near = (out <= jnp.minimum(own, NEAR * size)) & (g != 0)
        return near | (low == high), jnp.where(near, out, 0)

    pairs = jax.tree.map(gap, at.params, at.grad, *box)
    outer = jax.tree.structure(at.params)
    held, out = jax.tree.transpose(outer, jax.tree.structure((0, 0)), pairs)
    # twice the way: the projection then lands on the bound itself
    landing = jax.tree.map(lambda g, o: -2 * jnp.sign(g) * o, at.grad, out)
    decrease = -tree.vdot(at.grad, landing).astype(dtype) / 2
    return Face(jax.tree.map(jnp.logical_not, held), landing, decrease)


class _FaceOracle(NamedTuple):
    """The door of an oracle, with curvature restricted to a face."""

    oracle: Oracle
    face: Face

    def curvature(
        self, kind: CurvatureKind, params: Params, key: Key | None = None
    ) -> LinearOperator:
        op = self.oracle.curvature(kind, params, key)
        keep = self.face.restrict

        def linearize():
            product = op.linearize()
            return lambda v: keep(product(keep(v)))

        def matrix() -> Float[Array, "n n"]:
            dense = op.matrix()
            free = tree.ravel(self.face.free)
            inside = jnp.where(free[:, None] & free[None, :], dense, 0)
            size = jnp.max(jnp.abs(jnp.diagonal(inside)))
            fill = jnp.where(free, 0, jnp.where(size > 0, size, 1)).astype(dense.dtype)
            return inside + jnp.diag(fill)

        return op._replace(linearize=linearize, matrix=matrix)


@memoized
def bounded_newton(*, max_trials: int = 40) -> Bounded:
    """Dense Newton within bounds: one hessian a step, one grad a trial.

    Args:
      max_trials: trials per search along the projection arc.

    Example:
      >>> import optikit as ok
      >>> method = bounded_newton(max_trials=20)
      >>> sol = ok.minimize(lambda x: jnp.sum((x - 2.0) ** 2), jnp.zeros(2), bounds=(0.0, 1.0),
      ...                   method=method)
      >>> sol.params.tolist()
      [1.0, 1.0]
    """
    return _projected_newton(cholesky(), max_trials, "newton")


@memoized
def bounded_newton_cg(*, max_iters: int | None = None, max_trials: int = 40) -> Bounded:
    """Truncated Newton within bounds: one grad to linearise, one hvp per inner iteration.

    Args:
      max_iters: inner iterations a step; by default as for `newton_cg`.
      max_trials: trials per search along the projection arc.
    """
    return _projected_newton(conjugate_gradients(max_iters=max_iters), max_trials, "newton-cg")


def _projected_newton(subproblem: Subproblem, max_trials: int, name: str) -> Bounded:
    def inside(box: Box) -> Optimizer:
        return _newton_inside(box, subproblem, max_trials, name)

    return Bounded(inside, name)


def _newton_inside(box: Box, subproblem: Subproblem, max_trials: int, name: str) -> Optimizer:
    """Monotone, and measures stationarity by the projected gradient."""
    search_along = projected(box, max_trials=max_trials)

    def measure(at: Eval) -> Scalar:
        return box.stationarity(at.params, at.grad).astype(at.value.dtype)

    def init(at: Eval) -> SecondOrderState:
        zero = jnp.zeros((), at.value.dtype)
        inner = Inner(jnp.full((), LOOSEST, at.value.dtype), zero)
        return SecondOrderState(zero, inner, measure(at))  # the first is the steepness

    def step(oracle: Oracle, at: Eval, state: SecondOrderState, key: Key):
        face = face_at(box, at, state.globalize)
        inside = at._replace(grad=face.restrict(at.grad))
        size = tree.norm(inside.grad).astype(at.value.dtype)
        inner = state.inner._replace(forcing=forcing(size, state))
        door = cast("Oracle", _FaceOracle(oracle, face))
        model = subproblem.prepare(door, inside, "hessian", key)
        search = search_along.search(
            oracle, at, lambda radius: face.complete(model.propose(radius, inner), at), ()
        )
        search = search._replace(counts=tally(model.counts, search.counts))
        end = cast("Eval", search.next)
        steepness = jnp.where(search.accepted, steepness_between(at, end), state.globalize)
        ahead = end._replace(grad=face.restrict(end.grad))
        search = looked_ahead(search, ahead, model, size)
        new = SecondOrderState(steepness, inner._replace(scale=search.scale), size)
        return search.params, search.next, new, info_from_search(search)

    return Optimizer(init, step, measure=measure, monotone=True, name=name)


def steepness_between(at: Eval, end: Eval) -> Scalar:
    """|change of gradient| / |change of parameters|, the curvature on the way; 0 without one."""
    moved = tree.norm(tree.subtract(end.params, at.params)).astype(at.value.dtype)
    turned = tree.norm(tree.subtract(end.grad, at.grad)).astype(at.value.dtype)
    return jnp.where(moved > 0, turned / jnp.where(moved > 0, moved, 1), 0)
