"""EKFAC: K-FAC's eigenbases, with second moments of gradients in place of products of eigenvalues.

In the basis of the eigenvectors U_A and U_G of the factors, the curvature is taken as diagonal. Its
diagonal is E (U_A^T grad U_G)^2 over the gradients of single examples: of all in this basis the one
nearest to the true curvature.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from optikit.calculus import Oracle
from optikit.calculus.by_example import has_rows, second_moments
from optikit.calculus.factors import Factors
from optikit.calculus.layers import MAX_SIZE, Block, Layers, Layout
from optikit.core import Counts, Key, Params, memoized
from optikit.linalg.kronecker import eigenbases
from optikit.optimizers.approximation import Approximation, Level, blank_factors, mixed, past_weight
from optikit.optimizers.kfac import by_example, gathering
from optikit.optimizers.layerwise import Rate, Settings, layerwise
from optikit.optimizers.protocol import Optimizer
from optikit.optimizers.scaling import Fallback, Scaling


class Eigen(NamedTuple):
    """What EKFAC keeps of a block; of entries, and where a side is diagonal, some are empty."""

    factors: Factors
    left: Any  # (k, inputs, inputs), eigenvectors in columns
    right: Any  # (k, outputs, outputs)
    moments: Float[Array, "k inputs outputs"] | tuple[()]
    taken: Int[Array, ""]  # batches in the moments, since the basis was found


@memoized
def ekfac(
    learning_rate: Rate | None = None,
    *,
    curvature: Literal["sampled", "exact", "empirical"] = "sampled",
    sharing: Literal["expand", "reduce"] = "expand",
    damping: float | None = None,
    adapt: bool = True,
    momentum: float = 0.9,
    norm_constraint: float | None = None,
    weight_decay: float = 0.0,
    stats_every: int = 10,
    inverse_every: int = 50,
    max_size: int = MAX_SIZE,
    exclude: tuple[str, ...] = (),
    fallback: Fallback = "diagonal",
) -> Optimizer:
    """EKFAC for `composite(predict, loss)` and `residuals(...)`, with no layer registered.

    The arguments are those of `kfac`; `inverse_every` is for the eigenbases. Statistics are
    gathered example by example, so the model must treat examples alone (no batch normalisation),
    and activations are kept. Tables of embeddings keep K-FAC's products of eigenvalues, and so do
    the layers of `residuals(...)`, which do not tell their examples apart.

    Cost: as K-FAC, with 9 (inputs^3 + outputs^3) flops for a layer's bases, a second pass for the
    moments, and twice the products in a step. The damping is new at every step.

    Example:
      >>> import optikit as ok
      >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
      >>> fit = ok.composite(lambda p, x: x @ p, ok.losses.squared_error)
      >>> sol = ok.minimize(fit, jnp.zeros((2, 1)), args=(x, jnp.array([[1.0], [3.0], [5.0]])),
      ...                   method=ekfac())
      >>> bool(sol.success), [round(float(v), 3) for v in sol.params[:, 0]]
      (True, [1.0, 2.0])

    Raises:
      TypeError, ValueError: as for `kfac`.

    Reference: George, Laurent, Bouthillier, Ballas & Vincent (2018), "Fast approximate natural
    gradient descent in a Kronecker factored eigenbasis", algorithm 1.
    """

    def moments(oracle: Oracle, params: Params, layers: Layers, kept: tuple, key: Key):
        blocks = layers.layout.blocks
        if not single(oracle):
            return kept, Counts()
        bases = [
            (k.left, k.right) if _rotated(b) and has_rows(layers, b) else None
            for b, k in zip(blocks, kept, strict=True)
        ]
        found, counts = second_moments(oracle, params, layers, key, bases, source=curvature)
        new = tuple(
            k if m is None else k._replace(
                moments=mixed(k.moments, m, past_weight(k.taken, m.dtype)), taken=k.taken + 1
            )
            for k, m in zip(kept, found, strict=True)
        )  # fmt: skip
        return new, counts

    single = by_example(sharing, always=True)
    approximation = Approximation(
        _init,
        gathering(curvature, sharing, single),
        _bases,
        _divided,
        single,
        moments,
    )
    return layerwise(
        approximation,
        Scaling("ekfac", approximation, max_size, exclude, fallback),
        Settings(
            learning_rate, damping, adapt, momentum, norm_constraint, weight_decay, stats_every,
            inverse_every,
        ),
    )  # fmt: skip


def _rotated(block: Block) -> bool:
    return block.form == "kronecker" and all(block.dense)


def _init(block: Block, dtype: Any) -> Eigen:
    blank = blank_factors(block, dtype)
    none = jnp.asarray(0, jnp.int32)
    if block.form == "diagonal":
        return Eigen(blank, (), (), (), none)
    k, inputs, outputs = block.shape
    left, right = (f if f.ndim == 3 else () for f in blank)
    return Eigen(blank, left, right, jnp.zeros((k, inputs, outputs), dtype), none)


def _bases(layout: Layout, kept: tuple, levels: list[Level]) -> tuple:
    """Eigenbases of the averages; the moments begin anew as products of eigenvalues."""
    del levels
    places = [
        (i, side)
        for i, block in enumerate(layout.blocks)
        if block.form == "kronecker"
        for side in (0, 1)
        if block.dense[side]
    ]
    values, vectors = eigenbases([kept[i].factors[side] for i, side in places])
    found = {place: pair for place, *pair in zip(places, values, vectors, strict=True)}
    new = []
    for i, (block, one) in enumerate(zip(layout.blocks, kept, strict=True)):
        if block.form == "diagonal":
            new.append(one)
            continue
        sides = [
            found.get((i, side), (one.factors[side], ())) for side in (0, 1)
        ]  # a diagonal is its own spectrum
        (left, u), (right, v) = sides
        product = jnp.maximum(left, 0)[:, :, None] * jnp.maximum(right, 0)[:, None, :]
        new.append(one._replace(left=u, right=v, moments=product, taken=jnp.zeros_like(one.taken)))
    return tuple(new)


def _divided(block: Block, kept: Eigen, gradient: Array, level: Level) -> Array:
    """U_A [(U_A^T V U_G) / (S + lambda)] U_G^T."""
    if block.form == "diagonal":
        return gradient / (kept.factors.a + level.total)
    damped = jnp.asarray(kept.moments) + level.total[:, None, None]
    return _turned(kept, _turned(kept, gradient, back=False) / damped, back=True)


def _turned(kept: Eigen, v: Array, *, back: bool) -> Array:
    """Into the bases, or back; a side that is diagonal stays as it is."""
    u, w = kept.left, kept.right
    if not isinstance(u, tuple):
        v = _product(u if back else jnp.swapaxes(u, 1, 2), v)
    if not isinstance(w, tuple):
        v = _product(v, jnp.swapaxes(w, 1, 2) if back else w)
    return v


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGH)
