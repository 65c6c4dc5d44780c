"""What a globalisation returns, and the tests that line searches share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Params, Scalar, Status, tally, times, tree
from optikit.linalg import Direction

Propose = Callable[[Scalar], Direction]  # radius -> direction


class Search(NamedTuple):
    """The outcome of a search from a point.

    Attributes:
      params: where it ended; the starting point if nothing was accepted.
      next: the evaluation there if the search paid for it, else a static None.
      step_size: the factor on the direction, or the trust radius.
      step_norm: |params - starting params|.
      full_norm: the length of the whole direction, before any cut; infinite if a radius cut it.
      promised: the decrease down to the model's minimum, `Direction.promised`.
      scale: `Direction.scale`, for the next step's inner solver.
      accepted: whether it moved.
      state: for the next search.
      counts: of directions and evaluations.
      status: RUNNING, or why it failed.
      left: what the line of the last trial holds from the start down to its minimum, by the slopes
        at both; as promised, of a whole step that moves nothing; infinite where no trial tells.
      noise: the change of the value that rounding was seen to cause; a static None where the search
        does not look.
    """

    params: Params
    next: Eval | None
    step_size: Scalar
    step_norm: Scalar
    full_norm: Scalar
    promised: Scalar
    scale: Scalar
    accepted: Bool[Array, ""]
    state: Any
    counts: Counts
    status: Int[Array, ""]
    left: Scalar
    noise: Scalar | None = None


class Globalize(NamedTuple):
    """A globalisation: `init(at)` gives its state, `search` a Search.

    search: (oracle, at, propose, state) -> Search, where propose(radius) gives a Direction.
    """

    init: Callable[[Eval], Any]
    search: Callable[[Oracle, Eval, Propose, Any], Search]


class Trials(NamedTuple):
    """What a trial point evaluates: `evaluate(oracle, params)` and its price.

    With gradients a search can recognise progress near the rounding floor by the slope, and the
    accepted point needs no second evaluation; values alone are cheaper for each rejected trial.
    """

    gradients: bool

    def __call__(self, oracle: Oracle, params: Params, like: Eval) -> Eval:
        """The evaluation of a trial; without gradients, `like`'s stands in its place."""
        if self.gradients:
            return oracle.value_and_grad(params)._replace(local=like.local)
        return like._replace(params=params, value=oracle.value(params))

    @property
    def price(self) -> Counts:
        """Of one trial."""
        return Counts(grad=1) if self.gradients else Counts(value=1)


def noise(value: Scalar) -> Scalar:
    """The change of an objective that rounding alone can cause, a few units in the last place."""
    return 4 * tree.eps(value.dtype) * jnp.abs(value)


def resolution(at: Eval) -> Scalar:
    """The change of an objective that rounding its value or its parameters can cause."""
    rounded = jax.tree.map(lambda x: 4 * tree.eps(x.dtype) * jnp.abs(x), at.params)
    moved = tree.vdot(jax.tree.map(jnp.abs, at.grad), rounded).astype(at.value.dtype)
    return noise(at.value) + jnp.where(jnp.isfinite(moved), moved, 0)


def line_left(slope: Scalar, there: Scalar, t: Scalar, before: Scalar | float) -> Scalar:
    """The decrease down to the minimum of a line, by its slopes at 0 and at t: the secant's.

    Where they do not differ, as after a step too short to change anything, it is as `before`.
    """
    bend = jnp.abs(there - slope) / t
    return jnp.where(jnp.isfinite(bend) & (bend > 0), slope * (slope / (2 * bend)), before)


def secant_left(at: Eval, trial: Eval, before: Scalar | float) -> Scalar:
    """`line_left` on the line from one evaluation to another."""
    s, dtype = tree.subtract(trial.params, at.params), at.value.dtype
    slope, there = (tree.vdot(x.grad, s).astype(dtype) for x in (at, trial))
    return line_left(slope, there, jnp.ones((), dtype), before)


def is_finite(at: Eval, *, with_gradient: bool) -> Bool[Array, ""]:
    """Whether the evaluation can be used."""
    finite = jnp.isfinite(at.value)
    return finite & tree.all_finite(at.grad) if with_gradient else finite


class Verdict(NamedTuple):
    """How far a trial kept the model's promise."""

    accepted: Bool[Array, ""]
    good: Bool[Array, ""]  # the model may be trusted farther
    poor: Bool[Array, ""]  # less far
    in_noise: Bool[Array, ""]  # promise and outcome are both rounding; the gradient did not grow
    finite: Bool[Array, ""]


def verdict(
    at: Eval,
    trial: Eval,
    predicted: Scalar,
    *,
    accept: float,
    shrink_below: float,
    grow_above: float,
    with_gradient: bool = True,
) -> Verdict:
    """Actual against predicted decrease, without a division, so that NaN is a rejection.

    Near the rounding floor, where both decreases are noise, a trial is accepted if it does not
    enlarge the gradient. Reference: Conn, Gould & Toint (2000), section 17.4.2.
    """
    slack = noise(at.value)
    finite = is_finite(trial, with_gradient=with_gradient)
    actual = at.value - trial.value
    calmer = tree.max_abs(trial.grad) <= tree.max_abs(at.grad)
    in_noise = finite & (jnp.abs(actual) <= slack) & (predicted <= slack) & calmer
    kept = finite & (actual >= accept * predicted) & (predicted > 0)
    good = finite & (actual >= grow_above * predicted) | in_noise
    poor = ~finite | ((actual < shrink_below * predicted) & ~in_noise)
    return Verdict(kept | in_noise, good, poor, in_noise, finite)


def search_status(accepted: Bool[Array, ""], any_finite: Bool[Array, ""]) -> Int[Array, ""]:
    """RUNNING after an accepted step; else whether the trials were finite at all."""
    failed = jnp.where(any_finite, Status.LINE_SEARCH_FAILED.value, Status.NOT_FINITE.value)
    return jnp.where(accepted, Status.RUNNING.value, failed).astype(jnp.int32)


def along_line(
    at: Eval,
    direction: Direction,
    reached: Eval,
    t: Scalar,
    accepted: Bool[Array, ""],
    seen_finite: Bool[Array, ""],
    trials: Int[Array, ""],
    evaluate: Trials,
    *,
    left: Scalar,
    state: Any = (),
    noise: Scalar | None = None,
) -> Search:
    """The Search of a line search that reached a point at t times a direction, accepted or not."""
    end = tree.where(accepted, reached, at)
    t = jnp.where(accepted, t, 0)
    full = tree.norm(direction.step).astype(at.value.dtype)
    return Search(
        params=end.params,
        next=end if evaluate.gradients else None,
        step_size=t,
        step_norm=t * full,
        full_norm=full,
        promised=direction.promised,
        scale=direction.scale,
        accepted=accepted,
        state=state,
        counts=tally(direction.counts, times(trials, evaluate.price)),
        status=search_status(accepted, seen_finite),
        left=left,
        noise=noise,
    )
