"""Composite objectives whose model is affine in the parameters: f(p) = L(A p + c) + penalty(p).

The outputs A p + c (the linear predictor of a generalised linear model) hold all that the data say
of a point. Whoever keeps them has the value, the slopes and the curvature of the loss for as many
operations as there are outputs; only products with A and A^T pass over the data.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax
from jaxtyping import Array, Float, Int

from optikit.calculus.affine import Term, affine_terms
from optikit.calculus.gram import weighted_gram
from optikit.calculus.objective import (
    Objective,
    example_losses,
    loss_of,
    mean_weights,
    outputs_of,
    split_data,
)
from optikit.core import Params, Scalar, tree
from optikit.core.tree import HIGHEST
from optikit.losses import weighted_mean

Along = Callable[[Array, Array, Array], Array]
"""(outputs, targets, vectors) -> products with each example's output-space curvature."""

Grid = Int[np.ndarray, "features outputs"]
"""Which ravelled parameter multiplies a feature in an output."""


class Parts(NamedTuple):
    """What one point costs once its outputs are known; f's gradient is A^T slopes + own."""

    value: Scalar
    slopes: Array  # of the mean loss, in the outputs' shape
    own: Params  # the penalty's gradient


class LinearPredictor(NamedTuple):
    """An affine model on its data, under its loss and penalty."""

    objective: Objective
    args: tuple
    terms: tuple[Term, ...]
    params: Params  # for structure and dtypes alone
    shape: tuple[int, ...]  # of the outputs

    @property
    def width(self) -> int:
        """Outputs of one example that have parameters of their own."""
        return self.terms[0].view.shape[1]

    @property
    def features(self) -> int:
        """Features of all terms together."""
        return sum(t.view.shape[0] for t in self.terms)

    @property
    def rows(self) -> int:
        """Examples."""
        return math.prod(self.shape) // self.width

    def outputs(self, params: Params) -> Array:
        """A p + c, by the user's own function."""
        return outputs_of(self.objective, params, self.args[0])

    def forward(self, vector: Params) -> Array:
        """A v, in the outputs' shape. One pass over the data."""
        leaves = jax.tree.leaves(vector)
        total = jnp.zeros((self.rows, self.width), leaves[0].dtype)
        for t in self.terms:
            part = t.view.apply(leaves[t.view.leaf])
            if t.rows is not None and self.width == 1:
                part = jnp.matmul(t.rows, part[:, 0], precision=HIGHEST)[:, None]
            elif t.rows is not None:
                part = jnp.matmul(t.rows, part, precision=HIGHEST)
            total = total + part
        return total.reshape(self.shape)

    def backward(self, slopes: Array) -> Params:
        """A^T u for u in the outputs' shape. One pass over the data."""
        leaves, structure = jax.tree.flatten(self.params)
        sums = [jnp.zeros(x.shape, x.dtype) for x in leaves]
        each = slopes.reshape(self.rows, self.width)
        for t in self.terms:
            if t.rows is None:
                part = jnp.sum(each, axis=0, keepdims=True)
            elif self.width == 1:  # a row times the matrix: the data are read as they lie
                part = jnp.matmul(each[:, 0], t.rows, precision=HIGHEST)[:, None]
            else:
                part = jnp.matmul(t.rows.T, each, precision=HIGHEST)
            leaf = t.view.leaf
            pull = jax.linear_transpose(t.view.apply, leaves[leaf])
            sums[leaf] = sums[leaf] + pull(part)[0]
        return jax.tree.unflatten(structure, sums)

    def parts(self, outputs: Array, params: Params) -> Parts:
        """Value, slopes and the penalty's gradient at known outputs: no pass over the data."""
        _, targets, weights = split_data(self.objective, self.args)

        def mean(z: Array) -> Scalar:
            return weighted_mean(*example_losses(self.objective, z, targets, weights))

        value, slopes = jax.value_and_grad(mean)(outputs)
        penalty = self.objective.penalty
        if penalty is None:
            return Parts(value, slopes, tree.zeros_like(params))
        extra, own = jax.value_and_grad(penalty.value)(params)
        return Parts(value + extra.astype(value.dtype), slopes, own)

    def gradient(self, parts: Parts) -> Params:
        """F's gradient. One pass over the data."""
        return tree.add(self.backward(parts.slopes), parts.own)

    def curvature(self, along: Along, outputs: Array) -> Callable[[Array], Array]:
        """V -> D v with D the output-space curvature of the mean loss, set up once."""
        targets, factor = self._targets_and_factor(outputs)

        def apply(v: Array) -> Array:
            return jnp.where(factor == 0, 0, factor * along(outputs, targets, v))

        return jax.linearize(apply, jnp.zeros_like(outputs))[1]

    def product(
        self, bend: Callable[[Array], Array]
    ) -> Callable[[Float[Array, "outputs features"]], Float[Array, "outputs features"]]:
        """V -> A^T D A v in the order of `grid`, with D from `bend`: two passes over the data."""
        starts = np.cumsum([0, *(t.view.shape[0] for t in self.terms)])

        def apply(v: Array) -> Array:
            z = jnp.zeros((self.width, self.rows), v.dtype)
            for t, a, b in zip(self.terms, starts[:-1], starts[1:], strict=True):
                part = v[:, a:b]
                z += part if t.rows is None else jnp.matmul(part, t.rows.T, precision=HIGHEST)
            u = bend(z)
            images = [
                jnp.sum(u, axis=1, keepdims=True)
                if t.rows is None
                else jnp.matmul(u, t.rows, precision=HIGHEST)
                for t in self.terms
            ]
            return images[0] if len(images) == 1 else jnp.concatenate(images, axis=1)

        return apply

    def bend(self, along: Along, outputs: Array) -> Callable[[Array], Array]:
        """V -> D v as `curvature`, for a coupled loss, with examples in columns: (outputs, m).

        Sums over an example's outputs then run over whole rows: on a CPU a Hessian product of
        softmax regression takes two thirds of the time.
        """
        targets, factor = self._targets_and_factor(outputs)
        lead = outputs.shape[:-1]

        def each(o: Array, t: Any, f: Array, v: Array) -> Array:
            return jnp.where(f == 0, 0, f * along(o, t, v))

        flat = jax.tree.map(lambda t: t.reshape(self.rows, *t.shape[len(lead) :]), targets)
        columns = outputs.reshape(self.rows, self.width).T
        bend = jax.vmap(each, in_axes=(1, 0, 0, 1), out_axes=1)
        weights = factor.reshape(self.rows)
        return jax.linearize(lambda v: bend(columns, flat, weights, v), jnp.zeros_like(columns))[1]

    def _targets_and_factor(self, outputs: Array) -> tuple[Array, Array]:
        _, targets, weights = split_data(self.objective, self.args)
        values, weights = example_losses(self.objective, outputs, targets, weights)
        factor = mean_weights(values, weights)
        return targets, factor.reshape(factor.shape + (1,) * self._event_ndim)

    @property
    def _event_ndim(self) -> int:
        return loss_of(self.objective).event_ndim

    @property
    def coupled(self) -> bool:
        """Whether the loss ties an example's outputs together, as softmax does."""
        return self._event_ndim > 0

    def diagonal(self, curvature: Callable[[Array], Array]) -> Float[Array, "m outputs"]:
        """The diagonal of D, one row an example."""
        if not self.coupled:
            ones = jnp.ones(self.shape, self.dtype)
            return curvature(ones).reshape(self.rows, self.width)

        def column(j: Array) -> Array:
            unit = jax.nn.one_hot(j, self.width, dtype=self.dtype)
            return curvature(jnp.broadcast_to(unit, self.shape)).reshape(-1, self.width)[:, j]

        return lax.map(column, jnp.arange(self.width)).T

    @property
    def dtype(self) -> Any:
        """Of parameters and outputs."""
        return jax.tree.leaves(self.params)[0].dtype

    def penalty_diagonal(self, params: Params) -> Float[Array, " n"]:
        """The penalty's Hessian, ravelled."""
        penalty = self.objective.penalty
        if penalty is None or penalty.diagonal is None:
            return jnp.zeros(tree.size(self.params), self.dtype)
        return tree.ravel(penalty.diagonal(params)).astype(self.dtype)

    def hessian_diagonal(self, along: Along, params: Params) -> Float[Array, " n"] | None:
        """F's Hessian diagonal, ravelled: two passes over the data; None without a `grid`."""
        grid = self.grid()
        if grid is None:
            return None
        weights = self.diagonal(self.curvature(along, self.outputs(params)))
        entries = self.squares(weights).ravel()[np.argsort(grid.T, axis=None)]
        return entries + self.penalty_diagonal(params)

    def grid(self) -> Grid | None:
        """Where each parameter stands, if each stands once and as it is; else None."""
        leaves = jax.tree.leaves(self.params)
        starts = np.cumsum([0, *(x.size for x in leaves)])
        parts = [_places(t, leaves[t.view.leaf]) for t in self.terms]
        if any(p is None for p in parts):
            return None
        moved = [
            p + starts[t.view.leaf]
            for p, t in zip(parts, self.terms, strict=True)
            if p is not None
        ]  # fmt: skip
        found = np.concatenate(moved)
        return found if np.array_equal(np.sort(found, axis=None), np.arange(starts[-1])) else None

    def grams(
        self, weights: Float[Array, "m outputs"]
    ) -> Float[Array, "outputs features features"]:
        """The diagonal blocks A_k^T diag(weights_k) A_k, one an output, in the order of `grid`."""
        rows = self._rows()
        if self.width == 1:
            return weighted_gram(rows, weights[:, 0])[None]
        return lax.map(lambda w: weighted_gram(rows, w), weights.T)

    def kronecker(
        self, bend: Callable[[Array], Array]
    ) -> tuple[Float[Array, "outputs outputs"], Float[Array, "features features"]]:
        """(B, A) with B x A close to A^T D A in the order of `grid`: one Gram product.

        B is the sum of the examples' D_n, and A the mean of x_n x_n^T weighted by the sizes of
        their diagonals, so that traces agree where D_n has none that is negative. Exact where the
        D_n are multiples of one matrix, as those of softmax at equal probabilities.
        """

        def column(total: Array, j: Array) -> tuple[Array, Array]:
            unit = jax.nn.one_hot(j, self.width, dtype=self.dtype)
            image = bend(jnp.broadcast_to(unit[:, None], (self.width, self.rows)))
            return total + jnp.abs(image[j]), jnp.sum(image, axis=1)

        none = jnp.zeros(self.rows, self.dtype)
        weights, outer = lax.scan(column, none, jnp.arange(self.width))
        whole = jnp.sum(weights)
        inner = weighted_gram(self._rows(), weights / jnp.where(whole > 0, whole, 1))
        return (outer + outer.T) / 2, inner

    def _rows(self) -> Float[Array, "m features"]:
        """The data of all terms side by side."""
        ones = jnp.ones((self.rows, 1), self.dtype)
        parts = [ones if t.rows is None else t.rows for t in self.terms]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def squares(self, weights: Float[Array, "m outputs"]) -> Float[Array, "outputs features"]:
        """The diagonals of these blocks, in one pass over the data."""

        def part(t: Term) -> Array:
            if t.rows is None:
                return jnp.sum(weights, axis=0)[:, None]
            return jnp.matmul(weights.T, t.rows**2, precision=HIGHEST)

        return jnp.concatenate([part(t) for t in self.terms], axis=1)


