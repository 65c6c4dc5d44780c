"""The natural gradient exactly: a damped Gauss-Newton or Fisher system, in the smaller space.

With R the rows of the curvature, the direction is d = -(R^T R + lambda I)^-1 g, from the (n, n)
matrix, or from the (m, m) kernel R R^T where there are fewer outputs than parameters; the step
along it is the best on the grid 1, 1/2, 1/4, ... Damping follows Levenberg and Marquardt. With a
momentum mu the damping pulls towards mu times the last direction instead of towards zero (SPRING),
which keeps what earlier batches said of the directions that this batch does not see.

References: Amari (1998); Martens (2020), "New insights and perspectives on the natural gradient
method", section 6; Chen & Heyl (2024), eq. 5 (the kernel form, MinSR); Goldshlager, Abrahamsen &
Lin (2024), "A Kaczmarz-inspired approach...", eq. 12 (SPRING); Mueller & Zeinhofer (2023) for the
line search on a grid.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.calculus.rows import Rows, curvature_rows
from optikit.core import Counts, Key, Params, Scalar, Status, memoized, tally, times, tree
from optikit.core.tree import HIGHEST
from optikit.globalize.search import noise
from optikit.linalg.woodbury import damped_solve
from optikit.optimizers.protocol import Optimizer, StepInfo

KEPT, BROKEN = 0.75, 0.25
"""Shares of the promised decrease from which the damping is lowered, and below which raised."""

LARGEST = 1e6
"""Damping, relative to the mean squared row, beyond which there is nothing left to try."""


class NaturalGradientState(NamedTuple):
    """What the next step needs."""

    damping: Scalar  # relative to the mean diagonal entry of the smaller matrix
    direction: Float[Array, " n"]  # the last one, before its step size


class _Line(NamedTuple):
    t: Scalar
    best_t: Scalar
    best: Scalar
    halvings: Int[Array, ""]
    done: Bool[Array, ""]


@memoized
def natural_gradient(
    learning_rate: float | None = None,
    *,
    curvature: Literal["fisher", "ggn"] = "ggn",
    damping: float = 1e-2,
    adapt: bool = True,
    momentum: float = 0.0,
    halvings: int = 12,
) -> Optimizer:
    """Natural gradient descent with the exact matrix, for `composite(...)` and `residuals(...)`.

    Args:
      learning_rate: the step along the direction; by default the best of 1, 1/2, 1/4, ... on the
        batch at hand, which on fixed data never raises the objective.
      curvature: "ggn", with the loss's own output-space curvature, or "fisher", with the
        information of its distribution; they differ for other than canonical links.
      damping: the first damping, relative to the mean diagonal entry of the matrix.
      adapt: lower the damping after steps that keep the model's promise, raise it after others
        (Martens 2010, section 4.1); without, it stays as it is.
      momentum: mu of SPRING, in [0, 1); useful on batches.
      halvings: of the step, at most.

    Cost per step: one jacobian (the gradients of m outputs), m n min(m, n) + min(m, n)^3 / 3
    flops, and a value for each trial step. Memory: m n.

    Example:
      >>> import optikit as ok
      >>> fit = ok.residuals(lambda p, t: jnp.exp(-p["rate"] * t) - jnp.exp(-0.7 * t))
      >>> sol = ok.minimize(fit, {"rate": 2.0}, args=(jnp.linspace(0, 4, 20),),
      ...                   method=natural_gradient())
      >>> bool(sol.success), round(float(sol.params["rate"]), 4)
      (True, 0.7)

    Raises:
      TypeError: when run on a black box, or with a penalty that is not separable.
      ValueError: momentum or damping out of range.
    """
    if not 0 <= momentum < 1:
        msg = f"momentum must be in [0, 1); got {momentum}."
        raise ValueError(msg)
    if damping <= 0:
        msg = f"damping must be positive: the kernel form divides by it; got {damping}."
        raise ValueError(msg)

    def evaluate(oracle: Oracle, params: Params) -> tuple[Eval, Counts]:
        at = oracle.value_and_grad(params)
        return at._replace(local=curvature_rows(oracle, params, curvature)), Counts(
            grad=1, jacobian=1
        )

    def init(at: Eval) -> NaturalGradientState:
        flat = ravel_pytree(at.grad)[0]
        return NaturalGradientState(jnp.full((), damping, at.value.dtype), jnp.zeros_like(flat))

    def step(oracle: Oracle, at: Eval, state: NaturalGradientState, key: Key):
        del key
        model: Rows = at.local
        x, unravel = ravel_pytree(at.params)
        dtype = at.value.dtype
        m, n = model.rows.shape
        mean_square = jnp.sum(model.rows**2) / min(m, n)
        unit = jnp.where(mean_square > 0, mean_square, 1)
        level = state.damping.astype(unit.dtype) * unit
        pull = level * momentum * state.direction
        d = -damped_solve(model.rows, model.extra + level, model.w, model.q - pull)
        moved = jnp.matmul(model.rows, d, precision=HIGHEST)
        slope = jnp.vdot(ravel_pytree(at.grad)[0], d, precision=HIGHEST).astype(dtype)
        bend = (jnp.vdot(moved, moved) + jnp.sum(model.extra * d**2)).astype(dtype)

        def promise(t: Scalar) -> Scalar:
            return -(t * slope + t**2 * bend / 2)

        def value_at(t: Scalar) -> Scalar:
            return oracle.value(unravel(x + (t.astype(d.dtype) * d).astype(x.dtype)))

        if learning_rate is None:
            t, value, trials = _best_on_grid(value_at, at.value, promise, halvings)
        else:
            t = jnp.asarray(learning_rate, dtype)
            value, trials = value_at(t), jnp.asarray(1, jnp.int32)
        gained = at.value - value
        kept = gained >= KEPT * promise(t)
        broken = ~(gained >= BROKEN * promise(t))  # NaN included
        accepted = (t > 0) & jnp.isfinite(value) & jnp.all(jnp.isfinite(d))
        t = jnp.where(accepted, t, 0)
        change = jnp.where(accepted, t.astype(d.dtype) * d, 0)
        new_damping = state.damping
        if adapt:
            least = tree.eps(dtype) ** (4 / 3) if m >= n else 8 * tree.eps(dtype)
            good = accepted & kept & (t >= 0.5)
            factor = jnp.where(good, 1 / 4, jnp.where(accepted & ~broken, 1, 4))
            new_damping = jnp.clip(state.damping * factor, least, 4 * LARGEST).astype(dtype)
        whole = promise(jnp.ones((), dtype))
        resolved = (jnp.abs(whole) <= noise(at.value)) & ~accepted
        spent = ~accepted & (state.damping > LARGEST)
        status = jnp.where(spent, Status.LINE_SEARCH_FAILED.value, Status.RUNNING.value)
        status = jnp.where(resolved, Status.CONVERGED_TO_PRECISION.value, status)
        info = StepInfo(
            step_norm=jnp.linalg.norm(change).astype(dtype),
            accepted=accepted,
            counts=tally(times(trials, Counts(value=1))),
            predicted=whole,
            status=status.astype(jnp.int32),
            extras={"damping": state.damping, "step_size": t},
        )
        finite = jnp.all(jnp.isfinite(d))
        kept_direction = jnp.where(finite & (momentum > 0), d, 0)
        new = NaturalGradientState(new_damping, kept_direction)
        return unravel(x + change.astype(x.dtype)), None, new, info

    return Optimizer(
        init,
        step,
        evaluate=evaluate,
        monotone=learning_rate is None,
        name="natural-gradient",
        learns=True,
        patience=60,
    )


def _best_on_grid(
    value_at: Callable[[Scalar], Scalar],
    start: Scalar,
    promise: Callable[[Scalar], Scalar],
    halvings: int,
) -> tuple[Scalar, Scalar, Int[Array, ""]]:
    """(t, f at t, trials): halved from 1 until the model's promise is kept, or halving hurts.

    t = 0 if nothing lowered f.
    """

    def running(c: _Line) -> Array:
        return ~c.done & (c.halvings <= halvings)

    def body(c: _Line) -> _Line:
        value = value_at(c.t)
        better = value < c.best  # never for NaN
        enough = better & (start - value >= KEPT * promise(c.t))
        worse = (c.best_t > 0) & ~better
        return _Line(
            c.t / 2,
            jnp.where(better, c.t, c.best_t),
            jnp.where(better, value, c.best),
            c.halvings + 1,
            enough | worse,
        )

    zero = jnp.zeros_like(start)
    first = _Line(jnp.ones_like(start), zero, start, jnp.asarray(0, jnp.int32), jnp.asarray(False))
    line = lax.while_loop(running, body, first)
    return line.best_t, line.best, line.halvings
