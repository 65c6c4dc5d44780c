"""Newton's method with a dense Hessian, and Fisher scoring."""

from typing import Literal

from optikit.core import memoized
from optikit.globalize import backtracking, wolfe
from optikit.linalg import Subproblem, cholesky, modified_cholesky
from optikit.optimizers.linear_newton import on_linear_models
from optikit.optimizers.protocol import Optimizer
from optikit.optimizers.second_order import second_order


@memoized
def newton(
    *, modify: Literal["eigenvalue", "cholesky"] = "eigenvalue", max_trials: int = 40
) -> Optimizer:
    """Dense Newton with a line search, safe on indefinite and singular Hessians.

    The search (`wolfe`) may go beyond the Newton step, which is too short wherever the objective is
    flatter than its model or the Hessian had to be modified. Positive definite Hessians are
    factorised by Cholesky. Per step: one hessian, n^3/3 flops, one grad a trial.

    A large generalised linear model (a composite objective whose model is affine in the parameters)
    is factorised only now and then: a factor from an earlier step preconditions the next ones, at
    some hvp a step; a trial costs one value, and only the last one a grad. Up to 4096 features are
    factorised; with several outputs one at a time, or where the loss ties them together (softmax)
    by one Kronecker product for all. Beyond, conjugate gradients go by the exact diagonal, in the
    memory of a few vectors.

    Args:
      modify: what becomes of others: "eigenvalue" uses |H| (9 n^3 flops) and leaves saddles along
        the most negative curvature; "cholesky" adds a multiple of the identity (n^3/3 flops a try)
        and leaves them along a direction found by inverse iteration.
      max_trials: trials per line search.

    Raises:
      ValueError: an unknown modification.
    """
    if modify not in ("eigenvalue", "cholesky"):
        msg = f"modify must be 'eigenvalue' or 'cholesky'; got {modify!r}."
        raise ValueError(msg)
    dense = second_order(
        curvature="hessian",
        solve=modified_cholesky() if modify == "cholesky" else cholesky(),
        globalize=wolfe(c2=0.3, max_trials=max_trials),
        name="newton",
    )
    return on_linear_models(dense, kind="hessian", max_trials=max_trials)


@memoized
def fisher_scoring(*, max_trials: int = 40) -> Optimizer:
    """Newton with the Fisher information in place of the Hessian: iterated weighted least squares.

    For composite objectives whose loss is a negative log-likelihood. The information is positive
    semidefinite whatever the targets are. For the canonical links (logistic, softmax, Poisson) it
    is the Hessian, and the method is `newton`; elsewhere (gamma with a log link, Huber) it
    converges linearly, with a step that no outlier spoils.

    Args:
      max_trials: trials per line search.

    Raises:
      TypeError: while tracing, if the objective is not composite or its loss has no information.

    Reference: McCullagh & Nelder (1989), "Generalized Linear Models", section 2.5.

    Example:
      >>> import jax.numpy as jnp
      >>> import optikit as ok
      >>> counts = ok.composite(lambda w, x: x * w, ok.losses.poisson)
      >>> data = (jnp.ones(4), jnp.array([1.0, 2.0, 3.0, 2.0]))
      >>> sol = ok.minimize(counts, jnp.asarray(0.0), args=data, method="fisher-scoring")
      >>> round(float(jnp.exp(sol.params)), 4)  # the mean rate
      2.0
    """
    dense = second_order(
        curvature="fisher",
        solve=_without_sampling(cholesky()),
        globalize=backtracking(max_trials=max_trials),
        name="fisher-scoring",
    )
    return on_linear_models(dense, kind="fisher", max_trials=max_trials)


def _without_sampling(solve: Subproblem) -> Subproblem:
    """The same on the exact information: without a key no labels are sampled."""
    return solve._replace(prepare=lambda oracle, at, kind, _: solve.prepare(oracle, at, kind, None))
