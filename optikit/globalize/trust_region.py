"""The trust region: shrink the radius until the model's promise is kept.

The region is shrunk within one step, with one model: a rejected trial costs its evaluation and a
new proposal, not a new linearisation or factorisation. The ratio test avoids a division, so a NaN
trial is a rejection. Near the rounding floor, where actual and predicted decrease are both noise, a
trial is accepted if it lowers the gradient.

References: Conn, Gould & Toint (2000), Algorithm 6.1.1 and section 17.4.2; Nocedal & Wright (2006),
Algorithm 4.1.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Scalar, Status, memoized, tally, times, tree
from optikit.globalize.search import Globalize, Propose, Search, Trials, verdict

GROWTH = 3.0
"""Of the radius, after a very good step that it had cut."""


class _Run(NamedTuple):
    radius: Scalar
    trial: Eval
    step_norm: Scalar
    full_norm: Scalar
    promised: Scalar
    scale: Scalar
    accepted: Bool[Array, ""]
    moved: Bool[Array, ""]  # the last trial was another point, to rounding
    seen_finite: Bool[Array, ""]
    trials: Int[Array, ""]
    counts: Counts


@memoized
def trust_region(
    *,
    radius: float | None = None,
    accept: float = 1e-4,
    shrink_below: float = 0.25,
    grow_above: float = 0.75,
    max_trials: int = 60,
    gradients: bool = True,
) -> Globalize:
    """Accept a step s if f(x) - f(x + s) >= accept * (model decrease); else shrink to |s| / 4.

    Args:
      radius: the first radius; by default max(1, |params|).
      accept: least ratio of actual to predicted decrease.
      shrink_below, grow_above: ratios below which the radius becomes |s| / 4, and above which it
        triples if it was binding.
      max_trials: trials before the step is given up.
      gradients: evaluate gradients with the values; see `Trials`.

    Returns: a Globalize costing one grad (or value) per trial besides the proposals; with gradients
    the accepted point is already evaluated.
    """
    evaluate = Trials(gradients)

    def init(at: Eval) -> Scalar:
        if radius is not None:
            return jnp.full((), radius, at.value.dtype)
        return jnp.maximum(1, tree.norm(at.params)).astype(at.value.dtype)

    def search(oracle: Oracle, at: Eval, propose: Propose, state: Scalar) -> Search:
        dtype = at.value.dtype

        def running(c: _Run) -> Array:
            return ~c.accepted & (c.trials < max_trials) & c.moved

        def body(c: _Run) -> _Run:
            direction = propose(c.radius)
            size = tree.norm(direction.step).astype(dtype)
            length = size if direction.length is None else direction.length
            cut = direction.at_boundary
            if direction.resolved is not None:
                cut |= ~direction.resolved
            whole = jnp.where(cut, jnp.inf, size)
            there = tree.add_scaled(at.params, 1.0, direction.step)
            trial = evaluate(oracle, there, at)
            seen = verdict(
                at, trial, direction.predicted, accept=accept, shrink_below=shrink_below,
                grow_above=grow_above, with_gradient=gradients,
            )  # fmt: skip
            grown = jnp.where(direction.at_boundary, GROWTH * c.radius, c.radius)
            new_radius = jnp.where(seen.poor, length / 4, jnp.where(seen.good, grown, c.radius))
            new_radius = jnp.where(jnp.isfinite(new_radius), new_radius, c.radius / 4)
            return _Run(
                radius=new_radius,
                trial=trial,
                step_norm=size,
                full_norm=jnp.where(c.trials == 0, whole, c.full_norm),
                promised=jnp.where(c.trials == 0, direction.promised, c.promised),
                scale=direction.scale,
                accepted=seen.accepted,
                moved=tree.max_abs(tree.subtract(there, at.params)) > 0,
                seen_finite=c.seen_finite | seen.finite,
                trials=c.trials + 1,
                counts=tally(c.counts, direction.counts, evaluate.price),
            )

        no = jnp.asarray(False)
        zero = jnp.zeros((), dtype)
        run = lax.while_loop(
            running,
            body,
            _Run(
                state, at, zero, zero, zero, zero, no, ~no, no, jnp.asarray(0, jnp.int32),
                times(0, Counts()),
            ),
        )  # fmt: skip
        end = tree.where(run.accepted, run.trial, at)
        failed = jnp.where(run.seen_finite, Status.STALLED.value, Status.NOT_FINITE.value)
        return Search(
            params=end.params,
            next=end if gradients else None,
            step_size=run.radius,
            step_norm=jnp.where(run.accepted, run.step_norm, 0),
            full_norm=run.full_norm,
            promised=run.promised,
            scale=run.scale,
            accepted=run.accepted,
            state=run.radius,
            counts=run.counts,
            status=jnp.where(run.accepted, Status.RUNNING.value, failed).astype(jnp.int32),
        )

    return Globalize(init, search)
