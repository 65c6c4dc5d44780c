"""A^+ b from products with a symmetric A that may be indefinite or singular.

First a short run of MINRES, which suffices where A is well conditioned. What it leaves open is
solved after an equilibration X A X y = X b, if that has something to scale. The answer x = X y is
A^+ b if A is regular up to idle parameters (rows of zeros, which the scaling leaves alone); of
another singular A it would be the solution least in the norm of X^-1 instead. A system with a
random right-hand side tells: it is consistent only if A is regular. If it is not, plain MINRES
goes on alone.

Where b has a part outside the range, b is projected first, by a consistent system of its own,
P b = A^+ (A b), and A^+ b = A^+ (P b) takes two more runs.

Reference: Choi, Paige & Saunders (2011), "MINRES-QLP: a Krylov subspace method for indefinite or
singular symmetric systems", section 3, for what a preconditioner does to a singular system.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from optikit.core import Status, tree
from optikit.linalg.equilibrate import PROBES, ROUNDS, equilibrating
from optikit.linalg.minres import Minres, Product, Vector, minres
from optikit.linalg.symmetric import Answer

LIMIT = 10_000
"""Products of one run at most, if not said otherwise."""

TRIAL = 50
"""Products of the first run: where they suffice, 20 for a scaling would not pay."""

FLAT = 0.5
"""A scaling is not used whose logarithms spread less, by standard deviation: noise alone is 0.2."""

# the runs, each A x = right or X A X y = X right
_SHORT, _SCALED, _SCALED_PROBE, _PLAIN, _IMAGE, _PROJECTED, _PROBE, _END = range(8)


class _Course(NamedTuple):
    stage: Int[Array, ""]  # the run that comes next
    x: Vector
    right: Vector
    scale: Vector
    idle: Bool[Array, " n"]
    status: Int[Array, ""]
    products: Int[Array, ""]


def least_norm(
    product: Product,
    b: Vector,
    *,
    max_iters: int | None = None,
    examine: bool = False,
    within: Bool[Array, " n"] | None = None,
) -> Answer:
    """A^+ b: the x of least norm among those of least |A x - b|.

    Args:
      product: v -> A v, symmetric.
      max_iters: products of one run at most; by default 4 n + 50, and at most 10,000.
      examine: tell SINGULAR from CONVERGED, by a run with a random right-hand side where none was
        needed for the answer.
      within: coordinates the system is about, by default all; A and b are zero in the others.

    Returns: an Answer; MAX_STEPS if a run was cut off.

    Example:
      >>> a = jnp.array([[2.0, 2.0], [2.0, 2.0]])
      >>> answer = least_norm(lambda v: a @ v, jnp.array([5.0, 3.0]))
      >>> [round(float(v), 5) for v in answer.x], int(answer.status)
      ([1.0, 1.0], 11)
    """
    limit = min(4 * b.size + 50, LIMIT) if max_iters is None else max_iters
    eps = tree.eps(b.dtype)
    apart = jnp.zeros(b.shape, bool) if within is None else ~within
    scale_key, probe_key = jax.random.split(jax.random.key(0))

    def scaling(stage: Array) -> tuple[Array, Array, Array]:
        # a loop of at most one turn: a condition would run both of its sides under vmap
        def build(_: tuple) -> tuple:
            return *equilibrating(product, b, scale_key), jnp.asarray(PROBES * ROUNDS, jnp.int32)

        start = jnp.ones_like(b), jnp.zeros(b.shape, bool), jnp.asarray(0, jnp.int32)
        return lax.while_loop(lambda c: (stage == _SCALED) & (c[2] == 0), build, start)

    def image(needed: Array) -> Array:
        return lax.while_loop(lambda c: c[1], lambda c: (product(b), ~c[1]), (b, needed))[0]

    def next_run(c: _Course) -> _Course:
        x_scale, idle, spent = scaling(c.stage)
        fresh = c.stage == _SCALED
        scale = jnp.where(fresh, x_scale, c.scale)
        idle = jnp.where(fresh, idle & ~apart, c.idle)
        x = jnp.where(fresh | (c.stage == _SCALED_PROBE), scale, 1)
        probing = (c.stage == _SCALED_PROBE) | (c.stage == _PROBE)
        random = jax.random.normal(probe_key, b.shape, b.dtype)
        right = jnp.where(probing, jnp.where(idle | apart, 0, random), x * c.right)
        # a projected right-hand side is in the range but for the rounding of its own run
        floor = jnp.where(c.stage == _PROJECTED, eps**0.8, 10 * eps)
        floor = jnp.where(probing, eps**0.5, floor).astype(b.dtype)
        budget = jnp.where(c.stage == _SHORT, min(TRIAL, limit), limit)
        budget = jnp.where(fresh & (jnp.std(jnp.log(scale)) < FLAT), 0, budget)
        run = minres(lambda v: x * product(x * v), right, floor=floor, max_iters=budget)
        stage, status = _after(c, run, idle, examine)
        projecting = stage == _IMAGE
        right = jnp.where(stage == _PROJECTED, run.x, b)
        return _Course(
            stage,
            jnp.where(probing, c.x, x * run.x),
            jnp.where(projecting, image(projecting), right),
            scale,
            # a plain probe has to see them: what is left of the scaling is forgotten
            idle & (stage == _SCALED_PROBE),
            status.astype(jnp.int32),
            c.products + spent + run.products + projecting.astype(jnp.int32),
        )

    whole = jnp.asarray(0, jnp.int32)
    start = _Course(
        whole + _SHORT, jnp.zeros_like(b), b, jnp.ones_like(b), jnp.zeros(b.shape, bool),
        whole + Status.CONVERGED.value, whole,
    )  # fmt: skip
    end = lax.while_loop(lambda c: c.stage != _END, next_run, start)
    status = jnp.where(jnp.all(jnp.isfinite(end.x)), end.status, Status.NOT_FINITE.value)
    return Answer(end.x, status.astype(jnp.int32), end.products)


def _after(
    c: _Course, run: Minres, idle: Bool[Array, " n"], examine: bool
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Which run comes next, and the status if none does."""
    good, solved = Status.CONVERGED.value, _PROBE if examine else _END
    singular = jnp.where(jnp.any(idle), Status.SINGULAR.value, good)
    cut = jnp.where(run.ended, Status.INCONSISTENT.value, Status.MAX_STEPS.value)
    probed = jnp.where(run.ended, Status.SINGULAR.value, Status.MAX_STEPS.value)
    consistent, status = run.consistent & ((c.stage != _SHORT) | run.ended), c.status
    table = [  # (stage, next where consistent, else, status where consistent, else)
        (_SHORT, solved, jnp.where(run.ended, _IMAGE, _SCALED), good, cut),
        (_SCALED, _SCALED_PROBE, _PLAIN, good, good),
        (_SCALED_PROBE, _END, _PLAIN, singular, good),
        (_PLAIN, solved, jnp.where(run.ended, _IMAGE, _END), good, cut),
        (_IMAGE, _PROJECTED, _PROJECTED, status, status),
        (_PROJECTED, _END, _END, status, status),
        (_PROBE, _END, _END, good, probed),
    ]  # fmt: skip
    stage = c.stage
    for number, then, otherwise, well, badly in table:
        here = c.stage == number
        stage = jnp.where(here, jnp.where(consistent, then, otherwise), stage)
        status = jnp.where(here, jnp.where(consistent, well, badly), status)
    return stage, status
