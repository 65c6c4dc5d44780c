"""The layers of an objective's model, as blocks of parameters that share Kronecker factors.

`capture` says where each leaf enters; here the places are brought together: a weight with its
bias, a weight used at several places (tied, or its slices in a fused projection), the slices that a
scan takes. Each block is a stack of matrices, or entries with a diagonal. Leaves for which that is
not possible are loose, and named with the reason.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optikit.calculus.apart import warn_where_examples_meet
from optikit.calculus.capture import Capture, Key, capture
from optikit.calculus.objective import (
    Objective,
    check_examples,
    fingerprint,
    outputs_of,
    split_data,
)
from optikit.calculus.sites import Site, View
from optikit.core import Params, tree

MAX_SIZE = 8192
"""Length of a side above which only the diagonal of its factor is kept."""

MATRICES = ("dense", "conv", "embedding")


class Use(NamedTuple):
    """One place where a block's weight enters: which, and whether transposed to the first."""

    key: Key
    swapped: bool = False


class Block(NamedTuple):
    """Parameters that are preconditioned together; nothing but hashable facts.

    Attributes:
      form: "kronecker" for matrices, "diagonal" for entries.
      leaf: of the weight; None for a bias whose weight has a block of its own.
      bias: the leaf that is the last row of the matrices, if any.
      uses: where it enters.
      shape: (k, inputs, outputs) of the stack of matrices, the bias's row included; of a diagonal
        the shape of the leaf.
      dense: whether the input side and the output side have whole factors, or only diagonals.
    """

    form: Literal["kronecker", "diagonal"]
    leaf: int | None
    bias: int | None
    uses: tuple[Use, ...]
    shape: tuple[int, ...]
    dense: tuple[bool, bool]

    def leaves(self) -> tuple[int, ...]:
        """The leaves that it holds."""
        return tuple(i for i in (self.leaf, self.bias) if i is not None)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Layout:
    """The blocks of a model, and the leaves outside of them. Static, and equal for equal models."""

    blocks: tuple[Block, ...]
    loose: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layers:
    """A model with its layout.

    Attributes:
      found: the capture, of the whole batch or of one example.
      reasons: path -> why a leaf is loose, for those that enter the model.
    """

    found: Capture
    layout: Layout
    reasons: dict[str, str]
    structure: Any
    shapes: tuple[Any, ...]  # of the leaves

    def matrices(self, gradient: Params) -> list[Array]:
        """A pytree like the parameters as what the blocks hold of it, in at least float32."""
        leaves = [_wide(x) for x in jax.tree.leaves(gradient)]
        return [self._held(block, leaves) for block in self.layout.blocks]

    def _held(self, block: Block, leaves: Sequence[Any]) -> Array:
        if block.form == "diagonal":
            assert block.leaf is not None
            return leaves[block.leaf]
        parts = []
        if block.leaf is not None:
            parts.append(_matrices(self.found.sites[block.uses[0].key], leaves[block.leaf]))
        if block.bias is not None:
            k, _, outputs = block.shape
            parts.append(leaves[block.bias].reshape(k, 1, outputs))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def assembled(self, held: Sequence[Array], loose: Sequence[Array], like: Params) -> Params:
        """The inverse of `matrices`: blocks and loose leaves as a pytree, in the dtypes of like."""
        blank = [jax.ShapeDtypeStruct(x.shape, tree.inner_dtype(x)) for x in self.shapes]
        total = [jnp.zeros(x.shape, x.dtype) for x in blank]
        for block, value in zip(self.layout.blocks, held, strict=True):
            mine = block.leaves()

            def hold(parts: list, block=block, mine=mine) -> Array:
                return self._held(block, dict(zip(mine, parts, strict=True)))  # type: ignore[arg-type]

            (back,) = jax.linear_transpose(hold, [blank[i] for i in mine])(value)
            for i, part in zip(mine, back, strict=True):
                total[i] = total[i] + part
        for i, part in zip(self.layout.loose, loose, strict=True):
            total[i] = part
        leaves = [t.astype(x.dtype) for t, x in zip(total, jax.tree.leaves(like), strict=True)]
        return jax.tree.unflatten(self.structure, leaves)


