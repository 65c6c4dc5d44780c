"""Armijo backtracking with safeguarded quadratic interpolation.

Near the rounding floor, where differences of values are noise, a trial with gradients is also
accepted by its slope (Hager & Zhang's approximate Wolfe condition); NaN and infinite trials are
shortened like any other failure. How large the noise is the search finds out where it must: steps
too short to change the value show it. It may be far above the last place of the value, which can be
what is left of much larger terms. Then the whole step is tried once more.

References: Nocedal & Wright (2006), Algorithm 3.1 and section 3.5; Hager & Zhang (2005), eq. 4.1.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from optikit.calculus import Eval, Oracle
from optikit.core import memoized, tree
from optikit.globalize.search import (
    Globalize,
    Propose,
    Search,
    Trials,
    along_line,
    is_finite,
    noise,
    secant_left,
)
from optikit.linalg.subproblem import unlimited

SAMPLE = 4
"""What one sample of noise is multiplied by to bound the others."""


class _Run(NamedTuple):
    t: Array
    trial: Eval
    accepted: Bool[Array, ""]
    seen_finite: Bool[Array, ""]
    left: Array  # as in Search
    trials: Int[Array, ""]
    noise: Array  # of the value, as far as it is known
    again: Bool[Array, ""]  # the whole step is tried next, by the noise just measured
    tried_again: Bool[Array, ""]


@memoized
def backtracking(
    *,
    c1: float = 1e-4,
    shrink_min: float = 0.1,
    shrink_max: float = 0.5,
    max_trials: int = 40,
    gradients: bool = True,
) -> Globalize:
    """The first t in 1, t1, t2, ... with f(x + t d) <= f(x) - c1 (model decrease at t).

    The model decrease is -t <g, d>, plus -t^2 <d, H d> / 2 where that curvature is negative.

    Args:
      c1: sufficient decrease, in (0, 1/2).
      shrink_min, shrink_max: bounds on each reduction of t.
      max_trials: trials before Status.LINE_SEARCH_FAILED.
      gradients: evaluate gradients with the values; see `Trials`.

    Returns: a Globalize costing one grad (or value) per trial.
    """
    trials = Trials(gradients)

    def search(oracle: Oracle, at: Eval, propose: Propose, state: tuple) -> Search:
        direction = propose(unlimited(at.value))
        dtype = at.value.dtype
        slope = direction.slope
        bend = jnp.minimum(direction.curvature, 0) / 2
        slack = noise(at.value)
        ahead, here = (tree.norm(v).astype(dtype) for v in (direction.step, at.params))
        # of the direction, and of the parameters: one far too long shows no noise, but curvature
        short = tree.eps(dtype) ** 0.5 * jnp.minimum(1, here / jnp.where(ahead > 0, ahead, 1))
        # of a whole step below the parameters' rounding no trial tells: the model has to
        left = jnp.where(ahead <= tree.eps(dtype) * here, direction.promised, jnp.inf)

        def running(c: _Run) -> Array:
            return ~c.accepted & (c.trials < max_trials)

        def body(c: _Run) -> _Run:
            whole = (c.trials == 0) | c.again
            t = jnp.where(whole, 1, _shorter(c.t, at.value, slope, c.trial.value)).astype(dtype)
            trial = trials(oracle, tree.add_scaled(at.params, t, direction.step), at)
            finite = is_finite(trial, with_gradient=gradients)
            rise = trial.value - at.value
            # a smooth function changes by its slope times t: what does not shrink with t is noise
            shown = (t <= short) & finite
            heard = jnp.where(shown, jnp.maximum(c.noise, SAMPLE * jnp.abs(rise)), c.noise)
            enough = rise <= c1 * (t * slope + t**2 * bend)
            if gradients:
                # (2 c1 - 1) slope >= slope at t: implied by Armijo on a quadratic, but free of f
                there = tree.vdot(trial.grad, direction.step).astype(dtype)
                flatter = (there <= (2 * c1 - 1) * slope) & (there >= 0.9 * slope)
                enough |= (rise <= jnp.where(c.again, c.noise, slack)) & flatter & (slope < 0)
            again = shown & (heard > slack) & ~c.tried_again if gradients else c.again
            return _Run(
                t, trial, finite & enough, c.seen_finite | finite,
                secant_left(at, trial, c.left), c.trials + 1, heard, again, c.tried_again | again,
            )  # fmt: skip

        def _shorter(t, f0, slope, f_t):
            best = -slope * t**2 / (2 * (f_t - f0 - slope * t))
            safe = jnp.isfinite(best) & jnp.isfinite(f_t)
            return jnp.clip(jnp.where(safe, best, shrink_min * t), shrink_min * t, shrink_max * t)

        one = jnp.ones((), dtype)
        no = jnp.asarray(False)
        none = jnp.asarray(0, jnp.int32)
        run = lax.while_loop(running, body, _Run(one, at, no, no, left, none, slack, no, no))
        return along_line(
            at, direction, run.trial, run.t, run.accepted, run.seen_finite, run.trials, trials,
            left=run.left, state=state, noise=run.noise,
        )  # fmt: skip

    return Globalize(lambda at: (), search)
