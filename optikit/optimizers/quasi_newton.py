"""What BFGS and L-BFGS share: a step along a direction, and the pair that it teaches."""

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Scalar, Status, times, tree
from optikit.globalize import Globalize, Search
from optikit.globalize.search import resolution
from optikit.linalg import Direction

OVERSHOOT = 100.0
"""By how much curvature in directions not yet seen may fall short of what was met.

The first inverse Hessian of BFGS is that much larger than the pair says: what is too small in it
takes several steps to grow, what is too large one search to shrink. L-BFGS, which soon forgets,
never promises less than a gradient step of that length, so that a flat direction is not taken for a
solved one.
"""


def search_along(
    globalize: Globalize, oracle: Oracle, at: Eval, direction: Float[Array, " n"]
) -> tuple[Search, Float[Array, " n"], Float[Array, " n"]]:
    """Search along a direction; with it, the pair (s, y) of parameter and gradient differences."""
    gradient, unravel = ravel_pytree(at.grad)
    dtype = at.value.dtype
    slope = jnp.vdot(gradient, direction).astype(dtype)
    no, yes = jnp.asarray(False), jnp.asarray(True)
    free = times(0, Counts())
    # a quasi-Newton direction minimises its model: <d, B d> = -<g, d>
    proposal = Direction(unravel(direction), slope, -slope, no, yes, jnp.zeros_like(slope), free)
    search = globalize.search(oracle, at, lambda radius: proposal, globalize.init(at))
    if search.next is None:
        msg = "a quasi-Newton method needs a search that evaluates gradients; got one on values."
        raise TypeError(msg)
    s = ravel_pytree(tree.subtract(search.params, at.params))[0]
    y = ravel_pytree(tree.subtract(search.next.grad, at.grad))[0]
    return search, s, y


def forgiven(search: Search, at: Eval, fresh: Bool[Array, ""]) -> tuple[Search, Bool[Array, ""]]:
    """The search, and whether what was learnt is to be forgotten because it has come to an end.

    It has if its direction fails, and if promise and gain are both rounding: a curvature learnt on
    a steep wall promises nothing in the valley behind it. That is final only along the first
    direction, which is the gradient's, and there the promise is what the line's own slopes say;
    otherwise the next step starts anew, and the search is reported as going on.
    """
    assert search.next is not None
    failed = (search.status == Status.LINE_SEARCH_FAILED.value) & ~search.accepted
    again, promised, left = spent(at, search.next, search.promised, search.left, failed, fresh)
    status = jnp.where(again & failed, Status.RUNNING.value, search.status).astype(jnp.int32)
    return search._replace(status=status, promised=promised, left=left), again


def spent(
    at: Eval,
    end: Eval,
    promised: Scalar,
    left: Scalar,
    failed: Bool[Array, ""],
    fresh: Bool[Array, ""],
) -> tuple[Bool[Array, ""], Scalar, Scalar]:
    """Whether to forget, as in `forgiven`; what is promised then, and what the line has left."""
    left = jnp.where(promised == 0, 0, left)  # no direction, no trial: a stationary point
    floor = resolution(end)
    ended = (promised <= floor) & (jnp.abs(at.value - end.value) <= floor)
    again = (failed | ended) & ~fresh
    promised = jnp.where(fresh, left, jnp.where(again, jnp.inf, promised))
    return again, promised, jnp.where(fresh, left, jnp.inf)


def is_curved(s: Array, y: Array) -> Bool[Array, ""]:
    """Whether <s, y> is positive beyond rounding, at any scale of s and y."""
    product = jnp.vdot(s, y)
    lengths = jnp.linalg.norm(s) * jnp.linalg.norm(y)
    return product > 8 * tree.eps(s.dtype) * lengths


def first_scale(gradient: Array, unit: Scalar) -> Scalar:
    """The length of the first step per unit of gradient: unit * min(1, 1/|g|)."""
    size = jnp.linalg.norm(gradient / unit)
    return jnp.minimum(unit, 1 / jnp.where(size > 0, size, 1))


def unit_of(gradient: Array) -> Scalar:
    """A power of two near the largest entry where its square might over- or underflow, else 1.

    Gradients are divided by it, which changes no digit of theirs.
    """
    largest, info = jnp.max(jnp.abs(gradient)), jnp.finfo(gradient.dtype)
    usual = (largest >= float(info.tiny) ** 0.25) & (largest <= float(info.max) ** 0.25)
    odd = ~usual & (largest > 0) & jnp.isfinite(largest)
    largest = jnp.where(odd, largest, 1)
    return jnp.where(odd, largest / (2 * jnp.frexp(largest)[0]), 1)
