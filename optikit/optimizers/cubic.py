"""Adaptive regularisation by cubics (ARC): dense where small, over Krylov spaces elsewhere.

Reference: Cartis, Gould & Toint (2011), "Adaptive cubic regularisation methods for unconstrained
optimization", parts I and II.
"""

from typing import Any, Literal

from optikit.calculus import Eval, Oracle
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Key, memoized, tree
from optikit.globalize import cubic_regularization
from optikit.linalg import Model, Subproblem, exact, krylov
from optikit.optimizers.protocol import Optimizer
from optikit.optimizers.second_order import second_order

DENSE = 200
"""Parameters up to which a dense Hessian, at n products, is worth having."""


@memoized
def cubic(
    *,
    sigma: float | None = None,
    subproblem: Literal["auto", "exact", "krylov"] = "auto",
    max_iters: int | None = None,
    max_trials: int = 60,
) -> Optimizer:
    """Cubic regularisation with the true Hessian; leaves saddles and needs no radius.

    Args:
      sigma: the first weight of |s|^3 / 3; by default from the gradient and the parameters.
      subproblem: "exact" (one hessian and 9 n^3 flops a step), "krylov" (one grad, and one hvp per
        Lanczos vector), or "auto": exact up to 200 parameters.
      max_iters: Lanczos vectors per proposal; see `optikit.linalg.krylov`.
      max_trials: trials per step, each one grad.

    Raises:
      ValueError: an unknown subproblem.

    Example:
      >>> import optikit as ok
      >>> sol = ok.minimize(lambda x: jnp.sum(x**4) - jnp.sum(x**2), jnp.zeros(3), method=cubic())
      >>> [round(abs(float(v)), 4) for v in sol.params]  # from the maximum at 0
      [0.7071, 0.7071, 0.7071]
    """
    if subproblem not in ("auto", "exact", "krylov"):
        msg = f"subproblem must be 'auto', 'exact' or 'krylov'; got {subproblem!r}."
        raise ValueError(msg)
    dense, sparse = exact(region="cubic"), krylov(region="cubic", max_iters=max_iters)
    return second_order(
        curvature="hessian",
        solve={"auto": _by_size(dense, sparse), "exact": dense, "krylov": sparse}[subproblem],
        globalize=cubic_regularization(sigma=sigma, max_trials=max_trials),
        name="cubic",
    )


@memoized
def _by_size(small: Subproblem, large: Subproblem) -> Subproblem:
    def prepare(oracle: Oracle, at: Eval, kind: CurvatureKind, key: Key, memory: Any) -> Model:
        if tree.size(at.params) <= DENSE:
            return small.prepare(oracle, at, kind, key, memory)
        return large.prepare(oracle, at, kind, key)

    def init(at: Eval) -> Any:
        return () if small.init is None or tree.size(at.params) > DENSE else small.init(at)

    return Subproblem(prepare, init=init)
