"""Kronecker factors of a model's curvature, and second moments in bases of them.

Of a block whose gradient is sum_r a_r g_r^T over rows r, the curvature is approximated by A x G
with A = mean a a^T and G = sum g g^T, g pulled back from seeds that make up the output-space
curvature (`optikit.calculus.seeds`): for one row an example this is K-FAC's. Where a weight meets
several positions of an example, "expand" takes them for rows of their own; "reduce" first averages
a and sums g over them.

References: Martens & Grosse (2015), eq. 16 and section 3; Eschenhagen et al. (2023), eqs. 18 and
22, for expand and reduce; George et al. (2018), eq. 12, for the moments.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optikit.calculus.layers import Block, Layers, Use, model_of
from optikit.calculus.oracle import Oracle
from optikit.calculus.seeds import Source, seeds
from optikit.calculus.sites import Site, View
from optikit.core import Counts, Key, Params, tree


class Factors(NamedTuple):
    """Statistics of one block.

    Attributes:
      a: (k, inputs, inputs), or (k, inputs) for a diagonal; of a diagonal block the entries of its
        curvature, in the shape of the leaf.
      g: (k, outputs, outputs) or (k, outputs); of a diagonal block, nothing.
    """

    a: Array
    g: Any = ()


class Statistics(NamedTuple):
    """What one pass over a batch says of the curvature.

    Attributes:
      blocks: by block of the layout.
      loose: by loose leaf, an unbiased estimate of the diagonal of the curvature.
    """

    blocks: tuple[Factors, ...]
    loose: tuple[Array, ...]


def statistics(
    oracle: Oracle,
    params: Params,
    layers: Layers,
    key: Key,
    *,
    source: Source = "sampled",
    inputs_only: bool = False,
) -> tuple[Statistics, Counts]:
    """Factors by one pass over the whole batch, as cotangents: nothing is stored by example.

    All rows count alike in A; examples' weights enter G alone.

    Args:
      layers: of the batch.
      inputs_only: of matrices A alone, without a way back; what else there is then means nothing.

    Price: one grad; with source "exact" a value and a vjp for each set of seeds; of the inputs
      alone one value.
    """
    blank = layers.found.slots()
    predict_with = layers.found.with_factors
    inputs = model_of(oracle.objective, oracle.args)[1]
    leaves, structure = jax.tree.flatten(params)
    loose = layers.layout.loose

    def run(slots: Any, free: list[Array]) -> Any:
        mixed = list(leaves)
        for i, x in zip(loose, free, strict=True):
            mixed[i] = x
        return predict_with(jax.tree.unflatten(structure, mixed), inputs, slots)

    outputs, pull = jax.vjp(run, blank, [leaves[i] for i in loose])
    draw, signs = jax.random.split(key)
    several, count, counts = priced_seeds(oracle, outputs, source, draw, inputs_only=inputs_only)

    def one(number: Any) -> tuple[Any, list[Array]]:
        seed = jax.tree.map(lambda s: s[number], several)
        if source == "exact" and loose:
            seed = with_signs(seed, jax.random.fold_in(signs, number))
        slots, free = pull(seed)
        return slots, [_wide(x) ** 2 for x in free]

    first, squares = one(0)
    slots = first
    if count > 1:

        def add(total: Any, number: Array) -> tuple[Any, None]:
            return tree.add(total, one(number)), None

        total, _ = lax.scan(add, (first, squares), jnp.arange(1, count))
        slots, squares = total
        # the sums over inputs are the same in every set: the compiler need not repeat them
        slots = {k: _one_a(layers, k, s, first[k]) for k, s in slots.items()}
    found = tuple(
        combined(
            block,
            [_normalised(layers, block, use, slots[use.key]) for use in block.uses],
            inputs_only=inputs_only,
        )
        for block in layers.layout.blocks
    )
    return Statistics(found, tuple(squares)), counts


def _one_a(layers: Layers, key: Any, total: Any, first: Any) -> Any:
    kind = layers.found.sites[key].kind
    return total if kind in ("scale", "shift") else (first[0], total[1])


def priced_seeds(
    oracle: Oracle, outputs: Any, source: Source, key: Key, *, inputs_only: bool
) -> tuple[Any, int, Counts]:
    """Seeds, how many sets, and the price of the pass with them, entered at the door.

    For the inputs alone there is nothing to pull back: what the zeros lead to is not computed.
    """
    if inputs_only:
        oracle.tap("value")
        return (
            jax.tree.map(lambda o: jnp.zeros((1, *o.shape), o.dtype), outputs),
            1,
            Counts(value=1),
        )
    several = seeds(oracle, outputs, source, key)
    count = jax.tree.leaves(several)[0].shape[0]
    if source != "exact":
        oracle.tap("grad")
        return several, count, Counts(grad=1)
    oracle.tap("value")
    for _ in range(count):
        oracle.tap("vjp")
    return several, count, Counts(value=1, vjp=count)


def with_signs(seed: Any, key: Key) -> Any:
    """Random signs by example, so that the square of the sum has no products between them."""

    def signed(s: Array) -> Array:
        signs = jax.random.rademacher(key, s.shape[:1], s.dtype)
        return s * signs.reshape(signs.shape + (1,) * (s.ndim - signs.ndim))

    return jax.tree.map(signed, seed)


def _normalised(layers: Layers, block: Block, use: Use, slots: tuple) -> Factors:
    """The factors of one use, in the coordinates of the leaf, transposed if it is."""
    site = layers.found.sites[use.key]
    if block.form == "diagonal":
        return Factors(to_leaf(site, slots[0], layers.shapes[site.view.leaf]))
    a, g = (x.reshape(-1, *x.shape[len(site.stacked) + 1 :]) for x in slots)
    rows = row_count(site)
    if block.leaf is None:  # a bias without its weight: what stands beside it is 1
        return Factors(jnp.ones((g.shape[0], 1, 1), g.dtype), g)
    return _scaled(block, site, use, a / rows, g)


def _scaled(block: Block, site: Site, use: Use, a: Array, g: Array) -> Factors:
    """With the constant in front of the weight, and without a bias that the block does not hold."""
    if site.bias is not None and block.bias is None and site.kind != "embedding":
        a = a[:, :-1, :-1] if a.ndim == 3 else a[:, :-1]
    scales = use_scales(block, site, a.shape[1], a.dtype)
    if scales is not None:
        a = a * (jnp.outer(scales, scales) if a.ndim == 3 else scales**2)[None]
    return Factors(g, a) if use.swapped else Factors(a, g)


def use_scales(block: Block, site: Site, size: int, dtype: Any) -> Float[Array, " inputs"] | None:
    """The constant in front of the weight for each of its rows, 1 for the bias; None if all are."""
    if site.view.scale == 1:
        return None
    scales = jnp.full(size, site.view.scale, dtype)
    return scales if block.bias is None else scales.at[-1].set(1)


def row_count(site: Site) -> int:
    """Rows that a factor sums over: positions and examples, and trips that share the weight."""
    others = [v.aval for i, v in enumerate(site.eqn.invars) if i != site.position]
    g = jax.eval_shape(site.rows, others, site.eqn.outvars[0].aval)[1]
    shared = [n for level, n in enumerate(site.trips) if level not in site.view.levels]
    total = g.shape[1]
    for n in shared:
        total *= n
    return total


def to_leaf(site: Site, squares: Array, leaf: Any) -> Array:
    """The squares of a scanned leaf's slices through what rearranged it before the scan."""
    depth = len(site.view.levels)
    before = tuple(s for s in site.view.steps if s[3] < depth)
    if not before:
        return squares.reshape(leaf.shape)
    view = View(site.view.leaf, steps=before, levels=site.view.levels)
    blank = jax.ShapeDtypeStruct(leaf.shape, squares.dtype)
    moved = jax.eval_shape(view.layout, blank)
    return jax.linear_transpose(view.layout, blank)(squares.reshape(moved.shape))[0]


