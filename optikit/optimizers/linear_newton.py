"""Newton's method and Fisher scoring where the model is linear in the parameters.

A generalised linear model is known by its outputs z = A p + c. A trial of the line search needs no
pass over the data beyond the first, A (p + d): between z and that, every z + t (A d) is at hand.
The gradient takes one pass more, and is evaluated where the search ends. The step solves H s = -g
by conjugate gradients, preconditioned by a factor of H from an earlier step; see
`optikit.linalg.lagged`. With an exact factor, as at the first step, that is one iteration.

References: McCullagh & Nelder (1989), section 2.5, for scoring as iterated weighted least squares;
Eisenstat & Walker (1996) for how accurately early steps are worth solving.
"""

import dataclasses
import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from optikit.calculus import Eval, Objective, Oracle
from optikit.calculus.oracle import CurvatureKind
from optikit.calculus.predictor import LinearPredictor, linear_predictor
from optikit.core import Counts, Key, Params, tally, times, tree
from optikit.globalize.along_outputs import search_outputs
from optikit.linalg import Inner
from optikit.linalg.cg import or_probe
from optikit.linalg.lagged import (
    Blocks,
    Lagged,
    blank,
    diagonal,
    factorized,
    kronecker,
    lagged_solve,
)
from optikit.optimizers.protocol import Optimizer, info_from_search
from optikit.optimizers.second_order import LOOSEST, SecondOrderState, forcing

WORTHWHILE = 2**24
"""Multiplications of one Gram product from which on avoiding it pays for the larger program."""

LARGEST_FACTOR = 2**24
"""Entries of a factor, at most; beyond, the diagonal alone preconditions."""

SMALL_COUPLED = 128
"""Parameters up to which coupled outputs, as of softmax, are factorised together."""

MAX_PRODUCTS = 500
"""Products of one solve with a new factor."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Known:
    """What a point's evaluation leaves for the next step: `Eval.local`."""

    outputs: Array
    blocks: int = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})
    dense: bool = dataclasses.field(metadata={"static": True})
    turned: bool = dataclasses.field(metadata={"static": True})


class _Plan(NamedTuple):
    """How the Hessian of a linear model is preconditioned: static, from shapes and structure."""

    predictor: LinearPredictor
    grid: np.ndarray  # (blocks, size): which ravelled parameter stands where
    dense: bool
    assembled: bool  # one block, the whole Hessian, put together from all terms

    def known(self, outputs: Array) -> Known:
        blocks, size = self.grid.shape
        return Known(outputs, blocks, size, self.dense, self.turned)

    def to_blocks(self, vector: Params) -> Blocks:
        flat = tree.ravel(vector)
        return flat.reshape(1, -1) if self._in_order else flat[self.grid]

    def from_blocks(self, vector: Blocks) -> Params:
        flat = vector.ravel()
        if not self._in_order:
            flat = flat[np.argsort(self.grid, axis=None)]
        return ravel_pytree(self.predictor.params)[1](flat)

    @property
    def turned(self) -> bool:
        """Whether a Kronecker product stands for the Hessian: one Gram product for all outputs."""
        return self.dense and self.in_columns

    @property
    def in_columns(self) -> bool:
        """Whether products go by `LinearPredictor.product`, with examples in columns."""
        return self.predictor.coupled and not self.assembled

    @property
    def described(self) -> str:
        """What preconditions, in words."""
        if not self.dense:
            return "products with its data, preconditioned by the Hessian's diagonal"
        if len(self.grid) == 1:
            return "its Hessian is a Gram product, factorised where an earlier factor is no help"
        if self.turned:
            return "products with its data, preconditioned by a Kronecker product"
        return f"products with its data, preconditioned by {len(self.grid)} blocks of the Hessian"

    @property
    def _in_order(self) -> bool:
        return np.array_equal(self.grid, np.arange(self.grid.size)[None])

    @property
    def patience(self) -> int:
        """Products that take about as long as building the factor.

        A Gram product of F features is some F / 32 passes over the data with a vector (both ways),
        by measurement; passes with several vectors at once are that much cheaper each. A Kronecker
        factor takes one such product for all outputs, F / (2 K) passes with K vectors, and is no
        exact inverse when it is new either: it is kept for twice its price.
        """
        if not self.dense:
            return MAX_PRODUCTS
        features, width = self.predictor.features, self.predictor.width
        if self.turned:
            return int(np.clip(features / width, 10, 50))
        return int(np.clip(features * min(width, 8) / 32, 3, 50))


def plan_for(objective, params: Params, args: tuple) -> _Plan | None:
    """The plan for a linear model large enough to be worth it; else None."""
    predictor = linear_predictor(objective, params, args)
    if predictor is None:
        return None
    n, width, features = tree.size(params), predictor.width, predictor.features
    if predictor.rows * width * features**2 < WORTHWHILE:
        return None
    grid = predictor.grid()
    whole = np.arange(n)[None]
    small = predictor.coupled and n <= SMALL_COUPLED
    if (small or grid is None) and n * n <= LARGEST_FACTOR:
        return _Plan(predictor, whole, dense=True, assembled=True)
    if grid is None:
        return None
    dense = width * features**2 <= LARGEST_FACTOR
    return _Plan(predictor, grid.T, dense=dense, assembled=False)


