"""The kernel R R^T of curvature rows, layer by layer, without the rows.

Where a matrix meets an example in one row, the gradient of an output with respect to it is a g^T,
and the inner product of two of them (a . a') (g . g'): of m outputs a layer adds (A A^T) o (G G^T),
for m^2 (inputs + outputs) multiplications instead of m^2 inputs outputs. A matrix that meets an
example in several rows, by its positions or because it is tied, has the sum over pairs of them.
Leaves for which that is impossible or does not pay have rows.

References: Ren & Goldfarb (2019), "Efficient subsampled Gauss-Newton and natural gradient methods
for training neural networks", section 4; Novak, Sohl-Dickstein & Schoenholz (2022), "Fast finite
width neural tangent kernel", section 3.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optikit.calculus.by_example import has_rows, rows_of_use
from optikit.calculus.factors import row_count
from optikit.calculus.layers import Block, Layers, find_layers, model_of
from optikit.calculus.objective import Objective
from optikit.calculus.oracle import Oracle
from optikit.calculus.rows import RowKind, row_source
from optikit.core import Counts, Params, Scalar, tree
from optikit.core.tree import HIGHEST

WORTH = 2**24
"""Multiplications in the product of the rows below which there is nothing to save."""


class Kernel(NamedTuple):
    """R R^T, of the curvature R^T R + extra I at a point whose gradient is R^T w + q."""

    gram: Float[Array, "m m"]
    w: Float[Array, " m"]
    q: Float[Array, " n"]
    extra: Scalar


class Plan(NamedTuple):
    """What of a kernel comes from products of layers, and the leaves that have rows."""

    layers: Layers  # of a single example
    blocks: tuple[Block, ...]
    rest: tuple[int, ...]


def plan_kernel(
    objective: Objective, params: Params, args: tuple, m: int, memory: int
) -> Plan | None:
    """How to form the kernel of m rows; None where most would come from rows. Nothing is computed.

    Args:
      memory: numbers that may be held at once.
    """
    even = objective.penalty is None or objective.penalty.even
    n = tree.size(params)
    if objective.kind != "composite" or not even or m >= n or m * m * n < WORTH:
        return None
    layers = find_layers(objective, params, args, single=True)
    blocks = [b for b in layers.layout.blocks if _pays(layers, b, m, memory)]
    left = {i for b in layers.layout.blocks if b not in blocks for i in b.leaves()}
    blocks = [b for b in blocks if not left & {*b.leaves()}]  # those of all parts of their leaves
    held = {i for b in blocks for i in b.leaves()}
    rest = tuple(i for i in range(len(layers.shapes)) if i not in held)
    in_rows = sum(layers.shapes[i].size for i in rest)
    slopes = tree.size(jax.eval_shape(layers.found.probes))
    fits = m * max(in_rows, slopes) <= memory
    return Plan(layers, tuple(blocks), rest) if 2 * in_rows <= n and fits else None


def curvature_kernel(
    oracle: Oracle, params: Params, kind: RowKind, plan: Plan, dtype: jnp.dtype
) -> tuple[Kernel, Counts]:
    """The kernel of "ggn" or "fisher" at params, its products in `dtype`.

    Price: a value, and a vjp for each output of an example; a jacobian if leaves have rows.
    """
    source = row_source(oracle, params, kind)
    assert source.products is not None
    seeds = source.products.seeds
    oracle.tap("value")
    for _ in range(source.width):
        oracle.tap("vjp")
    found, inputs = plan.layers.found, model_of(oracle.objective, oracle.args)[1]
    probes = jax.tree.map(lambda p: jnp.zeros((source.examples, *p.shape), p.dtype), found.probes())
    _, pull, beside = jax.vjp(
        lambda p: jax.vmap(lambda x, own: found.with_rows(params, x, own))(inputs, p),
        probes,
        has_aux=True,
    )
    (slopes,) = jax.vmap(pull)(seeds)
    gram = jnp.zeros((source.w.size, source.w.size), dtype)
    for block in plan.blocks:
        gram = gram + _product(plan.layers, block, beside, slopes, dtype)
    if plan.rest:
        oracle.tap("jacobian")
        rows = _rows_of(oracle, params, kind, plan.rest).astype(dtype)
        gram = gram + jnp.matmul(rows, rows.T, precision=HIGHEST)
    counts = Counts(value=1, vjp=source.width, jacobian=int(bool(plan.rest)))
    return Kernel(gram, source.w, source.q, source.extra[0]), counts


def _pays(layers: Layers, block: Block, m: int, memory: int) -> bool:
    """Whether the products of a block's rows cost less than the gradients, and fit."""
    if not has_rows(layers, block) or any(u.swapped for u in block.uses):
        return False
    k, inputs, outputs = block.shape
    each = sum(row_count(layers.found.sites[u.key]) for u in block.uses)
    # per pair of outputs; rows are also written and read again, which is as much
    pays = each**2 * (inputs + outputs) <= 2 * inputs * outputs
    return pays and k * (m * each) ** 2 <= memory


def _product(
    layers: Layers, block: Block, beside: Any, slopes: Any, dtype: jnp.dtype
) -> Float[Array, "m m"]:
    """The sum over the stack, and over pairs of rows, of (a . a') (g . g')."""
    lefts, rights = [], []
    for use in block.uses:

        def one(s: Array, use=use) -> tuple[Array, Array]:
            return rows_of_use(layers, block, use, beside, {use.key: s})

        a, g = jax.vmap(one, out_axes=(None, 0))(slopes[use.key])
        lefts.append(a)
        rights.append(g)
    a = jnp.concatenate(lefts, axis=2).astype(dtype)  # (examples, k, rows, inputs)
    g = jnp.concatenate(rights, axis=3).astype(dtype)  # (width, examples, k, rows, outputs)
    inputs = jnp.einsum("akri,bksi->kabrs", a, a, precision=HIGHEST)
    outputs = jnp.einsum("vakro,wbkso->kavbwrs", g, g, precision=HIGHEST)
    m = g.shape[0] * g.shape[1]
    return jnp.sum(inputs[:, :, None, :, None] * outputs, axis=(0, 5, 6)).reshape(m, m)


def _rows_of(
    oracle: Oracle, params: Params, kind: RowKind, rest: tuple[int, ...]
) -> Float[Array, "m n_rest"]:
    """The columns of R for these leaves."""
    leaves, structure = jax.tree.flatten(params)
    objective = oracle.objective

    def fun(some: list[Array], inputs: Any) -> Any:
        mixed = list(leaves)
        for i, x in zip(rest, some, strict=True):
            mixed[i] = x
        return objective.fun(jax.tree.unflatten(structure, mixed), inputs)

    alone = oracle._replace(objective=objective._replace(fun=fun, penalty=None))
    source = row_source(alone, [leaves[i] for i in rest], kind)
    return source.take(jnp.arange(source.examples, dtype=jnp.int32))
