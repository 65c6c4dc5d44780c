"""Ends of methods that keep the Jacobian of a sum of squares from one step to the next.

Two ends show in no single step. About a minimum of large residual the Gauss-Newton model promises
what it cannot keep, down to steps that only stir the rounding of the value: it is over when these
no longer lower the slope. And where a model saturates, columns of J vanish, and with them every
test of stationarity: a plateau.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Key, Scalar, Status, memoized, tree
from optikit.linalg.damped_step import LinearModel
from optikit.linalg.least_squares import column_norms
from optikit.optimizers.levenberg_marquardt import IDLE_STEPS, alive, rounding, steepest_slope
from optikit.optimizers.protocol import Optimizer


class EndsState(NamedTuple):
    """What the next step needs."""

    inner: Any
    scaling: Float[Array, " n"]  # the largest column norms of J so far
    value: Scalar  # where the last step began
    least: Scalar  # the smallest slope since the value last fell beyond its noise
    idle: Int[Array, ""]  # steps in the noise since that was last lowered


@memoized
def watched(method: Optimizer) -> Optimizer:
    """A method whose evaluations hold (r, J), ended where its steps come to nothing.

    Its reports tell in `extras["scaling"]` how large each column of J has been.
    """

    def init(at: Eval) -> EndsState:
        infinite = jnp.full((), jnp.inf, at.value.dtype)
        unknown = jnp.zeros(tree.size(at.params), at.value.dtype)
        return EndsState(method.init(at), unknown, infinite, infinite, jnp.asarray(0, jnp.int32))

    def step(oracle: Oracle, at: Eval, state: EndsState, key: Key):
        r, jacobian = at.local
        here = at._replace(local=LinearModel(jacobian, r))
        slope, noise, gained = steepest_slope(here), rounding(here), state.value - at.value
        fell = gained > 1e3 * noise.trial
        helped = fell | (slope <= 0.9 * state.least)
        useless = (jnp.abs(gained) <= noise.trial) & (gained <= noise.value)
        idle = jnp.where(helped, 0, state.idle + jnp.where(useless, 1, 0)).astype(jnp.int32)
        least = jnp.where(fell, slope, jnp.minimum(state.least, slope))
        params, known, inner, info = method.step(oracle, at, state.inner, key)
        scaling = jnp.maximum(state.scaling, column_norms(jacobian))
        lives = alive(here, scaling)
        resolved = (least**2 <= noise.trial) & lives
        ended = jnp.where(resolved, Status.CONVERGED_TO_PRECISION.value, Status.STALLED.value)
        assert info.predicted is not None
        over = (idle >= IDLE_STEPS) & (info.status == Status.RUNNING.value)
        info = info._replace(
            predicted=jnp.where(lives, info.predicted, jnp.inf),
            status=jnp.where(over, ended, info.status).astype(jnp.int32),
            extras={**info.extras, "scaling": scaling},
        )
        return params, known, EndsState(inner, scaling, at.value, least, idle), info

    return method._replace(init=init, step=step)
