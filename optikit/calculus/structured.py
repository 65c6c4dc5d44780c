"""Dense curvature of composite objectives whose model is affine in the parameters.

With D the output-space Hessian of the mean loss and A_t the rows of the model's terms, the block
between terms s and t is sum_n A_s[n]^T D[n] A_t[n]: weighted Gram products. For a softmax over K
classes that is one product with K x features columns per class; the (batch K) x n Jacobian is never
formed. For an affine model the Hessian and the Gauss-Newton matrix are the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from optikit.calculus.affine import Term, affine_terms
from optikit.calculus.gram import cross_gram, weighted_gram
from optikit.calculus.objective import (
    Objective,
    example_losses,
    loss_of,
    mean_weights,
    outputs_of,
    split_data,
)
from optikit.core import Params, tree
from optikit.core.tree import HIGHEST

OutputCurvature = Callable[[Array, Array, Array], Array]
"""(outputs, targets, vectors) -> products with each example's output-space curvature."""


def structured_curvature(
    objective: Objective, params: Params, args: tuple, curvature: OutputCurvature
) -> Float[Array, "n n"] | None:
    """The dense curvature of the mean loss (without the penalty), or None if not affine.

    Cost on m examples, n parameters: one forward pass and, for scalar outputs, one weighted Gram
    product of m n^2 to 2 m n^2 flops; for K coupled outputs, K products of 2 m n^2 / K flops.
    """
    if objective.kind != "composite":
        return None
    inputs, targets, weights = split_data(objective, args)

    def predict(p: Params, x: Any) -> Array:
        return outputs_of(objective, p, x)

    terms = affine_terms(predict, params, inputs)
    if terms is None:
        return None
    outputs = predict(params, inputs)
    values, weights = example_losses(objective, outputs, targets, weights)
    factor = mean_weights(values, weights)
    event_ndim = loss_of(objective).event_ndim
    if event_ndim > 1 or (event_ndim == 1 and outputs.ndim < 2):
        return None
    factor = factor.reshape(factor.shape + (1,) * event_ndim)

    def product(vectors: Array) -> Array:
        return jnp.where(factor == 0, 0, factor * curvature(outputs, targets, vectors))

    per_example = outputs.shape[-1] if _has_output_axis(terms, outputs) else 1
    blocks = _coupled if event_ndim else _separate
    columns = blocks(product, outputs, per_example)
    return _assemble(terms, params, columns)


def _has_output_axis(terms: list[Term], outputs: Array) -> bool:
    return any(t.view.shape[1] != 1 for t in terms) or (outputs.ndim > 1 and outputs.shape[-1] == 1)


Block = Float[Array, "features_s outputs_s features_t outputs_t"]


def _separate(product, outputs: Array, k: int) -> Callable[[Term, Term], Block]:
    """Blocks where the loss works entry by entry: outputs do not interact."""
    diagonal = product(jnp.ones_like(outputs)).reshape(-1, k)

    def block(s: Term, t: Term) -> Block:
        per_output = jnp.stack([_gram(s.rows, diagonal[:, j], t.rows) for j in range(k)])
        return jnp.einsum("kij,kl->ikjl", per_output, jnp.eye(k, dtype=outputs.dtype))

    return block


def _coupled(product, outputs: Array, k: int) -> Callable[[Term, Term], Block]:
    """Blocks where the loss couples an example's outputs, as softmax does."""

    def column(j: Array) -> Array:
        unit = jnp.broadcast_to(jax.nn.one_hot(j, k, dtype=outputs.dtype), outputs.shape)
        return product(unit).reshape(-1, k)

    def block(s: Term, t: Term) -> Block:
        left, right = _rows(s, outputs, k), _rows(t, outputs, k)

        def one(j: Array) -> Array:  # the part of V_t[:, j]: (features_s, K, features_t)
            d = column(j)
            weighted = (d[:, :, None] * right[:, None, :]).reshape(d.shape[0], -1)
            part = jnp.matmul(left.T, weighted, precision=HIGHEST)
            return part.reshape(left.shape[1], k, right.shape[1])

        return jnp.moveaxis(lax.map(one, jnp.arange(k)), 0, 3)

    return block


def _rows(term: Term, outputs: Array, k: int) -> Float[Array, "m features"]:
    """A term's rows, with the column of ones written out."""
    if term.rows is None:
        return jnp.ones((outputs.size // k, 1), outputs.dtype)
    return term.rows


def _gram(left: Array | None, weights: Array, right: Array | None) -> Array:
    """left^T diag(weights) right, where None is a column of ones."""
    if left is None:
        sums = (
            jnp.sum(weights)[None]
            if right is None
            else jnp.matmul(weights, right, precision=HIGHEST)
        )
        return sums[None, :]
    if right is None:
        return jnp.matmul(weights, left, precision=HIGHEST)[:, None]
    if left is right:
        return weighted_gram(left, weights)
    return cross_gram(left, weights, right)


def _assemble(
    terms: list[Term], params: Params, block: Callable[[Term, Term], Block]
) -> Float[Array, "n n"]:
    """Blocks in the coordinates of the leaves, placed in the ravelled order."""
    leaves = jax.tree.leaves(params)
    dtype = jnp.result_type(*leaves)
    grid = [[jnp.zeros((a.size, b.size), dtype) for b in leaves] for a in leaves]
    for i, s in enumerate(terms):
        for t in terms[i:]:
            part = _pulled_back(block(s, t), s, t, leaves).astype(dtype)
            a, b = s.view.leaf, t.view.leaf
            grid[a][b] = grid[a][b] + part
            if t is not s:
                grid[b][a] = grid[b][a] + part.T
    matrix = grid[0][0] if len(leaves) == 1 else jnp.block(grid)
    return (matrix + matrix.T) / 2  # exactly symmetric, whatever the order of summation


def _pulled_back(block: Block, s: Term, t: Term, leaves: list) -> Float[Array, "p q"]:
    """V_s^T block V_t with V the views as linear maps from leaf entries."""
    to_s, to_t = (jax.linear_transpose(x.view.apply, leaves[x.view.leaf]) for x in (s, t))
    size_s, size_t = (leaves[x.view.leaf].size for x in (s, t))
    flat = block.reshape(*s.view.shape, -1)
    rows = jax.vmap(lambda b: to_s(b)[0].reshape(-1), in_axes=2, out_axes=1)(flat)
    columns = jax.vmap(lambda b: to_t(b.reshape(t.view.shape))[0].reshape(-1))(rows)
    return columns.reshape(size_s, size_t)


def add_penalty_diagonal(
    matrix: Float[Array, "n n"], objective: Objective, params: Params
) -> Float[Array, "n n"]:
    """The matrix plus the penalty's Hessian."""
    penalty = objective.penalty
    if penalty is None:
        return matrix
    if penalty.diagonal is None:
        flat, unravel = ravel_pytree(params)
        return matrix + jax.hessian(lambda v: penalty.value(unravel(v)))(flat)
    diagonal = tree.ravel(penalty.diagonal(params)).astype(matrix.dtype)
    return matrix + jnp.diag(diagonal)
