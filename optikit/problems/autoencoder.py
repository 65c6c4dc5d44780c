"""Deep autoencoders: the classical hard case for first-order methods.

References: Hinton & Salakhutdinov (2006), Science 313; Martens (2010), ICML, section 6 (the task);
Martens & Grosse (2015), section 13.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optikit import losses
from optikit.calculus import composite
from optikit.core import Key, Params, Scalar
from optikit.problems.batches import epochs
from optikit.problems.data import load
from optikit.problems.problem import Metric, Problem
from optikit.problems.sizes import at_least


def reconstruction(params: Params, inputs: Float[Array, "m d"]) -> Float[Array, "m d"]:
    """Logits of the pixels: tanh layers, with the middle one (the code) and the last linear."""
    hidden, code = inputs, len(params) // 2 - 1
    for i, layer in enumerate(params):
        hidden = hidden @ layer["weights"] + layer["bias"][None, :]
        if i not in (code, len(params) - 1):
            hidden = jnp.tanh(hidden)
    return hidden


def squared_reconstruction_error(params: Params, inputs: Float[Array, "m d"]) -> Scalar:
    """The squared error summed over pixels, averaged over examples."""
    pixels = jax.nn.sigmoid(reconstruction(params, inputs))
    return jnp.mean(jnp.sum((pixels - inputs) ** 2, axis=1))


def deep_autoencoder(
    data: str = "digits",
    hidden: Sequence[int] = (128, 64, 32),
    code: int = 6,
    l2: float = 1e-5,
    batch: int | None = None,
) -> Problem:
    """Reconstruct images through a narrow code: binary cross-entropy + l2 |params|^2 / 2.

    The loss is summed over pixels, with grey values in [0, 1] as soft labels, and averaged over
    images. Weights start from a truncated normal of deviation 1/sqrt(fan-in), biases from zero.
    Reported besides: the squared error, summed over pixels.

    Args:
      data: images by rows, a data set's name or address. Full size for a GPU: mnist or
        fashion-mnist, with hidden [1000, 500, 250] and code 30.
      hidden: units of the encoder's layers; the decoder mirrors them.
      code: units of the linear code.
      l2: coefficient of the penalty, biases included.
      batch: images a step sees; all by default.

    Raises:
      ValueError: a size below 1, or the data has negative entries.
    """
    at_least(1, hidden=hidden, code=code, batch=batch)
    images = load(data).inputs
    if images.min() < 0:
        msg = f"{data!r} holds negative entries: an autoencoder wants grey values."
        raise ValueError(msg)
    images = images / images.max()
    sizes = (images.shape[1], *hidden, code, *reversed(hidden), images.shape[1])
    penalty = losses.l2(l2) if l2 else None
    return Problem(
        composite(reconstruction, losses.summed(losses.logistic), penalty=penalty),
        lambda key: truncated_layers(key, sizes),
        (images, images),
        description=f"autoencoder {'-'.join(map(str, sizes))} on {data}",
        batches=None if batch is None else epochs(batch),
        metrics={"squared error": Metric(squared_reconstruction_error, (images,))},
    )


def truncated_layers(key: Key, sizes: Sequence[int]) -> Params:
    """Weights normal with deviation 1/sqrt(fan-in), cut off at two deviations; biases zero."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {
            "weights": jax.random.truncated_normal(k, -2, 2, (a, b)) / a**0.5,
            "bias": jnp.zeros(b),
        }
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
