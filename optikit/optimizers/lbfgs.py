"""Limited-memory BFGS in its compact form, with a strong Wolfe search.

The inverse Hessian of the last m pairs is applied by two products with (m, n) matrices and one
small triangular system each way, where the two-loop recursion is a chain of 4 m dependent
operations (a launch each on a GPU). Slots of the history that hold no curved pair are masked.

References: Byrd, Nocedal & Schnabel (1994), "Representations of quasi-Newton matrices", eq. 3.1;
Nocedal & Wright (2006), Algorithm 7.5 and eq. 7.20 for the scaling.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Key, Scalar, memoized
from optikit.core.tree import HIGHEST
from optikit.globalize import Globalize, wolfe
from optikit.optimizers.protocol import Optimizer, info_from_search
from optikit.optimizers.quasi_newton import (
    OVERSHOOT,
    first_scale,
    forgiven,
    is_curved,
    search_along,
)


class LbfgsState(NamedTuple):
    """What the next L-BFGS step needs: the last m pairs in a ring, and their inner products."""

    s: Float[Array, "m n"]  # differences of parameters
    y: Float[Array, "m n"]  # differences of gradients
    sy: Float[Array, "m m"]  # s_i . y_j
    yy: Float[Array, "m m"]  # y_i . y_j
    held: Bool[Array, " m"]  # which slots hold a pair
    newest: Int[Array, ""]  # the slot written last
    gamma: Scalar  # scale of the initial inverse Hessian


@memoized
def lbfgs(*, memory: int = 10, globalize: Globalize | None = None) -> Optimizer:
    """L-BFGS: 2 m n numbers of memory, about 12 m n flops and one grad a trial per step.

    Args:
      memory: the number m of pairs kept.
      globalize: a search that evaluates gradients; by default `wolfe()`.
    """
    if memory < 1:
        msg = f"memory must be at least 1 pair; got {memory}."
        raise ValueError(msg)
    globalize = wolfe() if globalize is None else globalize

    def init(at: Eval) -> LbfgsState:
        gradient = ravel_pytree(at.grad)[0]
        pairs = jnp.zeros((memory, gradient.size), gradient.dtype)
        products = jnp.zeros((memory, memory), gradient.dtype)
        return LbfgsState(
            s=pairs,
            y=pairs,
            sy=products,
            yy=products,
            held=jnp.zeros(memory, bool),
            newest=jnp.asarray(memory - 1, jnp.int32),
            gamma=first_scale(gradient),
        )

    def step(oracle: Oracle, at: Eval, state: LbfgsState, key: Key):
        del key
        gradient = ravel_pytree(at.grad)[0]
        direction = -_inverse_product(state, gradient)
        search, s, y = search_along(globalize, oracle, at, direction)
        unseen = OVERSHOOT * state.gamma * jnp.vdot(gradient, gradient) / 2
        unseen = unseen.astype(search.promised.dtype)
        search = search._replace(promised=jnp.maximum(search.promised, unseen))
        search, again = forgiven(search, ~jnp.any(state.held))
        new = _updated(state, s, y, search.accepted)
        # the pairs may stay where no slot is held
        new = new._replace(
            held=new.held & ~again,
            gamma=jnp.where(again, first_scale(gradient), new.gamma),
        )
        return search.params, search.next, new, info_from_search(search)

    return Optimizer(init, step, monotone=True, learns=True, name="lbfgs")


def _inverse_product(state: LbfgsState, g: Array) -> Array:
    """H g = gamma g + S^T R^-T ((D + gamma Y Y^T) R^-1 S g - gamma Y g) - gamma Y^T R^-1 S g."""
    memory = state.held.size
    order = (state.newest + 1 + jnp.arange(memory, dtype=jnp.int32)) % memory  # oldest first
    both = state.held[order][:, None] & state.held[order][None, :]
    identity = jnp.eye(memory, dtype=g.dtype)
    products = jnp.where(both, state.sy[order][:, order], identity)
    r = jnp.triu(products)
    inner = jnp.diag(jnp.diagonal(products)) + state.gamma * state.yy[order][:, order]
    s, y, gamma = state.s, state.y, state.gamma
    sg, yg = (jnp.matmul(a, g, precision=HIGHEST)[order] for a in (s, y))
    u = solve_triangular(r, sg)
    v = solve_triangular(r, jnp.matmul(inner, u, precision=HIGHEST) - gamma * yg, trans=1)
    back = jnp.zeros(memory, g.dtype).at[order].set(v), jnp.zeros(memory, g.dtype).at[order].set(u)
    along_s = jnp.matmul(back[0], s, precision=HIGHEST)
    along_y = jnp.matmul(back[1], y, precision=HIGHEST)
    return gamma * (g - along_y) + along_s


def _updated(state: LbfgsState, s: Array, y: Array, accepted: Bool[Array, ""]) -> LbfgsState:
    """The state with the pair in the oldest slot, or unchanged if the pair is not curved."""
    learn = accepted & is_curved(s, y)
    slot = (state.newest + 1) % state.held.size
    sy, yy = jnp.vdot(s, y), jnp.vdot(y, y)

    def put(rows: Array, row: Array) -> Array:
        return rows.at[slot].set(jnp.where(learn, row, rows[slot]))

    new_s, new_y = put(state.s, s), put(state.y, y)
    column, row = (jnp.matmul(a, b, precision=HIGHEST) for a, b in ((new_s, y), (new_y, s)))
    yy_row = jnp.matmul(new_y, y, precision=HIGHEST)
    new_sy = state.sy.at[:, slot].set(column).at[slot, :].set(row)
    new_yy = state.yy.at[:, slot].set(yy_row).at[slot, :].set(yy_row)
    return LbfgsState(
        new_s,
        new_y,
        jnp.where(learn, new_sy, state.sy),
        jnp.where(learn, new_yy, state.yy),
        state.held.at[slot].set(learn | state.held[slot]),
        jnp.where(learn, slot, state.newest).astype(jnp.int32),
        jnp.where(learn, sy / jnp.where(learn, yy, 1), state.gamma),
    )
