"""L-BFGS for box bounds: the two-loop recursion on the free parameters, projected.

The pairs are cut to the free parameters of each step and their inner products taken anew, so that
the matrix is positive definite on that face whatever was learnt on others; a pair without curvature
there sits the step out.

References: Nocedal & Wright (2006), Algorithm 7.4; Schmidt, Kim & Sra (2011), "Projected
Newton-type methods in machine learning", section 3, for the two metrics with limited memory.
"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Box, Counts, Key, Scalar, memoized, times, tree
from optikit.core.tree import HIGHEST
from optikit.globalize import projected
from optikit.linalg import Direction
from optikit.optimizers.bounded import face_at
from optikit.optimizers.protocol import Bounded, Optimizer, info_from_search
from optikit.optimizers.quasi_newton import OVERSHOOT, forgiven, is_curved


class BoundedLbfgsState(NamedTuple):
    """What the next step needs."""

    s: Float[Array, "m n"]  # differences of parameters, in a ring
    y: Float[Array, "m n"]  # differences of gradients
    newest: Int[Array, ""]  # the slot written last
    gamma: Scalar  # scale of the initial inverse Hessian
    learnt: Bool[Array, ""]  # whether gamma comes from a pair


@memoized
def bounded_lbfgs(*, memory: int = 10, max_trials: int = 40) -> Bounded:
    """L-BFGS within bounds: 2 m n numbers of memory, one grad a trial.

    Args:
      memory: the number m of pairs kept.
      max_trials: trials per search along the projection arc.

    Raises:
      ValueError: no memory.

    Example:
      >>> import optikit as ok
      >>> sol = ok.minimize(lambda x: jnp.sum((x - 2.0) ** 2), jnp.zeros(2), bounds=(0.0, 1.0),
      ...                   method=bounded_lbfgs(memory=5))
      >>> sol.params.tolist()
      [1.0, 1.0]
    """
    if memory < 1:
        msg = f"memory must be at least 1 pair; got {memory}."
        raise ValueError(msg)

    def inside(box: Box) -> Optimizer:
        return _lbfgs_inside(box, memory, max_trials)

    return Bounded(inside, "lbfgs")


def _lbfgs_inside(box: Box, memory: int, max_trials: int) -> Optimizer:
    search_along = projected(box, max_trials=max_trials)

    def measure(at: Eval) -> Scalar:
        return box.stationarity(at.params, at.grad).astype(at.value.dtype)

    def init(at: Eval) -> BoundedLbfgsState:
        gradient = ravel_pytree(at.grad)[0]
        pairs = jnp.zeros((memory, gradient.size), gradient.dtype)
        newest = jnp.asarray(memory - 1, jnp.int32)
        scale = first_scale_in(box, at).astype(gradient.dtype)
        return BoundedLbfgsState(pairs, pairs, newest, scale, jnp.asarray(False))

    def step(oracle: Oracle, at: Eval, state: BoundedLbfgsState, key: Key):
        del key
        dtype = at.value.dtype
        gradient, unravel = ravel_pytree(at.grad)
        steepness = jnp.where(state.learnt, 1 / state.gamma, 0)
        face = face_at(box, at, steepness.astype(dtype))
        free = tree.ravel(face.free)
        seen = jnp.where(free, gradient, 0)
        d = -_two_loop(state, free, seen)
        slope = jnp.vdot(gradient, d, precision=HIGHEST).astype(dtype)
        no, yes, zero = jnp.asarray(False), jnp.asarray(True), jnp.zeros((), dtype)
        unseen = (OVERSHOOT * state.gamma * jnp.vdot(seen, seen) / 2).astype(dtype)
        # the model's minimiser: <d, B d> = -<g, d>
        proposal = Direction(unravel(d), slope, -slope, no, yes, zero, times(0, Counts()))
        search = search_along.search(oracle, at, lambda radius: face.complete(proposal, at), ())
        search = search._replace(promised=jnp.maximum(search.promised, unseen))
        end = cast("Eval", search.next)
        s = ravel_pytree(tree.subtract(end.params, at.params))[0]
        y = ravel_pytree(tree.subtract(end.grad, at.grad))[0]
        search, again = forgiven(search, at, ~state.learnt)
        new = tree.where(again, init(end), _updated(state, s, y, search.accepted))
        return search.params, search.next, new, info_from_search(search)

    return Optimizer(init, step, measure=measure, monotone=True, name="lbfgs")


def first_scale_in(box: Box, at: Eval) -> Scalar:
    """The length of the first step per unit of gradient, of those parameters that can move.

    That is min(1, 1/|g|), but long enough to be seen in the parameters, and no longer than the box.
    """
    projected = box.projected_gradient(at.params, at.grad)
    free = jax.tree.map(lambda p, g: jnp.where(p != 0, g, 0), projected, at.grad)
    size = tree.norm(free)
    safe = jnp.where(size > 0, size, 1)
    seen = tree.eps(size.dtype) ** 0.5 * tree.norm(at.params) / safe
    scale = jnp.maximum(jnp.minimum(1, 1 / safe), seen)
    reached = tree.norm(box.projected_gradient(at.params, tree.scale(scale, free)))
    return jnp.where(reached > 0, jnp.minimum(scale, reached / safe), scale)


def _two_loop(state: BoundedLbfgsState, free: Bool[Array, " n"], g: Array) -> Array:
    """H g on the free parameters; g must be zero on the others."""
    memory = len(state.s)
    s, y = jnp.where(free, state.s, 0), jnp.where(free, state.y, 0)
    sy, ss, yy = (jnp.sum(a * b, axis=1) for a, b in ((s, y), (s, s), (y, y)))
    curved = sy > 8 * tree.eps(s.dtype) * jnp.sqrt(ss) * jnp.sqrt(yy)
    rho = jnp.where(curved, 1 / jnp.where(curved, sy, 1), 0)
    last = state.newest
    gamma = jnp.where(curved[last], sy[last] / jnp.where(curved[last], yy[last], 1), state.gamma)

    def down(i: Int[Array, ""], c: tuple[Array, Array]) -> tuple[Array, Array]:
        q, along = c
        j = (last - i) % memory
        a = rho[j] * jnp.vdot(s[j], q, precision=HIGHEST)
        return q - a * y[j], along.at[j].set(a)

    def up(i: Int[Array, ""], r: Array) -> Array:
        j = (last + 1 + i) % memory
        return r + (along[j] - rho[j] * jnp.vdot(y[j], r, precision=HIGHEST)) * s[j]

    q, along = lax.fori_loop(0, memory, down, (g, jnp.zeros(memory, g.dtype)))
    return lax.fori_loop(0, memory, up, gamma * q)


def _updated(
    state: BoundedLbfgsState, s: Array, y: Array, accepted: Bool[Array, ""]
) -> BoundedLbfgsState:
    """The state with the pair in the oldest slot; without curvature, longer steps instead."""
    learn = accepted & is_curved(s, y)
    slot = (state.newest + 1) % len(state.s)
    sy, yy = jnp.vdot(s, y), jnp.vdot(y, y)
    # a full step along which the slope did not turn was too short
    grown = jnp.where(accepted & ~state.learnt, 4 * state.gamma, state.gamma)
    return BoundedLbfgsState(
        state.s.at[slot].set(jnp.where(learn, s, state.s[slot])),
        state.y.at[slot].set(jnp.where(learn, y, state.y[slot])),
        jnp.where(learn, slot, state.newest).astype(jnp.int32),
        jnp.where(learn, sy / jnp.where(learn, yy, 1), grown),
        state.learnt | learn,
    )