def find_layers(
    objective: Objective,
    params: Params,
    args: tuple,
    *,
    single: bool = False,
    max_size: int = MAX_SIZE,
    exclude: tuple[str, ...] = (),
) -> Layers:
    """The blocks of a model's parameters. Nothing is computed.

    Args:
      single: of the model on one example alone (batches of one, along axis 0), for statistics by
        example; a model whose examples see each other has no such, and a warning.
      max_size: length of a side above which only the diagonal of its factor is kept.
      exclude: leaves whose path holds one of these are loose on purpose, and the block with them.

    Raises:
      TypeError: a black box has no layers.
    """
    predict, inputs = model_of(objective, args)
    if single:
        check_examples(inputs)
        warn_where_examples_meet(objective, predict, params, inputs)
        predict, inputs = one_example(predict), _first(inputs)
    found = capture(predict, params, inputs)
    flat = jax.tree_util.tree_leaves_with_path(params)
    paths = [jax.tree_util.keystr(path) for path, _ in flat]
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in flat)
    reasons = dict.fromkeys(found.generic, "enters in an operation that has no factors")
    by_leaf: dict[int, list[Key]] = collections.defaultdict(list)
    for key, site in found.sites.items():
        by_leaf[site.view.leaf].append(key)
    blocks: list[Block] = []
    for leaf, keys in sorted(by_leaf.items()):
        made = _blocks(leaf, keys, found.sites, shapes[leaf].shape, max_size)
        if isinstance(made, str):
            lost = {leaf, *(found.sites[k].bias for k in keys)} - {None}
            reasons.update((paths[i], made) for i in lost)
        else:
            blocks += made
    unwanted = {i for i, path in enumerate(paths) if any(part in path for part in exclude)}
    spoiled = {i for b in blocks if unwanted & {*b.leaves()} for i in b.leaves()}
    blocks = [b for b in blocks if not spoiled & {*b.leaves()}]
    reasons = {path: why for path, why in reasons.items() if paths.index(path) not in unwanted}
    held = {i for b in blocks for i in b.leaves()}
    loose = tuple(i for i in range(len(paths)) if i not in held)
    thin = {u.key: b for b in blocks if b.form == "kronecker" for u in b.uses}
    sites = {k: _thinned(s, k, thin.get(k)) for k, s in found.sites.items()}
    found = dataclasses.replace(found, sites=sites)
    layout = Layout(tuple(blocks), loose)
    return Layers(found, layout, reasons, jax.tree.structure(params), shapes)


def model_of(objective: Objective, args: tuple) -> tuple[Any, Any]:
    """(predict, inputs) of a composite objective, or of residuals with all their data.

    Raises:
      TypeError: a black box.
    """
    if objective.kind == "composite":
        inputs = split_data(objective, args)[0]
        return lambda p, x: outputs_of(objective, p, x), inputs
    if objective.kind == "residuals":

        def residual(p: Params, data: tuple) -> Any:
            result = objective.fun(p, *data)
            return result[0] if objective.has_aux else result

        return residual, args
    msg = (
        "layers and their factors need the model: use composite(predict, loss) or residuals(...); "
        f"got {fingerprint(objective)}."
    )
    raise TypeError(msg)


def one_example(predict: Any) -> Any:
    """The model of one example, without the batch axis."""

    def alone(p: Params, x: Any) -> Any:
        outputs = predict(p, jax.tree.map(lambda leaf: leaf[None], x))
        return jax.tree.map(lambda o: o[0], outputs)

    return alone


def _first(inputs: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)


def _wide(x: Array) -> Array:
    return x.astype(tree.inner_dtype(x))


