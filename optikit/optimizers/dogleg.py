"""The dogleg trust region: Powell's hybrid method for sums of squares, on dense Hessians otherwise.

Reference: Nocedal & Wright (2006), sections 4.1 and 10.3.
"""

from typing import Literal, get_args

from optikit.calculus import Eval, Oracle
from optikit.calculus.objective import residual_vector
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Counts, Key, Params, memoized
from optikit.globalize import trust_region
from optikit.linalg import dogleg as dogleg_model
from optikit.optimizers.protocol import Optimizer, value_and_grad
from optikit.optimizers.residual_ends import EndsState, watched
from optikit.optimizers.second_order import second_order


@memoized
def dogleg(
    *,
    curvature: CurvatureKind | Literal["auto"] = "auto",
    double: bool = False,
    radius: float | None = None,
    max_trials: int = 60,
) -> Optimizer:
    """The dogleg in a trust region.

    Args:
      curvature: of the model. "auto" is the Gauss-Newton model of a sum of squares, from its
        Jacobian without squaring it, and the Hessian of anything else; a kind builds that dense
        matrix.
      double: Dennis and Mei's double dogleg, which leans toward the Newton step sooner.
      radius: the first radius; by default max(1, |params|).
      max_trials: trials per step.

    Cost per step: one jacobian, 2 m n^2 flops and one value a trial for a sum of squares; else one
    dense curvature matrix, 9 n^3 flops and one grad a trial.

    Raises:
      ValueError: an unknown curvature.

    Example:
      >>> import optikit as ok
      >>> sol = ok.least_squares(lambda x: x**3 - 8.0, jnp.array([1.0]), method=dogleg())
      >>> round(float(sol.params[0]), 4)
      2.0
    """
    if curvature not in ("auto", *get_args(CurvatureKind)):
        msg = f"curvature must be 'auto' or one of {get_args(CurvatureKind)}; got {curvature!r}."
        raise ValueError(msg)
    matrix = second_order(
        curvature="hessian" if curvature == "auto" else curvature,
        solve=dogleg_model(double=double),
        globalize=trust_region(radius=radius, max_trials=max_trials),
        name="dogleg",
    )
    if curvature != "auto":
        return matrix
    squares = watched(
        second_order(
            curvature="ggn",
            solve=dogleg_model(residuals=True, double=double),
            globalize=trust_region(radius=radius, max_trials=max_trials, gradients=False),
            name="dogleg",
        )
    )

    def step(oracle: Oracle, at: Eval, state: EndsState, key: Key):
        if residual_vector(oracle.objective) is not None:
            return squares.step(oracle, at, state, key)
        params, known, inner, info = matrix.step(oracle, at, state.inner, key)
        return params, known, state._replace(inner=inner), info

    def evaluate(oracle: Oracle, params: Params) -> tuple[Eval, Counts]:
        if residual_vector(oracle.objective) is None:
            return value_and_grad(oracle, params)
        return squares.evaluate(oracle, params)

    return matrix._replace(init=squares.init, step=step, evaluate=evaluate)
