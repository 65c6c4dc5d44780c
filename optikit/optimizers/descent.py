"""What methods with a learning rate have in common: rates, moments, decay, and the step itself.

All of it in at least float32, whatever the parameters are.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optikit.calculus import Eval
from optikit.core import Counts, Scalar, tally, tree
from optikit.optimizers.protocol import StepInfo, running

Rate = float | Array | Callable[[Any], Any]
"""A learning rate: a number, or a schedule of optax or of one's own, step -> number."""


def rate_at(rate: Rate, count: Int[Array, ""], dtype: Any) -> Scalar:
    """The learning rate of a step, counted from 0."""
    if callable(rate):
        with jax.numpy_dtype_promotion("standard"):  # as schedules need where a user forbids it
            rate = rate(count)
    return jnp.asarray(rate).astype(dtype)


def mixed(decay: float | Array, old: Array, new: Array) -> Array:
    """Decay old + (1 - decay) new."""
    decay = jnp.asarray(decay, old.dtype)
    return decay * old + (1 - decay) * new


def unbiased(decay: float | Array, average: Array, times: Int[Array, ""]) -> Array:
    """An average that began at zero, `times` mixtures ago, corrected for it (Kingma & Ba 2015)."""
    decay = jnp.asarray(decay, average.dtype)
    return average / jnp.where(times > 0, 1 - decay ** times.astype(average.dtype), 1)


class Moments(NamedTuple):
    """Averages of a gradient and of its entries' squares."""

    first: Array
    second: Array

    @classmethod
    def blank(cls, like: Array) -> "Moments":
        """Both at zero."""
        return cls(jnp.zeros_like(like), jnp.zeros_like(like))

    def after(self, g: Array, b1: float | Array, b2: float | Array) -> "Moments":
        """With another gradient."""
        return Moments(mixed(b1, self.first, g), mixed(b2, self.second, g * g))

    def direction(self, times: Array, b1: Any, b2: Any, eps: float) -> Array:
        """Adam's, after `times` gradients: m / (sqrt(v) + eps), both unbiased."""
        root = jnp.sqrt(unbiased(b2, self.second, times))
        return unbiased(b1, self.first, times) / (root + eps)


def check_rate(rate: Any, *, name: str = "learning_rate") -> None:
    """Raise at once what would fail in the middle of a trace.

    Raises:
      TypeError: it is neither a number nor a schedule.
    """
    if isinstance(rate, str) or not (callable(rate) or jnp.ndim(rate) == 0):
        msg = f"{name} must be a number or a schedule (step -> number); got {rate!r}."
        raise TypeError(msg)


def check_every(every: Any, *, name: str = "precondition_every") -> None:
    """Raise at once for a period that is none.

    Raises:
      ValueError: it is not a positive integer.
    """
    if not isinstance(every, int) or every < 1:
        msg = f"{name} must be a positive integer, a number of steps; got {every!r}."
        raise ValueError(msg)


def descend(
    at: Eval,
    directions: Any,
    rates: Sequence[Scalar],
    weight_decay: float | Array,
    counts: Counts,
    **extras: Array,
) -> tuple[Any, StepInfo]:
    """(x - rate (direction + weight_decay x), the report), in the dtypes of x.

    Args:
      directions: in the structure of the parameters, in at least float32.
      rates: one for each leaf.
    """
    dtype = tree.inner_dtype(at.params)
    decay = jnp.asarray(weight_decay, dtype)
    leaves, structure = jax.tree.flatten(at.params)
    changes = []
    for x, d, rate in zip(leaves, jax.tree.leaves(directions), rates, strict=True):
        changes.append(rate * (d.astype(dtype) + decay * x.astype(dtype)))
    moved = [(x.astype(dtype) - c).astype(x.dtype) for x, c in zip(leaves, changes, strict=True)]
    size = tree.norm(changes).astype(at.value.dtype)
    info = StepInfo(size, size > 0, tally(counts), None, running(), dict(extras))
    return jax.tree.unflatten(structure, moved), info


def root_mean_square(x: Float[Array, "b m n"]) -> Float[Array, "b 1 1"]:
    """Of the entries of each matrix of a stack."""
    return jnp.sqrt(jnp.mean(x * x, axis=(1, 2), keepdims=True))
