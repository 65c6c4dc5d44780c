"""Levenberg-Marquardt in Moré's form: a scaled trust region, solved on the stacked system.

The linear model, factorised once per Jacobian, and its damped steps are those of
`optikit.linalg.damped_step`; how much they are damped is a rule of `optikit.optimizers.damping`. D
holds the largest column norms of J seen (Marquardt's scaling: the iterates do not depend on the
units of the parameters).

A step is one trial: a rejected one (NaN and infinity included) leaves the point and shrinks the
radius. So the lanes of a batch never wait for the trials of another, and between steps a problem
is no more than R and Q^T r.

The step itself recognises the end, by scale-free tests on the undamped Gauss-Newton model: the
residual is orthogonal to the range of J (|Q^T r| <= tol |r|), or the full step no longer moves the
scaled parameters (|D s| <= tol |D x|). The decrease of the objective is lost in its rounding when
half the digits of the parameters are still missing; from there on the slope J^T r, which is not,
says whether steps still help. See `Noise`.

With geodesic acceleration a step s is bent by a / 2, a the damped step for the residuals' second
derivative r''[s, s]: the path that would be straight in the residuals. Where the bend is not small
against the step, the model has been left and the trial is a failure, unseen.

References: Moré (1978), "The Levenberg-Marquardt algorithm: implementation and theory"; Nocedal &
Wright (2006), section 10.3; Dennis & Schnabel (1983), section 7.2 for the tests; Transtrum &
Sethna (2012), "Improvements to the Levenberg-Marquardt algorithm for nonlinear least-squares
minimization", section 3 for the acceleration.
"""

from typing import NamedTuple, get_args

import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Key, Params, Scalar, Status, memoized, tally, tree
from optikit.linalg.damped_step import (
    Damped,
    Scaled,
    corrected,
    decrease,
    linear_model,
    norm,
    scaled_by,
)
from optikit.linalg.least_squares import column_norms, evaluate_residuals
from optikit.optimizers.damping import Damping, Trial, by_nielsen, by_ratio
from optikit.optimizers.protocol import Optimizer, StepInfo

IDLE_STEPS = 20
"""Steps in the rounding noise that do not lower the slope by a tenth, after which it is over."""

PATIENCE = 5
"""The same, where the model promises no more than the rounding of the objective."""


class LevenbergMarquardtState(NamedTuple):
    """What the next step needs."""

    control: Scalar  # the bound on |D s|, or the damping; infinite before the first step
    growth: Scalar  # of the damping at the next rejection
    scaling: Float[Array, " n"]  # D, the largest column norms so far
    least: Scalar  # the smallest `steepest_slope` since the objective last fell beyond its noise
    idle: Int[Array, ""]  # steps in the noise since that was last lowered
    rejected: Int[Array, ""]  # trials since the last accepted one
    seen_finite: Bool[Array, ""]  # whether one of those was finite


class Noise(NamedTuple):
    """What rounding alone can do at a point x with residuals r.

    A model cannot tell parameters apart that differ by an ulp: r is uncertain by about
    eps |[J_j x_j]| besides the rounding of its own sum, however small r itself is.
    """

    value: Scalar  # of a sum of squares, from its additions alone
    trial: Scalar  # of the difference of two values, from uncertain residuals as well
    projected: Scalar  # of |Q^T r|


FIRST_DAMPING = 1e-3
"""Of Nielsen's rule, in units of the squared columns of J."""

BENT = 0.75
"""The largest |a| / |s| at which a step is still in the range of its model."""


