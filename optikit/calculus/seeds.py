"""What is pulled back through a model so that squares of the result make up its curvature.

With F_n the curvature of example n's loss with respect to its outputs and w_n its weight in the
mean, seeds s have E[sum s s^T] = w_n F_n: one set drawn from the model's own distribution, or the
columns of a root of F_n. Pulled back by J_n^T they give the Gauss-Newton or Fisher matrix.

References: Martens & Grosse (2015), section 5 (sampled targets); Botev, Ritter & Barber (2017),
section 4, and Dangel, Kunstner & Hennig (2020), eq. 19 (columns of a root).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optikit.calculus.objective import (
    Objective,
    example_losses,
    loss_of,
    mean_weights,
    split_data,
)
from optikit.calculus.oracle import Oracle
from optikit.core import Key
from optikit.losses import sample_labels

Source = Literal["sampled", "exact", "empirical"]


def seeds(oracle: Oracle, outputs: Any, source: Source, key: Key) -> Any:
    """Cotangents of the outputs, with a leading axis of one or more sets to be pulled back alone.

    Args:
      outputs: of the model, or the residuals.
      source: "sampled", one set, at labels drawn from the model (for residuals, unit normal
        noise); "exact", one set for each entry of the last axis of the outputs, with random signs
        between other axes of an example; "empirical", one set, at the labels given: not the Fisher
        matrix, but a second moment of gradients.

    Raises:
      TypeError: "sampled" with a loss that is no negative log-likelihood.
    """
    objective = oracle.objective
    if objective.kind == "residuals":
        return _of_residuals(objective, outputs, source, key)
    _, targets, weights = split_data(objective, oracle.args)
    if source == "exact":
        return _of_curvature(oracle, outputs, key)
    if source == "sampled":
        targets = sample_labels(loss_of(objective), key, outputs)

    def total(o: Array) -> Array:
        values = example_losses(objective, o, targets, weights)[0]
        root = jnp.sqrt(mean_weights(values, weights))
        return jnp.sum(jnp.where(root == 0, 0, root * values))

    return jax.grad(total)(outputs)[None]


def example_weights(objective: Objective, args: tuple, outputs: Any) -> Float[Array, " n"]:
    """The weight of each example, along axis 0, in the mean; they sum to 1."""
    first = jax.tree.leaves(outputs)[0]
    if objective.kind == "residuals":
        return jnp.full(first.shape[0], 1 / first.shape[0], first.dtype)
    _, targets, weights = split_data(objective, args)
    values = jax.eval_shape(lambda o: example_losses(objective, o, targets, weights)[0], outputs)
    factor = mean_weights(jnp.zeros(values.shape, values.dtype), weights)
    return jnp.sum(factor.reshape(factor.shape[0], -1), axis=1)


def _of_residuals(objective: Objective, residuals: Any, source: Source, key: Key) -> Any:
    leaves, structure = jax.tree.flatten(residuals)
    keys = jax.random.split(key, len(leaves))
    robust = objective.robust
    # a robust loss bends by the square of what its Jacobian is scaled with
    a, b = [jnp.ones_like(r) for r in leaves], [jnp.ones_like(r) for r in leaves]
    if robust is not None:
        a, b = (list(x) for x in zip(*[robust.scaled(r) for r in leaves], strict=True))
    if source == "empirical":
        found = [(x * y * r)[None] for x, y, r in zip(a, b, leaves, strict=True)]
    elif source == "sampled":
        found = [
            (y * jax.random.normal(k, r.shape, r.dtype))[None]
            for k, y, r in zip(keys, b, leaves, strict=True)
        ]
    else:
        parts = [_diagonal_columns(y, k) for k, y in zip(keys, b, strict=True)]
        count = sum(p.shape[0] for p in parts)
        ends = [sum(p.shape[0] for p in parts[: i + 1]) for i in range(len(parts))]
        found = [
            jnp.pad(p, ((end - p.shape[0], count - end),) + ((0, 0),) * (p.ndim - 1))
            for p, end in zip(parts, ends, strict=True)
        ]  # one leaf at a time: their rows may come from the same example
    return jax.tree.unflatten(structure, found)


def _of_curvature(oracle: Oracle, outputs: Array, key: Key) -> Array:
    objective = oracle.objective
    loss = loss_of(objective)
    _, targets, weights = split_data(objective, oracle.args)
    curvature = oracle.output_curvature("ggn" if loss.fisher is None else "fisher")
    values = example_losses(objective, outputs, targets, weights)[0]
    factor = mean_weights(values, weights)
    if loss.event_ndim == 0:
        diagonal = factor * curvature(outputs, targets, jnp.ones_like(outputs))
        root = jnp.sqrt(jnp.where(factor == 0, 0, jnp.maximum(diagonal, 0)))
        return _diagonal_columns(root, key)
    lead = outputs.shape[: outputs.ndim - loss.event_ndim]
    event = outputs.shape[len(lead) :]
    size = outputs[(0,) * len(lead)].size
    units = jnp.eye(size, dtype=outputs.dtype).reshape(size, *event)
    rows = [curvature(outputs, targets, jnp.broadcast_to(u, outputs.shape)) for u in units]
    matrix = jnp.stack([r.reshape(*lead, size) for r in rows], axis=-1)
    matrix = jnp.where(factor[..., None, None] == 0, 0, factor[..., None, None] * matrix)
    lengths, vectors = jnp.linalg.eigh((matrix + jnp.swapaxes(matrix, -1, -2)) / 2)
    root = vectors * jnp.sqrt(jnp.maximum(lengths, 0))[..., None, :]
    root = root * _signs(key, lead, root.dtype)[..., None, None]
    return jnp.moveaxis(root, -1, 0).reshape(size, *outputs.shape)


def _diagonal_columns(root: Array, key: Key) -> Array:
    """One set for each entry of the last axis, if that is not the examples' own."""
    if root.ndim < 2:
        return root[None]
    count = root.shape[-1]
    root = root * _signs(key, root.shape[:-1], root.dtype)[..., None]
    units = jnp.eye(count, dtype=root.dtype)
    return units.reshape(count, *(1,) * (root.ndim - 1), count) * root[None]


def _signs(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """Random signs that keep the places of one example apart; none where there is one place."""
    if len(shape) < 2:
        return jnp.ones(shape, dtype)
    return jax.random.rademacher(key, shape, dtype)