def linear_predictor(objective: Objective, params: Params, args: tuple) -> LinearPredictor | None:
    """The linear predictor of a composite objective, or None where its model is not affine.

    None also where a model has auxiliary outputs, where dtypes are mixed, or where the penalty's
    Hessian is not diagonal.
    """
    if objective.kind != "composite" or objective.has_aux:
        return None
    penalty = objective.penalty
    if penalty is not None and penalty.diagonal is None:
        return None
    inputs = split_data(objective, args)[0]

    def predict(p: Params, x: Any) -> Array:
        return outputs_of(objective, p, x)

    terms = affine_terms(predict, params, inputs)
    if not terms:
        return None
    outputs = jax.eval_shape(predict, params, inputs)
    dtypes = {x.dtype for x in (*jax.tree.leaves(params), outputs)}
    dtypes |= {t.rows.dtype for t in terms if t.rows is not None}
    event = loss_of(objective).event_ndim
    wide = terms[0].view.shape[1]
    narrow = any(d.itemsize < 4 for d in dtypes)
    if narrow or len(dtypes) > 1 or event > 1 or (event == 1 and outputs.shape[-1] != wide):
        return None
    return LinearPredictor(objective, args, tuple(terms), params, outputs.shape)


def _places(term: Term, leaf: Array) -> Grid | None:
    """The entries of a leaf that a view shows, if it shows each once, unscaled."""
    exact = 2 / jnp.finfo(leaf.dtype).eps
    if leaf.size != math.prod(term.view.shape) or leaf.size >= exact:
        return None
    with jax.ensure_compile_time_eval():
        shown = term.view.apply(jnp.arange(1, leaf.size + 1, dtype=leaf.dtype).reshape(leaf.shape))
        if isinstance(shown, core.Tracer):  # scaled by data
            return None
        entries = np.asarray(shown).astype(int) - 1
    once = np.array_equal(np.sort(entries, axis=None), np.arange(leaf.size))
    return entries if once else None
