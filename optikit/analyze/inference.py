"""How well a least-squares fit determines its parameters: covariance, standard errors, rank.

Near the solution the residuals are linear in the parameters, r + J s. If the observations scatter
independently with variance sigma^2 around the model, the estimate scatters with the covariance
sigma^2 (J^T J)^-1, and |r|^2 / (m - rank J) estimates sigma^2. J^T J is never formed: with the
columns of J scaled to unit length (so that units do not decide the rank) and J D^-1 = U S V^T, the
covariance is sigma^2 D^-1 V S^-2 V^T D^-1.

Of a robust loss with slope psi(r), sigma^2 is K^2 sum(psi^2) / (m - rank J) / mean(psi')^2 with
K = 1 + rank J / m var(psi') / mean(psi')^2, which is the above where psi(r) = r.

Reference: Björck (1996), "Numerical methods for least squares problems", sections 1.1 and 2.8;
Seber & Wild (2003), "Nonlinear regression", section 2.1; Huber & Ronchetti
(2009), "Robust statistics", section 7.6, eq. 7.81, for robust losses.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Objective
from optikit.calculus.columns import value_and_jacobian
from optikit.calculus.objective import residual_vector
from optikit.calculus.validate import as_args, as_params
from optikit.core import Box, Params, Scalar, as_box, tree
from optikit.core.tree import HIGHEST
from optikit.linalg.least_squares import column_norms
from optikit.losses.robust import Robust
from optikit.solve.least_squares import as_squares


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ParameterCovariance:
    """What a fit says about its parameters.

    Attributes:
      covariance: (n, n), in the order of the ravelled parameters. Where the rank is deficient, the
        pseudo-inverse's: directions that the residuals do not determine contribute nothing.
      standard_errors: a pytree like the parameters. Infinite for a parameter that takes part in an
        undetermined direction, 0 for one that a bound holds.
      variance: of the residuals, |r|^2 / dof, or as it was given; NaN without degrees of freedom.
        Of a robust loss what takes its place.
      dof: degrees of freedom, the number of residuals (of weight above 0) less the rank.
      rank: of the Jacobian of the free parameters with its columns scaled to unit length.
      condition: the largest over the smallest singular value of that matrix; 1 without any.
      free: how many parameters no bound holds.
    """

    covariance: Float[Array, "n n"]
    standard_errors: Params
    variance: Scalar
    dof: Int[Array, ""]
    rank: Int[Array, ""]
    condition: Scalar
    free: Int[Array, ""]

    @property
    def full_rank(self) -> Bool[Array, ""]:
        """Whether the residuals determine every free parameter."""
        return self.rank == self.free

    @property
    def correlation(self) -> Float[Array, "n n"]:
        """The covariance scaled to a unit diagonal; 0 for a parameter without variance."""
        deviations = jnp.sqrt(jnp.diagonal(self.covariance))
        inverse = jnp.where(deviations > 0, 1 / jnp.where(deviations > 0, deviations, 1), 0)
        return self.covariance * inverse[:, None] * inverse[None, :]


def parameter_covariance(
    residual: Objective | Callable[..., Any],
    params: Params,
    args: tuple = (),
    *,
    variance: float | None = None,
    bounds: Any = None,
    robust: str | Robust | None = None,
    robust_scale: float | None = None,
    has_aux: bool = False,
) -> ParameterCovariance:
    """The covariance of least-squares estimates at a solution.

    For `least_squares(residual, ...).params`; at any other point it describes nothing. Works under
    `jit` and `vmap`.

    Args:
      residual: a pure function (params, *args) -> pytree of residuals, or an Objective from
        `residuals(...)` or `composite(predict, squared_error)`. Penalties count as observations.
      variance: of the residuals where it is known, e.g. 1 if they are divided by the observations'
        standard deviations (scipy's `absolute_sigma`); by default |r|^2 / dof.
      bounds, robust, robust_scale: as given to `least_squares`. Parameters on a bound are taken as
        held there, the covariance is that of the others.

    Cost: one jacobian and one SVD of it, about 4 m n^2 + 8 n^3 flops.

    Raises:
      TypeError: the objective is no sum of squares, or a variance is given with a robust loss.
      ValueError: an unknown robust loss, bounds that do not fit.

    Example:
      >>> x = jnp.array([0.0, 1.0, 2.0, 3.0])
      >>> line = lambda p, y: p["slope"] * x + p["at_0"] - y
      >>> fit = {"slope": jnp.array(0.9), "at_0": jnp.array(0.15)}
      >>> found = parameter_covariance(line, fit, (jnp.array([0.0, 1.2, 2.1, 2.7]),))
      >>> int(found.rank), int(found.dof), round(float(found.standard_errors["slope"]), 4)
      (2, 2, 0.0949)
    """
    objective = as_squares("parameter_covariance", residual, has_aux, robust, robust_scale)
    if objective.robust is not None and variance is not None:
        msg = f"variance={variance} with a robust loss, which estimates it: leave one of them out."
        raise TypeError(msg)
    function = residual_vector(objective)
    assert function is not None  # as_squares has made sure
    params, args = as_params(params), as_args(args)
    r, jacobian = value_and_jacobian(lambda p: function(p, *args), params)
    n = jacobian.shape[1]
    held = jnp.zeros(n, bool) if bounds is None else _held(as_box(bounds, params), params)
    free = jnp.asarray(n, jnp.int32) - jnp.sum(held, dtype=jnp.int32)
    inverse_root, rank, condition, undetermined = _inverse_root(
        jnp.where(held[None, :], 0, jacobian), free
    )
    count = _observations(objective, args, r, n)
    dof = jnp.asarray(count, jnp.int32) - rank
    estimated = _variance(objective, r, n, rank, dof)
    used = estimated if variance is None else jnp.asarray(variance, r.dtype)
    unit = jnp.matmul(inverse_root, inverse_root.T, precision=HIGHEST)
    spread = jnp.sqrt(used) * column_norms(inverse_root.T)
    deviations = jnp.where(undetermined, jnp.inf, spread)
    unravel = ravel_pytree(params)[1]
    errors = unravel(jnp.where(held, 0, deviations))
    return ParameterCovariance(used * unit, errors, used, dof, rank, condition, free)


def _held(box: Box, params: Params) -> Bool[Array, " n"]:
    x, lower, upper = (tree.ravel(part) for part in (params, *box))
    return (x <= lower) | (x >= upper)


def _observations(objective: Objective, args: tuple, r: Array, n: int) -> Scalar | int:
    """The number of residuals, without those of examples of weight 0."""
    weights = args[2] if objective.kind == "composite" and len(args) == 3 else None
    if weights is None:
        return r.size
    penalties = n if objective.penalty is not None else 0
    weights = jnp.asarray(weights)
    each = (r.size - penalties) // weights.size
    return each * jnp.sum(weights != 0, dtype=jnp.int32) + penalties


def _variance(
    objective: Objective, r: Array, n: int, rank: Int[Array, ""], dof: Int[Array, ""]
) -> Scalar:
    spare = jnp.maximum(dof, 1).astype(r.dtype)
    robust, factor, slopes = objective.robust, 1, r
    if robust is not None:
        penalties = n if objective.penalty is not None else 0
        data, extra = r[: r.size - penalties], r[r.size - penalties :]
        psi, turn = jax.jvp(jax.grad(lambda x: jnp.sum(robust.cost(x))), (data,), (data * 0 + 1,))
        slopes, turn = jnp.concatenate([psi, extra]), jnp.concatenate([turn, extra * 0 + 1])
        mean = jnp.mean(turn)
        share = rank.astype(r.dtype) / r.size
        factor = (1 + share * jnp.var(turn) / mean**2) / mean
        factor = jnp.where(mean > 0, factor, jnp.nan)
    estimate = factor**2 * jnp.vdot(slopes, slopes, precision=HIGHEST) / spare
    return jnp.where(dof > 0, estimate, jnp.nan)


def _inverse_root(jacobian: Float[Array, "m n"], free: Int[Array, ""]):
    """W with W W^T the (pseudo-)inverse of J^T J, the rank, the condition, who is undetermined."""
    m, n = jacobian.shape
    norms = column_norms(jacobian)
    d = jnp.where(norms > 0, norms, 1)
    _, values, vt = jnp.linalg.svd(jacobian / d[None, :], full_matrices=m < n)
    values = jnp.pad(values, (0, n - values.size))
    largest = jnp.max(values, initial=0)
    eps = tree.eps(jacobian.dtype)
    kept = values > max(m, n) * eps * largest
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    rank = jnp.sum(kept, dtype=jnp.int32)
    # rounding turns the null space by eps over the gap that sets it apart
    gap = jnp.min(jnp.where(kept, values, largest)) / jnp.where(largest > 0, largest, 1)
    turned = jnp.minimum(8 * max(m, n) * eps / jnp.where(gap > 0, gap, 1), eps**0.25)
    undetermined = column_norms(jnp.where(kept[:, None], 0, vt)) > turned
    # held columns are zero, and their singular values the last
    smallest = values[jnp.maximum(free - 1, 0)]
    condition = jnp.where(smallest == 0, jnp.inf, largest / jnp.where(smallest == 0, 1, smallest))
    condition = jnp.where(free == 0, 1, condition)
    return vt.T * inverse[None, :] / d[:, None], rank, condition, undetermined
