"""What a layerwise method keeps of each block's curvature, and how gradients are divided by it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optikit.calculus import Oracle
from optikit.calculus.factors import Factors, Statistics
from optikit.calculus.layers import Block, Layers, Layout
from optikit.core import Counts, Key, Params, Scalar
from optikit.linalg.kronecker import mean_eigenvalue

MOST = 0.95
"""The largest weight of the past in an average of statistics (Martens & Grosse 2015, section 5)."""


class Level(NamedTuple):
    """Damping of a block.

    Attributes:
      relative: `damping` times the block's mean eigenvalue, (k,) for matrices and () for entries.
      penalty: the penalty's curvature, () for matrices and in the shape of the leaf for entries.
    """

    relative: Array
    penalty: Array

    @property
    def total(self) -> Array:
        """Both together."""
        return self.relative + self.penalty


class Approximation(NamedTuple):
    """How the curvature of blocks is kept and divided by.

    Attributes:
      init: (block, dtype) -> what is kept of it, `factors` first.
      gather: (oracle, params, layers, key) -> (Statistics, Counts), of one batch.
      prepare: (layout, all kept, levels) -> all kept, with inverses or bases of the averages.
      divide: (block, kept, gradient, level) -> the gradient divided by the damped curvature.
      moments: (oracle, params, layers, all kept, key) -> (all kept, Counts): what is averaged in
        the bases, after they have been found; or None.
      single: oracle -> whether statistics are gathered example by example.
      whole: whether it has the units of the curvature, so that its damping is a curvature too.
    """

    init: Callable[[Block, Any], Any]
    gather: Callable[[Oracle, Params, Layers, Key], tuple[Statistics, Counts]]
    prepare: Callable[[Layout, tuple, list[Level]], tuple]
    divide: Callable[[Block, Any, Array, Level], Array]
    single: Callable[[Oracle], bool]
    moments: Callable[..., tuple[tuple, Counts]] | None = None
    whole: bool = True


def blank_factors(block: Block, dtype: Any, *, inputs_only: bool = False) -> Factors:
    """Averages of nothing yet."""
    if block.form == "diagonal":
        return Factors(jnp.zeros(block.shape, dtype))
    k, *sizes = block.shape
    a, g = (
        jnp.zeros((k, d, d) if whole else (k, d), dtype)
        for d, whole in zip(sizes, block.dense, strict=True)
    )
    return Factors(a) if inputs_only else Factors(a, g)


def past_weight(seen: Int[Array, ""], dtype: Any) -> Scalar:
    """min(1 - 1/k, 0.95) for batch k of an average: the plain mean at first."""
    return jnp.minimum(1 - 1 / (seen.astype(dtype) + 1), MOST)


def mixed(old: Any, new: Any, past: Scalar) -> Any:
    """Averages with one batch more; a batch that is not finite is left out."""

    def mix(o: Array, n: Array) -> Array:
        p = past.astype(o.dtype)
        return jnp.where(jnp.all(jnp.isfinite(n)), p * o + (1 - p) * n.astype(o.dtype), o)

    return jax.tree.map(mix, old, new)


def block_mean(block: Block, factors: Factors) -> Float[Array, "*k"]:
    """The mean eigenvalue of a block's curvature: (k,) for matrices, () for entries."""
    if block.form == "diagonal":
        return jnp.mean(factors.a)
    left = mean_eigenvalue(factors.a)
    return left if isinstance(factors.g, tuple) else left * mean_eigenvalue(factors.g)


def split_damping(factors: Factors, level: Level) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """(pi gamma, gamma / pi): the damping of each factor, in proportion to its mean eigenvalue.

    pi^2 is the ratio of the mean eigenvalues, gamma^2 the damping of the block: Martens & Grosse
    (2015), section 6.3.
    """
    left, right = mean_eigenvalue(factors.a), mean_eigenvalue(factors.g)
    usable = (left > 0) & (right > 0)
    ratio = jnp.sqrt(jnp.where(usable, left / jnp.where(usable, right, 1), 1))
    gamma = jnp.sqrt(level.total)
    return ratio * gamma, gamma / ratio
