"""The trust region: shrink the radius until the model's promise is kept.

The ratio test avoids a division, so a NaN trial is a rejection. Near the rounding floor, where
actual and predicted decrease are both noise, a trial is accepted if it lowers the gradient.

References: Conn, Gould & Toint (2000), Algorithm 6.1.1 and section 17.4.2; Nocedal & Wright (2006),
Algorithm 4.1.
"""

import jax.numpy as jnp

from optikit.calculus import Eval, Oracle
from optikit.core import Scalar, memoized, tree
from optikit.globalize.region import Judged, search_in_region
from optikit.globalize.search import Globalize, Propose, Search, Trials, verdict
from optikit.linalg import Direction

GROWTH = 3.0
"""Of the radius, after a very good step that it had cut."""


@memoized
def trust_region(
    *,
    radius: float | None = None,
    accept: float = 1e-4,
    shrink_below: float = 0.25,
    grow_above: float = 0.75,
    max_trials: int = 60,
    gradients: bool = True,
) -> Globalize:
    """Accept a step s if f(x) - f(x + s) >= accept * (model decrease); else shrink to |s| / 4.

    Args:
      radius: the first radius; by default max(1, |params|).
      accept: least ratio of actual to predicted decrease.
      shrink_below, grow_above: ratios below which the radius becomes |s| / 4, and above which it
        triples if it was binding.
      max_trials: trials before the step is given up.
      gradients: evaluate gradients with the values; see `Trials`.

    Returns: a Globalize costing one grad (or value) per trial besides the proposals; with gradients
    the accepted point is already evaluated.
    """
    evaluate = Trials(gradients)

    def init(at: Eval) -> Scalar:
        if radius is not None:
            return jnp.full((), radius, at.value.dtype)
        return jnp.maximum(1, tree.norm(at.params)).astype(at.value.dtype)

    def search(oracle: Oracle, at: Eval, propose: Propose, state: Scalar) -> Search:
        def judge(bound: Scalar, direction: Direction, length: Scalar, trial: Eval) -> Judged:
            seen = verdict(
                at, trial, direction.predicted, accept=accept, shrink_below=shrink_below,
                grow_above=grow_above, with_gradient=gradients,
            )  # fmt: skip
            cut = direction.at_boundary
            grown = jnp.where(cut, GROWTH * bound, bound)
            new = jnp.where(seen.poor, length / 4, jnp.where(seen.good, grown, bound))
            new = jnp.where(jnp.isfinite(new), new, bound / 4)
            if direction.resolved is not None:
                cut |= ~direction.resolved
            return Judged(seen, new, cut)

        return search_in_region(
            oracle, at, propose, state, judge, evaluate=evaluate, max_trials=max_trials
        )

    return Globalize(init, search)
