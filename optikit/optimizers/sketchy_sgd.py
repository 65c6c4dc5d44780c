"""SketchySGD: stochastic gradients through a small sketch of the Hessian, with its own step size.

Now and then a randomized Nystrom approximation V Lambda V^T of the batch's Hessian is taken from a
few products; gradients in between are multiplied by (V Lambda V^T + rho I)^-1. That flattens the
leading eigenvalues, and half the inverse of the largest eigenvalue that is left, found by a power
iteration, is a step size that needs no tuning. It was made for generalised linear models; where
the curvature changes much between two sketches, nothing keeps its steps from being too long.

Reference: Frangella, Rathore, Zhao & Udell (2024), "SketchySGD: reliable stochastic optimization
via randomized curvature estimates", Algorithms 3.1 and 4.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int

from optikit.calculus import Eval, Oracle
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Counts, Key, Scalar, memoized, tally, times, tree
from optikit.linalg.nystrom import Nystrom, blank, nystrom
from optikit.optimizers.protocol import Optimizer, Refresh, StepInfo, running
from optikit.optimizers.rate import LearningRate, rate_at

UNKNOWN_RATE = 1e-3
"""The step size along plain gradients where no positive curvature was seen."""

FLOOR = 1e-4
"""Of rho, relative to the largest eigenvalue of the sketch."""


class SketchySgdState(NamedTuple):
    """What the next step needs."""

    sketch: Nystrom
    rho: Scalar
    rate: Scalar  # 1 / (2 lambda_1) of the preconditioned Hessian
    steps: Int[Array, ""]


@memoized
def sketchy_sgd(
    learning_rate: LearningRate = 1.0,
    *,
    rank: int = 10,
    rho: float | None = None,
    every: int = 50,
    power_iterations: int = 10,
    curvature: CurvatureKind = "hessian",
) -> Optimizer:
    """Gradient steps preconditioned by a sketch of the Hessian, with an automatic step size.

    Args:
      learning_rate: a factor on the automatic step size, or a schedule of it: a decaying one to
        converge on batches.
      rank: of the sketch.
      rho: the regularisation, absolute; by default the least eigenvalue of the sketch (at least
        1e-4 of the largest): less would shorten the automatic step for the leading eigenvectors
        without lengthening it for the others.
      every: steps that a sketch serves.
      power_iterations: for the step size.
      curvature: "hessian", whose positive part is sketched; "ggn", "fisher" or "empirical-fisher".

    Cost: `rank` + `power_iterations` products and the operator's setup every so many steps, else
    nothing beyond the gradient. Memory: `rank` vectors. An l2 penalty of the objective is part of
    its Hessian; there is no other weight decay.

    Raises:
      ValueError: rank, rho, every or power_iterations out of range.

    Example:
      >>> import optikit as ok
      >>> line = ok.composite(lambda w, x: x @ w, ok.losses.squared_error)
      >>> data = (jnp.diag(jnp.array([1.0, 10.0, 100.0])), jnp.arange(3.0))
      >>> sol = ok.minimize(line, jnp.zeros(3), args=data, method=sketchy_sgd())
      >>> float(sol.value) < 1e-6
      True
    """
    least = {"rank": rank, "every": every, "power_iterations": power_iterations}
    for name, value in least.items():
        if value < 1:
            msg = f"{name} must be at least 1; got {value}."
            raise ValueError(msg)
    if rho is not None and rho <= 0:
        msg = f"rho must be positive: the sketch alone is singular; got {rho}."
        raise ValueError(msg)

    def init(at: Eval) -> SketchySgdState:
        inner = tree.inner_dtype(at.params)
        one = jnp.ones((), inner)
        sketch = blank(rank, tree.size(at.params), inner)
        return SketchySgdState(sketch, one, UNKNOWN_RATE * one, jnp.asarray(0, jnp.int32))

    def resketch(oracle: Oracle, at: Eval, state: SketchySgdState, key: Key):
        drawing, starting, sampling = jax.random.split(key, 3)
        op = oracle.curvature(curvature, at.params, sampling if curvature == "fisher" else None)
        product = op.mv
        flat, unravel = ravel_pytree(at.params)
        inner = state.rate.dtype

        def image(v: Array) -> Array:
            return ravel_pytree(product(unravel(v.astype(flat.dtype))))[0].astype(inner)

        sketch = nystrom(image, rank, flat.size, inner, drawing)
        top = sketch.values[0]
        if rho is None:
            shift = jnp.maximum(sketch.values[-1], FLOOR * top)
            shift = jnp.where(top > 0, shift, 1)
        else:
            shift = jnp.asarray(rho, inner)

        def multiply(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            v = sketch.root(shift, image(sketch.root(shift, carry[0])))
            size = jnp.linalg.norm(v)
            return v / jnp.where(size > 0, size, 1), size

        start = jax.random.normal(starting, flat.shape, inner)
        start = start / jnp.linalg.norm(start)
        largest = lax.fori_loop(0, power_iterations, multiply, (start, jnp.zeros((), inner)))[1]
        known = (largest > 0) & jnp.isfinite(largest) & (top > 0)
        rate = jnp.where(known, 0.5 / jnp.where(known, largest, 1), UNKNOWN_RATE)
        number = sketch.values.size + power_iterations
        counts = tally(op.setup, times(number, op.price))
        return state._replace(sketch=sketch, rho=shift, rate=rate), counts

    def step(oracle: Oracle, at: Eval, state: SketchySgdState, key: Key):
        del oracle, key
        x, unravel = ravel_pytree(at.params)
        inner, dtype = state.rate.dtype, at.value.dtype
        rate = state.rate * rate_at(learning_rate, state.steps, inner)
        g = ravel_pytree(at.grad)[0].astype(inner)
        d = -rate * state.sketch.inverse(state.rho, g)
        finite = jnp.all(jnp.isfinite(d))
        new = jnp.where(finite, (x.astype(inner) + d).astype(x.dtype), x)
        size = jnp.where(finite, jnp.linalg.norm(d), 0).astype(dtype)
        extras = {"step_size": rate.astype(dtype), "rho": state.rho.astype(dtype)}
        info = StepInfo(size, finite, tally(Counts()), None, running(), extras)
        return unravel(new), None, state._replace(steps=state.steps + 1), info

    return Optimizer(init, step, name="sketchy-sgd", refresh=(Refresh(every, resketch),))
