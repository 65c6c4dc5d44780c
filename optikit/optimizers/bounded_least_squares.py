"""Levenberg-Marquardt within a box, by active sets on the damped model.

At a point on the boundary the parameters that the gradient presses against their bounds are held:
their columns of J are struck out. The others take a Levenberg-Marquardt step. Where it leaves the
box, the parameters that left are set on their bounds, the model is shifted accordingly and the rest
is solved again, until everything fits: so the solution lies exactly on the bounds where it belongs
there. A smaller radius turns the step towards the projected gradient.

Converged means the first-order conditions: the residual is orthogonal to the columns of all
parameters that are not pressed against a bound, and the full step promises nothing; or that step no
longer moves the parameters.

References: Kanzow, Yamashita & Fukushima (2004), "Levenberg-Marquardt methods with strong local
convergence properties for solving nonlinear equations with convex constraints", algorithm 3.3;
Bertsekas (1982), "Projected Newton methods", section 2; Conn, Gould & Toint (2000), section 12.1.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Box, Counts, Key, Scalar, Status, memoized, tally, tree
from optikit.core.tree import HIGHEST
from optikit.linalg.damped_step import LinearModel, norm, scaled_by, within
from optikit.linalg.least_squares import column_norms
from optikit.optimizers.damping import Trial, by_ratio
from optikit.optimizers.levenberg_marquardt import (
    IDLE_STEPS,
    PATIENCE,
    LevenbergMarquardtState,
    alive,
    evaluate,
    initial,
    rounding,
    vanished,
)
from optikit.optimizers.protocol import Bounded, Optimizer, StepInfo

NAME = "bounded-levenberg-marquardt"


class _Boxed(NamedTuple):
    """A step of the damped model that stays within the box."""

    held: Bool[Array, " n"]  # on a bound, or about to be set there
    goal: Float[Array, " n"]  # where the held ones end
    step: Float[Array, " n"]  # D s
    damping: Scalar
    rounds: Int[Array, ""]
    done: Bool[Array, ""]


@memoized
def bounded_levenberg_marquardt(
    *, radius: float = 1.0, accept: float = 1e-4, tol: float | None = None, max_trials: int = 60
) -> Bounded:
    """Levenberg-Marquardt within bounds, for `least_squares`.

    Args:
      radius, accept, tol, max_trials: as for `levenberg_marquardt`.

    Cost per step: as `levenberg_marquardt`, once for each time that parameters reach their bounds.

    Example:
      >>> import optikit as ok
      >>> sol = ok.least_squares(lambda x: x - 2.0, jnp.zeros(2), bounds=(0.0, 1.0),
      ...                        method=bounded_levenberg_marquardt(radius=0.1))
      >>> sol.params.tolist()
      [1.0, 1.0]
    """

    def inside(box: Box) -> Optimizer:
        return _inside(box, radius, accept, tol, max_trials)

    return Bounded(inside, NAME)


def _inside(
    box: Box, radius: float, accept: float, tol: float | None, max_trials: int
) -> Optimizer:
    rule = by_ratio(radius)

    def measure(at: Eval) -> Scalar:
        return box.stationarity(at.params, at.grad).astype(at.value.dtype)

    def step(oracle: Oracle, at: Eval, state: LevenbergMarquardtState, key: Key):
        del key
        params, unravel = ravel_pytree(at.params)
        dtype = at.value.dtype
        x, lower, upper = (v.astype(dtype) for v in (params, *map(tree.ravel, box)))
        tolerance = (1e-10 if params.dtype.itemsize > 4 else 1e-4) if tol is None else tol
        known = jnp.maximum(state.scaling, column_norms(at.local.upper))
        d = jnp.where(known > 0, known, 1)
        reach = tree.norm(known * x).astype(dtype)
        bound = jnp.where(jnp.isfinite(state.control), state.control, rule.first(reach))
        pressed = _pressed(at, lower, upper)
        boxed = _within_box(at.local, x, d, lower, upper, pressed, bound)
        size = norm(boxed.step).astype(dtype)
        moved = jnp.matmul(at.local.upper, boxed.step / d, precision=HIGHEST)
        slope = jnp.vdot(at.local.projected, moved, precision=HIGHEST)
        predicted = -(slope + jnp.vdot(moved, moved, precision=HIGHEST) / 2).astype(dtype)
        inside = jnp.clip(x + boxed.step / d, lower, upper)
        vector = jnp.where(boxed.held, boxed.goal, inside)
        point = unravel(vector.astype(params.dtype))
        value = oracle.value(point)

        full = boxed.damping <= 0
        before, length = _slope(at, pressed), jnp.sqrt(2 * at.value)
        over = (before <= tolerance * length) & full & (predicted <= tolerance**2 * at.value)
        over |= vanished(at)
        actual, finite = at.value - value, jnp.isfinite(value)
        noise = rounding(at)
        in_noise = (jnp.abs(actual) <= noise.trial) & (predicted <= noise.trial)
        falls = (predicted > 0) & (actual >= accept * predicted)
        accepted = finite & (falls | in_noise) & ~over
        still = (state.rejected == 0) & full & (size <= tolerance * reach)
        new, counts = lax.cond(
            accepted, lambda: _paid(oracle, point), lambda: (at, tally(Counts()))
        )

        after = _slope(new, _pressed(new, lower, upper))
        fell = accepted & ~in_noise & (actual > 1e3 * noise.trial)
        helped = accepted & (fell | (after <= 0.9 * jnp.minimum(before, state.least)))
        useless = accepted & in_noise & (actual <= noise.value)
        idle = jnp.where(helped, 0, state.idle + jnp.where(useless, 1, 0))
        steeper = (after > before) & (actual <= 0)
        trial = Trial(size, actual, predicted, finite, in_noise, accepted, full, steeper)
        bound, growth = rule.judge(bound, state.growth, trial)
        rejected = jnp.where(accepted, 0, state.rejected + 1)

        promised = jnp.where(full, predicted, jnp.sum(at.local.projected**2).astype(dtype) / 2)
        resolved = (promised <= noise.value) & ((idle >= PATIENCE) | (rejected >= 3))
        drifting = idle >= IDLE_STEPS
        least_slope = jnp.minimum(state.least, after)
        nearly = (promised <= 8 * noise.trial) | (least_slope**2 <= noise.trial)
        exhausted = resolved | (drifting & nearly)
        scaling = jnp.maximum(known, column_norms(new.local.upper))
        # a parameter on its bound may well take the influence of others away
        lives = alive(new, scaling) | jnp.any(pressed)
        converged = over | still
        seen_finite = state.seen_finite | finite
        failed = jnp.where(seen_finite, Status.STALLED.value, Status.NOT_FINITE.value)
        ended = drifting | (rejected >= max_trials) | (~lives & (converged | exhausted))
        status = jnp.where(ended, failed, Status.RUNNING.value)
        status = jnp.where(lives & exhausted, Status.CONVERGED_TO_PRECISION.value, status)
        status = jnp.where(lives & converged, Status.CONVERGED.value, status).astype(jnp.int32)
        moved_by = jnp.where(accepted, tree.norm(vector - x), 0).astype(dtype)
        # never what the loop takes for rounding: this method judges that itself, by the slope
        reported = jnp.where(lives, jnp.maximum(promised, 2 * noise.value), jnp.inf)
        info = StepInfo(
            step_norm=moved_by,
            accepted=accepted,
            counts=tally(Counts(value=1), counts),
            predicted=reported,
            status=status,
            extras={"damping": boxed.damping, "control": bound},
        )
        least = jnp.where(fell, jnp.inf, least_slope)
        state = LevenbergMarquardtState(
            bound, growth, scaling, least, idle, rejected, seen_finite & ~accepted
        )
        return new.params, new, state, info

    return Optimizer(
        initial,
        step,
        evaluate=evaluate,
        measure=measure,
        monotone=True,
        name=NAME,
        patience=max_trials + 10,
    )


def _paid(oracle: Oracle, params) -> tuple[Eval, Counts]:
    at, counts = evaluate(oracle, params)
    return at, tally(counts)


def _pressed(at: Eval, lower: Array, upper: Array) -> Bool[Array, " n"]:
    """The parameters that steepest descent would push out of the box, or that cannot move."""
    x, g = tree.ravel(at.params), tree.ravel(at.grad)
    return ((x <= lower) & (g > 0)) | ((x >= upper) & (g < 0)) | (lower >= upper)


def _slope(at: Eval, pressed: Bool[Array, " n"]) -> Scalar:
    """max_j |J_j^T r| / |J_j| over the parameters that may move."""
    norms = column_norms(at.local.upper)
    slopes = jnp.abs(tree.ravel(at.grad)) / jnp.where(norms > 0, norms, 1)
    return jnp.max(jnp.where(pressed, 0, slopes), initial=0).astype(at.value.dtype)


def _within_box(
    model: LinearModel,
    x: Float[Array, " n"],
    d: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
    pressed: Bool[Array, " n"],
    radius: Scalar,
) -> _Boxed:
    """The damped step with `pressed` held, and with whatever leaves the box set on its bound."""

    def running(c: _Boxed) -> Array:
        return ~c.done & (c.rounds <= x.size)

    def body(c: _Boxed) -> _Boxed:
        fixed = jnp.where(c.held, (c.goal - x) * d, 0)
        shifted = model.projected + jnp.matmul(model.upper, fixed / d, precision=HIGHEST)
        struck = LinearModel(jnp.where(c.held[None, :], 0, model.upper), shifted)
        scaled = scaled_by(struck, d)
        damped = within(scaled, shifted, radius)
        step = jnp.where(c.held, fixed, scaled.lift(damped.step))
        target = x + step / d
        leaves = ~c.held & ((target < lower) | (target > upper))
        goal = jnp.where(leaves, jnp.clip(target, lower, upper), c.goal)
        return _Boxed(c.held | leaves, goal, step, damped.damping, c.rounds + 1, ~jnp.any(leaves))

    zero = jnp.zeros((), x.dtype)
    start = _Boxed(
        pressed, x, jnp.zeros_like(x), zero, jnp.asarray(0, jnp.int32), jnp.asarray(False)
    )
    return lax.while_loop(running, body, start)
