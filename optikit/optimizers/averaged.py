"""Averages of iterates, of any method."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Key, Params, memoized, tree
from optikit.optimizers.descent import mixed, unbiased
from optikit.optimizers.protocol import Optimizer, Refresh


class AveragedState(NamedTuple):
    """The method's own state, the average (from zero) in at least float32, and its length."""

    inner: Any
    average: Params
    steps: Int[Array, ""]


@memoized
def averaged(optimizer: Optimizer, decay: float = 0.999) -> Optimizer:
    """The same method, read out as the exponential moving average of its iterates.

    The iterates are what they were. The average is corrected for its start, so early on it is a
    plain mean. `minimize` evaluates it once at the end and returns it if it is no worse.

    Args:
      decay: in [0, 1); the average looks back over about 1 / (1 - decay) steps.

    Reference: Polyak & Juditsky (1992); Kingma & Ba (2015), section 7.2 (with this correction).

    Example:
      >>> import optikit as ok
      >>> method = averaged(ok.optimizers.adam(0.1), 0.9)
      >>> sol = ok.minimize(lambda x: jnp.sum(x**2), jnp.ones(2), method=method, max_steps=100)
      >>> bool(sol.value < 1e-3)
      True
    """

    def init(at: Eval) -> AveragedState:
        dtype = tree.inner_dtype(at.params)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), at.params)
        return AveragedState(optimizer.init(at), zeros, jnp.asarray(0, jnp.int32))

    def step(oracle: Oracle, at: Eval, state: AveragedState, key: Key):
        params, known, inner, info = optimizer.step(oracle, at, state.inner, key)
        average = jax.tree.map(
            lambda a, x: mixed(decay, a, x.astype(a.dtype)), state.average, params
        )
        return params, known, AveragedState(inner, average, state.steps + 1), info

    def readout(params: Params, state: AveragedState) -> Params:
        def read(a: Array, x: Array) -> Array:
            return jnp.where(state.steps > 0, unbiased(decay, a, state.steps).astype(x.dtype), x)

        return jax.tree.map(read, state.average, params)

    def inside(refresh: Refresh) -> Refresh:
        def update(oracle: Oracle, at: Eval, state: AveragedState, key: Key):
            inner, counts = refresh.update(oracle, at, state.inner, key)
            return state._replace(inner=inner), counts

        return Refresh(refresh.every, update)

    return optimizer._replace(
        init=init,
        step=step,
        readout=readout,
        refresh=tuple(inside(r) for r in optimizer.refresh),
        name=f"averaged {optimizer.name}",
    )
