"""Learning rates: a number, or a schedule of the step number such as optax's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from optikit.core import Scalar

LearningRate = float | Callable[[Any], Any]
"""A number (or a traced scalar), or a function from the number of steps taken to one."""


def rate_at(rate: LearningRate, steps: Int[Array, ""], dtype: jnp.dtype) -> Scalar:
    """The rate of the step after so many, as a scalar of this dtype."""
    with jax.numpy_dtype_promotion("standard"):  # schedules divide int32 by Python numbers
        return jnp.asarray(rate(steps) if callable(rate) else rate).astype(dtype)
