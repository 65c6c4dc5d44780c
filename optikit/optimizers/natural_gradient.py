"""The natural gradient exactly: a damped Gauss-Newton or Fisher system, in the smaller space.

With R the rows of the curvature, the direction is d = -(R^T R + lambda I)^-1 g, from the (n, n)
matrix, or from the (m, m) kernel R R^T where there are fewer outputs than parameters; the step
along it is the best on the grid 1, 1/2, 1/4, ... Damping follows Levenberg and Marquardt. With a
momentum mu the damping pulls towards mu times the last direction instead of towards zero (SPRING),
which keeps what earlier batches said of the directions that this batch does not see. The kernel of
wide layers is formed from their inputs and output gradients, without R: `optikit.calculus.kernel`.

On an energy (`variational(...)`) the metric is that of the quantum state, the method stochastic
reconfiguration, or MinSR in the kernel form, and d one unit of imaginary time. The metric is no
model of the energy there: damping stays as it is, and the search begins at twice the last step.

References: Amari (1998); Martens (2020), "New insights and perspectives on the natural gradient
method", section 6; Chen & Heyl (2024), eq. 5 (the kernel form, MinSR); Goldshlager, Abrahamsen &
Lin (2024), "A Kaczmarz-inspired approach...", eq. 12 (SPRING) and eq. 19 (the norm constraint);
Mueller & Zeinhofer (2023) for the line search on a grid.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.calculus.kernel import Kernel, curvature_kernel, plan_kernel
from optikit.calculus.rows import Rows, RowSource, count_rows, curvature_rows, row_source
from optikit.core import Counts, Key, Params, Scalar, Status, memoized, tally, times, tree
from optikit.core.tree import HIGHEST
from optikit.globalize.search import noise
from optikit.linalg.woodbury import (
    Blocks,
    blocked_solve,
    damped_solve,
    gram_dtype,
    kernel_solve,
    passes,
)
from optikit.optimizers.protocol import Optimizer, StepInfo
from optikit.optimizers.rate import LearningRate, rate_at

KEPT, BROKEN = 0.75, 0.25
"""Shares of the promised decrease from which the damping is lowered, and below which raised."""

LARGEST = 1e6
"""Damping, relative to the mean squared row, beyond which there is nothing left to try."""

FIRST, FIRST_OF_ENERGY = 1e-2, 1e-4
"""Damping at the start, relative to the mean squared row: of a model of the objective, and of the
metric of a state, which only has to be invertible."""


class NaturalGradientState(NamedTuple):
    """What the next step needs."""

    damping: Scalar  # relative to the mean diagonal entry of the smaller matrix
    direction: Float[Array, " n"]  # the last one, before its step size
    step_size: Scalar  # the last one accepted
    steps: Int[Array, ""]


_Model = TypeVar("_Model", Rows, Kernel)


class _Solved(NamedTuple):
    d: Float[Array, " n"]
    bend: Scalar  # <d, (R^T R + extra) d>
    counts: Counts


class _Line(NamedTuple):
    t: Scalar
    best_t: Scalar
    best: Scalar
    halvings: Int[Array, ""]
    done: Bool[Array, ""]


@memoized
def natural_gradient(
    learning_rate: LearningRate | None = None,
    *,
    curvature: Literal["fisher", "ggn"] = "ggn",
    damping: float | None = None,
    adapt: bool = True,
    momentum: float = 0.0,
    norm_constraint: float | None = None,
    halvings: int = 30,
    parallel: bool = False,
    memory: int = 2**28,
) -> Optimizer:
    """Natural gradient descent with the exact matrix: `composite`, `residuals` or `variational`.

    Args:
      learning_rate: the step along the direction, a number or a schedule (step -> number); by
        default the best of 1, 1/2, 1/4, ... on the batch at hand, which on fixed data never raises
        the objective.
      curvature: "ggn", with the loss's own output-space curvature, or "fisher", with the
        information of its distribution; they differ for other than canonical links. An energy has
        its own metric, whichever is asked for.
      damping: the first damping, relative to the mean diagonal entry of the matrix; by default
        1e-2, and 1e-4 for an energy.
      adapt: lower the damping after steps that keep the model's promise, raise it after others
        (Martens 2010, section 4.1); without, and for an energy, it stays as it is.
      momentum: mu of SPRING, in [0, 1); useful on batches.
      norm_constraint: C, so that the step is min(t, sqrt(C) / |d|) d (SPRING's).
      halvings: of the step, at most.
      parallel: evaluate the whole grid at once and take its best point, instead of one after
        another until the model's promise is kept.
      memory: numbers that the rows may fill at once. Where there are more, they are computed again
        block by block; the kernel then costs half as many jacobians as there are blocks, little
        against its products.

    Weight decay belongs in the objective, where the curvature sees it: `penalty=ok.losses.l2(...)`.

    Cost per step: one jacobian (the gradients of m outputs), m n min(m, n) + min(m, n)^3 / 3
    flops, and a value for each trial step. Memory: m n, or in blocks min(m, n)^2 and `memory`.
    With fewer outputs than parameters on a composite objective, where an example meets a layer in
    one row, or in few for its size, there is neither a jacobian nor its product: a layer costs
    m^2 (inputs + outputs), besides as many gradients as an example has outputs. This needs a
    penalty with one coefficient for all parameters, or none.

    Example:
      >>> import optikit as ok
      >>> fit = ok.residuals(lambda p, t: jnp.exp(-p["rate"] * t) - jnp.exp(-0.7 * t))
      >>> sol = ok.minimize(fit, {"rate": 2.0}, args=(jnp.linspace(0, 4, 20),),
      ...                   method=natural_gradient())
      >>> bool(sol.success), round(float(sol.params["rate"]), 4)
      (True, 0.7)

    Raises:
      TypeError: when run on a black box, or with a penalty that is not separable.
      ValueError: momentum, damping or the norm constraint out of range.
    """
    if not 0 <= momentum < 1:
        msg = f"momentum must be in [0, 1); got {momentum}."
        raise ValueError(msg)
    if damping is not None and damping <= 0:
        msg = f"damping must be positive: the kernel form divides by it; got {damping}."
        raise ValueError(msg)
    if norm_constraint is not None and norm_constraint <= 0:
        msg = f"norm_constraint must be positive; got {norm_constraint}."
        raise ValueError(msg)

    def evaluate(oracle: Oracle, params: Params) -> tuple[Eval, Counts]:
        at = oracle.value_and_grad(params)
        m = count_rows(oracle.objective, params, oracle.args)
        plan = plan_kernel(oracle.objective, params, oracle.args, m, memory)
        if plan is not None:
            wide = gram_dtype(tree.inner_dtype(params))
            kernel, price = curvature_kernel(oracle, params, curvature, plan, wide)
            return at._replace(local=_wide(kernel)), tally(Counts(grad=1), price)
        if m * tree.size(params) > memory:
            return at, Counts(grad=1)
        rows = _wide(curvature_rows(oracle, params, curvature))
        return at._replace(local=rows), Counts(grad=1, jacobian=1)

    def init(at: Eval) -> NaturalGradientState:
        flat = ravel_pytree(at.grad)[0].astype(tree.inner_dtype(at.grad))
        one = jnp.ones((), at.value.dtype)
        first = 0.0 if damping is None else damping  # the kind of objective is known to the step
        return NaturalGradientState(
            first * one, jnp.zeros_like(flat), one, jnp.asarray(0, jnp.int32)
        )

    def solve(oracle: Oracle, at: Eval, level: Scalar, pull: Array) -> _Solved:
        if isinstance(at.local, Rows):
            model = at.local
            unit = _mean_square(jnp.sum(model.rows**2), *model.rows.shape)
            level = level.astype(unit.dtype) * unit
            q = model.q - level * pull
            d = -damped_solve(model.rows, model.extra + level, model.w, q)
            moved = jnp.matmul(model.rows, d, precision=HIGHEST)
            return _Solved(d, tree.vdot(moved, moved) + jnp.sum(model.extra * d**2), Counts())
        if isinstance(at.local, Kernel):
            model = at.local
            unit = _mean_square(jnp.trace(model.gram), *model.gram.shape).astype(pull.dtype)
            level = level.astype(unit.dtype) * unit
            products = row_source(oracle, at.params, curvature).products
            assert products is not None
            y, moved = kernel_solve(
                model.gram,
                level + model.extra,
                model.w,
                model.q - level * pull,
                products.forward,
                products.backward,
            )
            oracle.tap("jvp")
            oracle.tap("vjp")
            bend = tree.vdot(moved, moved) + model.extra * tree.vdot(y, y)
            return _Solved(-y, bend, Counts(jvp=1, vjp=1))
        source = row_source(oracle, at.params, curvature)
        blocks, w = _blocks(source, memory, pull.dtype)
        unit = _mean_square(_sum_of_squares(blocks), source.w.size, pull.size)
        level = level.astype(unit.dtype) * unit
        with_q = momentum > 0 or oracle.objective.kind != "variational"
        with_q |= oracle.objective.penalty is not None
        extra = source.extra.astype(pull.dtype)
        q = source.q.astype(pull.dtype) - level * pull if with_q else None
        y, moved = blocked_solve(blocks, extra + level, w, q)
        number = 1 + passes(blocks.number, source.w.size, pull.size, with_q=with_q)
        for _ in range(number):
            oracle.tap("jacobian")
        bend = tree.vdot(moved, moved) + jnp.sum(extra * y**2)
        return _Solved(-y, bend, Counts(jacobian=number))

    def step(oracle: Oracle, at: Eval, state: NaturalGradientState, key: Key):
        del key
        energy = oracle.objective.kind == "variational"
        x, unravel = ravel_pytree(at.params)
        dtype = at.value.dtype
        m, n = count_rows(oracle.objective, at.params, oracle.args), x.size
        begun = state.damping > 0
        relative = jnp.where(begun, state.damping, FIRST_OF_ENERGY if energy else FIRST)
        d, bend, spent_on = solve(oracle, at, relative, momentum * state.direction)
        bend = bend.astype(dtype)
        slope = tree.vdot(ravel_pytree(at.grad)[0], d).astype(dtype)

        def promise(t: Scalar) -> Scalar:
            # of an energy no more is known than that a parabola's minimum keeps half of the slope
            return -t * slope / 2 if energy else -(t * slope + t**2 * bend / 2)

        def moved_by(t: Scalar) -> Array:
            return (x.astype(d.dtype) + t.astype(d.dtype) * d).astype(x.dtype)

        def value_at(t: Scalar) -> Scalar:
            return oracle.value(unravel(moved_by(t)))

        if learning_rate is None:
            first = 2 * state.step_size if energy else jnp.ones((), dtype)
        else:
            first = rate_at(learning_rate, state.steps, dtype)
        length = tree.norm(d).astype(dtype)
        if norm_constraint is not None:
            first = jnp.minimum(first, norm_constraint**0.5 / jnp.where(length > 0, length, 1))
        if learning_rate is None:
            search = _all_of_grid if parallel else _best_on_grid
            t, value, trials = search(value_at, at.value, promise, first, halvings)
        else:
            t, value, trials = first, value_at(first), jnp.asarray(1, jnp.int32)
        gained = at.value - value
        kept = gained >= KEPT * promise(t)
        broken = ~(gained >= BROKEN * promise(t))  # NaN included
        finite = jnp.all(jnp.isfinite(d))
        accepted = (t > 0) & jnp.isfinite(value) & finite
        t = jnp.where(accepted, t, 0)
        new_damping = relative
        if adapt and not energy:
            precise = tree.eps(gram_dtype(d.dtype))
            least = precise ** (4 / 3) if m >= n else 8 * precise
            good = accepted & kept & (t >= first / 2)
            factor = jnp.where(good, 1 / 4, jnp.where(accepted & ~broken, 1, 4))
            new_damping = jnp.clip(relative * factor, least, 4 * LARGEST)
        whole = promise(t if energy else jnp.ones((), dtype))
        resolved = (jnp.abs(whole) <= noise(at.value)) & ~accepted
        spent = ~accepted & (relative > LARGEST)
        status = jnp.where(spent, Status.LINE_SEARCH_FAILED.value, Status.RUNNING.value)
        status = jnp.where(resolved, Status.CONVERGED_TO_PRECISION.value, status)
        info = StepInfo(
            step_norm=jnp.where(accepted, t * length, 0),
            accepted=accepted,
            counts=tally(spent_on, times(trials, Counts(value=1))),
            predicted=whole,
            status=status.astype(jnp.int32),
            extras={"damping": relative, "step_size": t},
        )
        new = NaturalGradientState(
            new_damping.astype(dtype),
            jnp.where(finite & (momentum > 0), d, 0),
            jnp.where(accepted, t, state.step_size / 2),
            state.steps + 1,
        )
        return unravel(jnp.where(accepted, moved_by(t), x)), None, new, info

    def calm(state: NaturalGradientState) -> NaturalGradientState:
        return state._replace(
            damping=10 * state.damping,
            direction=jnp.zeros_like(state.direction),
            step_size=state.step_size / 2,
        )

    return Optimizer(
        init,
        step,
        evaluate=evaluate,
        monotone=learning_rate is None,
        name="natural-gradient",
        calm=calm,
    )


def _wide(model: _Model) -> _Model:
    """In at least float32."""
    return jax.tree.map(lambda x: x.astype(tree.inner_dtype(x)), model)


def _mean_square(total: Scalar, m: int, n: int) -> Scalar:
    """The mean diagonal entry of the smaller matrix, 1 if that is zero."""
    return jnp.where(total > 0, total / min(m, n), 1)


def _blocks(source: RowSource, memory: int, dtype: jnp.dtype) -> tuple[Blocks, Array]:
    """The rows in blocks of which four fill the memory, and w filled up to them."""
    n, width = source.q.size, source.width
    each = max(1, min(source.examples, memory // (4 * n * width)))
    count = -(-source.examples // each)

    def block(i: Array) -> Array:
        index = i * each + jnp.arange(each, dtype=jnp.int32)
        return source.take(jnp.minimum(index, source.examples)).astype(dtype)

    w = jnp.zeros(count * each * width, dtype).at[: source.w.size].set(source.w.astype(dtype))
    return Blocks(block, count, each * width), w


def _sum_of_squares(blocks: Blocks) -> Scalar:
    index = jnp.arange(blocks.number, dtype=jnp.int32)
    return jnp.sum(lax.map(lambda i: jnp.sum(blocks.block(i) ** 2), index))


def _all_of_grid(
    value_at: Callable[[Scalar], Scalar],
    start: Scalar,
    promise: Callable[[Scalar], Scalar],
    first: Scalar,
    halvings: int,
) -> tuple[Scalar, Scalar, Int[Array, ""]]:
    """(t, f at t, trials): the best of first * 2^-k, all evaluated at once; t = 0 if none is."""
    del promise
    ts = first * 0.5 ** jnp.arange(halvings + 1, dtype=start.dtype)
    values = jax.vmap(value_at)(ts)
    values = jnp.where(values < start, values, jnp.inf)  # never NaN
    k = jnp.argmin(values)
    better = values[k] < start
    t = jnp.where(better, ts[k], 0)
    return t, jnp.where(better, values[k], start), jnp.asarray(halvings + 1, jnp.int32)


def _best_on_grid(
    value_at: Callable[[Scalar], Scalar],
    start: Scalar,
    promise: Callable[[Scalar], Scalar],
    first: Scalar,
    halvings: int,
) -> tuple[Scalar, Scalar, Int[Array, ""]]:
    """(t, f at t, trials): halved from `first` until the promise is kept, or halving hurts.

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
    begin = _Line(first, zero, start, jnp.asarray(0, jnp.int32), jnp.asarray(False))
    line = lax.while_loop(running, body, begin)
    return line.best_t, line.best, line.halvings
