"""Hager and Zhang's line search as one machine: expand, bisect, secant, second secant.

Every pass evaluates the value and gradient at one trial, so the compiled program holds the
objective once. The trial replaces an end of the interval [low, high] (their `update`): `low` has a
downhill slope and a value not above the start's, `high` an uphill slope, or, while it is `steep`, a
value too high or not finite, in which case the interval is bisected. Minimisers are found by
secants of the slopes, which stay accurate where differences of values are rounding noise.

Differences: the error estimate of the values is their rounding error, not 1e-6 |f|, so that the
search is monotone; the curvature condition is the strong one; an expansion follows the secant of
the slopes within its bounds, which also is the parabola of their rule I1.

References: Hager & Zhang (2005), "A new conjugate gradient method with guaranteed descent and an
efficient line search", section 4; (2006), Algorithm 851, for the rules I0 to I2.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Params, Scalar, memoized, tree
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

BISECTION, FIRST_SECANT, SECOND_SECANT = 0, 1, 2
PSI0, PSI1, PSI2 = 0.01, 0.1, 2.0
"""Of the rules I0 to I2: first step over |x| / |g|, the probe's and the next trial's last step."""


class _Point(NamedTuple):
    t: Scalar
    slope: Scalar


class _Run(NamedTuple):
    t: Scalar  # the next trial
    kind: Int[Array, ""]  # what it is
    low: _Point
    high: _Point
    steep: Bool[Array, ""]
    width: Scalar  # of the interval when this round of secants began
    best: Eval  # the trial that met the conditions, or the lowest
    best_t: Scalar
    met: Bool[Array, ""]
    done: Bool[Array, ""]
    seen_finite: Bool[Array, ""]
    left: Scalar
    trials: Int[Array, ""]


@memoized
def hager_zhang(
    *,
    c1: float = 0.1,
    c2: float = 0.9,
    max_trials: int = 40,
    growth: float = 5.0,
    shrink: float = 0.66,
    start: Literal["unit", "previous"] = "unit",
) -> Globalize:
    """T with a sufficient decrease, by value or by slope, and |slope at t| <= c2 |slope at 0|.

    By value: f(x + t d) <= f(x) + c1 t <g, d>. By slope (approximate Wolfe), where the value did
    not rise beyond rounding: slope at t <= (2 c1 - 1) <g, d>.

    Args:
      c1, c2: with 0 < c1 < 1/2 and c1 <= c2 < 1; 0.1 for c2 makes the search nearly exact.
      max_trials: trials before the lowest point found is taken, or, if there was none,
        Status.LINE_SEARCH_FAILED.
      growth: bound on each expansion.
      shrink: the interval is bisected if a round of secants leaves more than this part of it.
      start: "unit" tries t = 1, for directions with a length of their own; "previous" follows the
        rules I0 (first step from the sizes of x and g), I1 and I2 (from the last step taken), for
        conjugate gradients.

    Returns: a Globalize costing one grad per trial; the accepted point is already evaluated. Its
    state is the last step taken, 0 at first.
    """
    evaluate = Trials(gradients=True)

    def init(at: Eval) -> Scalar:
        return jnp.zeros((), at.value.dtype)

    def search(oracle: Oracle, at: Eval, propose: Propose, state: Scalar) -> Search:
        direction = propose(unlimited(at.value))
        d = direction.step
        # along negative curvature the second order has its say; on a saddle the only one
        slope = direction.slope + jnp.minimum(direction.curvature, 0) / 2
        dtype = at.value.dtype
        slack = noise(at.value)
        probing = (state > 0) if start == "previous" else jnp.asarray(False)

        def running(c: _Run) -> Array:
            return ~c.done & (c.trials < max_trials)

        def body(c: _Run) -> _Run:
            trial = evaluate(oracle, tree.add_scaled(at.params, c.t, d), at)
            finite = is_finite(trial, with_gradient=True)
            here = _Point(c.t, tree.vdot(trial.grad, d).astype(dtype))
            rise = trial.value - at.value
            decreased = rise <= c1 * c.t * slope
            decreased |= (rise <= slack) & (here.slope <= (2 * c1 - 1) * slope)
            met = finite & decreased & (jnp.abs(here.slope) <= -c2 * slope)
            better = met | (finite & (trial.value < c.best.value))
            is_low = finite & (rise <= slack) & (here.slope < 0)
            low, high = tree.where(is_low, (here, c.high), (c.low, here))
            steep = jnp.where(is_low, c.steep, ~(finite & (here.slope >= 0)))
            wide = growth if start == "unit" else jnp.where(
                probing & (c.trials == 0), PSI2 / PSI1, growth
            ).astype(dtype)  # fmt: skip
            replaced = tree.where(is_low, c.low, c.high)
            t, kind = _next(c, low, high, steep, replaced, here, finite, wide, shrink)
            stuck = ~((t > low.t) & (t < high.t))
            return _Run(
                t=t,
                kind=kind,
                low=low,
                high=high,
                steep=steep,
                width=jnp.where(kind == FIRST_SECANT, high.t - low.t, c.width),
                best=tree.where(better, trial, c.best),
                best_t=jnp.where(better, c.t, c.best_t),
                met=met,
                done=met | stuck,
                seen_finite=c.seen_finite | finite,
                left=line_left(slope, here.slope, here.t, c.left),
                trials=c.trials + 1,
            )

        first = jnp.ones((), dtype)
        if start == "previous":
            first = jnp.where(probing, PSI1 * state, _rule_zero(at, d, slope)).astype(dtype)
        zero, inf = jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype)
        no, none = jnp.asarray(False), jnp.asarray(0, jnp.int32)
        descent = slope < 0
        run = lax.while_loop(
            running,
            body,
            _Run(
                first, none, _Point(zero, slope), _Point(inf, zero), no, inf,
                at, zero, no, ~descent, no, inf, none,
            ),
        )  # fmt: skip
        # without both conditions, a decrease that is more than rounding has to do
        lower = run.best.value <= at.value + c1 * run.best_t * slope
        accepted = run.met | ((run.best_t > 0) & lower & (run.best.value < at.value))
        return along_line(
            at, direction, run.best, run.best_t, accepted, run.seen_finite | ~descent, run.trials,
            evaluate, left=run.left, state=jnp.where(accepted, run.best_t, state),
        )  # fmt: skip

    return Globalize(init, search)


def _next(
    c: _Run,
    low: _Point,
    high: _Point,
    steep: Bool[Array, ""],
    replaced: _Point,
    here: _Point,
    finite: Bool[Array, ""],
    growth: Scalar | float,
    shrink: float,
) -> tuple[Scalar, Int[Array, ""]]:
    """The next trial and its kind, once the last one has taken its end of the interval."""
    open_ended = jnp.isinf(high.t)
    width = high.t - low.t
    second = _secant(replaced, here)
    inside = (second > low.t) & (second < high.t)
    again = (c.kind == FIRST_SECANT) & inside & ~steep
    slow = (c.kind != BISECTION) & (width > shrink * c.width)
    bisect = steep | (~again & slow)
    t = jnp.where(again, second, _secant(low, high))
    t = jnp.where(bisect | ~((t > low.t) & (t < high.t)), low.t + width / 2, t)
    t = jnp.where(steep & ~finite, low.t + width / 10, t)
    ahead = jnp.where(jnp.isfinite(second) & (second > here.t), second, growth * here.t)
    t = jnp.where(open_ended, jnp.clip(ahead, 1.2 * here.t, growth * here.t), t)
    kind = jnp.where(again, SECOND_SECANT, FIRST_SECANT)
    return t, jnp.where(open_ended | bisect, BISECTION, kind).astype(jnp.int32)


def _secant(p: _Point, q: _Point) -> Scalar:
    """Where the slope vanishes on the line through two of its values."""
    return p.t - p.slope * ((q.t - p.t) / (q.slope - p.slope))


def _rule_zero(at: Eval, direction: Params, slope: Scalar) -> Scalar:
    """I0: a hundredth of |x| / |g|, or of |f| / |g|^2 at the origin, or 1, for the direction -g."""
    dtype = at.value.dtype
    x, size = tree.max_abs(at.params).astype(dtype), tree.max_abs(direction).astype(dtype)
    by_value = PSI0 * jnp.abs(at.value / slope)
    first = jnp.where(x > 0, PSI0 * x / size, jnp.where(at.value != 0, by_value, 1))
    return jnp.where(jnp.isfinite(first) & (first > 0), first, 1)