def on_linear_models(otherwise: Optimizer, *, kind: CurvatureKind, max_trials: int) -> Optimizer:
    """An optimizer that is this method on large linear models, and another elsewhere.

    Which one is decided while tracing, by structure and shapes. On other data at each step (`fit`)
    there is nothing to carry from step to step, so it is always the other.
    """

    def evaluate(oracle: Oracle, params: Params) -> tuple[Eval, Counts]:
        plan = plan_for(oracle.objective, params, oracle.args) if oracle.fixed else None
        if plan is None:
            return otherwise.evaluate(oracle, params)
        oracle.tap("grad")
        outputs = plan.predictor.outputs(params)
        parts = plan.predictor.parts(outputs, params)
        grad = plan.predictor.gradient(parts)
        return Eval(params, parts.value, grad, None, plan.known(outputs)), Counts(grad=1)

    def init(at: Eval):
        if not isinstance(at.local, Known):
            return otherwise.init(at)
        dtype = at.value.dtype
        known = at.local
        factor = blank(
            known.blocks, known.size, known.outputs.dtype, dense=known.dense, turned=known.turned
        )
        norm = tree.norm(at.grad).astype(dtype)
        inner = Inner(jnp.full((), LOOSEST, dtype), jnp.zeros((), dtype))
        return SecondOrderState((), inner, norm, factor)

    def step(oracle: Oracle, at: Eval, state, key: Key):
        plan = None
        if isinstance(at.local, Known):
            plan = plan_for(oracle.objective, at.params, oracle.args)
        if plan is None:
            return otherwise.step(oracle, at, state, key)
        return _step(plan, oracle, at, state, kind, max_trials)

    return otherwise._replace(init=init, step=step, evaluate=evaluate, in_products=has_plan)


def has_plan(objective: Objective, params: Params, args: tuple) -> bool:
    """Whether there is a plan; remembered by objective and shapes, since it takes a trace."""
    leaves, structure = jax.tree.flatten((params, args))
    shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
    return _has_plan(objective, structure, shapes)


@functools.lru_cache(maxsize=1024)
def _has_plan(objective: Objective, structure, shapes: tuple) -> bool:
    found = []

    def look(params: Params, args: tuple) -> None:
        found.append(plan_for(objective, params, args) is not None)

    if objective.kind == "composite":
        blank_leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
        jax.eval_shape(look, *jax.tree.unflatten(structure, blank_leaves))
    return found == [True]


def _step(
    plan: _Plan, oracle: Oracle, at: Eval, state: SecondOrderState, kind: CurvatureKind, max_trials
):
    predictor, outputs, dtype = plan.predictor, at.local.outputs, at.value.dtype
    size = tree.norm(at.grad).astype(dtype)
    eta = forcing(size, state)
    name = "hvp" if kind == "hessian" else "ggnvp"
    along = oracle.output_curvature(kind)
    curve = predictor.curvature(along, outputs)
    penalty = predictor.penalty_diagonal(at.params)
    extra = penalty[plan.grid]

    bend = predictor.bend(along, outputs) if plan.in_columns else None
    in_blocks = None if bend is None else predictor.product(bend)

    def product(v: Blocks) -> Blocks:
        oracle.tap(name)
        if in_blocks is not None:
            return in_blocks(v) + extra * v
        image = predictor.backward(curve(predictor.forward(plan.from_blocks(v))))
        return plan.to_blocks(image) + extra * v

    def build() -> Lagged:
        oracle.tap("hessian")
        if plan.assembled:
            matrix = oracle._replace(tap=lambda name: None).curvature(kind, at.params).dense()
            return factorized(matrix[None])
        if plan.dense and bend is not None:
            return kronecker(*predictor.kronecker(bend), jnp.abs(extra))
        weights = jnp.abs(predictor.diagonal(curve))
        if not plan.dense:
            return diagonal(predictor.squares(weights) + jnp.abs(extra))
        grams = predictor.grams(weights)
        eye = jnp.eye(grams.shape[1], dtype=grams.dtype)[None]
        return factorized(grams + jnp.abs(extra)[:, :, None] * eye)

    gradient = plan.to_blocks(or_probe(at))
    solve = lagged_solve(
        product, gradient, state.memory, build, eta,
        patience=plan.patience, max_iters=min(2 * tree.size(at.params), MAX_PRODUCTS),
    )  # fmt: skip
    length = jnp.maximum(1, tree.norm(at.params)).astype(dtype)
    norm = tree.norm(solve.step).astype(dtype)
    lost = (solve.curvature < 0) & (norm < 1e-3 * length)
    stretch = jnp.where(lost, 0.1 * length / jnp.where(norm > 0, norm, 1), 1)
    direction = plan.from_blocks(stretch * solve.step)
    convex = solve.convex
    spent = tally(
        times(solve.products, Counts(**{name: 1})), times(solve.builds, Counts(hessian=1))
    )
    if not predictor.coupled:
        convex &= jnp.all(predictor.diagonal(curve) >= 0) & jnp.all(penalty >= 0)
    search = search_outputs(
        oracle, predictor, at, direction, stretch**2 * solve.curvature, max_trials=max_trials
    )
    end = cast("Eval", search.next)
    if predictor.coupled:
        # a Krylov space shows its own curvature alone: one product along the new gradient more
        ahead = plan.to_blocks(end.grad)
        bent = tree.vdot(ahead, product(ahead)) < 0
        unseen = (tree.max_abs(end.grad) == 0) & (size > 0)
        convex &= ~bent & ~unseen
        spent = tally(spent, Counts(**{name: 1}))
    search = search._replace(
        promised=jnp.where(convex, search.promised, jnp.inf), counts=tally(spent, search.counts)
    )
    new = SecondOrderState((), state.inner._replace(forcing=eta), size, solve.factor)
    return search.params, end, new, info_from_search(search)
