"""Newton-CG whose curvature comes from some of the rows, its gradient and value from all of them.

Products with the curvature are nearly all of the cost of an inner iteration; on a sample of s rows
they cost s / N of those on all N. The sample is drawn anew at each step, without replacement.

References: Byrd, Chin, Neveitt & Nocedal (2011), "On the use of stochastic Hessian information in
optimization methods for machine learning"; Roosta-Khorasani & Mahoney (2019), "Sub-sampled Newton
methods".
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from optikit.calculus import Eval, Objective, Oracle
from optikit.calculus.objective import split_data
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Key, memoized
from optikit.globalize import backtracking
from optikit.linalg import Model, Subproblem, conjugate_gradients
from optikit.optimizers.protocol import Optimizer
from optikit.optimizers.second_order import second_order


@memoized
def subsampled_newton(
    fraction: float = 0.1,
    *,
    least: int = 64,
    curvature: CurvatureKind = "hessian",
    max_iters: int | None = 50,
    max_trials: int = 40,
) -> Optimizer:
    """Newton-CG on the curvature of a sample of the rows, with backtracking on all of them.

    The rows are those of a `composite(...)` objective: examples along axis 0 of its inputs, targets
    and weights (examples of weight 0 are drawn last). Of any other objective no rows are known, and
    all of it is used: then this is `newton_cg`, or its counterpart for another curvature.

    Args:
      fraction: of the rows, in (0, 1].
      least: rows at least, as far as there are so many.
      curvature: "hessian" (negative curvature of the sample is followed), "ggn", "fisher" or
        "empirical-fisher".
      max_iters: products per step.
      max_trials: of the line search.

    Cost per step: one grad to linearise and a product an iteration, each counted as if on all rows
    though it costs the sample's share of that; one grad a trial.

    Raises:
      ValueError: fraction or least out of range.

    Example:
      >>> import optikit as ok
      >>> line = ok.composite(lambda w, x: x @ w, ok.losses.squared_error)
      >>> data = (jnp.eye(3), jnp.arange(3.0))
      >>> sol = ok.minimize(line, jnp.zeros(3), args=data, method=subsampled_newton())
      >>> bool(jnp.allclose(sol.params, jnp.arange(3.0), atol=1e-3))
      True
    """
    if not 0 < fraction <= 1:
        msg = f"fraction must be in (0, 1]; got {fraction}."
        raise ValueError(msg)
    if least < 1:
        msg = f"least must be at least 1; got {least}."
        raise ValueError(msg)
    inner = conjugate_gradients(max_iters=max_iters)

    def prepare(oracle: Oracle, at: Eval, kind: CurvatureKind, key: Key) -> Model:
        drawing, sampling = jax.random.split(key)
        some = oracle._replace(
            args=sampled_rows(oracle.objective, oracle.args, fraction, least, drawing)
        )
        return inner.prepare(some, at, kind, sampling)

    return second_order(
        curvature=curvature,
        solve=Subproblem(prepare, truncated=True),
        globalize=backtracking(max_trials=max_trials),
        name="subsampled-newton",
    )


def sampled_rows(objective: Objective, args: tuple, fraction: float, least: int, key: Key) -> tuple:
    """The arguments with max(fraction N, least) of the N rows, drawn without replacement.

    As they are where that is all, or where the objective has no rows that are known.
    """
    if objective.kind != "composite":
        return args
    _, targets, weights = split_data(objective, args)
    rows = targets.shape[0]
    count = min(rows, max(math.ceil(fraction * rows), least))
    if count == rows:
        return args
    order = jax.random.gumbel(key, (rows,))
    if weights is not None:
        used = weights.reshape(rows, -1).any(axis=1)
        order = jnp.where(used, order, -jnp.inf)
    index = jax.lax.top_k(order, count)[1]

    def pick(x: Any) -> Any:
        return jnp.take(x, index, axis=0)

    return jax.tree.map(pick, args)
