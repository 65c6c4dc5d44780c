"""Newton, Newton-CG, Gauss-Newton, trust regions: one composition of three parts.

curvature x solve x globalize: which matrix, how its quadratic model is minimised, how far the step
is trusted. The names are assembled here; each part stands in its own room.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from optikit.calculus import Eval, Oracle
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Key, Scalar, memoized, tally, tree
from optikit.globalize import Globalize, Search, backtracking, trust_region
from optikit.linalg import (
    Inner,
    Model,
    Subproblem,
    conjugate_gradients,
    exact,
    krylov,
    qr,
)
from optikit.linalg.precondition import Precondition
from optikit.optimizers.protocol import Optimizer, info_from_search, value_and_grad
from optikit.optimizers.residual_ends import watched

LOOSEST, TIGHTEST = 0.5, 1e-6
"""Bounds on the relative residual at which an inner iteration stops."""


class SecondOrderState(NamedTuple):
    """What the next step needs besides the evaluation."""

    globalize: Any
    inner: Inner  # how accurately the inner solver is to work
    gradient_norm: Scalar  # where the last step began
    memory: Any = ()  # of the inner solver


@memoized
def second_order(
    *,
    curvature: CurvatureKind = "hessian",
    solve: Subproblem | None = None,
    globalize: Globalize | None = None,
    name: str = "second-order",
) -> Optimizer:
    """A second-order method from its parts.

    Args:
      curvature: "hessian", "ggn", "fisher" or "empirical-fisher".
      solve: how the model is minimised; by default `conjugate_gradients()`.
      globalize: by default `backtracking()`.

    Returns: a monotone Optimizer. Its inner accuracy follows Eisenstat & Walker (1996), choice 2:
    0.9 (|g| / |g_previous|)^1.5, which keeps superlinear convergence without solving early models
    to digits that do not matter.

    Example:
      >>> import optikit as ok
      >>> method = second_order(curvature="hessian", solve=conjugate_gradients())
      >>> bool(ok.minimize(lambda x: (x**2).sum() + x[0] ** 4, jnp.ones(3), method=method).success)
      True
    """
    solve = conjugate_gradients() if solve is None else solve
    globalize = backtracking() if globalize is None else globalize

    def init(at: Eval) -> SecondOrderState:
        dtype = at.value.dtype
        return SecondOrderState(
            globalize.init(at),
            Inner(jnp.full((), LOOSEST, dtype), jnp.zeros((), dtype)),
            tree.norm(at.grad).astype(dtype),
            () if solve.init is None else solve.init(at),
        )

    def step(oracle: Oracle, at: Eval, state: SecondOrderState, key: Key):
        size = tree.norm(at.grad).astype(at.value.dtype)
        inner = state.inner._replace(forcing=forcing(size, state))
        memory = () if solve.init is None else (state.memory,)
        model = solve.prepare(oracle, at, curvature, key, *memory)
        search = globalize.search(
            oracle, at, lambda radius: model.propose(radius, inner), state.globalize
        )
        search = search._replace(counts=tally(model.counts, search.counts))
        if search.next is not None:
            search = looked_ahead(search, search.next, model, size)
        new = SecondOrderState(search.state, inner._replace(scale=search.scale), size, model.memory)
        return search.params, search.next, new, info_from_search(search)

    evaluate = solve.evaluate or value_and_grad
    return Optimizer(
        init, step, evaluate=evaluate, monotone=True, name=name, learns=solve.truncated
    )


def looked_ahead(search: Search, end: Eval, model: Model, size: Scalar) -> Search:
    """The search with no promise made where the new point may be a saddle.

    Inner iterations see a Krylov space, and what they miss grows: near a saddle the new gradient
    points along the negative curvature, so that one product with it shows what was missed. An
    exactly zero gradient shows nothing; the next step has to probe the curvature there.
    """
    promised = jnp.where((tree.max_abs(end.grad) == 0) & (size > 0), jnp.inf, search.promised)
    counts = search.counts
    if model.is_convex_along is not None:
        convex, price = model.is_convex_along(end.grad)
        promised = jnp.where(convex, promised, jnp.inf)
        counts = tally(counts, price)
        # a truncated model leaves flat directions unsolved: no step of it is the whole one
        search = search._replace(full_norm=jnp.full_like(search.full_norm, jnp.inf))
    return search._replace(promised=promised, counts=counts)


def forcing(size: Scalar, state: SecondOrderState) -> Scalar:
    """The relative residual to ask of the inner solver at a gradient of that size."""
    shrunk = size / jnp.where(state.gradient_norm > 0, state.gradient_norm, 1)
    eta = 0.9 * shrunk**1.5
    guard = 0.9 * state.inner.forcing**1.5  # do not tighten much faster than the last step did
    eta = jnp.where(guard > 0.1, jnp.maximum(eta, guard), eta)
    return jnp.clip(eta, TIGHTEST, LOOSEST)


@memoized
def newton_cg(
    *,
    max_iters: int | None = None,
    max_trials: int = 40,
    precondition: Precondition = "none",
) -> Optimizer:
    """Truncated Newton by conjugate gradients with backtracking; follows negative curvature.

    Per step: one grad to linearise, one hvp per inner iteration (at most `max_iters`; by default
    twice the number of parameters, at most 500), one grad a trial. Memory: a few parameter vectors.

    Args:
      precondition: "none", "diagonal" or "nystrom"; see `optikit.linalg.conjugate_gradients`.
    """
    return second_order(
        curvature="hessian",
        solve=conjugate_gradients(max_iters=max_iters, precondition=precondition),
        globalize=backtracking(max_trials=max_trials),
        name="newton-cg",
    )


@memoized
def trust_region_newton(
    *,
    radius: float | None = None,
    max_iters: int | None = None,
    subproblem: Literal["steihaug", "gltr"] = "steihaug",
    precondition: Precondition = "none",
) -> Optimizer:
    """A trust region with the true Hessian by products; follows negative curvature to the boundary.

    Args:
      radius: the first radius; by default max(1, |params|).
      max_iters: inner iterations per proposal, each one hvp, as for `newton_cg`.
      subproblem: "steihaug", conjugate gradients up to the boundary (a few vectors of memory); or
        "gltr", Lanczos beyond it to the minimiser over the Krylov space (a vector per iteration).
      precondition: of either's iterations: "none", "diagonal" or "nystrom"; see
        `optikit.linalg.conjugate_gradients`.

    Raises:
      ValueError: an unknown subproblem or preconditioner.
    """
    if subproblem not in ("steihaug", "gltr"):
        msg = f"subproblem must be 'steihaug' or 'gltr'; got {subproblem!r}."
        raise ValueError(msg)
    inner = krylov if subproblem == "gltr" else conjugate_gradients
    return second_order(
        curvature="hessian",
        solve=inner(max_iters=max_iters, precondition=precondition),
        globalize=trust_region(radius=radius),
        name="trust-region",
    )


@memoized
def trust_region_exact(*, radius: float | None = None, max_trials: int = 60) -> Optimizer:
    """A trust region whose dense subproblem is solved exactly, the hard case included.

    Per step: one hessian, 9 n^3 flops for its eigendecomposition, one grad a trial.

    Args:
      radius: the first radius; by default max(1, |params|).
      max_trials: trials per step.
    """
    return second_order(
        curvature="hessian",
        solve=exact(),
        globalize=trust_region(radius=radius, max_trials=max_trials),
        name="trust-region-exact",
    )


@memoized
def gauss_newton(*, max_trials: int = 40) -> Optimizer:
    """Gauss-Newton with backtracking for sums of squares: QR of the Jacobian, never J^T J.

    For `residuals(...)`, and `composite(predict, squared_error)` with at most an L2 penalty. Per
    step: one jacobian, 2 m n^2 flops, one value a trial.
    """
    return watched(
        second_order(
            curvature="ggn",
            solve=qr(),
            globalize=backtracking(max_trials=max_trials, gradients=False),
            name="gauss-newton",
        )
    )
