"""From per-example losses to one number: weighted and masked means, and joint losses."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from optikit.core import Scalar, memoized
from optikit.losses.base import Loss


def expand_weights(weights: Array, like: Array) -> Float[Array, "..."]:
    """Weights with trailing axes added so that they broadcast against `like` from the left."""
    weights = jnp.asarray(weights).astype(like.dtype)
    if weights.shape != like.shape[: weights.ndim]:
        msg = f"weights {weights.shape} do not match the leading axes of the losses {like.shape}."
        raise ValueError(msg)
    return jnp.broadcast_to(
        weights.reshape(weights.shape + (1,) * (like.ndim - weights.ndim)), like.shape
    )


def weighted_mean(values: Float[Array, "..."], weights: Array | None = None) -> Scalar:
    """sum(w v) / sum(w), or the plain mean; an entry of weight 0 may hold anything.

    Args:
      values: one loss per entry.
      weights: non-negative, or booleans (a mask), for the leading axes of values. If all are 0
        the mean of nothing is NaN.

    Example:
      >>> weighted_mean(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([True, False, True]))
      Array(2., dtype=float32...)
    """
    if weights is None:
        return jnp.mean(values)
    weights = expand_weights(weights, values)
    used = jnp.where(weights == 0, 0, values)
    return jnp.sum(weights * used) / jnp.sum(weights)


@memoized
def summed(loss: Loss, ndim: int = 1) -> Loss:
    """The joint loss over the trailing `ndim` axes: their values are added, not averaged.

    With `composite`, outputs of shape (batch, K) under `squared_error` are averaged over all
    batch x K entries; under `summed(squared_error)` over the batch alone.

    Example:
      >>> from optikit.losses.regression import squared_error
      >>> summed(squared_error).value(jnp.zeros((2, 3)), jnp.ones((2, 3)))
      Array([3., 3.], dtype=float32...)
    """

    def value(outputs: Array, targets: Array) -> Array:
        each = loss.value(outputs, targets)
        return jnp.sum(each, axis=tuple(range(each.ndim - ndim, each.ndim)))

    return loss._replace(
        value=value,
        event_ndim=loss.event_ndim + ndim,
        name=f"summed({loss.name})",
        residual=None,
        family=None,
    )
