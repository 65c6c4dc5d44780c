"""Parameters as matrices, and matrices of one shape together.

Preconditioners of matrices are sequences of small dense operations. Leaves (or blocks of leaves) of
one shape are stacked, so that each operation is one batched call for all of them.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optikit.core import Params, tree
from optikit.core.paths import Pattern, key_paths, matches_any


class Block(NamedTuple):
    """A rectangle of a leaf that is viewed as a stack of matrices.

    Attributes:
      leaf: its number in `jax.tree.leaves`.
      view: (stack, rows, columns) of the whole leaf.
      rows, columns: the rectangle's first and last-but-one indices.
    """

    leaf: int
    view: tuple[int, int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]

    def cut(self, leaf: Array) -> Array:
        """The rectangle, (stack, rows, columns)."""
        whole = leaf.reshape(self.view)
        return whole[:, slice(*self.rows), slice(*self.columns)]


class Layout(NamedTuple):
    """How a pytree is cut into stacks of matrices; static, found from shapes and names.

    Attributes:
      shapes: (matrices, rows, columns) of each bucket, in the order of `gather`.
      blocks: the blocks in each bucket, in the order of their matrices.
      rest: the numbers of the leaves that are no matrices, or are not wanted as such.
    """

    shapes: tuple[tuple[int, int, int], ...]
    blocks: tuple[tuple[Block, ...], ...]
    rest: tuple[int, ...]

    def gather(self, values: Params) -> list[Float[Array, "b m n"]]:
        """The buckets of a tree, in at least float32."""
        leaves, dtype = jax.tree.leaves(values), tree.inner_dtype(values)
        return [
            jnp.concatenate([block.cut(leaves[block.leaf]).astype(dtype) for block in blocks])
            for blocks in self.blocks
        ]

    def others(self, values: Params) -> list[Array]:
        """The leaves in no bucket, in at least float32."""
        leaves, dtype = jax.tree.leaves(values), tree.inner_dtype(values)
        return [leaves[i].astype(dtype) for i in self.rest]

    def scatter(self, like: Params, buckets: Sequence[Array], others: Sequence[Array]) -> Params:
        """The tree from its buckets and other leaves, in their dtype and the shapes of `like`."""
        leaves, structure = jax.tree.flatten(like)
        found: list = [None] * len(leaves)
        for i, leaf in zip(self.rest, others, strict=True):
            found[i] = leaf
        parts: dict[int, list[tuple[Block, Array]]] = {}
        for blocks, bucket in zip(self.blocks, buckets, strict=True):
            start = 0
            for block in blocks:
                stop = start + block.view[0]
                parts.setdefault(block.leaf, []).append((block, bucket[start:stop]))
                start = stop
        for i, pieces in parts.items():
            found[i] = _joined(pieces).reshape(leaves[i].shape)
        return jax.tree.unflatten(structure, found)


def _joined(pieces: list[tuple[Block, Array]]) -> Array:
    """The blocks of a leaf put together again."""
    pieces = sorted(pieces, key=lambda p: (p[0].rows, p[0].columns))
    rows = [
        [array for _, array in row] for _, row in itertools.groupby(pieces, key=lambda p: p[0].rows)
    ]
    bands = [row[0] if len(row) == 1 else jnp.concatenate(row, axis=2) for row in rows]
    return bands[0] if len(bands) == 1 else jnp.concatenate(bands, axis=1)


def layout(
    params: Params,
    *,
    block: int | None = None,
    largest: int | None = None,
    stacked: Sequence[Pattern] = (),
    apart: Sequence[Pattern] = (),
    bucketed: bool = True,
) -> Layout:
    """How the leaves of params become matrices.

    Axes of length 1 are dropped. Of a leaf with more than three axes all but the last are merged: a
    convolution's (3, 3, in, out) becomes (9 in, out). Of one with three, those neighbours that have
    the smaller product: an attention's (d, heads, d / heads) becomes (d, d).

    Args:
      block: larger dimensions are cut into equal parts (to within one row) of at most this.
      largest: a leaf both of whose dimensions are larger is no matrix.
      stacked: names of leaves whose first axis numbers independent matrices, as under `scan` over
        layers.
      apart: names of leaves that are not to be treated as matrices.
      bucketed: False leaves every block in a bucket of its own.
    """
    buckets: dict[tuple, list[Block]] = {}
    rest = []
    for i, (name, leaf) in enumerate(zip(key_paths(params), jax.tree.leaves(params), strict=True)):
        view = _view(jnp.shape(leaf), matches_any(stacked, name))
        small = view is not None and (largest is None or min(view[1:]) <= largest)
        if view is None or not small or matches_any(apart, name):
            rest.append(i)
            continue
        for rows, columns in itertools.product(_cuts(view[1], block), _cuts(view[2], block)):
            shape = (rows[1] - rows[0], columns[1] - columns[0])
            place = shape if bucketed else (*shape, i, rows, columns)
            buckets.setdefault(place, []).append(Block(i, view, rows, columns))
    blocks = tuple(tuple(found) for found in buckets.values())
    shapes = tuple(
        (sum(b.view[0] for b in found), place[0], place[1]) for place, found in buckets.items()
    )
    return Layout(shapes, blocks, tuple(rest))


def _view(shape: tuple[int, ...], stacked: bool) -> tuple[int, int, int] | None:
    """(stack, rows, columns) of a leaf, or None if it is not a stack of matrices."""
    stack, inner = (shape[0], shape[1:]) if stacked and shape else (1, shape)
    if len(inner) > 3:
        inner = (math.prod(inner[:-1]), inner[-1])
    sizes = [n for n in inner if n != 1]
    if len(sizes) == 3:
        a, b, c = sizes
        sizes = [a * b, c] if a * b < b * c else [a, b * c]
    if len(sizes) < 2 or 0 in shape:
        return None
    return stack, sizes[0], sizes[1]


def _cuts(size: int, block: int | None) -> list[tuple[int, int]]:
    """Intervals of nearly equal length, at most `block`, that cover range(size)."""
    parts = 1 if block is None else -(-size // block)
    edges = [round(i * size / parts) for i in range(parts + 1)]
    return list(itertools.pairwise(edges))
