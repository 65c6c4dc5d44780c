"""How well a least-squares fit determines its parameters: covariance, standard errors, rank.

Near the solution the residuals are linear in the parameters, r + J s. If the observations scatter
independently with variance sigma^2 around the model, the estimate scatters with the covariance
sigma^2 (J^T J)^-1, and |r|^2 / (m - rank J) estimates sigma^2. J^T J is never formed: with the
columns of J scaled to unit length (so that units do not decide the rank) and J D^-1 = U S V^T, the
covariance is sigma^2 D^-1 V S^-2 V^T D^-1.

Reference: Björck (1996), "Numerical methods for least squares problems", sections 1.1 and 2.8;
Seber & Wild (2003), "Nonlinear regression", section 2.1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Objective, residuals
from optikit.calculus.objective import fingerprint, residual_vector
from optikit.calculus.oracle import value_and_jacobian
from optikit.calculus.validate import as_args, as_params
from optikit.core import Params, Scalar, tree
from optikit.core.tree import HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ParameterCovariance:
    """What a fit says about its parameters.

    Attributes:
      covariance: (n, n), in the order of the ravelled parameters. Where the rank is deficient, the
        pseudo-inverse's: directions that the residuals do not determine contribute nothing.
      standard_errors: a pytree like the parameters. Infinite for a parameter that takes part in an
        undetermined direction.
      variance: of the residuals, |r|^2 / dof, or as it was given; NaN without degrees of freedom.
      dof: degrees of freedom, the number of residuals less the rank.
      rank: of the Jacobian with its columns scaled to unit length.
      condition: the largest over the smallest singular value of that matrix.
    """

    covariance: Float[Array, "n n"]
    standard_errors: Params
    variance: Scalar
    dof: Int[Array, ""]
    rank: Int[Array, ""]
    condition: Scalar

    @property
    def full_rank(self) -> Bool[Array, ""]:
        """Whether the residuals determine every parameter."""
        return self.rank == self.covariance.shape[0]

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
    has_aux: bool = False,
) -> ParameterCovariance:
    """The covariance of least-squares estimates at a solution.

    For `least_squares(residual, ...).params`; at any other point it describes nothing. Bounds are
    not known here: parameters on a bound count as free. Works under `jit` and `vmap`.

    Args:
      residual: a pure function (params, *args) -> pytree of residuals, or an Objective from
        `residuals(...)`. Penalties count as observations; robust losses have no such covariance.
      variance: of the residuals where it is known, e.g. 1 if they are divided by the observations'
        standard deviations (scipy's `absolute_sigma`); by default |r|^2 / dof.

    Cost: one jacobian and one SVD of it, about 4 m n^2 + 8 n^3 flops.

    Raises:
      TypeError: the objective is no sum of squares.

    Example:
      >>> x = jnp.array([0.0, 1.0, 2.0, 3.0])
      >>> line = lambda p, y: p["slope"] * x + p["at_0"] - y
      >>> fit = {"slope": jnp.array(0.9), "at_0": jnp.array(0.15)}
      >>> found = parameter_covariance(line, fit, (jnp.array([0.0, 1.2, 2.1, 2.7]),))
      >>> int(found.rank), int(found.dof), round(float(found.standard_errors["slope"]), 4)
      (2, 2, 0.0949)
    """
    objective = residuals(residual, has_aux=has_aux)
    function = residual_vector(objective)
    if function is None or objective.robust is not None:
        msg = (
            f"the covariance of parameters needs a sum of squares; got {fingerprint(objective)}: "
            "give the plain residuals."
        )
        raise TypeError(msg)
    params, args = as_params(params), as_args(args)
    r, jacobian = value_and_jacobian(lambda p: function(p, *args), params)
    inverse_root, rank, condition, undetermined = _inverse_root(jacobian)
    dof = jnp.asarray(r.size, jnp.int32) - rank
    spare = jnp.maximum(dof, 1).astype(r.dtype)
    estimated = jnp.where(dof > 0, jnp.vdot(r, r, precision=HIGHEST) / spare, jnp.nan)
    used = estimated if variance is None else jnp.asarray(variance, r.dtype)
    unit = jnp.matmul(inverse_root, inverse_root.T, precision=HIGHEST)
    deviations = jnp.where(undetermined, jnp.inf, jnp.sqrt(used * jnp.diagonal(unit)))
    unravel = ravel_pytree(params)[1]
    return ParameterCovariance(used * unit, unravel(deviations), used, dof, rank, condition)


def _inverse_root(jacobian: Float[Array, "m n"]):
    """W with W W^T the (pseudo-)inverse of J^T J, the rank, the condition, who is undetermined."""
    m, n = jacobian.shape
    norms = jnp.sqrt(jnp.sum(jacobian**2, axis=0))
    d = jnp.where(norms > 0, norms, 1)
    _, values, vt = jnp.linalg.svd(jacobian / d[None, :], full_matrices=False)
    largest = jnp.max(values, initial=0)
    kept = values > max(m, n) * tree.eps(jacobian.dtype) * largest
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    rank = jnp.sum(kept, dtype=jnp.int32)
    # a parameter's share in the row space; what is missing from 1 lies in the null space
    share = jnp.sum(jnp.where(kept[:, None], vt, 0) ** 2, axis=0)
    undetermined = share < 1 - tree.eps(jacobian.dtype) ** 0.5
    condition = largest / jnp.min(values, initial=jnp.inf)
    if m < n:
        condition = jnp.full((), jnp.inf, jacobian.dtype)
    return vt.T * inverse[None, :] / d[:, None], rank, condition, undetermined
