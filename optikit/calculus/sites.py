"""A place where a parameter enters a model linearly, and the two factors of its curvature there.

At a site, output = operation(view of a leaf, activations), linear in the leaf. The gradient of any
loss with respect to the leaf is a sum over rows (examples, positions) of products of what stands
beside the parameter (a) with the loss's gradient at the output (g); K-FAC's factors are the sums of
a a^T and g g^T over those rows.

References: Martens & Grosse (2015), section 3; Grosse & Martens (2016), section 3, for
convolutions; Eschenhagen et al. (2023), section 3, for weights shared over positions ("expand").
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from optikit.core import tree
from optikit.core.jaxpr import bind_equation

Kind = Literal["dense", "conv", "embedding", "scale", "shift"]

KIND: dict[str, Kind] = {
    "dot_general": "dense",
    "conv_general_dilated": "conv",
    "gather": "embedding",
    "mul": "scale",
    "add": "shift",
    "add_any": "shift",
    "sub": "shift",
}
"""The operations that are linear in one operand, by primitive."""


@dataclasses.dataclass(frozen=True)
class View:
    """scale * a rearrangement of one leaf: through layout operations, and slices of scans.

    A number that is added to it on the way is left out, since no derivative depends on it.

    Attributes:
      leaf: its number.
      scale: a constant factor.
      steps: (equation, position of the leaf, output) of each layout operation, with the number of
        scans entered before it.
      levels: the scans, by depth, that take one slice of the leaf at each trip.
      partial: only a part of the leaf is seen.
      spread: entries are repeated along new axes.
    """

    leaf: int
    scale: float = 1.0
    steps: tuple[tuple[Any, int, int, int], ...] = ()
    levels: tuple[int, ...] = ()
    partial: bool = False
    spread: bool = False

    def then(self, eqn: Any, position: int, output: int) -> "View":
        """This view after one more layout operation."""
        before = math.prod(eqn.invars[position].aval.shape)
        after = math.prod(eqn.outvars[output].aval.shape)
        return dataclasses.replace(
            self,
            steps=(*self.steps, (eqn, position, output, len(self.levels))),
            partial=self.partial or after < before,
            spread=self.spread or after > before,
        )

    def __call__(self, leaf: Array) -> Array:
        """The operand, of a whole leaf: axes of scans come first."""
        return self.scale * self.layout(leaf)

    def layout(self, leaf: Array) -> Array:
        """The rearrangement alone."""
        for eqn, position, output, depth in self.steps:

            def one(x, eqn=eqn, position=position, output=output):
                values = [
                    x if i == position else v.val for i, v in enumerate(eqn.invars)
                ]  # all others are literals
                return bind_equation(eqn, values)[output]

            for _ in range(depth):
                one = jax.vmap(one)
            leaf = one(leaf)
        return leaf


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """Where a leaf enters linearly.

    Attributes:
      kind: of the operation.
      eqn: the equation. position: of the parameter among its operands.
      view: from the leaf to the operand.
      trips: lengths of the scans around it, outermost first.
      bias: the leaf that is added to the output, and goes with this one as a row of ones.
      thin: whether only the diagonal of A, and of G, is wanted: for long sides.
    """

    kind: Kind
    eqn: Any
    position: int
    view: View
    trips: tuple[int, ...]
    bias: int | None = None
    thin: tuple[bool, bool] = (False, False)

    @property
    def stacked(self) -> tuple[int, ...]:
        """Lengths of the scans that take one slice of the leaf at each trip."""
        return tuple(n for level, n in enumerate(self.trips) if level in self.view.levels)

    def apply(self, operand: Array, others: list) -> Array:
        """The operation itself."""
        at = self.position
        return bind_equation(self.eqn, [*others[:at], operand, *others[at:]])[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, inputs, outputs) of the operand as a stack of matrices; see `matrix`."""
        operand = self.eqn.invars[self.position].aval
        found = jax.eval_shape(self.matrix, jax.ShapeDtypeStruct(operand.shape, operand.dtype))
        return found.shape

    def matrix(self, operand: Array) -> Float[Array, "groups inputs outputs"]:
        """The operand, in its own shape, as matrices whose gradient is sum_r a_r g_r^T.

        For "dense", "conv" and "embedding".
        """
        if self.kind == "dense":
            batch, contracted, free = self._axes(self.position)
            sizes = [math.prod(operand.shape[i] for i in axes) for axes in (batch, contracted)]
            return jnp.transpose(operand, (*batch, *contracted, *free)).reshape(*sizes, -1)
        if self.kind == "conv":
            out, channels, *window = self.eqn.params["dimension_numbers"].rhs_spec
            groups = self.eqn.params["feature_group_count"]
            ordered = jnp.transpose(operand, (out, channels, *window))
            stack = ordered.reshape(groups, operand.shape[out] // groups, -1)
            return jnp.swapaxes(stack, 1, 2)
        return operand[None]

    def rows(self, others: list, g: Array) -> tuple[Array, Array]:
        """(a, g) at one trip: (groups, rows, inputs) and (groups, rows, outputs).

        For an "embedding", a is the indices, (1, rows); for "scale" and "shift", g is of the output
        and a what multiplies it there.
        """
        if self.kind == "dense":
            return self._dense_rows(others[0], g)
        if self.kind == "conv":
            return self._conv_rows(others[0], g)
        if self.kind == "embedding":
            return others[0].reshape(1, -1), g.reshape(1, -1, g.shape[-1])
        return (others[0] if self.kind == "scale" else jnp.ones_like(g)), g

    def factors(self, others: list, g: Array) -> tuple[Array, ...]:
        """Sums over rows at one trip, in at least float32.

        (A, G) of shapes (groups, inputs, inputs) and (groups, outputs, outputs), inputs counting
        one more with a bias, or their diagonals where they are thin, (groups, inputs); for an
        "embedding", A is its diagonal; for "scale" and "shift" the squares of the rows' gradients,
        in the shape of the leaf or of its slice.
        """
        a, g = self.rows(others, g)
        wide = tree.inner_dtype(g)
        if self.kind in ("scale", "shift"):
            return (self._squares(a, g).astype(wide),)
        if self.kind == "embedding":
            size = self.eqn.invars[self.position].aval.shape[0]
            seen = jnp.zeros((1, size), wide).at[0, a[0]].add(1, mode="drop")
            return seen, _gram(g, wide, thin=self.thin[1])
        if self.bias is not None:
            a = jnp.concatenate([a, jnp.ones((*a.shape[:2], 1), a.dtype)], axis=2)
        return _gram(a, wide, thin=self.thin[0]), _gram(g, wide, thin=self.thin[1])

    def _squares(self, a: Array, g: Array) -> Array:
        """(scale a g)^2, summed over the axes along which the leaf was repeated."""
        here = [step for step in self.view.steps if step[3] == len(self.view.levels)]
        local = View(self.view.leaf, steps=tuple((*step[:3], 0) for step in here))
        first = here[0][0].invars[here[0][1]] if here else self.eqn.invars[self.position]
        blank = jax.ShapeDtypeStruct(first.aval.shape, g.dtype)
        back = jax.linear_transpose(lambda w: jnp.broadcast_to(local.layout(w), g.shape), blank)
        return back((self.view.scale * a * g) ** 2)[0]

    def _axes(self, position: int) -> tuple[list[int], list[int], list[int]]:
        """(batch, contracted, free) axes of an operand of a dot_general."""
        contracted, batch = self.eqn.params["dimension_numbers"]
        used = [*contracted[position], *batch[position]]
        rank = len(self.eqn.invars[position].aval.shape)
        return list(batch[position]), list(contracted[position]), _without(range(rank), used)

    def _dense_rows(self, x: Array, g: Array) -> tuple[Array, Array]:
        batch, contracted, free = self._axes(1 - self.position)
        groups = math.prod(x.shape[i] for i in batch)
        rows = math.prod(x.shape[i] for i in free)
        a = jnp.transpose(x, (*batch, *free, *contracted)).reshape(groups, rows, -1)
        if self.position == 1:
            return a, g.reshape(groups, rows, -1)
        return a, jnp.swapaxes(g.reshape(groups, -1, rows), 1, 2)

    def _conv_rows(self, x: Array, g: Array) -> tuple[Array, Array]:
        params = self.eqn.params
        numbers = params["dimension_numbers"]
        weights = self.eqn.invars[self.position].aval.shape
        patches = lax.conv_general_dilated_patches(
            x,
            [weights[i] for i in numbers.rhs_spec[2:]],
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            numbers,
        )
        example, feature, *space = numbers.out_spec
        groups = params["feature_group_count"]

        def by_group(x: Array) -> Array:  # features stand in the order of their groups
            rows = jnp.transpose(x, (example, *space, feature))
            return jnp.swapaxes(rows.reshape(-1, groups, x.shape[feature] // groups), 0, 1)

        return by_group(patches), by_group(g)


def _without(items: Any, used: list[int]) -> list[int]:
    return [i for i in items if i not in used]


def _gram(
    rows: Float[Array, "groups rows d"], dtype: Any, *, thin: bool
) -> Float[Array, "groups d *d"]:
    if thin:
        return jnp.sum(rows.astype(dtype) ** 2, axis=1)
    return jnp.einsum("gri,grj->gij", rows, rows, preferred_element_type=dtype)


def is_linear_site(eqn: Any, position: int, view: View) -> bool:
    """Whether the operation is one whose rows are known, with the parameter where it stands."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return not view.spread
    if name == "conv_general_dilated":
        return params["batch_group_count"] == 1 and position == 1 and not view.spread
    if name == "gather":
        return position == 0 and not view.spread and _takes_rows(eqn)
    return KIND.get(name) in ("scale", "shift")


def _takes_rows(eqn: Any) -> bool:
    """Whether a gather is table[indices], with whole rows of a matrix."""
    table, index = (v.aval.shape for v in eqn.invars[:2])
    numbers = eqn.params["dimension_numbers"]
    return (
        len(table) == 2
        and index[-1] == 1
        and tuple(eqn.params["slice_sizes"]) == (1, table[1])
        and tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(numbers.start_index_map) == (0,)
        and tuple(numbers.offset_dims) == (len(eqn.outvars[0].aval.shape) - 1,)
    )


def is_bias_of(site: Site, shift: Site, order: tuple[int, ...]) -> bool:
    """Whether a shift adds to each output of a dense or convolutional site one entry of its leaf.

    Entries have to stand in the order of the outputs, and in the same scans.

    Args:
      order: for each axis of what the shift is added to, which axis of the site's output it is.
    """
    out = site.eqn.outvars[0].aval.shape
    if site.kind == "dense":
        batch, _, free = site._axes(site.position)
        first = len(batch) if site.position == 0 else len(out) - len(free)
        axes = [*range(len(batch)), *range(first, first + len(free))]
    elif site.kind == "conv":
        axes = [site.eqn.params["dimension_numbers"].out_spec[1]]
    else:
        return False
    view = shift.view
    if view.partial or view.scale != 1 or shift.eqn.primitive.name == "sub":
        return False
    if view.levels != site.view.levels:
        return False
    shape, along = shift.eqn.invars[shift.position].aval.shape, list(order)
    steps = list(view.steps)
    while steps and steps[-1][3] == len(view.levels):
        eqn, position, _, _ = steps[-1]
        if eqn.primitive.name != "broadcast_in_dim":
            break
        along = [along[i] for i in eqn.params["broadcast_dimensions"]]
        shape = eqn.invars[position].aval.shape
        steps.pop()
    seen = [i for i, n in zip(along, shape, strict=True) if n > 1]
    one_each = math.prod(shape) == math.prod(out[i] for i in axes) and set(seen) <= set(axes)
    return (
        one_each
        and seen == sorted(seen)
        and all(_keeps_order(eqn, position) for eqn, position, _, _ in steps)
    )


def _keeps_order(eqn: Any, position: int) -> bool:
    """Whether a layout operation leaves the entries in their order, each of them once."""
    before, after = (math.prod(v.aval.shape) for v in (eqn.invars[position], eqn.outvars[0]))
    names = ("reshape", "squeeze", "broadcast_in_dim", "convert_element_type", "copy", "copy_p")
    return before == after and eqn.primitive.name in names