@memoized
def levenberg_marquardt(
    *,
    damping: Damping = "ratio",
    acceleration: bool = False,
    radius: float = 1.0,
    accept: float = 1e-4,
    tol: float | None = None,
    max_trials: int = 60,
) -> Optimizer:
    """Levenberg-Marquardt for sums of squares, dense.

    For `residuals(...)`, robust or not, and `composite(predict, squared_error)` with at most an L2
    penalty.

    Args:
      damping: "ratio" or "nielsen"; see `optikit.optimizers.damping`.
      acceleration: geodesic acceleration: fewer steps along curved valleys, each dearer.
      radius: the first trust radius, in units of |D params| (or 1 where that is 0), for "ratio".
        Much more lets the first step leave for a plateau from which there is no way back.
      accept: least ratio of actual to predicted decrease.
      tol: of the tests above; by default 1e-10 in float64 and 1e-4 in float32.
      max_trials: consecutive rejections before the method has stalled.

    Cost per step: one value and, if it is accepted, one jacobian with 2 m n^2 flops; 1 to 4
    orthogonalisations of a (2 n, n) matrix. With n > m: 2 n m^2 flops and those of a (2 m, m) one.
    Acceleration adds two jvps and one vjp of the residuals.

    Raises:
      ValueError: an unknown damping.

    Example:
      >>> import optikit as ok
      >>> fun = lambda x: jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])
      >>> bent = levenberg_marquardt(acceleration=True)
      >>> sols = [ok.least_squares(fun, jnp.array([-1.2, 1.0]), method=m)
      ...         for m in (levenberg_marquardt(), bent)]
      >>> bool(sols[0].success & sols[1].success), bool(sols[1].steps < sols[0].steps)
      (True, True)
    """
    if damping not in get_args(Damping):
        msg = f"damping must be one of {get_args(Damping)}; got {damping!r}."
        raise ValueError(msg)
    rule = by_ratio(radius) if damping == "ratio" else by_nielsen(FIRST_DAMPING)

    def step(oracle: Oracle, at: Eval, state: LevenbergMarquardtState, key: Key):
        del key
        x, unravel = ravel_pytree(at.params)
        dtype = at.value.dtype
        tolerance = (1e-10 if x.dtype.itemsize > 4 else 1e-4) if tol is None else tol
        known = jnp.maximum(state.scaling, column_norms(at.local.upper))
        d = jnp.where(known > 0, known, 1)
        reach = tree.norm(known * x.astype(d.dtype)).astype(dtype)
        control = jnp.where(jnp.isfinite(state.control), state.control, rule.first(reach))
        scaled, projected = scaled_by(at.local, d), at.local.projected
        damped = rule.propose(scaled, projected, control)
        size = damped.size.astype(dtype)
        change = scaled.lift(damped.step) / d
        price = Counts(value=1)
        bent = jnp.asarray(False)
        if acceleration:
            turn, bent = _acceleration(oracle, at, scaled, damped, d)
            change = change + jnp.where(bent, 0, turn / 2)
            price = Counts(value=1, jvp=2, vjp=1)
        point = unravel(x + change.astype(x.dtype))
        value = oracle.value(point)

        predicted = decrease(scaled, damped).astype(dtype)
        actual = jnp.where(bent, -predicted, at.value - value)
        finite = jnp.isfinite(value)
        noise = rounding(at)
        in_noise = (jnp.abs(actual) <= noise.trial) & (predicted <= noise.trial)
        over = _orthogonal(at, tolerance)  # only before the first step
        accepted = finite & ((actual >= accept * predicted) | in_noise) & ~over & ~bent
        full = damped.damping <= 0
        still = (state.rejected == 0) & full & (size <= tolerance * reach)
        new, counts = lax.cond(
            accepted,
            lambda: _paid(evaluate(oracle, point)),
            lambda: (at, tally(Counts())),
        )
        steepest = steepest_slope(new)
        fell = accepted & ~in_noise & (actual > 1e3 * noise.trial)
        helped = accepted & (
            fell | (steepest <= 0.9 * jnp.minimum(steepest_slope(at), state.least))
        )
        useless = accepted & in_noise & (actual <= noise.value)
        idle = jnp.where(helped, 0, state.idle + jnp.where(useless, 1, 0))
        steeper = (steepest > steepest_slope(at)) & (actual <= 0)
        trial = Trial(size, actual, predicted, finite, in_noise, accepted, full, steeper)
        control, growth = rule.judge(control, state.growth, trial)
        rejected = jnp.where(accepted, 0, state.rejected + 1)

        # what the undamped model promises does not depend on how far the radius has shrunk
        left = norm(projected).astype(dtype)
        promised = left**2 / 2
        stationary = steepest_slope(at) <= tolerance * jnp.sqrt(2 * at.value)
        resolved = (left <= noise.projected) | (promised <= noise.value)
        resolved |= full & (predicted <= noise.value) & stationary
        # steps that zigzag about a minimum of large residual are now near to it, now less so
        least_slope = jnp.minimum(state.least, steepest)
        nearly = (promised <= 8 * noise.trial) | (least_slope**2 <= noise.trial)
        drifting = idle >= IDLE_STEPS
        # a saddle is left in steps that the value does not show and that raise the slope
        enough = jnp.where(left <= noise.projected, 1, PATIENCE)
        exhausted = resolved & ((idle >= enough) | (rejected >= 3))
        exhausted |= drifting & nearly
        # what is promised lies in directions that J does not resolve: steps would creep for ever
        exhausted |= accepted & full & stationary & (predicted <= promised / 2)
        seen_finite = state.seen_finite | finite
        failed = jnp.where(seen_finite, Status.STALLED.value, Status.NOT_FINITE.value)
        ended = drifting | (rejected >= max_trials)
        scaling = jnp.maximum(known, column_norms(new.local.upper))
        lives = alive(new, scaling)
        converged = over | still | (accepted & _orthogonal(new, tolerance))
        ended |= ~lives & (converged | exhausted)
        status = jnp.where(ended, failed, Status.RUNNING.value)
        status = jnp.where(lives & exhausted, Status.CONVERGED_TO_PRECISION.value, status)
        status = jnp.where(lives & converged, Status.CONVERGED.value, status).astype(jnp.int32)
        # never what the loop takes for rounding: this method judges that itself, by the slope
        reported = jnp.where(lives, jnp.maximum(promised, 2 * noise.value), jnp.inf)
        info = StepInfo(
            step_norm=jnp.where(accepted, tree.norm(change), 0).astype(dtype),
            accepted=accepted,
            counts=tally(price, counts),
            predicted=reported,
            status=status,
            extras={"damping": damped.damping, "control": control},
        )
        state = LevenbergMarquardtState(
            control,
            growth,
            scaling,
            jnp.where(fell, jnp.inf, least_slope),
            idle,
            rejected,
            seen_finite & ~accepted,
        )
        return new.params, new, state, info

    return Optimizer(
        initial,
        step,
        evaluate=evaluate,
        monotone=True,
        name="levenberg-marquardt",
        patience=max_trials + 10,
    )


