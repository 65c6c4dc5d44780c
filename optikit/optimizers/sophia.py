"""Sophia: averaged gradients over an estimated curvature diagonal, every entry clipped."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Key, memoized, tree
from optikit.optimizers.adahessian import HUTCHINSON, hutchinson, wide
from optikit.optimizers.descent import Rate, check_every, check_rate, descend, mixed, rate_at
from optikit.optimizers.protocol import Optimizer, Refresh


class SophiaState(NamedTuple):
    """Averages of the gradient and of the estimated curvature diagonal, leaf by leaf."""

    steps: Int[Array, ""]
    first: list[Array]
    curvature: list[Array]


@memoized
def sophia(
    learning_rate: Rate = 1e-3,
    *,
    variant: Literal["auto", "gauss-newton", "hutchinson"] = "auto",
    b1: float | None = None,
    b2: float = 0.99,
    gamma: float | None = None,
    eps: float = 1e-12,
    every: int = 10,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Steps along m / max(gamma h, eps), each entry clipped to [-1, 1]; h from a random estimate.

    "gauss-newton" (Sophia-G): h averages squares of a gradient at labels sampled from the model,
    scaled so that its mean is the diagonal of the Gauss-Newton matrix of a loss that is a negative
    log-likelihood, plus that of the penalty if it has one; one grad per estimate. "hutchinson"
    (Sophia-H): z * (H z) with z of random signs; one grad and one hvp.

    Args:
      learning_rate: a number or a schedule (step -> number); the size of a clipped entry's step.
      variant: "auto" is "gauss-newton" for a composite objective whose loss can be sampled.
      b1: by default 0.965 (G) or 0.96 (H).
      gamma: by default 0.05 (G) or 0.01 (H); so large that a tenth to half of the entries are not
        clipped (`info.extras["unclipped"]`).
      every: steps between estimates.
      weight_decay: decoupled.

    Raises:
      ValueError: an unknown variant.
      TypeError: while tracing, "gauss-newton" where labels cannot be sampled.

    Reference: Liu et al. (2024), "Sophia: A scalable stochastic second-order optimizer", Algorithms
      1-3 and section 3.1 for the defaults.

    Example:
      >>> import optikit as ok
      >>> model = ok.composite(lambda w, x: x @ w, ok.losses.logistic)
      >>> data = (jnp.array([[1.0], [1.0], [-1.0]]), jnp.array([1.0, 0.0, 0.0]))
      >>> sol = ok.minimize(model, jnp.zeros(1), args=data, max_steps=60,
      ...                   method=ok.optimizers.sophia(0.02))
      >>> bool(sol.value < 0.65)
      True
    """
    check_rate(learning_rate)
    check_every(every, name="every")
    if variant not in ("auto", "gauss-newton", "hutchinson"):
        msg = f"variant must be 'auto', 'gauss-newton' or 'hutchinson'; got {variant!r}."
        raise ValueError(msg)

    def sampled(oracle: Oracle) -> bool:
        loss = oracle.objective.loss
        can = oracle.objective.kind == "composite" and loss is not None and loss.sample is not None
        return can if variant == "auto" else variant == "gauss-newton"

    def init(at: Eval) -> SophiaState:
        zeros = [0 * g for g in wide(at.grad)]
        return SophiaState(jnp.asarray(0, jnp.int32), zeros, zeros)

    def estimated(oracle: Oracle, at: Eval, state: SophiaState, key: Key):
        by_labels = sampled(oracle)
        if by_labels:
            found = gauss_newton(oracle, at, key)
        else:
            found = wide(hutchinson(oracle, at.params, key))
        curvature = [mixed(b2, h, d) for h, d in zip(state.curvature, found, strict=True)]
        price = Counts(grad=1) if by_labels else HUTCHINSON
        return state._replace(curvature=curvature), price

    def step(oracle: Oracle, at: Eval, state: SophiaState, key: Key):
        del key
        by_labels = sampled(oracle)
        decay = (0.965 if by_labels else 0.96) if b1 is None else b1
        size = (0.05 if by_labels else 0.01) if gamma is None else gamma
        first = [mixed(decay, m, g) for m, g in zip(state.first, wide(at.grad), strict=True)]
        ratios = [
            m / jnp.maximum(jnp.asarray(size, h.dtype) * h, eps)
            for m, h in zip(first, state.curvature, strict=True)
        ]
        inside = sum(jnp.sum(jnp.abs(r) < 1) for r in ratios)
        rate = rate_at(learning_rate, state.steps, tree.inner_dtype(at.params))
        params, info = descend(
            at,
            [jnp.clip(r, -1, 1) for r in ratios],
            [rate] * len(ratios),
            weight_decay,
            Counts(),
            learning_rate=rate,
            unclipped=jnp.asarray(inside, rate.dtype) / tree.size(at.params),
        )
        return params, None, state._replace(steps=state.steps + 1, first=first), info

    return Optimizer(init, step, name="sophia", refresh=(Refresh(every, estimated),))


def gauss_newton(oracle: Oracle, at: Eval, key: Key) -> list[Array]:
    """An unbiased estimate of the Gauss-Newton matrix's diagonal, the penalty's added."""
    squares = [s * s for s in wide(oracle.fisher_sample(at.params, key))]
    penalty = oracle.objective.penalty
    if penalty is None or penalty.diagonal is None:
        return squares
    extra = jax.tree.leaves(penalty.diagonal(at.params))
    return [s + d.astype(s.dtype) for s, d in zip(squares, extra, strict=True)]
