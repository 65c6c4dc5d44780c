"""Limited-memory BFGS in its compact form, with a strong Wolfe search.

The inverse Hessian of the last m pairs is applied by two products with (m, n) matrices and one
small triangular system each way, where the two-loop recursion is a chain of 4 m dependent
operations (a launch each on a GPU). Rows of the history that hold no curved pair are masked.

References: Byrd, Nocedal & Schnabel (1994), "Representations of quasi-Newton matrices", eq. 3.1;
Nocedal & Wright (2006), Algorithm 7.5 and eq. 7.20 for the scaling.
"""

from typing import NamedTuple, cast

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
    unit_of,
)


class LbfgsState(NamedTuple):
    """What the next L-BFGS step needs: the last m pairs in a ring, and their inner products."""

    pairs: Float[Array, "2 m n"]  # differences of parameters (s), and of gradients / unit (y)
    sy: Float[Array, "m m"]  # s_i . y_j, oldest pair first, like yy
    yy: Float[Array, "m m"]  # y_i . y_j
    held: Int[Array, ""]  # how many pairs count, the newest ones
    newest: Int[Array, ""]  # the row of pairs written last
    gamma: Scalar  # scale of the initial inverse Hessian of f / unit
    unit: Scalar  # of gradients


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
        pairs = jnp.zeros((2, memory, gradient.size), gradient.dtype)
        products = jnp.zeros((memory, memory), gradient.dtype)
        unit = unit_of(gradient)
        return LbfgsState(
            pairs=pairs,
            sy=products,
            yy=products,
            held=jnp.asarray(0, jnp.int32),
            newest=jnp.asarray(memory - 1, jnp.int32),
            gamma=first_scale(gradient, unit),
            unit=unit,
        )

    def step(oracle: Oracle, at: Eval, state: LbfgsState, key: Key):
        del key
        gradient = ravel_pytree(at.grad)[0] / state.unit
        direction = -_inverse_product(state, gradient)
        search, s, y = search_along(globalize, oracle, at, direction)
        unseen = OVERSHOOT * state.gamma * jnp.vdot(gradient, gradient) / 2
        unseen = (state.unit * unseen).astype(search.promised.dtype)
        search = search._replace(promised=jnp.maximum(search.promised, unseen))
        search, again = forgiven(search, at, state.held == 0)
        end = ravel_pytree(cast("Eval", search.next).grad)[0]
        new = _updated(state, s, y / state.unit, search.accepted)
        new = new._replace(
            held=jnp.where(again, 0, new.held),
            gamma=jnp.where(again, first_scale(end, state.unit), new.gamma),
        )
        return search.params, search.next, new, info_from_search(search)

    return Optimizer(init, step, monotone=True, learns=True, name="lbfgs")


def _inverse_product(state: LbfgsState, g: Array) -> Array:
    """H g = gamma g + S^T R^-T ((D + gamma Y Y^T) R^-1 S g - gamma Y g) - gamma Y^T R^-1 S g."""
    gamma, memory = state.gamma, state.sy.shape[0]
    ages = jnp.arange(memory, dtype=jnp.int32)
    counts = ages >= memory - state.held
    both = counts[:, None] & counts[None, :]
    r = jnp.triu(jnp.where(both, state.sy, jnp.eye(memory, dtype=g.dtype)))
    inner = jnp.diag(jnp.diagonal(r)) + gamma * jnp.where(both, state.yy, 0)
    products = _aged(jnp.matmul(_rows(state.pairs), g, precision=HIGHEST), state.newest)
    sg, yg = jnp.where(counts, products, 0)
    u = solve_triangular(r, sg)
    v = solve_triangular(r, jnp.sum(inner * u[None, :], axis=1) - gamma * yg, trans=1)
    back = (ages - state.newest - 1) % memory  # the age of each row
    weights = jnp.concatenate([v[back], -gamma * u[back]])
    return gamma * g + jnp.matmul(weights, _rows(state.pairs), precision=HIGHEST)


def _rows(pairs: Float[Array, "2 m n"]) -> Float[Array, " 2m n"]:
    return pairs.reshape(-1, pairs.shape[-1])


def _aged(products: Array, newest: Int[Array, ""]) -> Float[Array, "2 m"]:
    """Products with the rows of the ring, in order of age: the oldest pair first."""
    products = products.reshape(2, -1)
    memory = products.shape[1]
    return products[:, (newest + 1 + jnp.arange(memory, dtype=jnp.int32)) % memory]


def _updated(state: LbfgsState, s: Array, y: Array, accepted: Bool[Array, ""]) -> LbfgsState:
    """The state with the pair in place of the oldest, or unchanged if the pair is not curved."""
    learn = accepted & is_curved(s, y)
    memory = state.sy.shape[0]
    row = jnp.where(learn, (state.newest + 1) % memory, state.newest).astype(jnp.int32)
    pair = jnp.stack([s, y])
    pairs = state.pairs.at[:, row].set(jnp.where(learn, pair, state.pairs[:, row]))
    products = jnp.matmul(_rows(pairs), pair.T, precision=HIGHEST)
    s_on_y, y_on_y = _aged(products[:, 1], row)
    y_on_s = _aged(products[:, 0], row)[1]
    sy, yy = s_on_y[-1], y_on_y[-1]

    def grown(old: Array, column: Array, last: Array) -> Array:
        """The products without the oldest pair's, with the new pair's."""
        above = jnp.concatenate([old[1:, 1:], column[:-1, None]], axis=1)
        return jnp.where(learn, jnp.concatenate([above, last[None, :]]), old)

    return LbfgsState(
        pairs,
        grown(state.sy, s_on_y, y_on_s),
        grown(state.yy, y_on_y, y_on_y),
        jnp.where(learn, jnp.minimum(state.held + 1, memory), state.held).astype(jnp.int32),
        row,
        jnp.where(learn, sy / jnp.where(learn, yy, 1), state.gamma),
        state.unit,
    )
