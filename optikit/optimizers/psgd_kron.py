"""PSGD with Kronecker factors: a whitening preconditioner fitted by products alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from optikit.core import Key, memoized
from optikit.core.paths import Pattern
from optikit.optimizers.descent import (
    Rate,
    check_every,
    mixed,
    rate_at,
    root_mean_square,
    unbiased,
)
from optikit.optimizers.matrix_method import Adam, MatrixRule, Stack, identities, matrix_method
from optikit.optimizers.protocol import Optimizer


class Factor(NamedTuple):
    """Q of one side, symmetric positive definite, and a running bound for its slope's norm."""

    q: Float[Array, "b n n"] | Float[Array, "b n"]  # a diagonal where the side is too large
    bound: Float[Array, "b"]


class PsgdState(NamedTuple):
    """The gradient's average, both factors, and the steps since they were last improved."""

    momentum: Stack
    left: Factor
    right: Factor
    waited: Int[Array, ""]


def annealed(step: Int[Array, ""]) -> Float[Array, ""]:
    """The period between improvements: 1 for 500 steps, then growing to 33 by step 4000."""
    return 1 / jnp.clip(jnp.exp(-0.001 * (step.astype(jnp.float32) - 500)), 0.03, 1)


@memoized
def psgd_kron(
    learning_rate: Rate = 3e-4,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    preconditioner_rate: float = 0.1,
    bound_decay: float = 0.9,
    precondition_every: int | Callable[[Any], Any] = annealed,
    damping: float = 1e-6,
    clip: float = 1.1,
    largest: int = 8192,
    stacked: Sequence[Pattern] = (),
    apart: Sequence[Pattern] = (),
    bucketed: bool = True,
) -> Optimizer:
    """Steps along P M = P_L M P_R with M the averaged gradient, where P = P_L x P_R whitens it.

    P minimises E[g^T P g + v^T P^-1 v] over random signs v, at which E[P g g^T P] is the identity:
    P is the inverse square root of the second moment. Its factors are squares, P_L = Q_L Q_L, and
    are improved by Q <- (I - E) Q (I - E) with E a multiple of T / n - I, T the Gram matrix of P M
    on that side: no inverse, no decomposition, and Q stays positive definite. Leaves that are no
    matrices get Adam, whose direction is the diagonal case's fixed point.

    Memory m^2 + n^2 beside momentum; 4 m n (m + n) flops a step, as many again and
    4 (m^3 + n^3) where the factors are improved; one grad.

    Args:
      learning_rate: a number or a schedule (step -> number); about a third of Adam's.
      weight_decay: decoupled.
      preconditioner_rate: of the factors, in (0, 1).
      bound_decay: how slowly the bound for the slope's norm is forgotten.
      precondition_every: a number of steps, or a schedule of it.
      damping: noise relative to the gradient's, so that directions without any gradient are not
        amplified without end.
      clip: the direction's largest root mean square.
      largest: a larger dimension gets a diagonal factor.
      stacked, apart: patterns of leaves that hold several matrices along their first axis, and of
        leaves to leave to Adam; see `optikit.core.paths`.
      bucketed: False treats leaves of one shape one by one.

    Reference: Li (2018), "Preconditioned stochastic gradient descent", eq. 8; Pooladzandi & Li
      (2024), "Curvature-informed SGD via general purpose Lie-group preconditioners"; the step and
      the bound as in the author's published code ("QUAD").

    Example:
      >>> import optikit as ok
      >>> sol = ok.minimize(lambda w: jnp.sum((w - 1) ** 2), jnp.zeros((2, 2)), max_steps=40,
      ...                   method=ok.optimizers.psgd_kron(0.05))
      >>> bool(sol.value < 0.5)
      True
    """
    if not callable(precondition_every):
        check_every(precondition_every)

    def init(g: Stack) -> PsgdState:
        count, m, n = g.shape
        size = root_mean_square(g)
        q = jnp.where(size > 0, size, 1) ** -0.25  # so that P g has entries of size 1

        def factor(d: int) -> Factor:
            diagonal = jnp.broadcast_to(q[:, :, 0], (count, d))
            start = diagonal if d > largest else q * identities(count, d, g.dtype)
            return Factor(start, jnp.zeros(count, g.dtype))

        return PsgdState(jnp.zeros_like(g), factor(m), factor(n), jnp.asarray(0, jnp.int32))

    def update(g: Stack, state: PsgdState, count: Int[Array, ""], key: Key):
        average = mixed(momentum, state.momentum, g)
        now = unbiased(momentum, average, count + 1)
        period = rate_at(precondition_every, count, g.dtype)
        due = (state.waited + 1).astype(g.dtype) >= period
        left, right = lax.cond(
            due,
            lambda: improved(now, state.left, state.right, key),
            lambda: (state.left, state.right),
        )
        d = preconditioned(now, left, right)
        size = root_mean_square(d)
        d = d * jnp.minimum(1, clip / jnp.where(size > 0, size, 1))
        waited = jnp.where(due, 0, state.waited + 1)
        return d, PsgdState(average, left, right, waited)

    def improved(g: Stack, left: Factor, right: Factor, key: Key) -> tuple[Factor, Factor]:
        noise = jax.random.normal(key, g.shape, g.dtype)
        size = root_mean_square(g)
        x = preconditioned(g + damping * size * noise, left, right)
        m, n = g.shape[1:]
        new_left = fitted(left, x, n)
        new_right = fitted(right, jnp.swapaxes(x, 1, 2), m)
        return balanced(new_left, new_right)

    def fitted(factor: Factor, x: Stack, across: int) -> Factor:
        """Q after one improvement; x has this side first, and `across` columns."""
        target = jnp.asarray(across, x.dtype)  # E[x x^T] of a white x
        if factor.q.ndim == 2:
            t = jnp.sum(x * x, axis=2)
            bound = bounded(factor, jnp.max(t, axis=1) + target)
            shrunk = 1 - preconditioner_rate / 2 * (t - target) / bound[:, None]
            return Factor(factor.q * shrunk * shrunk, bound)
        t = jnp.matmul(x, jnp.swapaxes(x, 1, 2))
        bound = bounded(factor, norm_bound(t) + target)
        eye = identities(*t.shape[:2], t.dtype)
        e = preconditioner_rate / 2 * (t - target * eye) / bound[:, None, None]
        half = factor.q - jnp.matmul(e, factor.q)
        q = half - jnp.matmul(half, e)
        return Factor((q + jnp.swapaxes(q, 1, 2)) / 2, bound)

    def bounded(factor: Factor, new: Array) -> Array:
        return jnp.maximum(mixed(bound_decay, factor.bound, new), new)

    return matrix_method(
        MatrixRule(init, update),
        learning_rate=learning_rate,
        adam=Adam(learning_rate, momentum),
        weight_decay=weight_decay,
        name="psgd-kron",
        stacked=stacked,
        apart=apart,
        bucketed=bucketed,
    )


