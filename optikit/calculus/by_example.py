"""Kronecker factors and second moments from the rows of each example.

Where examples have weights, where a weight that meets several positions is to be taken by
"reduce", or where products of an example's own rows are needed (EKFAC), sums over all rows are not
enough. The model is traced on one example and mapped over the batch, so that the axis of examples
is known; activations and their gradients are kept.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optikit.calculus.factors import (
    Factors,
    Statistics,
    combined,
    priced_seeds,
    to_leaf,
    use_scales,
    with_signs,
)
from optikit.calculus.layers import Block, Layers, Use, model_of
from optikit.calculus.oracle import Oracle
from optikit.calculus.seeds import Source, example_weights
from optikit.calculus.sites import Site
from optikit.core import Counts, Key, Params, tree

Sharing = Literal["expand", "reduce"]
Basis = tuple[Float[Array, "k i i"], Float[Array, "k o o"]]


def statistics_by_example(
    oracle: Oracle,
    params: Params,
    layers: Layers,
    key: Key,
    *,
    source: Source = "sampled",
    sharing: Sharing = "expand",
    inputs_only: bool = False,
) -> tuple[Statistics, Counts]:
    """As `optikit.calculus.factors.statistics`, with examples weighted as they are in the mean.

    Entries with diagonals, and the tables of embeddings, are taken by "expand" in any case.

    Args:
      layers: of a single example.
      sharing: "expand" for losses by position, "reduce" for models that average over positions.
      inputs_only: of matrices A alone.
    """
    layout = layers.layout

    def uses(weights: Array, beside: Any, slopes: Any) -> list[Factors]:
        return [
            _factors(layers, block, use, weights, beside, slopes, sharing)
            for block in layout.blocks
            for use in block.uses
        ]

    (held, loose), count, counts = _passes(
        oracle, params, layers, key, source, uses, inputs_only=inputs_only
    )
    each = iter(held)

    def averaged(block: Block, use: Use, f: Factors) -> Factors:
        # the inputs are the same in every set of seeds, and have been summed over the sets
        if block.form == "diagonal" or count == 1:
            return f
        return Factors(f.a, f.g / count) if use.swapped else Factors(f.a / count, f.g)

    blocks = tuple(
        combined(
            block, [averaged(block, u, next(each)) for u in block.uses], inputs_only=inputs_only
        )
        for block in layout.blocks
    )
    return Statistics(blocks, tuple(loose)), counts


def second_moments(
    oracle: Oracle,
    params: Params,
    layers: Layers,
    key: Key,
    bases: list[Basis | None],
    *,
    source: Source = "sampled",
) -> tuple[list[Float[Array, "k i o"] | None], Counts]:
    """sum_n w_n E (U_A^T grad_n U_G)^2, entry by entry, of each block that has a basis.

    Args:
      layers: of a single example.
      bases: (U_A, U_G) by block; None for a block to be left out.

    Price: as for the statistics.
    """

    def blocks(weights: Array, beside: Any, slopes: Any) -> list[Array]:
        del weights
        return [
            _moments(layers, block, basis, beside, slopes)
            for block, basis in zip(layers.layout.blocks, bases, strict=True)
            if basis is not None
        ]

    (held, _), _, counts = _passes(oracle, params, layers, key, source, blocks)
    rest = iter(held)
    return [None if basis is None else next(rest) for basis in bases], counts


def has_rows(layers: Layers, block: Block) -> bool:
    """Whether the gradient of an example is a product of rows on both sides of the block."""
    plain = all(layers.found.sites[u.key].kind != "embedding" for u in block.uses)
    return block.form == "kronecker" and plain and block.leaf is not None


def _passes(
    oracle: Oracle,
    params: Params,
    layers: Layers,
    key: Key,
    source: Source,
    blocks: Any,
    *,
    inputs_only: bool = False,
):
    """One pass forward, one back for each set of seeds; what `blocks` makes of them, summed."""
    inputs = model_of(oracle.objective, oracle.args)[1]
    leaves, structure = jax.tree.flatten(params)
    loose = layers.layout.loose
    size = jax.tree.leaves(inputs)[0].shape[0]
    probes = jax.tree.map(lambda p: jnp.zeros((size, *p.shape), p.dtype), layers.found.probes())

    def run(probes: Any, free: list[Array]) -> Any:
        mixed = list(leaves)
        for i, x in zip(loose, free, strict=True):
            mixed[i] = x
        whole = jax.tree.unflatten(structure, mixed)
        return jax.vmap(lambda x, p: layers.found.with_rows(whole, x, p))(inputs, probes)

    outputs, pull, beside = jax.vjp(run, probes, [leaves[i] for i in loose], has_aux=True)
    draw, signs = jax.random.split(key)
    several, count, counts = priced_seeds(oracle, outputs, source, draw, inputs_only=inputs_only)
    weights = example_weights(oracle.objective, oracle.args, outputs)

    def one(number: Any) -> Any:
        seed = jax.tree.map(lambda s: s[number], several)
        if source == "exact" and loose:
            seed = with_signs(seed, jax.random.fold_in(signs, number))
        slopes, free = pull(seed)
        wide = [x.astype(tree.inner_dtype(x)) ** 2 for x in free]
        return blocks(weights, beside, slopes), wide

    found = one(0)
    if count > 1:

        def add(total: Any, number: Array) -> tuple[Any, None]:
            return tree.add(total, one(number)), None

        found, _ = lax.scan(add, found, jnp.arange(1, count))
    return found, count, counts


def rows_of_use(
    layers: Layers, block: Block, use: Use, beside: Any, slopes: Any
) -> tuple[Array, Array]:
    """(a, g) of one use: (n, k, rows, inputs), indices (n, 1, rows) of an embedding; and g."""
    site = layers.found.sites[use.key]
    rows = site.rows
    for _ in site.trips:
        rows = jax.vmap(rows)
    a, g = jax.vmap(rows)(beside[use.key], slopes[use.key])
    a, g = _ordered(site, a, 1 if site.kind == "embedding" else 2), _ordered(site, g, 2)
    if site.kind == "embedding":
        return a, g
    if block.bias is not None and block.leaf is not None:
        a = jnp.concatenate([a, jnp.ones((*a.shape[:3], 1), a.dtype)], axis=3)
    if block.leaf is None:
        a = jnp.ones((*g.shape[:3], 1), g.dtype)
    scales = None if block.leaf is None else use_scales(block, site, a.shape[3], a.dtype)
    return (a if scales is None else a * scales[None, None, None, :]), g


def _ordered(site: Site, x: Array, trailing: int) -> Array:
    """(n, *trips, groups, rows, ...) with trips that slice the leaf among k, others among rows."""
    depth = len(site.trips)
    own = [1 + i for i in range(depth) if i in site.view.levels]
    shared = [1 + i for i in range(depth) if i not in site.view.levels]
    groups, rest = 1 + depth, range(2 + depth, x.ndim)
    moved = jnp.transpose(x, (0, *own, groups, *shared, *rest))
    k = math.prod(x.shape[i] for i in (*own, groups))
    rows = math.prod(x.shape[i] for i in (*shared, 2 + depth))
    return moved.reshape(x.shape[0], k, rows, *x.shape[3 + depth :][: trailing - 1])


def _factors(
    layers: Layers, block: Block, use: Use, weights: Array, beside: Any, slopes: Any, sharing: str
) -> Factors:
    site = layers.found.sites[use.key]
    if block.form == "diagonal":
        return Factors(_squares(layers, site, beside[use.key], slopes[use.key]))
    a, g = rows_of_use(layers, block, use, beside, slopes)
    count = a.shape[2]
    wide = tree.inner_dtype(g)
    whole = block.dense[::-1] if use.swapped else block.dense
    if site.kind == "embedding":
        size = block.shape[2] if use.swapped else block.shape[1]
        each = jnp.broadcast_to(weights[:, None], (a.shape[0], count)) / count
        first = jnp.zeros((1, size), wide).at[0, a[:, 0]].add(each.astype(wide), mode="drop")
        first = first * site.view.scale**2
    else:
        if sharing == "reduce":
            a = jnp.mean(a, axis=2, keepdims=True)
        share = (weights / a.shape[2]).astype(a.dtype)[:, None, None, None]
        a = jnp.where(share == 0, 0, a * jnp.sqrt(share))  # an example left out may hold anything
        first = _gram(a, wide, whole=whole[0])
    if sharing == "reduce":
        g = jnp.sum(g, axis=2, keepdims=True)
    second = _gram(g, wide, whole=whole[1])
    return Factors(second, first) if use.swapped else Factors(first, second)


def _gram(rows: Float[Array, "n k r d"], dtype: Any, *, whole: bool) -> Array:
    if not whole:
        return jnp.sum(rows.astype(dtype) ** 2, axis=(0, 2))
    return jnp.einsum("nkri,nkrj->kij", rows, rows, preferred_element_type=dtype)


def _squares(layers: Layers, site: Site, beside: Any, slopes: Array) -> Array:
    """The entries' own curvature, each row by itself."""
    each = site.factors
    for _ in site.trips:
        each = jax.vmap(each)
    (squares,) = jax.vmap(each)(beside, slopes)
    shared = tuple(1 + i for i in range(len(site.trips)) if i not in site.view.levels)
    return to_leaf(site, jnp.sum(squares, axis=(0, *shared)), layers.shapes[site.view.leaf])


def _moments(layers: Layers, block: Block, basis: Basis, beside: Any, slopes: Any) -> Array:
    """Of rotated gradients, example by example; the rows of all uses are summed first."""
    lefts, rights = [], []
    for use in block.uses:
        a, g = rows_of_use(layers, block, use, beside, slopes)
        a, g = (g, a) if use.swapped else (a, g)
        wide = tree.inner_dtype(g)
        lefts.append(jnp.einsum("nkri,kij->nkrj", a.astype(wide), basis[0]))
        rights.append(jnp.einsum("nkro,kop->nkrp", g.astype(wide), basis[1]))
    left, right = jnp.concatenate(lefts, axis=2), jnp.concatenate(rights, axis=2)
    if left.shape[2] == 1:
        return jnp.einsum("nki,nko->kio", left[:, :, 0] ** 2, right[:, :, 0] ** 2)

    def add(total: Array, rows: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jnp.einsum("kri,kro->kio", *rows) ** 2, None

    blank = jnp.zeros((left.shape[1], left.shape[3], right.shape[3]), left.dtype)
    return lax.scan(add, blank, (left, right))[0]