def combined(block: Block, uses: Sequence[Factors], *, inputs_only: bool) -> Factors:
    """Uses in one orientation are rows of one layer; those in the other are balanced with them.

    L1 x R1 + L2 x R2 <= (L1 + c L2) x (R1 + R2 / c); the c that makes the terms equally large, and
    a half, so that two equal products come to their sum.
    """
    if block.form == "diagonal":
        total = uses[0].a
        for use in uses[1:]:
            total = total + use.a
        return Factors(total)
    sides = []
    for swapped in (False, True):
        mine = [f for f, u in zip(uses, block.uses, strict=True) if u.swapped == swapped]
        if mine:
            lefts = [_as_side(f.a, whole=block.dense[0]) for f in mine]
            rights = [_as_side(f.g, whole=block.dense[1]) for f in mine]
            # of rows in common A is the mean and G the sum; of the swapped it is the other way
            left, right = _sum(lefts), _sum(rights)
            count = len(mine)
            sides.append((left, right / count) if swapped else (left / count, right))
    left, right = sides[0]
    if len(sides) == 2:
        other_left, other_right = sides[1]
        c = jnp.sqrt(_safe(_mean(left) * _mean(other_right), _mean(right) * _mean(other_left)))
        left = left + _expand(c, left) * other_left
        right = (right + other_right / _expand(c, right)) / 2
    return Factors(left) if inputs_only else Factors(left, right)


def _sum(parts: list[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _as_side(factor: Array, *, whole: bool) -> Array:
    """A diagonal as a matrix, or a matrix's diagonal, as the block keeps that side."""
    if whole and factor.ndim == 2:
        return jax.vmap(jnp.diag)(factor)
    if not whole and factor.ndim == 3:
        return jnp.diagonal(factor, axis1=1, axis2=2)
    return factor


def _mean(factor: Array) -> Float[Array, " k"]:
    entries = factor if factor.ndim == 2 else jnp.diagonal(factor, axis1=1, axis2=2)
    return jnp.mean(entries, axis=1)


def _safe(top: Array, bottom: Array) -> Array:
    usable = (top > 0) & (bottom > 0)
    return jnp.where(usable, top / jnp.where(usable, bottom, 1), 1)


def _expand(c: Array, like: Array) -> Array:
    return c.reshape(-1, *(1,) * (like.ndim - 1))


def _wide(x: Array) -> Array:
    return x.astype(tree.inner_dtype(x))
