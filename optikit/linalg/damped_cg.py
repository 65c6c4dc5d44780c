"""Conjugate gradients on a damped convex model, with what Hessian-free optimisation adds to them.

They begin at a warm start, stop when the model's value makes no more relative progress rather than
by the residual, and keep iterates at growing distances, so that the objective itself can choose
among them: later ones are better for the model, not always for the objective.

Reference: Martens (2010), "Deep learning via Hessian-free optimization", sections 4.4 (stopping),
4.6 and 4.8 (backtracking, warm starts); Martens & Sutskever (2012), section 20.4.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from optikit.core import Scalar, tree
from optikit.core.tree import HIGHEST

GROWTH = 1.3
"""The ratio of the iteration numbers of stored iterates (Martens 2010, section 4.6)."""

WINDOW, SHARE = 10, 0.1
"""Progress is that of the last max(10, 0.1 i) iterations (Martens 2010, section 4.4)."""

Product = Callable[[Float[Array, " n"]], Float[Array, " n"]]


class Descent(NamedTuple):
    """What the iterations came to.

    Attributes:
      step: the last iterate.
      model: its value of the damped model, <g, s> + <s, A s> / 2, where A is damped.
      stored: earlier iterates, one a row, in order; the last of them is `step`.
      places: the iteration of each row. number: of rows in use.
      iterations: products used, the one for a warm start included.
      residual: |A step + g| in the norm of the preconditioner, over that at zero.
    """

    step: Float[Array, " n"]
    model: Scalar
    stored: Float[Array, "k n"]
    places: Int[Array, " k"]
    number: Int[Array, ""]
    iterations: Int[Array, ""]
    residual: Scalar


class _Run(NamedTuple):
    s: Float[Array, " n"]
    r: Float[Array, " n"]  # A s + g
    p: Float[Array, " n"]
    ry: Scalar  # <r, M^-1 r>
    model: Scalar
    models: Float[Array, " w"]  # of the last iterations, in a ring
    stored: Float[Array, "k n"]
    places: Int[Array, " k"]
    number: Int[Array, ""]
    i: Int[Array, ""]
    done: Bool[Array, ""]


def damped_cg(
    product: Product,
    g: Float[Array, " n"],
    start: Float[Array, " n"] | None,
    *,
    max_iters: int,
    progress: float | None = 5e-4,
    tol: float = 0.0,
    precondition: Product | None = None,
    store: bool = True,
) -> Descent:
    """Minimise <g, s> + <s, A s> / 2 for a positive definite A, damping included.

    Args:
      product: A v.
      start: a warm start, at the price of a product; None for zero.
      max_iters: of the iterations.
      progress: stop at iteration i when the model has fallen by less than `progress` times k of
        its value over the last k = max(10, 0.1 i) iterations; None for never.
      tol: stop also when |r| in the preconditioner's norm is that share of |g|.
      precondition: M^-1 v, positive definite.
      store: keep iterates; else only the last.

    Curvature that is not positive ends the iterations where they are: of a positive definite A it
    is rounding. Memory: about log(max_iters) / log(1.3) vectors.
    """
    dtype = g.dtype
    n = g.size
    change = precondition or (lambda v: v)
    marks = _marks(max_iters) if store else [max_iters]
    ring = max(WINDOW, math.ceil(SHARE * max_iters)) + 1
    zero = jnp.asarray(0, jnp.int32)
    s = jnp.zeros(n, dtype) if start is None else start
    r = g if start is None else product(s) + g
    # all is linear in g and s: in these units no square over- or underflows
    largest = jnp.maximum(tree.max_abs(g), tree.max_abs(r))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1).astype(dtype)
    g, s, r = g / unit, s / unit, r / unit
    y = change(r)
    ry = _dot(r, y)
    model = _dot(s, r + g) / 2
    size = jnp.sqrt(_dot(g, change(g)))
    first = _Run(
        s, r, -y, ry, model, jnp.full(ring, model), jnp.zeros((len(marks), n), dtype),
        jnp.zeros(len(marks), jnp.int32), zero, zero, ~(ry > 0),
    )  # fmt: skip
    table = jnp.asarray(marks, jnp.int32)

    def body(c: _Run) -> _Run:
        image = product(c.p)
        bend = _dot(c.p, image)
        flat = ~(bend > 0)
        alpha = jnp.where(flat, 0, c.ry / jnp.where(flat, 1, bend))
        s, r = c.s + alpha * c.p, c.r + alpha * image
        y = change(r)
        ry = _dot(r, y)
        model = _dot(s, r + g) / 2
        i = c.i + 1
        window = jnp.maximum(WINDOW, jnp.ceil(SHARE * i.astype(dtype))).astype(jnp.int32)
        before = c.models[(i - window) % ring]
        done = flat | (jnp.sqrt(jnp.maximum(ry, 0)) <= tol * size) | ~jnp.isfinite(ry) | (ry <= 0)
        if progress is not None:
            slow = model - before >= progress * window.astype(dtype) * model
            done |= (i > window) & (model < 0) & slow
        # a row is written until its mark is reached, so the last iterate is always in the last one
        row = jnp.minimum(jnp.searchsorted(table, i).astype(jnp.int32), len(marks) - 1)
        return _Run(
            s, r, -y + ry / jnp.where(c.ry > 0, c.ry, 1) * c.p, ry, model,
            c.models.at[i % ring].set(model), c.stored.at[row].set(s), c.places.at[row].set(i),
            row + 1, i, done,
        )  # fmt: skip

    run = lax.while_loop(lambda c: ~c.done & (c.i < max_iters), body, first)
    spent = run.i + (0 if start is None else 1)
    residual = jnp.sqrt(jnp.maximum(run.ry, 0)) / jnp.where(size > 0, size, 1)
    return Descent(
        unit * run.s, unit * (unit * run.model), unit * run.stored, run.places, run.number, spent,
        residual,
    )  # fmt: skip


def _marks(max_iters: int) -> list[int]:
    """ceil(1.3^j), and the last iteration."""
    marks = {min(math.ceil(GROWTH**j), max_iters) for j in range(200) if GROWTH**j < 2 * max_iters}
    return sorted(marks | {max_iters})


def _dot(a: Array, b: Array) -> Scalar:
    return jnp.vdot(a, b, precision=HIGHEST)


class Chosen(NamedTuple):
    """The iterate that the objective prefers; its number, its value, and the values asked for."""

    row: Int[Array, ""]
    step: Float[Array, " n"]
    value: Scalar
    asked: Int[Array, ""]


def backtracked(descent: Descent, value_at: Callable[[Float[Array, " n"]], Scalar]) -> Chosen:
    """From the last stored iterate back, for as long as the objective does not rise.

    Iterates of a solve that has converged have the same value to rounding, which must not decide
    whether one before them is seen. A value that is not finite is left for the one before it.
    """

    def at(row: Array) -> Scalar:
        value = value_at(descent.stored[row])
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    last = jnp.maximum(descent.number - 1, 0)

    def body(c: tuple) -> tuple:
        seen, row, best, asked, _ = c
        before = at(seen - 1)
        better = (before < best) | jnp.isinf(best)
        slack = 4 * jnp.finfo(best.dtype).eps * jnp.abs(best)
        return (
            seen - 1, jnp.where(better, seen - 1, row), jnp.where(better, before, best), asked + 1,
            ~(better | (before <= best + slack)),
        )  # fmt: skip

    one = jnp.asarray(1, jnp.int32)
    _, row, value, asked, _ = lax.while_loop(
        lambda c: ~c[4] & (c[0] > 0), body, (last, last, at(last), one, jnp.asarray(False))
    )
    return Chosen(row, descent.stored[row], value, asked)
