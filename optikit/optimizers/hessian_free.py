"""Hessian-free optimisation, and plain damped Gauss-Newton steps by conjugate gradients.

The direction minimises <g, d> + <d, (G + lambda I) d> / 2 with G the Gauss-Newton (or Fisher)
matrix, by products alone. Hessian-free iterations begin at 0.95 times the last direction, stop by
the model's relative progress, and the batch's own objective chooses among the iterates they leave
behind; damping follows Levenberg and Marquardt, and a line search has the last word.

Damping is in the units of the curvature along the first gradient, so that no scale has to be known.

References: Martens (2010), "Deep learning via Hessian-free optimization"; Martens & Sutskever
(2012), "Training deep and recurrent networks with Hessian-free optimization"; Schraudolph (2002)
for products with G; Frangella, Tropp & Udell (2023) for the Nystrom preconditioner.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.calculus.rows import curvature_diagonal
from optikit.core import Counts, Key, Scalar, Status, memoized, tally, times, tree
from optikit.globalize.search import noise
from optikit.linalg.damped_cg import backtracked, damped_cg
from optikit.linalg.nystrom import Nystrom, blank, nystrom
from optikit.optimizers.protocol import Optimizer, Refresh, StepInfo
from optikit.optimizers.rate import LearningRate, rate_at

Precondition = Literal["none", "diagonal", "nystrom"]

FIRST = 1e-2
"""The first damping, relative to the curvature along the gradient."""

LARGEST = 1e10
"""Damping, in the same units, beyond which there is nothing left to try."""

RANK, EVERY = 20, 10
"""Of the Nystrom preconditioner, and steps that a preconditioner serves."""

POWER = 0.75
"""Of the diagonal preconditioner (Martens 2010, section 4.7)."""

ARMIJO, SHRINK = 1e-2, 0.8
"""Of the line search (Martens 2010, section 4.5)."""


class HessianFreeState(NamedTuple):
    """What the next step needs."""

    damping: Scalar  # relative to `unit`
    unit: Scalar  # the curvature along the first gradient; 0 before it is known
    direction: Float[Array, " n"]  # the last one, where the next iterations begin
    memory: Any  # a Nystrom sketch, a diagonal, or (): what the preconditioner is made of
    steps: Int[Array, ""]


class _Searched(NamedTuple):
    t: Scalar
    value: Scalar
    trials: Int[Array, ""]


@memoized
def hessian_free(
    learning_rate: LearningRate | None = None,
    *,
    curvature: Literal["ggn", "fisher"] = "ggn",
    damping: float | None = None,
    adapt: bool = True,
    omega: float = 2 / 3,
    decay: float = 0.95,
    max_iters: int = 250,
    progress: float = 5e-4,
    precondition: Precondition = "none",
    max_trials: int = 60,
) -> Optimizer:
    """Hessian-free optimisation, for `composite(...)` and `residuals(...)`.

    Args:
      learning_rate: the step along the direction, a number or a schedule; by default the first of
        1, 0.8, 0.64, ... with a sufficient decrease on the batch at hand.
      curvature: "ggn" or "fisher"; see `natural_gradient`.
      damping: the first one, absolute; by default 1e-2 times the curvature along the gradient.
      adapt: multiply the damping by omega where the actual decrease is over 3/4 of the predicted
        one, divide where it is under 1/4.
      decay: of the last direction, where the next iterations begin; 0 for zero.
      max_iters: products per step.
      progress: the iterations end where the model falls by less than this share of its value per
        iteration, over the last 10 or the last tenth of them.
      precondition: "none"; "diagonal", (diag(G) + lambda)^0.75; or "nystrom", from a sketch of
        rank 20. Both are built anew every 10 steps.
      max_trials: of the line search.

    Cost per step: the operator's setup, one ggnvp an iteration, a value for each iterate looked at
    and each trial; every 10 steps one jacobian for "diagonal", 20 ggnvp for "nystrom". Memory: 22
    vectors of iterates. On fixed data the objective never rises.

    Weight decay belongs in the objective (`penalty=ok.losses.l2(...)`).

    Raises:
      TypeError: when run on a black box.
      ValueError: settings out of range.

    Example:
      >>> import optikit as ok
      >>> fit = ok.residuals(lambda p, t: jnp.exp(-p * t) - jnp.exp(-0.7 * t))
      >>> sol = ok.minimize(fit, jnp.asarray(2.0), args=(jnp.linspace(0, 4, 20),),
      ...                   method=hessian_free())
      >>> round(float(sol.params), 4)
      0.7
    """
    return _by_products(
        learning_rate, curvature, damping, adapt, omega, max_iters, precondition, max_trials,
        decay=decay, progress=progress, tol=0.0, backtrack=True, name="hessian-free",
    )  # fmt: skip


@memoized
def ggn_cg(
    learning_rate: LearningRate | None = None,
    *,
    curvature: Literal["ggn", "fisher"] = "ggn",
    damping: float | None = None,
    adapt: bool = True,
    omega: float = 2 / 3,
    max_iters: int = 20,
    tol: float = 1e-2,
    precondition: Precondition = "none",
    max_trials: int = 60,
) -> Optimizer:
    """Damped Gauss-Newton steps by conjugate gradients from zero, on a batch or on all data.

    Args:
      learning_rate, curvature, damping, adapt, omega, precondition, max_trials: as for
        `hessian_free`.
      max_iters: products per step.
      tol: relative residual at which the iterations end.

    Cost per step: the operator's setup, one ggnvp an iteration, one value a trial.

    Raises:
      TypeError: when run on a black box.
      ValueError: settings out of range.

    Example:
      >>> import optikit as ok
      >>> line = ok.composite(lambda w, x: x @ w, ok.losses.squared_error)
      >>> data = (jnp.eye(3), jnp.arange(3.0))
      >>> sol = ok.minimize(line, jnp.zeros(3), args=data, method=ggn_cg())
      >>> bool(jnp.allclose(sol.params, jnp.arange(3.0), atol=1e-3))
      True
    """
    return _by_products(
        learning_rate, curvature, damping, adapt, omega, max_iters, precondition, max_trials,
        decay=0.0, progress=None, tol=tol, backtrack=False, name="ggn-cg",
    )  # fmt: skip


def _by_products(
    learning_rate: LearningRate | None,
    curvature: Literal["ggn", "fisher"],
    damping: float | None,
    adapt: bool,
    omega: float,
    max_iters: int,
    precondition: Precondition,
    max_trials: int,
    *,
    decay: float,
    progress: float | None,
    tol: float,
    backtrack: bool,
    name: str,
) -> Optimizer:
    if precondition not in get_args(Precondition):
        msg = f"precondition must be one of {get_args(Precondition)}; got {precondition!r}."
        raise ValueError(msg)
    for what, value in {"omega": omega, "decay": decay}.items():
        if not (0 <= value < 1):
            msg = f"{what} must be in [0, 1); got {value}."
            raise ValueError(msg)
    if damping is not None and damping <= 0:
        msg = f"damping must be positive: the matrix may be singular; got {damping}."
        raise ValueError(msg)

    def init(at: Eval) -> HessianFreeState:
        flat = ravel_pytree(at.grad)[0].astype(tree.inner_dtype(at.grad))
        one = jnp.ones((), at.value.dtype)
        memory: Any = ()
        if precondition == "nystrom":
            memory = blank(RANK, flat.size, flat.dtype)
        elif precondition == "diagonal":
            memory = jnp.zeros_like(flat)
        first, unit = (FIRST, 0.0) if damping is None else (damping, 1.0)
        return HessianFreeState(
            first * one, unit * one, jnp.zeros_like(flat), memory, jnp.asarray(0, jnp.int32)
        )

    def rebuild(oracle: Oracle, at: Eval, state: HessianFreeState, key: Key):
        if precondition == "diagonal":
            squares = curvature_diagonal(oracle, at.params, curvature)
            return state._replace(memory=squares.astype(state.direction.dtype)), Counts(jacobian=1)
        op = oracle.curvature(curvature, at.params)
        flat = state.direction
        sketch = nystrom(_raveled(op.mv, at), RANK, flat.size, flat.dtype, key)
        counts = tally(op.setup, times(sketch.values.size, op.price))
        return state._replace(memory=sketch), counts

    def step(oracle: Oracle, at: Eval, state: HessianFreeState, key: Key):
        del key
        x, unravel = ravel_pytree(at.params)
        dtype, inner = at.value.dtype, state.direction.dtype
        g = ravel_pytree(at.grad)[0].astype(inner)
        op = oracle.curvature(curvature, at.params)
        product = _raveled(op.mv, at)
        unit, spent = _unit(product, g, state.unit, op.price)
        level = (state.damping * unit).astype(inner)
        change = None
        if precondition != "none":
            change = functools.partial(_preconditioned, state.memory, level)
        found = damped_cg(
            lambda v: product(v) + level * v,
            g,
            decay * state.direction if decay else None,
            max_iters=max_iters,
            progress=progress,
            tol=tol,
            precondition=change,
            store=backtrack,
        )

        def end(d: Array) -> Array:
            return (x.astype(inner) + d).astype(x.dtype)

        def value_at(d: Array) -> Scalar:
            return oracle.value(unravel(end(d)))

        d, asked = found.step, jnp.asarray(0, jnp.int32)
        known = None
        if backtrack:
            chosen = backtracked(found, value_at)
            d, known, asked = chosen.step, chosen.value.astype(dtype), chosen.asked
        usable = jnp.all(jnp.isfinite(d))
        d = jnp.where(usable, d, 0)
        slope = tree.vdot(g, d).astype(dtype)
        if learning_rate is None:
            search = _armijo(lambda t: value_at(t.astype(inner) * d), at.value, slope, known,
                             max_trials)  # fmt: skip
        else:
            t = rate_at(learning_rate, state.steps, dtype)
            one = jnp.asarray(1, jnp.int32)
            search = _Searched(t, value_at(t.astype(inner) * d), one)
        t, value = search.t, search.value
        gained = at.value - value
        # of the undamped model at the end of the step; <d, G d> costs one more product
        bend = tree.vdot(d, product(d)).astype(dtype)
        promise = -(t * slope + t**2 * bend / 2)
        accepted = usable & (t > 0) & jnp.isfinite(value) & (slope < 0)
        new_damping = state.damping
        if adapt:
            good, poor = gained > 0.75 * promise, ~(gained >= 0.25 * promise)
            factor = jnp.where(accepted & good, omega, jnp.where(~accepted | poor, 1 / omega, 1))
            # a step that failed altogether is far from where the model holds
            factor = jnp.where(accepted, factor, 1 / omega**4)
            least = tree.eps(dtype) ** (4 / 3)
            new_damping = jnp.clip(state.damping * factor, least, 4 * LARGEST).astype(dtype)
        whole = -(slope + bend / 2)
        resolved = (jnp.abs(whole) <= noise(at.value)) & ~accepted
        status = jnp.where(
            ~accepted & (state.damping > LARGEST),
            Status.LINE_SEARCH_FAILED.value,
            Status.RUNNING.value,
        )
        status = jnp.where(resolved, Status.CONVERGED_TO_PRECISION.value, status)
        length = tree.norm(d).astype(dtype)
        info = StepInfo(
            step_norm=jnp.where(accepted, t * length, 0),
            accepted=accepted,
            counts=tally(
                op.setup, spent, times(found.iterations + 1, op.price),
                times(asked + search.trials, Counts(value=1)),
            ),
            predicted=whole,
            status=status.astype(jnp.int32),
            extras={
                "damping": state.damping * unit,
                "step_size": jnp.where(accepted, t, 0),
                "iterations": found.iterations,
            },
        )  # fmt: skip
        new = HessianFreeState(
            new_damping,
            unit,
            jnp.where(accepted, d, 0) if decay else state.direction,
            state.memory,
            state.steps + 1,
        )
        params = unravel(jnp.where(accepted, end(t.astype(inner) * d), x))
        return params, None, new, info

    return Optimizer(
        init,
        step,
        monotone=learning_rate is None,
        name=name,
        refresh=() if precondition == "none" else (Refresh(EVERY, rebuild),),
    )


def _raveled(product: Callable[[Any], Any], at: Eval) -> Callable[[Array], Array]:
    """A product over ravelled parameters, in at least float32."""
    flat, unravel = ravel_pytree(at.params)
    inner = tree.inner_dtype(at.params)

    def apply(v: Array) -> Array:
        return ravel_pytree(product(unravel(v.astype(flat.dtype))))[0].astype(inner)

    return apply


def _unit(
    product: Callable[[Array], Array], g: Array, known: Scalar, price: Counts
) -> tuple[Scalar, Counts]:
    """The curvature along the gradient, where it is not known yet; 1 if there is none."""

    def measure() -> tuple[Scalar, Counts]:
        gg = jnp.vdot(g, g)
        found = jnp.vdot(g, product(g)) / jnp.where(gg > 0, gg, 1)
        return jnp.where(found > 0, found, 1).astype(known.dtype), times(1, price)

    return lax.cond(known > 0, lambda: (known, times(0, price)), measure)


def _preconditioned(memory: Nystrom | Array, level: Array, v: Array) -> Array:
    """M^-1 v."""
    if isinstance(memory, Nystrom):
        return memory.flattened(level, v)
    return (memory + level) ** -POWER * v


def _armijo(
    value_at: Callable[[Scalar], Scalar],
    start: Scalar,
    slope: Scalar,
    known: Scalar | None,
    max_trials: int,
) -> _Searched:
    """The first t of 1, 0.8, ... that lowers the objective by ARMIJO t |slope|; 0 if none does."""

    def enough(t: Scalar, value: Scalar) -> Bool[Array, ""]:
        return (value <= start + ARMIJO * t * slope) & (value < start)  # never for NaN

    one, zero = jnp.ones_like(start), jnp.asarray(0, jnp.int32)
    first = value_at(one) if known is None else known
    trials = zero + (1 if known is None else 0)

    def body(c: _Searched) -> _Searched:
        t = SHRINK * c.t
        return _Searched(t, value_at(t), c.trials + 1)

    end = lax.while_loop(
        lambda c: ~enough(c.t, c.value) & (c.trials < max_trials),
        body,
        _Searched(one, first, trials),
    )
    found = enough(end.t, end.value)
    return _Searched(jnp.where(found, end.t, 0), jnp.where(found, end.value, start), end.trials)
