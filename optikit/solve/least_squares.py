"""`least_squares`: half the sum of squared residuals, by methods that use the Jacobian."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from optikit.calculus import Eval, Objective, residuals
from optikit.calculus.objective import fingerprint, residual_vector
from optikit.calculus.validate import as_params
from optikit.core import Params, Scalar, tree
from optikit.linalg.damped_step import LinearModel
from optikit.linalg.least_squares import column_norms
from optikit.losses.robust import Robust, as_robust
from optikit.optimizers import StepInfo
from optikit.optimizers.levenberg_marquardt import alive
from optikit.solve.bounded import solve_in_box
from optikit.solve.loop import Progress, gradient_criterion
from optikit.solve.minimize import Method, solve
from optikit.solve.resume import SolveState
from optikit.solve.solution import Solution


def least_squares(
    residual: Objective | Callable[..., Any],
    params: Params,
    *,
    method: Method = "levenberg-marquardt",
    args: tuple = (),
    bounds: tuple[Any, Any] | None = None,
    robust: str | Robust | None = None,
    robust_scale: float | None = None,
    tol: float | None = None,
    max_steps: int = 1000,
    has_aux: bool = False,
    trace: bool = False,
    state: SolveState | None = None,
) -> Solution:
    """Minimise |residual(params, *args)|^2 / 2 over params, in a box or with outliers if need be.

    Converged is judged free of scale, so neither the units of the residuals nor of the parameters
    matter: the residual is orthogonal to every column of the Jacobian, or the undamped step no
    longer moves the parameters. `sol.value` is |r|^2 / 2 as in MINPACK and scipy.

    Args:
      residual: a pure function (params, *args) -> pytree of residuals; or an Objective from
        `residuals(...)`, or from `composite(predict, squared_error)`.
      method: "levenberg-marquardt", "gauss-newton", "dogleg", an Optimizer, or any method for
        smooth functions.
      bounds: (lower, upper), as for `minimize`. The solution may lie on a bound; equal bounds fix a
        parameter. By Levenberg-Marquardt with active sets, or the other methods that `minimize`
        has for bounds; converged then means that no parameter is left that could move into the
        box and lower the cost.
      robust: "soft_l1", "huber", "cauchy", "arctan" or one of `ok.losses.robust`, in place of the
        squares: the cost is sum(scale^2 rho((r / scale)^2)) / 2, scipy's `loss` and `f_scale`.
      robust_scale: the residual at which an observation begins to count as an outlier; 1.
      tol: relative, of the tests above; by default 1e-10 in float64 and 1e-4 in float32.
      state: `sol.state` of an earlier call, to go on from there, as in `minimize`.

    How well the residuals determine the parameters (rank, degrees of freedom, standard errors) is
    said by `ok.parameter_covariance(residual, sol.params, args)`; a solve does not fail for want
    of rank, and leaves what is not determined near its start.

    Derivatives with respect to `args` are those of `minimize`, by the full Hessian of |r|^2 / 2.

    Raises:
      TypeError: parameters that are not floating point, an objective that is no sum of squares.
      ValueError: an unknown method or robust loss, a scale that is not positive, bounds that do
        not fit, a start outside them, or bounds with a method that takes none.

    Example:
      >>> def decay(p, t, y):
      ...     return p[0] * jnp.exp(-p[1] * t) - y
      >>> t = jnp.linspace(0.0, 2.0, 20)
      >>> sol = least_squares(decay, jnp.array([1.0, 1.0]), args=(t, 3.0 * jnp.exp(-0.5 * t)))
      >>> [round(float(v), 4) for v in sol.params]
      [3.0, 0.5]
      >>> sol = least_squares(
      ...     decay, jnp.array([1.0, 1.0]), args=(t, 3.0 * jnp.exp(-0.5 * t)), bounds=(0.0, 2.5)
      ... )
      >>> bool(sol.success), float(sol.params[0])
      (True, 2.5)
    """
    objective = as_squares("least_squares", residual, has_aux, robust, robust_scale)
    if tol is None:
        tol = 1e-10 if tree.inner_dtype(as_params(params)) == jnp.float64 else 1e-4
    if bounds is not None:
        return solve_in_box(
            objective, params, bounds, method, args, tol, max_steps, trace, None,
            state, residual_criterion,
        )  # fmt: skip
    return solve(
        objective, params, method, args, tol, max_steps, trace, None, residual_criterion, state
    )


def as_squares(
    caller: str,
    residual: Objective | Callable[..., Any],
    has_aux: bool,
    robust: str | Robust | None,
    scale: float | None,
) -> Objective:
    """The objective of a least-squares call.

    Raises:
      TypeError: it is no sum of squares.
      ValueError: an unknown robust loss, or a scale without one.
    """
    objective = residuals(residual, has_aux=has_aux)
    if robust is not None or scale is not None:
        objective = _robust(objective, robust, scale)
    if residual_vector(objective) is None:
        msg = (
            f"{caller} needs a sum of squares; got {fingerprint(objective)}: use "
            "residuals(fun) or composite(predict, squared_error) with at most an L2 penalty."
        )
        raise TypeError(msg)
    return objective


def _robust(objective: Objective, robust: str | Robust | None, scale: float | None) -> Objective:
    if robust is None:
        msg = f"robust_scale is {scale} without a robust loss: give robust='soft_l1', say."
        raise ValueError(msg)
    if objective.kind != "residuals" or objective.robust is not None:
        msg = (
            f"robust={robust!r} needs plain residuals; got {fingerprint(objective)}: a composite "
            "has a loss of its own."
        )
        raise TypeError(msg)
    return objective._replace(robust=as_robust(robust, scale))


def residual_criterion(
    at: Eval, info: StepInfo, largest: Scalar, p: Progress, tol: Scalar
) -> Bool[Array, ""]:
    """|J_j^T r| <= tol |J_j| |r| for every column j, or a full step s with |D s| <= tol |D x|.

    Of methods that keep the Jacobian, D_j = |J_j|; where columns have vanished that J once had,
    nothing is. Levenberg-Marquardt judges itself, by stronger
    tests; a method for smooth functions is judged by its gradient.
    """
    if not isinstance(at.local, tuple) or len(at.local) != 2:
        return gradient_criterion(at, info, largest, p, tol)
    if "damping" in info.extras:
        return jnp.asarray(False)
    r, jacobian = at.local
    bound = tol * column_norms(jacobian) * jnp.sqrt(2 * at.value).astype(r.dtype)
    orthogonal = jnp.all(jnp.abs(tree.ravel(at.grad)) <= bound)
    x, d = tree.ravel(p.at.params), column_norms(p.at.local[1])
    moved = tree.norm(d * (tree.ravel(at.params) - x))
    whole = info.step_norm >= 0.99 * info.extras["full_norm"]
    ended = orthogonal | (whole & (moved <= tol * tree.norm(d * x)))
    if "scaling" in info.extras:
        ended &= alive(at._replace(local=LinearModel(jacobian, r)), info.extras["scaling"])
    return ended
