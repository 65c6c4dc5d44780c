"""Losses for labels. Logits enter unbounded; values and gradients stay exact at +-1e4 in float32.

Binary losses take one logit per example and labels in {0, 1} (soft labels between them for
`logistic`); the margin losses also accept {-1, +1}.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from optikit.core import memoized
from optikit.losses.base import Loss, float_targets, from_value, output_shape


@jax.custom_jvp
def _softplus(x: Array) -> Array:
    """log(1 + exp(x)) with derivative sigmoid(x), each to full relative accuracy."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@_softplus.defjvp
def _softplus_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    return _softplus(x), jax.nn.sigmoid(x) * tangent


def _logistic_value(outputs: Array, targets: Array) -> Array:
    # t softplus(-o) + (1 - t) softplus(o): no cancellation, unlike softplus(o) - t o
    t = float_targets(outputs, targets)
    return t * _softplus(-outputs) + (1 - t) * _softplus(outputs)


def _logistic_hvp(outputs: Array, targets: Array, vectors: Array) -> Array:
    del targets
    return jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs) * vectors


logistic = Loss(
    value=_logistic_value,
    hvp=_logistic_hvp,
    sample=lambda key, o: jax.random.bernoulli(key, jax.nn.sigmoid(o)).astype(o.dtype),
    fisher=lambda o, v: _logistic_hvp(o, o, v),
    name="logistic",
)
"""-t log s(o) - (1 - t) log(1 - s(o)), s the sigmoid: binary cross-entropy from logits."""


def _log_softmax(logits: Array) -> Array:
    # With m the largest logit and S the sum of exp(z - m) over the OTHER classes,
    # log softmax = z - m - log1p(S): the likeliest class keeps full relative accuracy.
    likeliest = jnp.argmax(logits, axis=-1, keepdims=True)
    top = jnp.take_along_axis(logits, likeliest, axis=-1)
    classes = jax.lax.broadcasted_iota(likeliest.dtype, logits.shape, logits.ndim - 1)
    is_top = classes == likeliest
    shifted = jnp.where(is_top, 0, logits - top)
    others = jnp.sum(jnp.where(is_top, 0, jnp.exp(shifted)), axis=-1, keepdims=True)
    return shifted - jnp.log1p(others)


def _class_weights(logits: Array, labels: Array) -> Array:
    """Labels as weights over classes, (..., classes): integers become one-hot."""
    labels, shape = jnp.asarray(labels), output_shape(logits)
    if labels.shape == shape and jnp.issubdtype(labels.dtype, jnp.floating):
        return labels.astype(logits.dtype)
    if labels.shape == shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, shape[-1], dtype=logits.dtype)
    if labels.shape == shape:
        return labels.astype(logits.dtype)
    msg = (
        f"labels {labels.dtype.name}{labels.shape} do not fit logits {shape}: give integer "
        f"classes of shape {shape[:-1]}, or one-hot or soft labels of shape {shape}."
    )
    raise ValueError(msg)


def _softmax_value(outputs: Array, targets: Array) -> Array:
    weights = _class_weights(outputs, targets)
    values = -jnp.sum(jnp.where(weights == 0, 0, weights * _log_softmax(outputs)), axis=-1)
    if jnp.shape(targets) == outputs.shape:
        return values
    return jnp.where(jnp.any(weights != 0, axis=-1), values, jnp.nan)  # no such class


def _softmax_curvature(outputs: Array, vectors: Array) -> Array:
    p = jax.nn.softmax(outputs, axis=-1)
    return p * (vectors - jnp.sum(p * vectors, axis=-1, keepdims=True))


def _softmax_hvp(outputs: Array, targets: Array, vectors: Array) -> Array:
    total = jnp.sum(_class_weights(outputs, targets), axis=-1, keepdims=True)
    return total * _softmax_curvature(outputs, vectors)


softmax_cross_entropy = Loss(
    value=_softmax_value,
    hvp=_softmax_hvp,
    sample=lambda key, o: jax.random.categorical(key, o, axis=-1),
    fisher=_softmax_curvature,
    event_ndim=1,
    name="softmax_cross_entropy",
)
"""-sum_k t_k log softmax(o)_k over the last axis; integer classes, or one-hot or soft labels.

NaN for a class out of range: what is to be left out has weight 0."""


def _margin(outputs: Array, targets: Array) -> Array:
    """S o with s = +1 for a positive label and -1 for 0 or a negative one."""
    signs = jnp.where(float_targets(outputs, targets) > 0, 1, -1).astype(outputs.dtype)
    return signs * outputs


squared_hinge = Loss(
    value=lambda o, t: jnp.maximum(1 - _margin(o, t), 0) ** 2,
    hvp=lambda o, t, v: jnp.where(_margin(o, t) < 1, 2, 0).astype(o.dtype) * v,
    name="squared_hinge",
)
"""max(0, 1 - m)^2 with m the margin: m = o for label 1, -o for label 0 (or -1)."""


@memoized
def _smoothed_hinge(width: float = 1.0) -> Loss:
    def value(outputs: Array, targets: Array) -> Array:
        short = jnp.maximum(1 - _margin(outputs, targets), 0)
        inside = jnp.minimum(short, width)
        return inside**2 / (2 * width) + (short - inside)

    def hvp(outputs: Array, targets: Array, vectors: Array) -> Array:
        short = 1 - _margin(outputs, targets)
        return (
            jnp.where((short > 0) & (short < width), 1 / width, 0).astype(outputs.dtype) * vectors
        )

    return Loss(value, hvp, name="smoothed_hinge", family=_smoothed_hinge)


smoothed_hinge = _smoothed_hinge()
"""0 for m >= 1, (1 - m)^2 / (2 width) for 1 - width < m < 1, else 1 - m - width/2;
`smoothed_hinge(width=1.0)`. Shalev-Shwartz & Zhang (2013), eq. 4; Rennie & Srebro (2005) at 1."""


@memoized
def _focal(gamma: float = 2.0) -> Loss:
    def value(outputs: Array, targets: Array) -> Array:
        # (1 - p)^gamma (-log p), p the probability of the label; log(1 - p) = -softplus(m)
        margin = _margin(outputs, targets)
        return jnp.exp(-gamma * _softplus(margin)) * _softplus(-margin)

    return from_value(value, name="focal")._replace(family=_focal)


focal = _focal()
"""(1 - p)^gamma (-log p) with p the probability given to the label; `focal(gamma=2.0)`. Not convex
and not a likelihood for gamma > 0; `logistic` at 0. Lin et al. (2017), eq. 4."""
