"""Levenberg-Marquardt in Moré's form: a scaled trust region, solved on the stacked system.

With J = Q R factorised once per Jacobian, a damped step solves
min |[R D^-1; sqrt(lambda) I] D s + [Q^T r; 0]| by orthogonalisation, so nothing is squared and
float32 keeps its digits. D holds the largest column norms of J seen (Marquardt's scaling: the
iterates do not depend on the units of the parameters). lambda is found from the radius by Hebden's
iteration; the full Gauss-Newton step is taken when it fits. A damping floor of rounding size,
relative to the columns of the current J, replaces rank decisions. With more parameters than
residuals the same step is found in the row space of J (the kernel or dual form): D s = Q y, with
(J D^-1)^T = Q R, so that no matrix is larger than J.

A step is one trial: a rejected one (NaN and infinity included) leaves the point and shrinks the
radius. So the lanes of a batch never wait for the trials of another, and between steps a problem
is no more than R and Q^T r.

The step itself recognises the end, by scale-free tests on the undamped Gauss-Newton model: the
residual is orthogonal to the range of J (|Q^T r| <= tol |r|), or the full step no longer moves the
scaled parameters (|D s| <= tol |D x|). The decrease of the objective is lost in its rounding when
half the digits of the parameters are still missing; from there on the slope J^T r, which is not,
says whether steps still help. See `Noise`.

References: Moré (1978), "The Levenberg-Marquardt algorithm: implementation and theory"; Nocedal &
Wright (2006), section 10.3; Dennis & Schnabel (1983), section 7.2 for the tests; Golub & Van Loan
(2013), section 5.6 for the wide system.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Key, Params, Scalar, Status, memoized, tally, tree
from optikit.core.tree import HIGHEST
from optikit.linalg.least_squares import column_norms, evaluate_residuals
from optikit.linalg.small import solve_upper, solve_upper_transposed, triangularize
from optikit.optimizers.protocol import Optimizer, StepInfo

HEBDEN_STEPS = 12
"""Bound on the iterations for lambda; two or three are usual."""


IDLE_STEPS = 20
"""Steps in the rounding noise that do not lower the slope by a tenth, after which it is over."""

PATIENCE = 5
"""The same, where the model promises no more than the rounding of the objective."""


class LinearModel(NamedTuple):
    """The linear model |r + J s| of a point: R and Q^T r, or J and r where J is wide."""

    upper: Float[Array, "p n"]
    projected: Float[Array, " p"]


class LevenbergMarquardtState(NamedTuple):
    """What the next step needs."""

    radius: Scalar  # bound on |D s|; infinite before the first step
    scaling: Float[Array, " n"]  # D, the largest column norms so far
    least: Scalar  # the smallest `_steepest` since the objective last fell beyond its noise
    idle: Int[Array, ""]  # steps in the noise since that was last lowered
    rejected: Int[Array, ""]  # trials since the last accepted one
    seen_finite: Bool[Array, ""]  # whether one of those was finite


class _Damped(NamedTuple):
    damping: Scalar
    lower: Scalar
    upper: Scalar
    step: Float[Array, " n"]  # D s
    size: Scalar  # |D s|
    iterations: Int[Array, ""]
    done: Bool[Array, ""]


class Noise(NamedTuple):
    """What rounding alone can do at a point x with residuals r.

    A model cannot tell parameters apart that differ by an ulp: r is uncertain by about
    eps |[J_j x_j]| besides the rounding of its own sum, however small r itself is.
    """

    value: Scalar  # of a sum of squares, from its additions alone
    trial: Scalar  # of the difference of two values, from uncertain residuals as well
    projected: Scalar  # of |Q^T r|


@memoized
def levenberg_marquardt(
    *, radius: float = 1.0, accept: float = 1e-4, tol: float | None = None, max_trials: int = 60
) -> Optimizer:
    """Levenberg-Marquardt for sums of squares, dense.

    For `residuals(...)`, robust or not, and `composite(predict, squared_error)` with at most an L2
    penalty.

    Args:
      radius: the first trust radius, in units of |D params| (or 1 where that is 0). Much more lets
        the first step leave for a plateau from which there is no way back.
      accept: least ratio of actual to predicted decrease.
      tol: of the tests above; by default 1e-10 in float64 and 1e-4 in float32.
      max_trials: consecutive rejections before the method has stalled.

    Cost per step: one value and, if it is accepted, one jacobian with 2 m n^2 flops; 2 to 4
    orthogonalisations of a (2 n, n) matrix. With n > m: 2 n m^2 flops and those of a (2 m, m) one.
    """

    def step(oracle: Oracle, at: Eval, state: LevenbergMarquardtState, key: Key):
        del key
        x, unravel = ravel_pytree(at.params)
        dtype = at.value.dtype
        tolerance = (1e-10 if x.dtype.itemsize > 4 else 1e-4) if tol is None else tol
        known = jnp.maximum(state.scaling, column_norms(at.local.upper))
        d = jnp.where(known > 0, known, 1)
        reach = _norm(d * x.astype(d.dtype)).astype(dtype)
        first = radius * jnp.where(reach > 0, reach, 1)
        bound = jnp.where(jnp.isfinite(state.radius), state.radius, first)
        scaled, least, lift = row_space(at.local, d)
        projected = at.local.projected
        damped = within(scaled, projected, least, bound)
        size = damped.size.astype(dtype)
        change = lift(damped.step) / d
        point = unravel(x + change.astype(x.dtype))
        value = oracle.value(point)

        predicted = _decrease(scaled, damped).astype(dtype)
        actual = at.value - value
        finite = jnp.isfinite(value)
        noise = rounding(at)
        in_noise = (jnp.abs(actual) <= noise.trial) & (predicted <= noise.trial)
        over = _orthogonal(at, tolerance)  # only before the first step
        accepted = finite & ((actual >= accept * predicted) | in_noise) & ~over
        full = damped.damping <= 0
        still = (state.rejected == 0) & full & (size <= tolerance * reach)
        new, counts = lax.cond(
            accepted,
            lambda: _paid(evaluate(oracle, point)),
            lambda: (at, tally(Counts())),
        )
        steepest = _steepest(new)
        fell = accepted & ~in_noise & (actual > 1e3 * noise.trial)
        helped = accepted & (fell | (steepest <= 0.9 * jnp.minimum(_steepest(at), state.least)))
        useless = accepted & in_noise & (actual <= noise.value)
        idle = jnp.where(helped, 0, state.idle + jnp.where(useless, 1, 0))
        new_radius = next_radius(bound, size, actual, predicted, finite, in_noise, full)
        by_slope = jnp.where((steepest > _steepest(at)) & (actual <= 0), size / 2, 2 * size)
        new_radius = jnp.where(accepted & in_noise, by_slope, new_radius)
        rejected = jnp.where(accepted, 0, state.rejected + 1)

        # what the undamped model promises does not depend on how far the radius has shrunk
        left = _norm(projected).astype(dtype)
        promised = left**2 / 2
        stationary = _steepest(at) <= tolerance * jnp.sqrt(2 * at.value)
        resolved = (left <= noise.projected) | (promised <= noise.value)
        resolved |= full & (predicted <= noise.value) & stationary
        nearly = (promised <= 8 * noise.trial) | (steepest**2 <= noise.value)
        # steps that zigzag about a minimum of large residual are now near to it, now less so
        least_slope = jnp.minimum(state.least, steepest)
        nearly |= (promised <= 1e3 * noise.trial) & (least_slope**2 <= noise.trial)
        drifting = idle >= IDLE_STEPS
        # a saddle is left in steps that the value does not show and that raise the slope
        enough = jnp.where(left <= noise.projected, 1, PATIENCE)
        exhausted = resolved & ((idle >= enough) | (rejected >= 3))
        exhausted |= drifting & nearly
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
            step_norm=jnp.where(accepted, _norm(change), 0).astype(dtype),
            accepted=accepted,
            counts=tally(Counts(value=1), counts),
            predicted=reported,
            status=status,
            extras={"damping": damped.damping, "radius": new_radius},
        )
        state = LevenbergMarquardtState(
            new_radius,
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
    unknown = jnp.zeros_like(ravel_pytree(at.params)[0])
    return LevenbergMarquardtState(infinite, unknown, infinite, zero, zero, jnp.asarray(False))


def evaluate(oracle: Oracle, params: Params) -> tuple[Eval, Counts]:
    """Value, gradient and LinearModel of a point, at the price of `evaluate_residuals`."""
    at, price = evaluate_residuals(oracle, params)
    r, jacobian = at.local
    wide = jacobian.shape[0] < jacobian.shape[1]
    if wide:
        return at._replace(local=LinearModel(jacobian, r)), price
    upper, projected = triangularize(jacobian, r)
    return at._replace(local=LinearModel(_without_rounding(upper), projected)), price


def _without_rounding(upper: Float[Array, "p p"]) -> Float[Array, "p p"]:
    """R with 0 on its diagonal where a column depends on earlier ones to rounding.

    What stands there instead is rounding, and so is the direction of Q that it belongs to: left in,
    it would turn a residual that does not vanish into long steps along the null space of J.
    """
    smallest = 16 * upper.shape[0] * tree.eps(upper.dtype) * column_norms(upper)
    diagonal = jnp.diagonal(upper)
    return upper - jnp.diag(jnp.where(jnp.abs(diagonal) <= smallest, diagonal, 0))


def _paid(evaluation: tuple[Eval, Counts]) -> tuple[Eval, Counts]:
    at, counts = evaluation
    return at, tally(counts)


def _norm(v: Array) -> Scalar:
    return jnp.sqrt(jnp.sum(v**2))


def row_space(model: LinearModel, d: Array):
    """(A, least, lift): the scaled step D s = lift(y) with J D^-1 D s = A y and |D s| = |y|.

    `least` holds the damping of each y that stands for none.
    """
    upper = model.upper
    floor = _floor(upper.dtype)
    if upper.shape[0] >= upper.shape[1]:
        norms = column_norms(upper)
        least = floor * jnp.where(norms > 0, norms / d, 1) ** 2
        return upper / d[None, :], least, lambda y: y
    q, triangle = jnp.linalg.qr((upper / d[None, :]).T)
    triangle = _without_rounding(triangle)
    least = jnp.full(upper.shape[0], floor * jnp.max(column_norms(triangle)) ** 2)
    return triangle.T, least, lambda y: jnp.matmul(q, y, precision=HIGHEST)


def rounding(at: Eval) -> Noise:
    """What rounding alone can do at a point."""
    x, dtype = tree.ravel(at.params), at.value.dtype
    eps = tree.eps(at.local.upper.dtype)
    extent = _norm(column_norms(at.local.upper) * x).astype(dtype)
    summed = 4 * eps * at.value
    uncertain = eps * extent * jnp.sqrt(2 * at.value)
    return Noise(summed, 2 * (summed + uncertain), 8 * eps * extent)


def _orthogonal(at: Eval, tolerance: float) -> Bool[Array, ""]:
    size = _norm(at.local.projected).astype(at.value.dtype)
    return size <= tolerance * jnp.sqrt(2 * at.value)


def _steepest(at: Eval) -> Scalar:
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
    return (jnp.any(norms > 0) & ~jnp.any(lost)) | (at.value == 0)


def _floor(dtype: jnp.dtype) -> float:
    """The damping that stands for none, relative to the columns of J.

    Its root is large against rounding, so that nothing drifts along a null space of J, and small
    against any singular value that means something.
    """
    return tree.eps(dtype) ** (4 / 3)


def within(scaled: Array, projected: Array, least: Array, radius: Scalar) -> _Damped:
    """The step y of least |projected + scaled y| among |y| <= radius, to 10 % in the radius."""
    n, dtype = scaled.shape[1], scaled.dtype
    radius = radius.astype(dtype)
    rhs = jnp.concatenate([projected, jnp.zeros(n, dtype)])
    steepness = _norm(jnp.sum(projected[:, None] * scaled, axis=0))

    def running(c: _Damped) -> Array:
        return ~c.done & (c.iterations < HEBDEN_STEPS)

    def body(c: _Damped) -> _Damped:
        stacked = jnp.concatenate([scaled, jnp.diag(jnp.sqrt(c.damping + least))])
        triangle, rotated = triangularize(stacked, rhs)
        step = -solve_upper(triangle, rotated)
        size = _norm(step)
        excess = size - radius
        fits = (excess <= 0.1 * radius) & ((excess >= -0.1 * radius) | (c.damping <= 0))
        # Newton's method on 1/radius - 1/size, safeguarded by the bounds
        w = solve_upper_transposed(triangle, step / jnp.where(size > 0, size, 1))
        ratio = excess / radius / jnp.where(size > 0, jnp.sum(w**2), 1)
        lower = jnp.where(excess > 0, jnp.maximum(c.lower, c.damping), c.lower)
        upper = jnp.where(excess < 0, jnp.minimum(c.upper, c.damping), c.upper)
        damping = c.damping + ratio
        inside = (damping > lower) & (damping < upper)
        damping = jnp.where(inside, damping, jnp.maximum(1e-3 * upper, jnp.sqrt(lower * upper)))
        return _Damped(
            jnp.where(fits, c.damping, damping), lower, upper, step, size, c.iterations + 1, fits
        )

    zero = jnp.zeros((), dtype)
    start = _Damped(
        zero, zero, steepness / radius, jnp.zeros(n, dtype), zero,
        jnp.asarray(0, jnp.int32), jnp.asarray(False),
    )  # fmt: skip
    return lax.while_loop(running, body, start)


def _decrease(scaled: Array, damped: _Damped) -> Scalar:
    """The decrease that the linear model promises for the damped step."""
    moved = jnp.matmul(scaled, damped.step, precision=HIGHEST)
    return jnp.sum(moved**2) / 2 + damped.damping * damped.size**2


def next_radius(radius, size, actual, predicted, finite, in_noise, full) -> Scalar:
    """The radius after a trial, by the ratio of actual to predicted decrease."""
    # after a rise, to the minimum of the interpolating parabola
    factor = 0.5 * predicted / (predicted - actual / 2)
    after_rise = jnp.where(finite & jnp.isfinite(factor), jnp.clip(factor, 0.1, 0.5), 0.1)
    shorter = jnp.where(finite & (actual > 0), 0.5, after_rise) * jnp.minimum(radius, size)
    poor = ~finite | ((actual < predicted / 4) & ~in_noise)
    good = finite & ((actual >= 0.75 * predicted) | full)
    return jnp.where(poor, shorter, jnp.where(good, 2 * size, radius)).astype(radius.dtype)
