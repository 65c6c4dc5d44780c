"""Shampoo: matrix gradients multiplied by roots of their own second moments, left and right."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optikit.core import Key, memoized
from optikit.core.paths import Pattern
from optikit.linalg.roots import RIDGE, inverse_root
from optikit.optimizers.descent import (
    Moments,
    Rate,
    check_every,
    mixed,
    root_mean_square,
    unbiased,
)
from optikit.optimizers.matrix_method import (
    Adam,
    MatrixRule,
    Stack,
    exact_product,
    grams,
    identities,
    matrix_method,
)
from optikit.optimizers.protocol import Optimizer


class ShampooState(NamedTuple):
    """Statistics of a stack of b matrices (m, n), and the roots taken of them last."""

    moments: Moments  # the gradient's, (b, m, n); the second for grafting
    left: Float[Array, "b m m"]
    right: Float[Array, "b n n"]
    left_root: Float[Array, "b m m"]
    right_root: Float[Array, "b n n"]


@memoized
def shampoo(
    learning_rate: Rate = 1e-3,
    *,
    variant: Literal["grafted", "kl"] = "grafted",
    graft: Literal["adam", "rmsprop"] = "adam",
    b1: float = 0.9,
    b2: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    precondition_every: int = 10,
    block: int = 1024,
    ridge: float = RIDGE,
    root: Literal["eigh", "newton"] = "eigh",
    stacked: Sequence[Pattern] = (),
    apart: Sequence[Pattern] = (),
    bucketed: bool = True,
) -> Optimizer:
    """Shampoo on matrices (blocks of them, if large), Adam on other leaves.

    "grafted": L and R are averages of G G^T and G^T G, the direction L^(-1/4) M R^(-1/4) with M
    the averaged gradient, rescaled to the norm of what Adam (or RMSprop) would do, and that itself
    for the first `precondition_every` steps, until there are statistics to take a root of.

    "kl": KL-Shampoo, the Kronecker product L x R nearest in Kullback-Leibler divergence to the
    gradient's second moment: averages of G R^-1 G^T / n and G^T L^-1 G / m, begun at the first
    gradient's mean square; the direction L^(-1/2) M R^(-1/2), not rescaled.

    Memory 2 (m^2 + n^2) beside Adam's; 4 m n (m + n) flops a step beside the statistics' as many,
    and the roots' some 20 (m^3 + n^3) every `precondition_every` steps. One grad.

    Args:
      learning_rate: a number or a schedule (step -> number); Adam's suit.
      b2: of the statistics; by default 0.999, or 0.95 with "kl".
      weight_decay: decoupled.
      block: larger dimensions are cut, and the blocks treated as matrices of their own.
      ridge: added to the eigenvalues, relative to the largest; see `optikit.linalg.roots`.
      root: "eigh", or "newton" by matrix products alone (which an accelerator prefers).
      stacked, apart: patterns of leaves that hold several matrices along their first axis, and of
        leaves to leave to Adam (embeddings); see `optikit.core.paths`.
      bucketed: False treats leaves of one shape one by one.

    Raises:
      ValueError: an unknown variant or period.

    Reference: Gupta, Koren & Singer (2018), "Shampoo", Algorithm 1; Anil et al. (2020), "Scalable
      second order optimization for deep learning" (grafting, blocks, ridge); Lin et al. (2025),
      "Understanding and improving Shampoo and SOAP via Kullback-Leibler minimization".

    Example:
      >>> import optikit as ok
      >>> sol = ok.minimize(lambda w: jnp.sum((w - 1) ** 2), jnp.zeros((2, 2)), max_steps=20,
      ...                   method=ok.optimizers.shampoo(0.1, precondition_every=5))
      >>> bool(sol.value < 0.5)
      True
    """
    check_every(precondition_every)
    if variant not in ("grafted", "kl"):
        msg = f"variant must be 'grafted' or 'kl'; got {variant!r}."
        raise ValueError(msg)
    if graft not in ("adam", "rmsprop"):
        msg = f"graft must be 'adam' or 'rmsprop'; got {graft!r}."
        raise ValueError(msg)
    kl = variant == "kl"
    b2 = (0.95 if kl else 0.999) if b2 is None else b2
    power = 2 if kl else 4

    def init(g: Stack) -> ShampooState:
        count, m, n = g.shape
        left, right = identities(count, m, g.dtype), identities(count, n, g.dtype)
        if not kl:
            return ShampooState(Moments.blank(g), 0 * left, 0 * right, left, right)
        size = root_mean_square(g)
        size = jnp.where(size > 0, size, 1)  # left x right is the mean square
        inverse = 1 / jnp.sqrt(size)
        return ShampooState(
            Moments.blank(g), size * left, size * right, inverse * left, inverse * right
        )

    def refresh(g: Stack, state: ShampooState, count: Int[Array, ""]) -> ShampooState:
        del g, count
        return state._replace(
            left_root=inverse_root(state.left, power, ridge=ridge, method=root),
            right_root=inverse_root(state.right, power, ridge=ridge, method=root),
        )

    def update(g: Stack, state: ShampooState, count: Int[Array, ""], key: Key):
        del key
        new_left, new_right = whitened_grams(g, state) if kl else grams(g)
        moments = state.moments.after(g, b1, b2)
        averaged = unbiased(b1, moments.first, count + 1)
        d = exact_product(exact_product(state.left_root, averaged), state.right_root)
        if not kl:
            adams = moments.direction(count + 1, b1, b2, eps)
            other = adams
            if graft == "rmsprop":
                other = g / (jnp.sqrt(unbiased(b2, moments.second, count + 1)) + eps)
            size = root_mean_square(d)
            scaled = d * (root_mean_square(other) / jnp.where(size > 0, size, 1))
            d = jnp.where(count < precondition_every, adams, scaled)
        new = state._replace(
            moments=moments,
            left=mixed(b2, state.left, new_left),
            right=mixed(b2, state.right, new_right),
        )
        return d, new

    def whitened_grams(g: Stack, state: ShampooState) -> tuple[Array, Array]:
        """(G R^-1 G^T / n, G^T L^-1 G / m), with the inverses as squares of their roots."""
        m, n = g.shape[1:]
        by_right = exact_product(g, state.right_root)
        by_left = exact_product(state.left_root, g)
        return grams(by_right)[0] / n, grams(by_left)[1] / m

    return matrix_method(
        MatrixRule(init, update, refresh, precondition_every),
        learning_rate=learning_rate,
        adam=Adam(learning_rate, b1, 0.999, eps),
        weight_decay=weight_decay,
        name="shampoo",
        block=block,
        stacked=stacked,
        apart=apart,
        bucketed=bucketed,
    )
