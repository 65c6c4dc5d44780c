"""The trials of a step whose length a bound keeps: propose, evaluate, judge, adjust the bound.

The bound is a trust region's radius or a cubic model's weight. It is adjusted within one step, with
one model: a rejected trial costs its evaluation and a new proposal, not a new linearisation or
factorisation.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Scalar, Status, tally, times, tree
from optikit.globalize.search import Propose, Search, Trials, Verdict, secant_left
from optikit.linalg import Direction


class Judged(NamedTuple):
    """What became of a trial."""

    seen: Verdict
    bound: Scalar  # of the next proposal
    cut: Bool[Array, ""]  # whether this bound shortened the step


Judge = Callable[[Scalar, Direction, Scalar, Eval], Judged]
"""(bound, direction proposed, its length in the region's norm, evaluation) -> Judged."""


class _Run(NamedTuple):
    bound: Scalar
    trial: Eval
    step_norm: Scalar
    full_norm: Scalar
    promised: Scalar
    scale: Scalar
    accepted: Bool[Array, ""]
    moved: Bool[Array, ""]  # the last trial was another point, to rounding
    seen_finite: Bool[Array, ""]
    left: Scalar
    trials: Int[Array, ""]
    counts: Counts


def search_in_region(
    oracle: Oracle,
    at: Eval,
    propose: Propose,
    bound: Scalar,
    judge: Judge,
    *,
    evaluate: Trials,
    max_trials: int,
) -> Search:
    """Trials until one is accepted, `max_trials` are over, or a step no longer moves the point.

    Returns: a Search whose state and step size are the last bound; a step that was given up is
    STALLED, or NOT_FINITE where no trial was finite.
    """
    dtype = at.value.dtype

    def running(c: _Run) -> Array:
        return ~c.accepted & (c.trials < max_trials) & c.moved

    def body(c: _Run) -> _Run:
        direction = propose(c.bound)
        size = tree.norm(direction.step).astype(dtype)
        length = size if direction.length is None else direction.length
        there = tree.add_scaled(at.params, 1.0, direction.step)
        trial = evaluate(oracle, there, at)
        seen, bound, cut = judge(c.bound, direction, length, trial)
        moved = tree.max_abs(tree.subtract(there, at.params)) > 0
        # of a whole step below the parameters' rounding no trial tells: the model has to
        whole = (c.trials == 0) & ~moved & ~cut
        return _Run(
            bound=bound,
            trial=trial,
            step_norm=size,
            full_norm=jnp.where(c.trials == 0, jnp.where(cut, jnp.inf, size), c.full_norm),
            promised=jnp.where(c.trials == 0, direction.promised, c.promised),
            scale=direction.scale,
            accepted=seen.accepted,
            moved=moved,
            seen_finite=c.seen_finite | seen.finite,
            left=secant_left(at, trial, jnp.where(whole, direction.promised, c.left)),
            trials=c.trials + 1,
            counts=tally(c.counts, direction.counts, evaluate.price),
        )

    no, zero = jnp.asarray(False), jnp.zeros((), dtype)
    none, free = jnp.asarray(0, jnp.int32), times(0, Counts())
    inf = jnp.full((), jnp.inf, dtype)
    start = _Run(bound, at, zero, zero, zero, zero, no, ~no, no, inf, none, free)
    run = lax.while_loop(running, body, start)
    end = tree.where(run.accepted, run.trial, at)
    failed = jnp.where(run.seen_finite, Status.STALLED.value, Status.NOT_FINITE.value)
    return Search(
        params=end.params,
        next=end if evaluate.gradients else None,
        step_size=run.bound,
        step_norm=jnp.where(run.accepted, run.step_norm, 0),
        full_norm=run.full_norm,
        promised=run.promised,
        scale=run.scale,
        accepted=run.accepted,
        state=run.bound,
        counts=run.counts,
        status=jnp.where(run.accepted, Status.RUNNING.value, failed).astype(jnp.int32),
        left=run.left,
    )
