"""AdaHessian: Adam with the Hessian's diagonal, estimated by random signs, for the gradient."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Counts, Key, Params, memoized, tree
from optikit.linalg.signs import signs
from optikit.optimizers.descent import (
    Rate,
    check_every,
    check_rate,
    descend,
    mixed,
    rate_at,
    unbiased,
)
from optikit.optimizers.protocol import Optimizer, Refresh


class AdaHessianState(NamedTuple):
    """Averages of the gradient and of the estimated diagonal's squares, leaf by leaf."""

    steps: Int[Array, ""]
    first: list[Array]
    second: list[Array]


HUTCHINSON = Counts(grad=1, hvp=1)
"""What one estimate costs: the Hessian is linearised at a gradient's price."""


@memoized
def adahessian(
    learning_rate: Rate = 0.15,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-4,
    hessian_power: float = 1.0,
    spatial: Literal["kernel", "none"] = "kernel",
    every: int = 1,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam with the Hessian's diagonal D, estimated as z * (H z) with z of random signs.

    The direction is m / (sqrt(v)^hessian_power + eps), v the average of D^2. D is exact where the
    Hessian is diagonal; elsewhere its mean is the diagonal. Per estimate one grad and one hvp
    beside the step's own grad.

    Args:
      learning_rate: a number or a schedule (step -> number).
      spatial: "kernel" averages |D| over the leading axes of a leaf with more than two, those of
        a convolution's window; "none" leaves every entry its own.
      every: steps between estimates.
      weight_decay: decoupled.

    Reference: Yao et al. (2021), "ADAHESSIAN", Algorithm 1; defaults of its published code.

    Example:
      >>> import optikit as ok
      >>> sol = ok.minimize(lambda x: jnp.sum(jnp.array([1.0, 1e4]) * x**2), jnp.ones(2),
      ...                   method=ok.optimizers.adahessian(), max_steps=60)
      >>> bool(sol.value < 1)
      True
    """
    check_rate(learning_rate)
    check_every(every, name="every")

    def init(at: Eval) -> AdaHessianState:
        zeros = [0 * g for g in wide(at.grad)]
        return AdaHessianState(jnp.asarray(0, jnp.int32), zeros, zeros)

    def smoothed(d: Array) -> Array:
        if spatial == "none" or d.ndim < 3:
            return jnp.abs(d)
        axes = tuple(range(d.ndim - 2))
        return jnp.broadcast_to(jnp.mean(jnp.abs(d), axis=axes, keepdims=True), d.shape)

    def estimated(oracle: Oracle, at: Eval, state: AdaHessianState, key: Key):
        diagonal = [smoothed(d) for d in wide(hutchinson(oracle, at.params, key))]
        second = [mixed(b2, v, d * d) for v, d in zip(state.second, diagonal, strict=True)]
        return state._replace(second=second), HUTCHINSON

    def step(oracle: Oracle, at: Eval, state: AdaHessianState, key: Key):
        del oracle, key
        seen = state.steps // every + 1
        first = [mixed(b1, m, g) for m, g in zip(state.first, wide(at.grad), strict=True)]
        directions = [
            unbiased(b1, m, state.steps + 1)
            / (unbiased(b2, v, seen) ** (jnp.asarray(hessian_power, v.dtype) / 2) + eps)
            for m, v in zip(first, state.second, strict=True)
        ]
        rate = rate_at(learning_rate, state.steps, tree.inner_dtype(at.params))
        params, info = descend(
            at, directions, [rate] * len(directions), weight_decay, Counts(), learning_rate=rate
        )
        return params, None, state._replace(steps=state.steps + 1, first=first), info

    return Optimizer(init, step, name="adahessian", refresh=(Refresh(every, estimated),))


def hutchinson(oracle: Oracle, params: Params, key: Key) -> Params:
    """One Hutchinson estimate z * (H z), z of random signs: in the mean the Hessian's diagonal.

    Price: Counts(grad=1, hvp=1). Reference: Bekas, Kokiopoulou & Saad (2007), section 2.
    """
    z = signs(key, params)
    return jax.tree.map(jnp.multiply, z, oracle.curvature("hessian", params).mv(z))


def wide(values: Params) -> list[Array]:
    """The leaves in at least float32."""
    dtype = tree.inner_dtype(values)
    return [x.astype(dtype) for x in jax.tree.leaves(values)]
