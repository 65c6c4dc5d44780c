"""Levenberg-Marquardt in Moré's form: a scaled trust region, solved on the stacked system.

Each damped step solves min |[R; sqrt(lambda) D] s + [Q^T r; 0]| by QR, with J = Q R factorised once
per Jacobian, so nothing is squared and float32 keeps its digits. D holds the largest column norms
of J seen (Marquardt's scaling: the iterates do not depend on the units of the parameters). lambda
is found from the radius by Hebden's iteration; the full Gauss-Newton step is taken when it fits.
A NaN or infinite trial is a rejection. A damping floor of rounding size replaces rank decisions.

The step itself recognises the end, by scale-free tests on the undamped Gauss-Newton model: the
residual is orthogonal to the range of J (|Q^T r| <= tol |r|), or the full step no longer moves the
scaled parameters (|D s| <= tol |D x|), or steps in the rounding noise no longer shrink.

References: Moré (1978), "The Levenberg-Marquardt algorithm: implementation and theory"; Nocedal &
Wright (2006), section 10.3; Dennis & Schnabel (1983), section 7.2 for the tests.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Key, Scalar, Status, memoized, tally, times, tree
from optikit.core.tree import HIGHEST
from optikit.globalize.search import noise
from optikit.linalg.least_squares import column_norms, evaluate_residuals
from optikit.optimizers.protocol import Optimizer, StepInfo

HEBDEN_STEPS = 12
"""Bound on the iterations for lambda; two or three are usual."""


class LevenbergMarquardtState(NamedTuple):
    """What the next step needs."""

    radius: Scalar  # bound on |D s|; infinite before the first step
    scaling: Float[Array, " n"]  # D, the largest column norms so far
    last_size: Scalar  # |D s| of the last accepted step


class _Damped(NamedTuple):
    damping: Scalar
    lower: Scalar
    upper: Scalar
    step: Float[Array, " n"]
    size: Scalar  # |D s|
    iterations: Int[Array, ""]
    done: Bool[Array, ""]


class _Trial(NamedTuple):
    radius: Scalar
    point: Float[Array, " n"]
    damped: _Damped
    value: Scalar
    predicted: Scalar
    accepted: Bool[Array, ""]
    still: Bool[Array, ""]  # the first trial was the full step, and too short to matter
    seen_finite: Bool[Array, ""]
    trials: Int[Array, ""]


@memoized
def levenberg_marquardt(
    *, radius: float = 100.0, accept: float = 1e-4, tol: float | None = None, max_trials: int = 60
) -> Optimizer:
    """Levenberg-Marquardt for sums of squares, dense.

    For `residuals(...)`, and `composite(predict, squared_error)` with at most an L2 penalty.

    Args:
      radius: the first trust radius, in units of |D params| (or 1 where that is 0).
      accept: least ratio of actual to predicted decrease.
      tol: of the tests above; by default 1e-10 in float64 and 1e-4 in float32.
      max_trials: trials per step before it is given up.

    Cost per step: one jacobian, 2 m n^2 flops, and per trial one value and 2 to 4 QR factorisations
    of a (2 n, n) matrix.
    """

    def init(at: Eval) -> LevenbergMarquardtState:
        x, dtype = ravel_pytree(at.params)[0], at.value.dtype
        return LevenbergMarquardtState(
            jnp.full((), jnp.inf, dtype),
            jnp.zeros(x.size, x.dtype),
            jnp.full((), jnp.inf, dtype),
        )

    def step(oracle: Oracle, at: Eval, state: LevenbergMarquardtState, key: Key):
        del key
        r, jacobian = at.local
        x, unravel = ravel_pytree(at.params)
        dtype = at.value.dtype
        tolerance = (1e-10 if x.dtype.itemsize > 4 else 1e-4) if tol is None else tol
        scaling = jnp.maximum(state.scaling, column_norms(jacobian))
        d = jnp.where(scaling > 0, scaling, 1)
        reach = jnp.linalg.norm(d * x).astype(dtype)
        first = radius * jnp.where(reach > 0, reach, 1)
        start_radius = jnp.where(jnp.isfinite(state.radius), state.radius, first)
        upper, projected = _compressed(jacobian, r)
        solve = _damped_solver(upper, projected, d)

        def running(c: _Trial) -> Array:
            return ~c.accepted & ~c.still & (c.trials < max_trials)

        def body(c: _Trial) -> _Trial:
            damped = solve(c.radius)
            point = x + damped.step
            value = oracle.value(unravel(point))
            moved = jnp.matmul(upper, damped.step, precision=HIGHEST)
            half = jnp.vdot(moved, moved, precision=HIGHEST) / 2
            predicted = (half + damped.damping * damped.size**2).astype(dtype)
            actual = at.value - value
            finite = jnp.isfinite(value)
            in_noise = (jnp.abs(actual) <= noise(at.value)) & (predicted <= noise(at.value))
            accepted = finite & ((actual >= accept * predicted) | in_noise)
            poor = ~finite | ((actual < predicted / 4) & ~in_noise)
            full = damped.damping <= _floor(upper)
            still = (c.trials == 0) & full & (damped.size <= tolerance * reach)
            good = finite & ((actual >= 0.75 * predicted) | full)
            shorter = jnp.where(
                finite & (actual > 0), 0.5, _shortening(actual, predicted, finite)
            ) * jnp.minimum(c.radius, 10 * damped.size)
            new_radius = jnp.where(poor, shorter, jnp.where(good, 2 * damped.size, c.radius))
            return _Trial(
                new_radius.astype(dtype), point, damped, value, predicted, accepted, still,
                c.seen_finite | finite, c.trials + 1,
            )  # fmt: skip

        zero, no = jnp.zeros((), dtype), jnp.asarray(False)
        nothing = _Damped(zero, zero, zero, jnp.zeros_like(x), zero, jnp.asarray(0, jnp.int32), no)
        orthogonal = jnp.linalg.norm(projected) <= tolerance * jnp.linalg.norm(r)
        run = lax.while_loop(
            running,
            body,
            _Trial(
                start_radius, x, nothing, at.value, zero, orthogonal, no, orthogonal,
                jnp.asarray(0, jnp.int32),
            ),
        )  # fmt: skip
        moved = run.accepted & ~orthogonal
        new, evaluated = lax.cond(
            moved,
            lambda: _counted(evaluate_residuals(oracle, unravel(run.point))),
            lambda: (at, tally(Counts())),
        )
        size = run.damped.size
        in_noise = run.predicted <= noise(at.value)
        exhausted = moved & in_noise & (size >= state.last_size / 4)
        status = _status(run, orthogonal | run.still, exhausted | (~moved & in_noise))
        info = StepInfo(
            step_norm=jnp.where(moved, jnp.linalg.norm(run.damped.step), 0).astype(dtype),
            accepted=moved,
            counts=tally(times(run.trials, Counts(value=1)), evaluated),
            predicted=run.predicted,
            status=status,
            extras={"damping": run.damped.damping, "radius": run.radius},
        )
        last = jnp.where(moved, size, state.last_size)
        return new.params, new, LevenbergMarquardtState(run.radius, scaling, last), info

    return Optimizer(
        init, step, evaluate=evaluate_residuals, monotone=True, name="levenberg-marquardt"
    )


def _counted(evaluation: tuple[Eval, Counts]) -> tuple[Eval, Counts]:
    at, counts = evaluation
    return at, tally(counts)


def _compressed(jacobian: Array, r: Array) -> tuple[Float[Array, "p n"], Float[Array, " p"]]:
    """R and Q^T r, which give every damped step; J and r themselves where J is wide."""
    if jacobian.shape[0] <= jacobian.shape[1]:
        return jacobian, r
    q, upper = jnp.linalg.qr(jacobian)
    return upper, jnp.matmul(r, q, precision=HIGHEST)


def _floor(upper: Array) -> float:
    """The damping that stands for none, relative to the scaled columns.

    Its root is large against rounding, so that nothing drifts along a null space of J, and small
    against any singular value that means something.
    """
    return tree.eps(upper.dtype) ** (4 / 3)


def _damped_solver(upper: Array, projected: Array, d: Array):
    """Radius -> the step of least |r + J s| among |D s| <= radius, to 10 % in the radius."""
    n = d.size
    rows = jnp.concatenate([projected, jnp.zeros(n, projected.dtype)])
    floor = _floor(upper)
    gradient = jnp.matmul(projected, upper, precision=HIGHEST) / d
    steepness = jnp.linalg.norm(gradient)

    def solve(radius: Scalar) -> _Damped:
        radius = radius.astype(d.dtype)

        def running(c: _Damped) -> Array:
            return ~c.done & (c.iterations < HEBDEN_STEPS)

        def body(c: _Damped) -> _Damped:
            stacked = jnp.concatenate([upper, jnp.diag(jnp.sqrt(c.damping) * d)])
            q, triangle = jnp.linalg.qr(stacked)
            step = -solve_triangular(triangle, jnp.matmul(rows, q, precision=HIGHEST))
            size = jnp.linalg.norm(d * step)
            excess = size - radius
            fits = (excess <= 0.1 * radius) & ((excess >= -0.1 * radius) | (c.damping <= floor))
            # Newton's method on 1/radius - 1/size, safeguarded by the bounds
            w = solve_triangular(triangle, d * (d * step / jnp.where(size > 0, size, 1)), trans=1)
            ratio = excess / radius / jnp.where(size > 0, jnp.vdot(w, w), 1)
            lower = jnp.where(excess > 0, jnp.maximum(c.lower, c.damping), c.lower)
            upper_bound = jnp.where(excess < 0, jnp.minimum(c.upper, c.damping), c.upper)
            damping = c.damping + ratio
            inside = (damping > lower) & (damping < upper_bound)
            damping = jnp.where(
                inside, damping, jnp.maximum(1e-3 * upper_bound, jnp.sqrt(lower * upper_bound))
            )
            return _Damped(
                jnp.where(fits, c.damping, jnp.maximum(damping, floor)),
                lower, upper_bound, step, size, c.iterations + 1, fits,
            )  # fmt: skip

        zero = jnp.zeros((), d.dtype)
        start = _Damped(
            jnp.full((), floor, d.dtype), zero, steepness / radius, jnp.zeros_like(d), zero,
            jnp.asarray(0, jnp.int32), jnp.asarray(False),
        )  # fmt: skip
        return lax.while_loop(running, body, start)

    return solve


def _shortening(actual: Scalar, predicted: Scalar, finite: Bool[Array, ""]) -> Scalar:
    """How far to shrink the radius after a rise: to the minimum of the interpolating parabola."""
    factor = 0.5 * predicted / (predicted - actual / 2)
    return jnp.where(finite & jnp.isfinite(factor), jnp.clip(factor, 0.1, 0.5), 0.1)


def _status(run: _Trial, converged: Bool[Array, ""], exhausted: Bool[Array, ""]):
    failed = jnp.where(run.seen_finite, Status.STALLED.value, Status.NOT_FINITE.value)
    status = jnp.where(run.accepted, Status.RUNNING.value, failed)
    status = jnp.where(exhausted, Status.CONVERGED_TO_PRECISION.value, status)
    return jnp.where(converged, Status.CONVERGED.value, status).astype(jnp.int32)
