"""K-FAC: the curvature of each layer as a Kronecker product of two small matrices."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jaxtyping import Array

from optikit.calculus import Oracle
from optikit.calculus.by_example import Sharing, statistics_by_example
from optikit.calculus.factors import Factors, statistics
from optikit.calculus.layers import MAX_SIZE, Block, Layers, Layout
from optikit.calculus.seeds import Source
from optikit.core import Key, Params, memoized
from optikit.linalg.kronecker import Inversion, damped_inverses, kronecker_product
from optikit.optimizers.approximation import (
    Approximation,
    Level,
    blank_factors,
    split_damping,
)
from optikit.optimizers.layerwise import Rate, Settings, layerwise
from optikit.optimizers.protocol import Optimizer
from optikit.optimizers.scaling import Fallback, Scaling


class Inverses(NamedTuple):
    """What K-FAC keeps of a block: averages, and the damped inverses of some of them."""

    factors: Factors
    left: Any  # like the factors' a; nothing for a block of entries
    right: Any


@memoized
def kfac(
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
    inverse_every: int = 10,
    inverse: Literal["cholesky", "newton-schulz"] = "cholesky",
    slack: float = 0.0,
    max_size: int = MAX_SIZE,
    exclude: tuple[str, ...] = (),
    fallback: Fallback = "diagonal",
) -> Optimizer:
    """K-FAC for `composite(predict, loss)` and `residuals(...)`, with no layer registered.

    Dense and convolutional layers, embeddings, scales and shifts are found in any pure `predict`,
    through `jit`, `scan`, rematerialisation, sharing and tying; other leaves are named in a warning
    and get the fallback.

    Args:
      learning_rate: a factor on the damped natural gradient, or a schedule, a function of the step.
        By default the best one under the exact quadratic model: on fixed data at every step,
        together with the best share of the last step; on batches every `inverse_every` steps, times
        the share of the gradient in which batches agree.
      curvature: "sampled", factors from labels drawn from the model; "exact", from a root of the
        loss's curvature in the outputs, one way back for each output; "empirical", from the labels.
      sharing: "expand" takes positions that share a weight for examples of their own; "reduce"
        averages over them first, for models that do so themselves.
      damping: relative to the mean eigenvalue of each block, on batches to the largest of these.
        By default the best of a few on the first batch.
      adapt: let the damping follow how well the quadratic model predicts.
      momentum: weight of the past in the average of directions, on batches or with a given rate.
      norm_constraint: bound on the squared length of a step in the metric of the curvature, on
        batches or with a given rate.
      weight_decay: decoupled, times the rate; on fixed data without a rate use a penalty.
      stats_every, inverse_every: steps between statistics, and between inverses.
      inverse: "cholesky", or "newton-schulz" by products alone.
      slack: share by which a factor may fall short of one that it is padded to and inverted with.
      max_size: length of a side above which only the diagonal of its factor is kept.
      exclude: leaves whose path holds one of these get the fallback, unwarned.
      fallback: "diagonal", from the gradients of sampled losses squared; "gradient", for gradients
        as they are; or an optax transformation, whose updates are taken as they are.

    Cost: statistics 1 grad and 2 (inputs^2 + outputs^2) flops a row and layer; inverses
    7/3 (inputs^3 + outputs^3); a step 2 inputs outputs (inputs + outputs), on fixed data also a
    value and two jvps. Before the first step ten values and five jvps for the damping. Memory:
    twice the factors, and a copy of the parameters.

    Example:
      >>> import optikit as ok
      >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
      >>> fit = ok.composite(lambda p, x: x @ p, ok.losses.squared_error)
      >>> sol = ok.minimize(fit, jnp.zeros((2, 1)), args=(x, jnp.array([[1.0], [3.0], [5.0]])),
      ...                   method=kfac())
      >>> bool(sol.success), [round(float(v), 3) for v in sol.params[:, 0]]
      (True, [1.0, 2.0])

    Raises:
      TypeError: when run on a black box; "sampled" with a loss that is no likelihood; "reduce" on
        residuals.
      ValueError: an argument out of range.

    References: Martens & Grosse (2015); Grosse & Martens (2016) for convolutions; Eschenhagen et
    al. (2023) for shared weights.
    """

    def init(block: Block, dtype: Any) -> Inverses:
        blank = blank_factors(block, dtype)
        return Inverses(blank, *((), ()) if block.form == "diagonal" else blank)

    def prepare(layout: Layout, kept: tuple, levels: list[Level]) -> tuple:
        return inverted(layout, kept, levels, inverse, slack)

    single = by_example(sharing)
    approximation = Approximation(
        init, gathering(curvature, sharing, single), prepare, divided, single
    )
    return layerwise(
        approximation,
        Scaling("kfac", approximation, max_size, exclude, fallback),
        Settings(
            learning_rate, damping, adapt, momentum, norm_constraint, weight_decay, stats_every,
            inverse_every,
        ),
    )  # fmt: skip


def by_example(sharing: Sharing, *, always: bool = False) -> Callable[[Oracle], bool]:
    """Oracle -> whether statistics need the rows of each example, which residuals do not tell."""

    def needed(oracle: Oracle) -> bool:
        if oracle.objective.kind == "composite":
            return always or sharing == "reduce" or len(oracle.args) == 3
        if sharing == "reduce":
            msg = (
                "sharing='reduce' needs to know the examples: use composite(predict, loss), or "
                "sharing='expand'."
            )
            raise TypeError(msg)
        return False

    return needed


def gathering(
    curvature: Source, sharing: Sharing, single: Callable[[Oracle], bool], *, inputs_only=False
):
    """How factors are gathered: in one sum, or by the rows of examples where that is needed."""

    def gather(oracle: Oracle, params: Params, layers: Layers, key: Key):
        if single(oracle):
            return statistics_by_example(
                oracle, params, layers, key, source=curvature, sharing=sharing,
                inputs_only=inputs_only,
            )  # fmt: skip
        return statistics(oracle, params, layers, key, source=curvature, inputs_only=inputs_only)

    return gather


def inverted(
    layout: Layout, kept: tuple, levels: list[Level], method: Inversion, slack: float
) -> tuple:
    """All blocks with the damped inverses of their factors; factors of one size together."""
    factors, shifts, warm, places = [], [], [], []
    found = [[k.left, k.right] for k in kept]
    for i, (block, one, level) in enumerate(zip(layout.blocks, kept, levels, strict=True)):
        if block.form == "diagonal":
            continue
        for side, shift in enumerate(split_damping(one.factors, level)):
            factor = one.factors[side]
            if factor.ndim == 2:
                found[i][side] = 1 / (factor + shift[:, None])
                continue
            factors.append(factor)
            shifts.append(shift)
            warm.append(found[i][side])
            places.append((i, side))
    inverses = damped_inverses(factors, shifts, method=method, warm=warm, slack=slack)
    for (i, side), value in zip(places, inverses, strict=True):
        found[i][side] = value
    return tuple(
        k._replace(left=left, right=right) for k, (left, right) in zip(kept, found, strict=True)
    )


def divided(block: Block, kept: Inverses, gradient: Array, level: Level) -> Array:
    """(A + pi gamma I)^-1 V (G + gamma / pi I)^-1; entries by their own curvature."""
    if block.form == "diagonal":
        return gradient / (kept.factors.a + level.total)
    left, right = kept.left, kept.right
    if left.ndim == 3 and right.ndim == 3:
        return kronecker_product(left, gradient, right)
    v = left @ gradient if left.ndim == 3 else left[:, :, None] * gradient
    return v @ right if right.ndim == 3 else v * right[:, None, :]