def initial(at: Eval) -> LevenbergMarquardtState:
    """The state before the first step, of any evaluation: it needs no Jacobian."""
    zero, infinite = jnp.asarray(0, jnp.int32), jnp.full((), jnp.inf, at.value.dtype)
    unknown = jnp.zeros(tree.size(at.params), at.value.dtype)
    slow = jnp.full_like(infinite, 2)
    no = jnp.asarray(False)
    return LevenbergMarquardtState(infinite, slow, unknown, infinite, zero, zero, no)


def evaluate(oracle: Oracle, params: Params) -> tuple[Eval, Counts]:
    """Value, gradient and LinearModel of a point, at the price of `evaluate_residuals`."""
    at, price = evaluate_residuals(oracle, params)
    r, jacobian = at.local
    return at._replace(local=linear_model(jacobian, r)), price


def _paid(evaluation: tuple[Eval, Counts]) -> tuple[Eval, Counts]:
    at, counts = evaluation
    return at, tally(counts)


def _acceleration(
    oracle: Oracle, at: Eval, scaled: Scaled, damped: Damped, d: Array
) -> tuple[Array, Bool[Array, ""]]:
    """The second-order change a of a damped step, and whether it is too large against it."""
    x, unravel = ravel_pytree(at.params)
    velocity = (scaled.lift(damped.step) / d).astype(x.dtype)
    slope = ravel_pytree(oracle.bend(at.params, unravel(velocity)))[0].astype(d.dtype)
    turn = corrected(scaled, damped.damping, scaled.drop(slope / d))
    bent = ~(2 * norm(turn) <= BENT * damped.size)
    return scaled.lift(turn) / d, bent & (damped.size > 0)


def rounding(at: Eval) -> Noise:
    """What rounding alone can do at a point."""
    x, dtype = tree.ravel(at.params), at.value.dtype
    eps = tree.eps(at.local.upper.dtype)
    extent = tree.norm(column_norms(at.local.upper) * x).astype(dtype)
    summed = 4 * eps * at.value
    uncertain = eps * extent * jnp.sqrt(2 * at.value)
    return Noise(summed, 2 * (summed + uncertain), 8 * eps * extent)


def _orthogonal(at: Eval, tolerance: float) -> Bool[Array, ""]:
    size = norm(at.local.projected).astype(at.value.dtype)
    return (size <= tolerance * jnp.sqrt(2 * at.value)) | vanished(at)


def vanished(at: Eval) -> Bool[Array, ""]:
    """Whether the sum of squares is zero, or too small for its digits to mean anything."""
    return at.value <= jnp.finfo(at.value.dtype).tiny


def steepest_slope(at: Eval) -> Scalar:
    """max_j |J_j^T r| / |J_j|: unlike |Q^T r| it vanishes at rank-deficient minima as well."""
    norms = column_norms(at.local.upper)
    slopes = jnp.abs(tree.ravel(at.grad)) / jnp.where(norms > 0, norms, 1)
    return jnp.max(slopes, initial=0).astype(at.value.dtype)


def alive(at: Eval, scaling: Array) -> Bool[Array, ""]:
    """Whether the residuals still depend on every parameter that they ever depended on.

    Where a model has saturated, columns of J vanish and nothing more can be learnt: a plateau, to
    every test a minimum.
    """
    norms = column_norms(at.local.upper)
    lost = (norms <= tree.eps(norms.dtype) ** 2 * scaling) & (scaling > 0)
    return (jnp.any(norms > 0) & ~jnp.any(lost)) | vanished(at)
