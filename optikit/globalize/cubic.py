"""Adaptive cubic regularisation: the weight sigma of |s|^3 / 3 takes the place of a trust radius.

Steps minimise <g, s> + <s, H s> / 2 + sigma |s|^3 / 3. Rejected trials raise sigma and propose
again from the same model; very good ones lower it. How far is read off the trial itself: the sigma
with which the cubic model would have been exact there, kept within safe factors. NaN trials are
rejected.

References: Cartis, Gould & Toint (2011), "Adaptive cubic regularisation methods for unconstrained
optimization", part I, Algorithm 2.1; Gould, Porcelli & Toint (2012) for the update by
interpolation.
"""

import jax.numpy as jnp

from optikit.calculus import Eval, Oracle
from optikit.core import Scalar, memoized, tree
from optikit.globalize.region import Judged, search_in_region
from optikit.globalize.search import Globalize, Propose, Search, Trials, verdict
from optikit.linalg import Direction

NEGLIGIBLE = 1e-3
"""Part of the predicted decrease below which the cubic term does not matter."""


@memoized
def cubic_regularization(
    *,
    sigma: float | None = None,
    accept: float = 1e-4,
    raise_below: float = 0.1,
    lower_above: float = 0.75,
    max_trials: int = 60,
) -> Globalize:
    """Accept s if f(x) - f(x + s) >= accept * (decrease of the cubic model); else raise sigma.

    For a Subproblem that takes sigma in place of a radius, as `exact(region="cubic")` does.

    Args:
      sigma: the first weight; by default one that lets the gradient alone go max(1, |params|) far.
      accept: least ratio of actual to predicted decrease.
      raise_below, lower_above: ratios below which sigma is raised, 2 to 10 times, and above which
        it is lowered, 2 to 10 times.
      max_trials: trials before the step is given up.

    Returns: a Globalize costing one grad per trial besides the proposals; the accepted point is
    already evaluated.
    """
    evaluate = Trials(gradients=True)

    def init(at: Eval) -> Scalar:
        dtype = at.value.dtype
        if sigma is not None:
            return jnp.full((), sigma, dtype)
        length = jnp.maximum(1, tree.norm(at.params)).astype(dtype)
        # the value's own size stands in for the third derivative where the gradient vanishes
        size = jnp.maximum(tree.norm(at.grad).astype(dtype), 0.01 * jnp.abs(at.value) / length)
        return jnp.where(size > 0, size / length**2, 1)

    def search(oracle: Oracle, at: Eval, propose: Propose, state: Scalar) -> Search:
        least = float(jnp.finfo(at.value.dtype).tiny)

        def judge(weight: Scalar, direction: Direction, length: Scalar, trial: Eval) -> Judged:
            extra = weight * length * length * length / 3
            seen = verdict(
                at, trial, direction.predicted - extra, accept=accept, shrink_below=raise_below,
                grow_above=lower_above,
            )  # fmt: skip
            # f(x + s) - f(x) = <g, s> + <s, H s> / 2 + fitted * extra
            fitted = (trial.value - at.value + direction.predicted) / jnp.where(extra > 0, extra, 1)
            usable = jnp.isfinite(fitted) & (extra > 0)
            higher = jnp.clip(jnp.where(usable, fitted, 10), 2, 10)
            lower = jnp.clip(jnp.where(usable, fitted, 0.5), 0.1, 0.5)
            # a decrease of rounding size fits no weight: the step was too short to tell
            lower = jnp.where(seen.in_noise, 0.1, lower)
            factor = jnp.where(seen.poor, higher, jnp.where(seen.good, lower, 1))
            # a weight that no longer matters is left alone: many trials would bring it back
            idle = extra <= NEGLIGIBLE * direction.predicted
            factor = jnp.where(idle, jnp.maximum(factor, 1), factor)
            always = jnp.asarray(True)  # the cubic term shortens every step
            return Judged(seen, jnp.maximum(factor * weight, least), always)

        return search_in_region(
            oracle, at, propose, state, judge, evaluate=evaluate, max_trials=max_trials
        )

    return Globalize(init, search)
