"""Armijo backtracking along the projection arc x(t) = P(x + t d) of a box.

The arc bends where a parameter meets its bound and lands on the bound exactly. A trial is measured
against the first-order decrease of the move it really makes, or, where clipping turned that move
uphill, of the unclipped one. Near the rounding floor a trial is accepted if it lowers the projected
gradient.

Reference: Bertsekas (1982), "Projected Newton methods for optimization problems with simple
constraints", eq. 24.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Box, Scalar, tally, times, tree
from optikit.globalize.search import (
    Globalize,
    Propose,
    Search,
    Trials,
    is_finite,
    noise,
    search_status,
    secant_left,
)
from optikit.linalg.subproblem import unlimited


class _Run(NamedTuple):
    t: Scalar  # the next trial
    trial: Eval
    accepted: Bool[Array, ""]
    seen_finite: Bool[Array, ""]
    left: Scalar
    trials: Int[Array, ""]


def projected(box: Box, *, c1: float = 1e-4, max_trials: int = 40) -> Globalize:
    """The first t in 1, t1, t2, ... at which the arc has fallen enough.

    Args:
      box: the bounds, with the starting point inside.
      c1: sufficient decrease, in (0, 1/2).
      max_trials: trials before Status.LINE_SEARCH_FAILED.

    Returns: a Globalize costing one grad per trial; the accepted point is already evaluated.
    """
    evaluate = Trials(gradients=True)

    def search(oracle: Oracle, at: Eval, propose: Propose, state: tuple) -> Search:
        direction = propose(unlimited(at.value))
        d, slope = direction.step, direction.slope
        dtype = at.value.dtype
        slack = noise(at.value)
        bent = jnp.minimum(direction.curvature, 0) / 2
        size = box.stationarity(at.params, at.grad)

        def running(c: _Run) -> Array:
            return ~c.accepted & (c.trials < max_trials)

        def body(c: _Run) -> _Run:
            there = box.project(tree.add_scaled(at.params, c.t, d))
            trial = evaluate(oracle, there, at)
            finite = is_finite(trial, with_gradient=True)
            move = tree.subtract(there, at.params)
            along = tree.vdot(at.grad, move).astype(dtype)
            first_order = jnp.where(along < 0, jnp.maximum(along, c.t * slope), c.t * slope)
            rise = trial.value - at.value
            calmer = box.stationarity(there, trial.grad) <= size
            in_noise = (jnp.abs(rise) <= slack) & (-first_order <= slack) & calmer
            enough = (rise <= c1 * first_order) & (first_order < 0)
            # along negative curvature the second order has its say; on a saddle the only one
            second_order = c.t * slope + c.t**2 * bent
            enough |= (rise <= c1 * second_order) & (bent < 0) & (second_order < 0)
            bend = -first_order / (2 * (rise - first_order))
            factor = jnp.where(finite & jnp.isfinite(bend), jnp.clip(bend, 0.1, 0.5), 0.1)
            return _Run(
                c.t * factor,
                trial,
                finite & (enough | in_noise),
                c.seen_finite | finite,
                secant_left(at, trial, c.left),
                c.trials + 1,
            )

        no = jnp.asarray(False)
        inf = jnp.full((), jnp.inf, dtype)
        start = _Run(jnp.ones((), dtype), at, no, no, inf, jnp.asarray(0, jnp.int32))
        run = lax.while_loop(running, body, start)
        end = tree.where(run.accepted, run.trial, at)
        step_norm = tree.norm(tree.subtract(end.params, at.params)).astype(dtype)
        full = tree.norm(d).astype(dtype)
        return Search(
            params=end.params,
            next=end,
            step_size=jnp.where(full > 0, step_norm / jnp.where(full > 0, full, 1), 0),
            step_norm=step_norm,
            full_norm=full,
            promised=direction.promised,
            scale=direction.scale,
            accepted=run.accepted,
            state=state,
            counts=tally(direction.counts, times(run.trials, evaluate.price)),
            status=search_status(run.accepted, run.seen_finite),
            left=run.left,
        )

    return Globalize(lambda at: (), search)
