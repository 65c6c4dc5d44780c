"""FOOF: gradients divided by the second moments of a layer's inputs alone.

K-FAC with nothing on the side of the outputs: the step that makes a layer's outputs move along
their own gradients. Its statistics need no way back.
"""

from typing import Any, Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from optikit.calculus.layers import MAX_SIZE, Block, Layout
from optikit.core import memoized
from optikit.linalg.kronecker import damped_inverses
from optikit.optimizers.approximation import Approximation, Level, blank_factors
from optikit.optimizers.kfac import Inverses, by_example, gathering
from optikit.optimizers.layerwise import Rate, Settings, layerwise
from optikit.optimizers.protocol import Optimizer
from optikit.optimizers.scaling import Fallback, Scaling


@memoized
def foof(
    learning_rate: Rate | None = None,
    *,
    sharing: Literal["expand", "reduce"] = "expand",
    damping: float | None = None,
    adapt: bool = True,
    momentum: float = 0.9,
    norm_constraint: float | None = None,
    weight_decay: float = 0.0,
    stats_every: int = 10,
    inverse_every: int = 10,
    inverse: Literal["cholesky", "newton-schulz"] = "cholesky",
    slack: float = 0.0,
    max_size: int = MAX_SIZE,
    exclude: tuple[str, ...] = (),
    fallback: Fallback = "gradient",
) -> Optimizer:
    """FOOF for `composite(predict, loss)` and `residuals(...)`, with no layer registered.

    The arguments are those of `kfac`. Scales, shifts and, by the fallback "gradient", leaves
    without a layer take their gradients as they are. The penalty's curvature does not enter the
    damping: A alone does not have the units of the curvature.

    Cost: statistics one value and 2 inputs^2 flops a row and layer; inverses 7/3 inputs^3; a step
    2 inputs^2 outputs.

    Example:
      >>> import optikit as ok
      >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
      >>> fit = ok.composite(lambda p, x: x @ p, ok.losses.squared_error)
      >>> sol = ok.minimize(fit, jnp.zeros((2, 1)), args=(x, jnp.array([[1.0], [3.0], [5.0]])),
      ...                   method=foof())
      >>> bool(sol.success), [round(float(v), 3) for v in sol.params[:, 0]]
      (True, [1.0, 2.0])

    Raises:
      TypeError, ValueError: as for `kfac`.

    Reference: Benzing (2022), "Gradient descent on neurons and its link to approximate second-order
    optimization", section 5.
    """

    def prepare(layout: Layout, kept: tuple, levels: list[Level]) -> tuple:
        places = [i for i, b in enumerate(layout.blocks) if b.form == "kronecker" and b.dense[0]]
        inverses = damped_inverses(
            [kept[i].factors.a for i in places],
            [levels[i].relative for i in places],
            method=inverse,
            warm=[kept[i].left for i in places],
            slack=slack,
        )
        found = dict(zip(places, inverses, strict=True))
        return tuple(k._replace(left=found.get(i, k.left)) for i, k in enumerate(kept))

    single = by_example(sharing)
    approximation = Approximation(
        _init,
        gathering("empirical", sharing, single, inputs_only=True),
        prepare,
        _divided,
        single,
        whole=False,
    )
    return layerwise(
        approximation,
        Scaling("foof", approximation, max_size, exclude, fallback),
        Settings(
            learning_rate, damping, adapt, momentum, norm_constraint, weight_decay, stats_every,
            inverse_every,
        ),
    )  # fmt: skip


def _init(block: Block, dtype: Any) -> Inverses:
    blank = blank_factors(block, dtype, inputs_only=True)
    whole = block.form == "kronecker" and block.dense[0]
    return Inverses(blank, blank.a if whole else (), ())


def _divided(block: Block, kept: Inverses, gradient: Array, level: Level) -> Array:
    """(A + lambda I)^-1 V."""
    if block.form == "diagonal":
        return gradient
    if isinstance(kept.left, tuple):
        return gradient / (kept.factors.a + level.relative[:, None])[:, :, None]
    return jnp.matmul(kept.left, gradient, precision=lax.Precision.HIGH)