def preconditioned(x: Stack, left: Factor, right: Factor) -> Stack:
    """Q_L Q_L X Q_R Q_R."""
    for _ in range(2):
        x = left.q[:, :, None] * x if left.q.ndim == 2 else jnp.matmul(left.q, x)
        x = x * right.q[:, None, :] if right.q.ndim == 2 else jnp.matmul(x, right.q)
    return x


def norm_bound(a: Float[Array, "b n n"]) -> Float[Array, "b"]:
    """Nearly the spectral norm of symmetric matrices, from below: one power step from a row."""
    rows = jnp.sum(a * a, axis=2)
    largest = jnp.take_along_axis(a, jnp.argmax(rows, axis=1)[:, None, None], axis=1)
    start = largest / jnp.maximum(jnp.max(jnp.abs(largest), axis=2, keepdims=True), tiny(a))
    image = jnp.matmul(start, a)
    size = jnp.sqrt(jnp.sum(image * image, axis=(1, 2)))
    return size / jnp.maximum(jnp.sqrt(jnp.sum(start * start, axis=(1, 2))), tiny(a))


def tiny(a: Array) -> float:
    """The smallest normal number of its dtype."""
    return float(jnp.finfo(a.dtype).tiny)


def balanced(left: Factor, right: Factor) -> tuple[Factor, Factor]:
    """The same product with factors of equal size, so that neither overflows."""

    def size(factor: Factor) -> Array:
        return jnp.max(jnp.abs(factor.q), axis=tuple(range(1, factor.q.ndim)))

    ratio = jnp.sqrt(size(right) / size(left))

    def scaled(factor: Factor, by: Array) -> Factor:
        return factor._replace(q=factor.q * by.reshape(by.shape + (1,) * (factor.q.ndim - 1)))

    return scaled(left, ratio), scaled(right, 1 / ratio)
