"""Any method with a learning rate under the schedule that networks are trained with.

A study names it by import path: `use: optikit.optimizers.scheduled:cosine`.
"""

from typing import Any

import optax

from optikit.optimizers.protocol import Optimizer


def cosine(
    method: str = "adamw",
    learning_rate: float = 1e-3,
    horizon: int = 1000,
    warmup: float = 0.05,
    **hyperparameters: Any,
) -> Optimizer:
    """A linear rise to the learning rate, then half a cosine to zero at `horizon`.

    Args:
      method: a name from `ok.optimizers` or optax, of a method with a learning rate.
      learning_rate: the highest.
      horizon: steps; beyond them nothing moves. It is worth tuning: a budget of seconds holds as
        many as it holds.
      warmup: share of the horizon.
      hyperparameters: of the method.

    Raises:
      ValueError: an unknown method, or a horizon or warm-up out of range.

    Reference: Loshchilov & Hutter (2017), "SGDR", eq. 5, without restarts.

    Example:
      >>> import optikit as ok
      >>> sol = ok.minimize(lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(2), max_steps=100,
      ...                   method=cosine("adam", learning_rate=0.3, horizon=100))
      >>> round(float(sol.params[0]), 2)
      1.0
    """
    from optikit.optimizers import named

    if horizon < 2 or not 0 <= warmup < 1:
        msg = f"horizon must be at least 2 and warmup in [0, 1); got {horizon} and {warmup}."
        raise ValueError(msg)
    rise = max(1, round(warmup * horizon))
    schedule = optax.warmup_cosine_decay_schedule(
        learning_rate / rise, learning_rate, rise, horizon
    )
    return named(method, learning_rate=schedule, **hyperparameters)
