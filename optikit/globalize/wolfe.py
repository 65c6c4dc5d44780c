"""A line search for the strong Wolfe conditions: bracket, then zoom, in one loop.

Each pass evaluates the value and gradient at one trial, so the compiled program holds the objective
once. The interval [low, high] always holds a point that satisfies the conditions once `high` is
known; `low` is the best sufficient-decrease point so far and is what is returned if the budget of
trials ends first. Near the rounding floor the decrease is judged by slopes.

References: Nocedal & Wright (2006), Algorithms 3.5 and 3.6, eq. 3.59; Hager & Zhang (2005), eq.
4.1.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Scalar, memoized, tree
from optikit.core.loops import while_loop
from optikit.globalize.search import (
    Globalize,
    Propose,
    Search,
    Trials,
    along_line,
    is_finite,
    line_left,
    noise,
)
from optikit.linalg.subproblem import unlimited


class _Point(NamedTuple):
    """A point on the line: step length, value, slope."""

    t: Scalar
    f: Scalar
    slope: Scalar


class _Run(NamedTuple):
    t: Scalar  # the next trial
    low: _Point
    best: Eval  # the evaluation at low
    high: _Point
    bracketed: Bool[Array, ""]
    met: Bool[Array, ""]
    done: Bool[Array, ""]
    seen_finite: Bool[Array, ""]
    left: Scalar
    trials: Int[Array, ""]


@memoized
def wolfe(
    *, c1: float = 1e-4, c2: float = 0.9, max_trials: int = 30, growth: float = 10.0
) -> Globalize:
    """T with f(x + t d) <= f(x) + c1 t <g, d> and |<grad f(x + t d), d>| <= c2 |<g, d>|.

    Starts at t = 1 and may lengthen the direction.

    Args:
      c1, c2: with 0 < c1 < c2 < 1; c2 = 0.9 suits quasi-Newton, 0.1 nonlinear CG.
      max_trials: trials before the best decrease found is taken, or, if there was none,
        Status.LINE_SEARCH_FAILED.
      growth: bound on each extrapolation.

    Returns: a Globalize costing one grad per trial; the accepted point is already evaluated.
    """
    evaluate = Trials(gradients=True)

    def search(oracle: Oracle, at: Eval, propose: Propose, state: tuple) -> Search:
        direction = propose(unlimited(at.value))
        d = direction.step
        # along negative curvature the second order has its say; on a saddle the only one
        slope = direction.slope + jnp.minimum(direction.curvature, 0) / 2
        dtype = at.value.dtype
        slack = noise(at.value)
        zero, inf = jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype)

        def running(c: _Run) -> Array:
            return ~c.done & (c.trials < max_trials)

        def body(c: _Run) -> _Run:
            trial = evaluate(oracle, tree.add_scaled(at.params, c.t, d), at)
            finite = is_finite(trial, with_gradient=True)
            here = _Point(c.t, trial.value, tree.vdot(trial.grad, d).astype(dtype))
            rise = here.f - at.value
            flat = (rise <= slack) & (here.slope <= (2 * c1 - 1) * slope)
            decreased = finite & ((rise <= c1 * c.t * slope) | flat)
            worse = ~decreased | ((here.f > c.low.f + slack) & (c.low.t > 0))
            met = decreased & (jnp.abs(here.slope) <= -c2 * slope)
            # not worse: the trial becomes low; high moves to the old low if the slope turned
            away = jnp.where(c.bracketed, here.slope * (c.high.t - c.low.t) >= 0, here.slope >= 0)
            low = tree.where(worse, c.low, here)
            high = tree.where(worse, here, tree.where(away, c.low, c.high))
            best = tree.where(worse, c.best, trial)
            bracketed = c.bracketed | worse | away
            t = jnp.where(bracketed, _inside(low, high, finite), _beyond(c.low, here, growth))
            stuck = bracketed & (jnp.abs(high.t - low.t) <= tree.eps(dtype) * jnp.abs(low.t))
            return _Run(
                t,
                low,
                best,
                high,
                bracketed,
                met,
                met | stuck,
                c.seen_finite | finite,
                line_left(slope, here.slope, here.t, c.left),
                c.trials + 1,
            )

        start = _Point(zero, at.value, slope)
        no = jnp.asarray(False)
        descent = slope < 0
        run = while_loop(
            running,
            body,
            _Run(
                jnp.ones((), dtype), start, at, _Point(inf, inf, zero),
                no, no, ~descent, no, inf, jnp.asarray(0, jnp.int32),
            ),
        )  # fmt: skip
        # without both conditions, a decrease that is more than rounding has to do
        decreased = run.low.f <= at.value + c1 * run.low.t * slope
        accepted = run.met | ((run.low.t > 0) & decreased & (run.low.f < at.value))
        return along_line(
            at, direction, run.best, run.low.t, accepted, run.seen_finite | ~descent, run.trials,
            evaluate, left=run.left, state=state,
        )  # fmt: skip

    return Globalize(lambda at: (), search)


def _inside(low: _Point, high: _Point, finite: Bool[Array, ""]) -> Scalar:
    """The minimiser of the cubic through both ends, kept off the ends of the interval."""
    width = high.t - low.t
    d1 = low.slope + high.slope - 3 * (low.f - high.f) / (low.t - high.t)
    unit = jnp.maximum(jnp.abs(d1), jnp.maximum(jnp.abs(low.slope), jnp.abs(high.slope)))
    a, b, c = d1 / unit, low.slope / unit, high.slope / unit  # whose squares do not overflow
    root = unit * jnp.sqrt(a**2 - b * c) * jnp.sign(width)
    cubic = high.t - width * (high.slope + root - d1) / (high.slope - low.slope + 2 * root)
    fraction = (cubic - low.t) / width
    usable = finite & jnp.isfinite(fraction)
    fraction = jnp.where(usable, fraction, jnp.where(jnp.isfinite(high.f), 0.5, 0.1))
    return low.t + jnp.clip(fraction, 0.05, 0.95) * width


def _beyond(previous: _Point, here: _Point, growth: float) -> Scalar:
    """Farther along the line: where the secant of the slopes vanishes, within bounds."""
    secant = here.t - here.slope * (here.t - previous.t) / (here.slope - previous.slope)
    ahead = jnp.isfinite(secant) & (secant > here.t)
    return jnp.clip(jnp.where(ahead, secant, growth * here.t), 1.2 * here.t, growth * here.t)
