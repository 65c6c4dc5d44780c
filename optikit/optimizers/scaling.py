"""A model's blocks and loose leaves: their damping, and a gradient divided by their curvature."""

import functools
import warnings
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optikit.calculus import Eval, Objective, Oracle
from optikit.calculus.layers import Block, Layers, Layout, find_layers
from optikit.core import Params, Scalar, tree
from optikit.optimizers.approximation import Approximation, Level, block_mean, mixed

NOISY = 0.1
"""Share of its mean below which an entry of an estimated diagonal is not believed."""

Fallback = str | optax.GradientTransformation


class Kept(Protocol):
    """What a layerwise method's state holds, as far as it matters here."""

    @property
    def blocks(self) -> tuple[Any, ...]:
        """By block of the layout."""
        ...

    @property
    def loose(self) -> Any:
        """Of the leaves without factors."""
        ...

    @property
    def damping(self) -> Scalar:
        """Relative."""
        ...


class Scaling(NamedTuple):
    """Where curvature is known by blocks, and what is done elsewhere.

    Attributes:
      name: of the method, for messages.
      approximation: of the blocks.
      max_size: length of a side above which only the diagonal of its factor is kept.
      exclude: parts of paths of leaves that are loose on purpose.
      fallback: for loose leaves: "diagonal", "gradient", or a transformation of optax.
    """

    name: str
    approximation: Approximation
    max_size: int
    exclude: tuple[str, ...]
    fallback: Fallback

    def layers(self, oracle: Oracle, params: Params) -> Layers:
        """The model's layers; leaves that have none are named in a warning, once."""
        layers = find_layers(
            oracle.objective,
            params,
            oracle.args,
            single=self.approximation.single(oracle),
            max_size=self.max_size,
            exclude=self.exclude,
        )
        if layers.reasons:
            named = "; ".join(f"params{path} {why}" for path, why in layers.reasons.items())
            how = f"the {self.fallback}" if isinstance(self.fallback, str) else "the fallback given"
            _warn_once(
                f"{self.name} has no layer for: {named}. Instead of factors: {how}.",
                oracle.objective,
            )
        return layers

    @property
    def _by_diagonal(self) -> bool:
        return self.fallback == "diagonal"

    def loose_state(self, params: Params, layout: Layout) -> Any:
        """Of the loose leaves, before anything is known."""
        leaves = jax.tree.leaves(params)
        mine = [leaves[i] for i in layout.loose]
        if self._by_diagonal:
            dtype = tree.inner_dtype(params)
            return tuple(jnp.zeros(x.shape, dtype) for x in mine)
        return () if isinstance(self.fallback, str) else self.fallback.init(mine)

    def observed(self, loose: Any, found: tuple[Array, ...], past: Scalar) -> Any:
        """With one batch more in the diagonals."""
        return mixed(loose, found, past) if self._by_diagonal else loose

    def levels(
        self, oracle: Oracle, params: Params, state: Kept, layers: Layers
    ) -> tuple[list[Level], list[Level]]:
        """The damping of each block, and of each loose leaf with a diagonal."""
        blocks, loose, least = self._relative(oracle, state, layers)
        extra = penalty_curvature(oracle, params)

        def of_block(block: Block) -> Array:
            entries = extra[block.leaves()[0]]
            return entries if block.form == "diagonal" else jnp.mean(entries)

        damping = state.damping
        found = [
            Level(damping.astype(m.dtype) * jnp.maximum(m, least), of_block(b).astype(m.dtype))
            for b, m in zip(layers.layout.blocks, blocks, strict=True)
        ]
        rest = [
            Level(damping.astype(m.dtype) * jnp.maximum(m, least), extra[i].astype(m.dtype))
            for i, m in zip(layers.layout.loose, loose, strict=False)
        ]
        return found, rest

    def _relative(
        self, oracle: Oracle, state: Kept, layers: Layers
    ) -> tuple[list[Array], list[Array], Scalar]:
        """Mean eigenvalues of blocks and loose leaves, and the least that damping is relative to.

        The gradient of a batch is mostly noise where its curvature is least (attention at the
        start), and would be divided by next to nothing there: on batches the largest of the means
        serves for all.
        """
        pairs = zip(layers.layout.blocks, state.blocks, strict=True)
        blocks = [block_mean(b, kept.factors) for b, kept in pairs]
        diagonals = state.loose if self._by_diagonal else ()
        loose = [jnp.sum(x) / max(x.size, 1) for x in diagonals]
        tops = [jnp.max(m) for m in (*blocks, *loose)]
        if not tops:
            return blocks, loose, jnp.ones(())
        top = functools.reduce(jnp.maximum, tops)
        # a layer that no gradient reaches yet has no curvature either
        share = 1e-6 if oracle.fixed or not self.approximation.whole else 1
        return blocks, loose, jnp.where(top > 0, share * top, 1)

    def direction(self, oracle: Oracle, at: Eval, state: Kept, layers: Layers) -> Params:
        """Downhill, in at least float32; zero for the leaves of a transformation."""
        levels, rest = self.levels(oracle, at.params, state, layers)
        divide = self.approximation.divide
        held = [
            -divide(block, kept, gradient, level)
            for block, kept, gradient, level in zip(
                layers.layout.blocks, state.blocks, layers.matrices(at.grad), levels, strict=True
            )
        ]
        like = jax.tree.map(lambda x: x.astype(tree.inner_dtype(x)), at.grad)
        leaves = jax.tree.leaves(like)
        if self._by_diagonal:
            loose = [
                -leaves[i] / (jnp.maximum(d, NOISY * jnp.mean(d)) + level.total)
                for i, d, level in zip(layers.layout.loose, state.loose, rest, strict=True)
            ]
        else:
            factor = -1 if isinstance(self.fallback, str) else 0
            loose = [factor * leaves[i] for i in layers.layout.loose]
        return layers.assembled(held, loose, like)

    def transformed(self, at: Eval, loose: Any, layers: Layers) -> tuple[Params | None, Any]:
        """The steps of loose leaves by their own transformation, and its state."""
        if isinstance(self.fallback, str) or not layers.layout.loose:
            return None, loose
        leaves, values = jax.tree.leaves(at.grad), jax.tree.leaves(at.params)
        mine = layers.layout.loose
        updates, loose = self.fallback.update(
            [leaves[i] for i in mine], loose, [values[i] for i in mine]
        )
        blank = [jnp.zeros(x.shape, tree.inner_dtype(x)) for x in leaves]
        for i, update in zip(mine, jax.tree.leaves(updates), strict=True):
            blank[i] = update.astype(blank[i].dtype)
        return jax.tree.unflatten(layers.structure, blank), loose

    def drag(
        self, oracle: Oracle, state: Kept, layers: Layers, directions: list[Params]
    ) -> Float[Array, "d d"]:
        """<u, D v> for all pairs of directions, D the relative damping."""
        blocks, loose, least = self._relative(oracle, state, layers)
        flat = [jax.tree.leaves(d) for d in directions]
        held = [layers.matrices(d) for d in directions]
        rows = [
            (jnp.stack([h[j].reshape(m.size, -1) for h in held]), m)
            for j, m in enumerate(blocks)
        ] + [
            (jnp.stack([f[i].reshape(1, -1) for f in flat]), m)
            for i, m in zip(layers.layout.loose, loose, strict=False)
        ]  # fmt: skip
        total = jnp.zeros((len(directions),) * 2, state.damping.dtype)
        for r, m in rows:
            level = jnp.maximum(m, least).reshape(-1)
            part = jnp.einsum("ukn,vkn,k->uv", r, r, level.astype(r.dtype))
            total = total + state.damping * part.astype(total.dtype)
        return total


def penalty_curvature(oracle: Oracle, params: Params) -> list[Array]:
    """The diagonal of the penalty's Hessian by leaf; zero for one that is not separable."""
    penalty = oracle.objective.penalty
    if penalty is None or penalty.diagonal is None:
        return [jnp.zeros_like(x) for x in jax.tree.leaves(params)]
    return jax.tree.leaves(penalty.diagonal(params))


@functools.lru_cache(maxsize=256)
def _warn_once(message: str, objective: Objective) -> None:
    """A model is traced several times; it is spoken of once."""
    del objective
    warnings.warn(message, stacklevel=3)
