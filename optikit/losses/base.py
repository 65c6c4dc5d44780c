"""What a loss is: a pure function of one example's output and target, with its own curvature."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optikit.core import Key

Value = Callable[[Array, Array], Float[Array, "..."]]


class Loss(NamedTuple):
    """A per-example loss l(output, target), convex or not, with its curvature in output space.

    Attributes:
      value: (outputs, targets) -> losses. An elementwise loss (`event_ndim` 0) maps (...,) and
        (...,) to (...,); one over class scores (`event_ndim` 1) maps (..., classes) to (...,).
      hvp: (outputs, targets, vectors) -> products of each example's Hessian with respect to its
        output, in the shape of outputs; nothing is averaged.
      sample: (key, outputs) -> targets drawn from the distribution whose negative log-likelihood
        this loss is, up to a constant; None where there is none.
      fisher: (outputs, vectors) -> products with the Fisher information of that distribution
        with respect to the output; None where `sample` is.
      residual: (outputs, targets) -> r with value = r**2 / 2, for sums of squares; else None.
      event_ndim: number of trailing axes of outputs that belong to one loss value.
      name: for messages and reports.
      family: builds the same loss with other hyperparameters; calling the loss calls it.
    """

    value: Value
    hvp: Callable[[Array, Array, Array], Array]
    sample: Callable[[Key, Array], Array] | None = None
    fisher: Callable[[Array, Array], Array] | None = None
    residual: Callable[[Array, Array], Array] | None = None
    event_ndim: int = 0
    name: str = "loss"
    family: Callable[..., "Loss"] | None = None

    def __call__(self, *args: Any, **hyperparameters: Any) -> "Loss":
        """The same loss with other hyperparameters: `huber(delta=0.5)`."""
        if self.family is None:
            msg = (
                f"{self.name} has no hyperparameters: use it as it stands, or "
                f"{self.name}.value(outputs, targets) for its per-example values."
            )
            raise TypeError(msg)
        return self.family(*args, **hyperparameters)


def from_value(value: Value, *, event_ndim: int = 0, name: str | None = None) -> Loss:
    """A Loss from a per-example function alone; its curvature by forward-over-reverse autodiff.

    Args:
      value: as `Loss.value`: (outputs, targets) -> per-example losses, for instance
        `optax.losses.huber_loss`.
      event_ndim: 0 if it works entry by entry, 1 if the last axis of outputs is one example's.
      name: defaults to the function's own.

    Example:
      >>> import jax.numpy as jnp
      >>> quartic = from_value(lambda output, target: (output - target) ** 4)
      >>> float(quartic.hvp(jnp.array(2.0), jnp.array(1.0), jnp.array(1.0)))
      12.0
    """

    def hvp(outputs: Array, targets: Array, vectors: Array) -> Array:
        def gradient(o: Array) -> Array:
            return jax.grad(lambda q: jnp.sum(value(q, targets)))(o)

        return jax.jvp(gradient, (outputs,), (vectors,))[1]

    return Loss(value, hvp, event_ndim=event_ndim, name=name or getattr(value, "__name__", "loss"))


def float_targets(outputs: Array, targets: Array) -> Array:
    """Targets as floats of the outputs' dtype; shapes must agree, so that nothing broadcasts."""
    targets, shape = jnp.asarray(targets), output_shape(outputs)
    if targets.shape != shape:
        msg = (
            f"outputs {outputs.shape} and targets {targets.shape} differ in shape: an elementwise "
            "loss compares them entry by entry; reshape one (for instance outputs[:, 0])."
        )
        raise ValueError(msg)
    return targets.astype(outputs.dtype)


def output_shape(outputs: Any) -> tuple[int, ...]:
    """The shape of a model's outputs.

    Raises:
      TypeError: they are no array.
    """
    if hasattr(outputs, "shape"):
        return outputs.shape
    msg = (
        f"the model returned {type(outputs).__name__}: this loss needs one array of outputs; pass "
        "has_aux=True if it returns a pair (outputs, aux)."
    )
    raise TypeError(msg)


def sample_labels(loss: Loss, key: Key, outputs: Array) -> Array:
    """Targets drawn from the distribution whose NLL the loss is.

    Raises:
      TypeError: the loss is not a negative log-likelihood.
    """
    if loss.sample is None:
        msg = (
            f"{loss.name} is not a negative log-likelihood: it has no labels to sample and no "
            "Fisher information. Use ggn(...) or empirical_fisher(...)."
        )
        raise TypeError(msg)
    return jax.lax.stop_gradient(loss.sample(key, outputs))
