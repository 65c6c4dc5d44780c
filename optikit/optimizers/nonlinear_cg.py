"""Nonlinear conjugate gradients: the steepest descent direction, corrected by the last one.

The five formulas for beta agree on quadratics with exact searches. The promise that the
convergence test needs is |g|^2 / 2 times the longest of the late steps, the best there is for the
inverse of the smallest curvature.

References: Fletcher & Reeves (1964); Polak & Ribiere (1969), with Gilbert & Nocedal (1992) for the
truncation; Hestenes & Stiefel (1952); Dai & Yuan (1999); Hager & Zhang (2005), eqs. 1.3, 1.6 and
1.7; Powell (1977) for the restart.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Key, Scalar, memoized, times
from optikit.core.tree import HIGHEST
from optikit.globalize import Globalize, hager_zhang
from optikit.linalg import Direction
from optikit.optimizers.protocol import Optimizer, info_from_search
from optikit.optimizers.quasi_newton import forgiven, unit_of

Beta = Literal["hager-zhang", "polak-ribiere+", "fletcher-reeves", "hestenes-stiefel", "dai-yuan"]


class NonlinearCgState(NamedTuple):
    """What the next step needs."""

    direction: Float[Array, " n"]  # by gradients / unit
    since: Int[Array, ""]  # steps since the last restart; 0: the direction is -g
    reach: Scalar  # of late steps: the decrease of an exact search over |g|^2 / 2, times unit
    search: Any
    unit: Scalar  # of gradients


class _Products(NamedTuple):
    """Inner products of the new gradient g, its change y, and the last direction d, in units."""

    gg: Scalar
    gy: Scalar
    gd: Scalar
    yy: Scalar
    yd: Scalar
    dd: Scalar
    old: Scalar  # |g|^2 where the step began


@memoized
def nonlinear_cg(
    beta: Beta = "hager-zhang",
    *,
    globalize: Globalize | None = None,
    restart: int | None = None,
    powell: float | None = None,
) -> Optimizer:
    """Nonlinear conjugate gradients: four vectors of memory, one grad a trial.

    Args:
      beta: the formula for d+ = -g+ + beta d.
      globalize: a search that evaluates gradients; by default `hager_zhang` with a slope reduced
        to a tenth, starting from the last step's length.
      restart: steps after which the direction is reset to -g; by default the number of parameters,
        and at least 10.
      powell: also reset where |<g+, g>| >= powell |g+|^2, as successive gradients of a quadratic
        are orthogonal; by default 0.2, and never for "hager-zhang", whose formula does without. A
        direction that hardly descends, or fails its search, is reset as well.

    Raises:
      ValueError: an unknown beta, or a restart below 1.

    Example:
      >>> import optikit as ok
      >>> method = nonlinear_cg("polak-ribiere+")
      >>> bool(ok.minimize(lambda x: (x**2).sum() + x[0] ** 4, jnp.ones(3), method=method).success)
      True
    """
    if beta not in get_args(Beta):
        msg = f"unknown beta {beta!r}: choose from {', '.join(map(repr, get_args(Beta)))}."
        raise ValueError(msg)
    if restart is not None and restart < 1:
        msg = f"restart must be at least 1 step; got {restart}."
        raise ValueError(msg)
    if powell is None:
        powell = math.inf if beta == "hager-zhang" else 0.2
    search_along = hager_zhang(c2=0.1, start="previous") if globalize is None else globalize

    def init(at: Eval) -> NonlinearCgState:
        none = jnp.asarray(0, jnp.int32)
        zero = jnp.zeros((), at.value.dtype)
        gradient = ravel_pytree(at.grad)[0]
        unit = unit_of(gradient)
        return NonlinearCgState(-gradient / unit, none, zero, search_along.init(at), unit)

    def step(oracle: Oracle, at: Eval, state: NonlinearCgState, key: Key):
        del key
        g, unravel = ravel_pytree(at.grad)
        d, dtype = state.direction, at.value.dtype
        slope = jnp.vdot(g, d, precision=HIGHEST).astype(dtype)
        zero, no, yes = jnp.zeros((), dtype), jnp.asarray(False), jnp.asarray(True)
        proposal = Direction(unravel(d), slope, zero, no, yes, zero, times(0, Counts()))
        search = search_along.search(oracle, at, lambda radius: proposal, state.search)
        unit = state.unit
        if search.next is None:
            msg = "nonlinear_cg needs a search that evaluates gradients; got one on values."
            raise TypeError(msg)
        g, new_g = g / unit, ravel_pytree(search.next.grad)[0] / unit
        products = _products(new_g, new_g - g, d, g)
        limit = max(g.size, 10) if restart is None else restart
        turned, since = _direction(beta, products, new_g, d, state.since, limit, powell, unit)
        kept = search.accepted
        # the longest of late steps along a gradient tells how flat the flattest direction is
        lately = jnp.where(kept, -(slope / unit) * search.step_size / products.old, 0)
        reach = jnp.maximum(0.9 * state.reach, lately)
        promised = unit * (jnp.where(reach > 0, reach, unit) * products.old / 2)
        search, again = forgiven(search._replace(promised=promised), at, state.since == 0)
        kept &= ~again
        new = NonlinearCgState(
            jnp.where(kept, turned, -new_g), jnp.where(kept, since, 0), reach, search.state, unit
        )
        return search.params, search.next, new, info_from_search(search)

    return Optimizer(init, step, monotone=True, learns=True, name="nonlinear-cg")


def _products(g: Array, y: Array, d: Array, old: Array) -> _Products:
    rows = jnp.stack([g, y, d])
    gram = jnp.matmul(rows, rows.T, precision=HIGHEST)
    (gg, gy, gd), (_, yy, yd), (_, _, dd) = gram
    return _Products(gg, gy, gd, yy, yd, dd, jnp.vdot(old, old, precision=HIGHEST))


def _direction(
    beta: Beta,
    p: _Products,
    g: Array,
    d: Array,
    since: Array,
    limit: int,
    powell: float,
    unit: Scalar,
) -> tuple[Array, Int[Array, ""]]:
    """-g + beta d, or -g where it is time to restart; and the steps since then."""
    factor = _beta(beta, p, unit)
    slope = -p.gg + factor * p.gd
    reset = jnp.abs(p.gg - p.gy) >= powell * p.gg
    reset |= (since + 1 >= limit) | ~(slope <= -0.01 * p.gg) | ~jnp.isfinite(factor)
    factor = jnp.where(reset, 0, factor)
    return factor * d - g, jnp.where(reset, 0, since + 1).astype(jnp.int32)


def _beta(name: Beta, p: _Products, unit: Scalar) -> Scalar:
    """The formula, from products in units; not finite where its denominator vanishes."""
    if name == "fletcher-reeves":
        return p.gg / p.old
    if name == "polak-ribiere+":
        return jnp.maximum(p.gy / p.old, 0)
    if name == "hestenes-stiefel":
        return p.gy / p.yd
    if name == "dai-yuan":
        return p.gg / p.yd
    least = -1 / (unit * jnp.sqrt(p.dd) * jnp.minimum(0.01, unit * jnp.sqrt(p.old)))
    return jnp.maximum((p.gy - 2 * p.yy * p.gd / p.yd) / p.yd, least)