def _blocks(
    leaf: int, keys: list[Key], sites: dict[Key, Site], shape: tuple, max_size: int
) -> list[Block] | str:
    """The blocks of one leaf, or why it has none."""
    kinds = {sites[k].kind in MATRICES for k in keys}
    if len(kinds) > 1:
        return "enters both as a matrix and entry by entry"
    if kinds == {False}:
        uses = tuple(Use(k) for k in keys)
        return [Block("diagonal", leaf, None, uses, shape, (False, False))]
    if any(sites[k].view.partial for k in keys):
        seen = np.zeros(math.prod(shape), int)
        for k in keys:
            np.add.at(seen, _order(sites[k], shape).ravel(), 1)
        if np.any(seen != 1):
            return "is seen in parts that overlap or leave some of it out"
        return [_matrix_block(leaf, (Use(k),), sites, max_size, own_bias=True) for k in keys]
    if len(keys) == 1:
        return [_matrix_block(leaf, (Use(keys[0]),), sites, max_size, own_bias=True)]
    first = _order(sites[keys[0]], shape)
    uses = []
    for k in keys:
        order = _order(sites[k], shape)
        if order.shape == first.shape and np.array_equal(order, first):
            uses.append(Use(k))
        elif len(first) == len(order) == 1 and np.array_equal(order[0].T, first[0]):
            uses.append(Use(k, swapped=True))
        else:
            return "is tied in layouts that do not agree"
    blocks = [_matrix_block(leaf, tuple(uses), sites, max_size, own_bias=False)]
    for k in keys:  # its biases, one for each use, have the factor of the outputs alone
        bias = sites[k].bias
        if bias is not None:
            stack, _, outputs = _stack_shape(sites[k])
            sides = (True, outputs <= max_size)
            blocks.append(Block("kronecker", None, bias, (Use(k),), (stack, 1, outputs), sides))
    return blocks


def _matrix_block(
    leaf: int, uses: tuple[Use, ...], sites: dict[Key, Site], max_size: int, *, own_bias: bool
) -> Block:
    site = sites[uses[0].key]
    k, inputs, outputs = _stack_shape(site)
    bias = site.bias if own_bias else None
    inputs += bias is not None
    kinds = [(sites[u.key].kind, u.swapped) for u in uses]
    # an embedding alone has a diagonal factor; tied to a dense layer, that layer's is whole
    whole = [(kind != "embedding" or swapped, kind != "embedding" or not swapped)
             for kind, swapped in kinds]  # fmt: skip
    dense = (
        any(w[0] for w in whole) and inputs <= max_size,
        any(w[1] for w in whole) and outputs <= max_size,
    )
    return Block("kronecker", leaf, bias, uses, (k, inputs, outputs), dense)


def _stack_shape(site: Site) -> tuple[int, int, int]:
    groups, inputs, outputs = site.shape
    return math.prod(site.stacked) * groups, inputs, outputs


def _thinned(site: Site, key: Key, block: Block | None) -> Site:
    """The site with a mark on the sides of which the block keeps diagonals."""
    if block is None or site.kind not in MATRICES:
        return site
    swapped = next(u.swapped for u in block.uses if u.key == key)
    sides = block.dense[::-1] if swapped else block.dense
    return dataclasses.replace(site, thin=(not sides[0], not sides[1]))


def _matrices(site: Site, leaf: Array) -> Float[Array, "k inputs outputs"]:
    """The leaf, or the part of it that the site sees, as matrices; without its scale or dtype."""
    steps = tuple(s for s in site.view.steps if s[0].primitive.name != "convert_element_type")
    operand = View(site.view.leaf, steps=steps, levels=site.view.levels).layout(leaf)
    matrix = site.matrix
    for _ in site.stacked:
        matrix = jax.vmap(matrix)
    stack = matrix(operand)
    return stack.reshape(-1, *stack.shape[-2:])


def _order(site: Site, shape: tuple[int, ...]) -> np.ndarray:
    """Which entry of the leaf stands where in the matrices."""
    with jax.ensure_compile_time_eval():
        numbers = jnp.arange(math.prod(shape), dtype=jnp.int32).reshape(shape)
        return np.asarray(_matrices(site, numbers))
