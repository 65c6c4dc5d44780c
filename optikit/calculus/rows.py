"""Curvature as rows: a Gauss-Newton or Fisher matrix R^T R with the gradient R^T w + q.

Of an objective with m outputs (examples times outputs each), R is the (m, n) Jacobian of the
outputs, each example's weighted by a root of its output-space curvature. What the least-squares
and kernel forms of a step need is R and w; nothing of size (n, n) is formed here.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from optikit.calculus.columns import COLUMNS_AT_ONCE
from optikit.calculus.objective import (
    Objective,
    example_losses,
    loss_of,
    mean_weights,
    outputs_of,
    split_data,
)
from optikit.calculus.oracle import Oracle
from optikit.core import Params, tree
from optikit.core.tree import HIGHEST


class Rows(NamedTuple):
    """The curvature R^T R + diag(extra) at a point whose gradient is R^T w + q.

    q holds the penalty's gradient, and that of outputs without curvature.
    """

    rows: Float[Array, "m n"]
    w: Float[Array, " m"]
    q: Float[Array, " n"]
    extra: Float[Array, " n"]


def curvature_rows(oracle: Oracle, params: Params, kind: Literal["ggn", "fisher"]) -> Rows:
    """The rows of "ggn" or "fisher" at params. Price: Counts(jacobian=1).

    For residuals they are the residuals and their Jacobian. For a composite objective, examples
    stand along axis 0 of every leaf of the inputs and do not see each other: each one's Jacobian
    is taken alone, in reverse mode, so that all cost the gradients of m outputs.

    Raises:
      TypeError: a black box; a penalty that is not separable; no Fisher information.
    """
    objective = oracle.objective
    if objective.kind != "composite":
        r, jacobian = oracle.residuals_and_jacobian(params)
        zero = jnp.zeros(jacobian.shape[1], jacobian.dtype)
        return Rows(jacobian, r, zero, zero)
    oracle.tap("jacobian")
    inputs, targets, weights = split_data(objective, oracle.args)
    outputs, jacobian = _outputs_and_jacobians(objective, params, inputs)
    loss = loss_of(objective)

    def total(o: Array) -> Array:
        values = example_losses(objective, o, targets, weights)[0]
        return jnp.sum(jnp.where(factor == 0, 0, factor * values))

    values = example_losses(objective, outputs, targets, weights)[0]
    factor = mean_weights(values, weights)
    slopes = jax.grad(total)(outputs)
    events = outputs.shape[outputs.ndim - loss.event_ndim :]
    curvature = oracle.output_curvature(kind)
    root, w, rest = (_scalar_root if loss.event_ndim == 0 else _matrix_root)(
        lambda v: curvature(outputs, targets, v), factor, slopes
    )
    n = jacobian.shape[-1]
    flat = jacobian.reshape(-1, *events, n)
    if loss.event_ndim == 0:
        rows = root.reshape(-1, 1) * flat
    else:
        rows = jnp.einsum("bkl,bln->bkn", root, flat, precision=HIGHEST).reshape(-1, n)
    q = jnp.matmul(rest.ravel(), jacobian.reshape(-1, n), precision=HIGHEST)
    extra = jnp.zeros_like(q)
    penalty = objective.penalty
    if penalty is not None:
        if penalty.diagonal is None:
            msg = f"rows need a separable penalty; {penalty.name} gives no diagonal."
            raise TypeError(msg)
        q = q + tree.ravel(jax.grad(penalty.value)(params)).astype(q.dtype)
        extra = tree.ravel(penalty.diagonal(params)).astype(q.dtype)
    return Rows(rows, w.ravel(), q, extra)


def _outputs_and_jacobians(
    objective: Objective, params: Params, inputs: Any
) -> tuple[Array, Float[Array, "... n"]]:
    flat, unravel = ravel_pytree(params)

    def one(example: Any) -> tuple[Array, Array]:
        alone = jax.tree.map(lambda x: x[None], example)
        outputs, pull = jax.vjp(lambda v: outputs_of(objective, unravel(v), alone)[0], flat)
        units = jnp.eye(outputs.size, dtype=outputs.dtype).reshape(-1, *outputs.shape)
        rows = jax.vmap(lambda u: pull(u)[0])(units)
        return outputs, rows.reshape(*outputs.shape, flat.size)

    return lax.map(one, inputs, batch_size=COLUMNS_AT_ONCE)


def _scalar_root(curvature: Any, factor: Array, slopes: Array) -> tuple[Array, Array, Array]:
    """(S, w, rest) with S^2 the curvature of each output and slopes = S w + rest."""
    root = jnp.sqrt(jnp.maximum(factor * curvature(jnp.ones_like(slopes)), 0))
    curved = root > 0
    w = jnp.where(curved, slopes / jnp.where(curved, root, 1), 0)
    return root, w, jnp.where(curved, 0, slopes)


def _matrix_root(curvature: Any, factor: Array, slopes: Array) -> tuple[Array, Array, Array]:
    """The same for curvatures between the outputs of an example, flattened over examples."""
    count = slopes.shape[-1]
    units = jnp.eye(count, dtype=slopes.dtype)
    columns = [curvature(jnp.broadcast_to(units[k], slopes.shape)) for k in range(count)]
    matrices = (factor[..., None, None] * jnp.stack(columns, axis=-1)).reshape(-1, count, count)
    values, vectors = jnp.linalg.eigh((matrices + jnp.swapaxes(matrices, 1, 2)) / 2)
    top = jnp.max(values, axis=1, keepdims=True)
    kept = values > 8 * count * tree.eps(values.dtype) * top
    lengths = jnp.sqrt(jnp.where(kept, values, 0))
    along = jnp.einsum("bkl,bk->bl", vectors, slopes.reshape(-1, count), precision=HIGHEST)
    inside = jnp.where(kept, along, 0)
    weights = jnp.where(kept, inside / jnp.where(kept, lengths, 1), 0)
    root = jnp.einsum("bkl,bl,bml->bkm", vectors, lengths, vectors, precision=HIGHEST)
    w = jnp.einsum("bkl,bl->bk", vectors, weights, precision=HIGHEST)
    rest = jnp.einsum("bkl,bl->bk", vectors, along - inside, precision=HIGHEST)
    size = jnp.linalg.norm(along, axis=1, keepdims=True)
    outside = jnp.linalg.norm(rest, axis=1, keepdims=True) > jnp.sqrt(tree.eps(size.dtype)) * size
    return root, w, jnp.where(outside, rest, 0)
