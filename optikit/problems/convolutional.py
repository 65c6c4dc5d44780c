"""Images into classes by a small convolutional network."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from optikit import losses
from optikit.calculus import composite
from optikit.core import Key, Params, Scalar
from optikit.problems.batches import epochs
from optikit.problems.data import load
from optikit.problems.problem import Metric, Problem
from optikit.problems.sizes import at_least

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolutional(params: Params, images: Float[Array, "m h w c"]) -> Float[Array, "m k"]:
    """3 x 3 convolutions with relu, each halved by pooling; then dense layers.

    params is {"convolutions": [{"kernel", "bias"}], "dense": [{"weights", "bias"}]}.
    """
    hidden = images
    for layer in params["convolutions"]:
        hidden = lax.conv_general_dilated(
            hidden, layer["kernel"], (1, 1), "SAME", dimension_numbers=_LAYOUT
        )
        hidden = halved(jax.nn.relu(hidden + layer["bias"][None, None, None, :]))
    hidden = hidden.reshape(hidden.shape[0], -1)
    for layer in params["dense"][:-1]:
        hidden = jax.nn.relu(hidden @ layer["weights"] + layer["bias"][None, :])
    return hidden @ params["dense"][-1]["weights"] + params["dense"][-1]["bias"][None, :]


def halved(images: Float[Array, "m h w c"]) -> Float[Array, "m h/2 w/2 c"]:
    """The largest of every 2 x 2 block; an odd last row or column is dropped."""
    m, h, w, c = images.shape
    even = images[:, : h - h % 2, : w - w % 2]
    return even.reshape(m, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def accuracy(params: Params, images: Float[Array, "m h w c"], labels: Int[Array, " m"]) -> Scalar:
    """The share of images whose likeliest class is the right one."""
    right = lax.argmax(convolutional(params, images), 1, labels.dtype) == labels
    return jnp.mean(right.astype(images.dtype))


def conv_classifier(
    data: str = "digits",
    channels: int = 32,
    dense: int = 128,
    batch: int | None = 256,
    examples: int | None = None,
    l2: float = 0.0,
) -> Problem:
    """Two convolutions (channels, then twice as many), a dense layer, softmax cross-entropy.

    A seventh of the images, drawn with a fixed seed, is held out. The objective is that of the
    others; reported besides: the accuracy on those held out. Weights start normal with variance
    2 / fan-in (He), biases from zero.

    Args:
      data: square grey images by rows with classes, a name or address. For a GPU: mnist or
        fashion-mnist (70,000 of 28 x 28, so that 10,000 are held out).
      channels: of the first convolution.
      dense: units of the layer before the last.
      batch: images a step sees; null for all.
      examples: images used at all, the first of a random order; all by default.
      l2: coefficient of |params|^2 / 2.

    Raises:
      ValueError: a size below 1, or the data has no classes, or its rows are no square images.
    """
    at_least(1, channels=channels, dense=dense, batch=batch, examples=examples)
    rows = load(data)
    side = round(rows.inputs.shape[1] ** 0.5)
    if rows.classes < 2 or side**2 != rows.inputs.shape[1] or side < 4:
        msg = f"{data!r} holds no square images (4 x 4 and more) with classes."
        raise ValueError(msg)
    order = np.random.default_rng(0).permutation(len(rows.targets))[:examples]
    images = (rows.inputs[order] / np.abs(rows.inputs).max()).reshape(-1, side, side, 1)
    labels = rows.targets[order]
    kept = len(order) - len(order) // 7
    shapes = {
        "convolutions": [(3, 3, 1, channels), (3, 3, channels, 2 * channels)],
        "dense": [((side // 4) ** 2 * 2 * channels, dense), (dense, rows.classes)],
    }
    return Problem(
        composite(
            convolutional, losses.softmax_cross_entropy, penalty=losses.l2(l2) if l2 else None
        ),
        lambda key: _start(key, shapes),
        (images[:kept], labels[:kept]),
        description=f"convolutions of {channels} and {2 * channels} channels on {kept} of {data}",
        batches=None if batch is None else epochs(batch),
        metrics={"held-out accuracy": Metric(accuracy, (images[kept:], labels[kept:]))},
    )


def _start(key: Key, shapes: dict[str, list[tuple[int, ...]]]) -> Params:
    keys = iter(jax.random.split(key, sum(map(len, shapes.values()))))
    names = {"convolutions": "kernel", "dense": "weights"}
    return {
        part: [
            {
                names[part]: (2 / math.prod(shape[:-1])) ** 0.5
                * jax.random.normal(next(keys), shape),
                "bias": jnp.zeros(shape[-1]),
            }
            for shape in each
        ]
        for part, each in shapes.items()
    }
