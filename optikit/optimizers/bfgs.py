"""BFGS with the dense inverse Hessian and a strong Wolfe search.

Reference: Nocedal & Wright (2006), Algorithm 6.1 and eq. 6.20 for the first scaling.
"""

from typing import NamedTuple, cast

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from optikit.calculus import Eval, Oracle
from optikit.core import Key, Scalar, memoized, tree
from optikit.core.tree import HIGHEST
from optikit.globalize import Globalize, wolfe
from optikit.optimizers.protocol import Optimizer, info_from_search
from optikit.optimizers.quasi_newton import (
    OVERSHOOT,
    first_scale,
    forgiven,
    is_curved,
    search_along,
    unit_of,
)


class BfgsState(NamedTuple):
    """What the next BFGS step needs."""

    inverse_hessian: Float[Array, "n n"]  # symmetric positive definite, of f / unit
    fresh: Bool[Array, ""]  # no pair has been learnt yet
    unit: Scalar  # of gradients


@memoized
def bfgs(*, globalize: Globalize | None = None) -> Optimizer:
    """BFGS: dense inverse Hessian, O(n^2) memory and flops a step, one grad a trial.

    Args:
      globalize: a search that evaluates gradients; by default `wolfe(c2=0.3)`, which saves
        a quarter of the steps of the usual c2 = 0.9 for a few more gradients.
    """
    globalize = wolfe(c2=0.3) if globalize is None else globalize

    def init(at: Eval) -> BfgsState:
        gradient = ravel_pytree(at.grad)[0]
        return begun(gradient, unit_of(gradient))

    def step(oracle: Oracle, at: Eval, state: BfgsState, key: Key):
        del key
        gradient = ravel_pytree(at.grad)[0]
        scaled = gradient / state.unit
        direction = -jnp.matmul(state.inverse_hessian, scaled, precision=HIGHEST)
        search, s, y = search_along(globalize, oracle, at, direction)
        search, again = forgiven(search, at, state.fresh)
        end = ravel_pytree(cast("Eval", search.next).grad)[0]
        learnt = updated(state, s, y, search.accepted)
        new = tree.where(again, begun(end, state.unit), learnt)
        return search.params, search.next, new, info_from_search(search)

    return Optimizer(init, step, monotone=True, learns=True, name="bfgs")


def begun(gradient: Array, unit: Scalar) -> BfgsState:
    """The state before the first pair."""
    eye = jnp.eye(gradient.size, dtype=gradient.dtype)
    return BfgsState(first_scale(gradient, unit) * eye, jnp.asarray(True), unit)


def updated(state: BfgsState, s: Array, y: Array, accepted: Bool[Array, ""]) -> BfgsState:
    """H+ = (I - rho s y^T) H (I - rho y s^T) + rho s s^T, if the pair is curved."""
    y = y / state.unit
    learn = accepted & is_curved(s, y)
    sy, yy = jnp.vdot(s, y), jnp.vdot(y, y)
    rho = 1 / jnp.where(learn, sy, 1)
    rescale = learn & state.fresh
    h = jnp.where(
        rescale,
        OVERSHOOT * sy / jnp.where(learn, yy, 1) * jnp.eye(s.size, dtype=s.dtype),
        state.inverse_hessian,
    )
    hy = jnp.matmul(h, y, precision=HIGHEST)
    cross = jnp.outer(s, hy)
    new = h - rho * (cross + cross.T) + rho * (1 + rho * jnp.vdot(y, hy)) * jnp.outer(s, s)
    h = jnp.where(learn, new, state.inverse_hessian)
    return BfgsState(h, state.fresh & ~learn, state.unit)
