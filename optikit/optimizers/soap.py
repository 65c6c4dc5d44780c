"""SOAP: Adam in the slowly turning eigenbasis of Shampoo's statistics."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from optikit.core import Key, memoized
from optikit.core.paths import Pattern
from optikit.optimizers.descent import Moments, Rate, check_every, mixed
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


class Side(NamedTuple):
    """Statistics of one side of a stack of matrices, and the basis found from them last."""

    moment: Float[Array, "b n n"]
    basis: Float[Array, "b n n"]  # orthonormal columns, largest eigenvalue first


class SoapState(NamedTuple):
    """The gradient's average as it stands; that of its squares in the basis; both sides."""

    moments: Moments
    left: Side | None  # a static None where the dimension is too large
    right: Side | None


@memoized
def soap(
    learning_rate: Rate = 3e-3,
    *,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    precondition_every: int = 10,
    largest: int = 10000,
    refresh_by: Literal["qr", "eigh"] = "qr",
    stacked: Sequence[Pattern] = (),
    apart: Sequence[Pattern] = (),
    bucketed: bool = True,
) -> Optimizer:
    """Adam on U_L^T G U_R, with U_L and U_R the eigenvectors of averages of G G^T and G^T G.

    The bases come from an eigendecomposition of the first gradient's, then from one QR power
    iteration every `precondition_every` steps, in which the columns, and the squares with them, are
    sorted anew. The first gradient only sets the bases: no matrix moves in the first step.

    Memory 2 (m^2 + n^2) beside Adam's; 6 m n (m + n) flops a step and as many for the statistics;
    one grad.

    Args:
      learning_rate: a number or a schedule (step -> number).
      weight_decay: decoupled; 0.01 in the published code.
      largest: a larger dimension is left as it is; a matrix of two such, and every leaf that is no
        matrix, gets Adam.
      refresh_by: "qr", or "eigh" for an exact basis every time.
      stacked, apart: patterns of leaves that hold several matrices along their first axis, and of
        leaves to leave to Adam; see `optikit.core.paths`.
      bucketed: False treats leaves of one shape one by one.

    Raises:
      ValueError: an unknown refresh or period.

    Reference: Vyas et al. (2024), "SOAP: Improving and stabilizing Shampoo using Adam", Algorithm
      3; defaults of its published code.

    Example:
      >>> import optikit as ok
      >>> sol = ok.minimize(lambda w: jnp.sum((w - 1) ** 2), jnp.zeros((2, 2)), max_steps=20,
      ...                   method=ok.optimizers.soap(0.1))
      >>> bool(sol.value < 0.5)
      True
    """
    check_every(precondition_every)
    if refresh_by not in ("qr", "eigh"):
        msg = f"refresh_by must be 'qr' or 'eigh'; got {refresh_by!r}."
        raise ValueError(msg)

    def init(g: Stack) -> SoapState:
        count, m, n = g.shape

        def side(size: int) -> Side | None:
            if size > largest:
                return None
            basis = identities(count, size, g.dtype)
            return Side(0 * basis, basis)

        return SoapState(Moments.blank(g), side(m), side(n))

    def refresh(g: Stack, state: SoapState, count: Int[Array, ""]) -> SoapState:
        left, right = grams(g)
        second = state.moments.second
        new_left, second = turned(state.left, left, second, count, 1)
        new_right, second = turned(state.right, right, second, count, 2)
        moments = state.moments._replace(second=second)
        return SoapState(moments, new_left, new_right)

    def turned(
        side: Side | None, gram: Array, second: Array, count: Int[Array, ""], axis: int
    ) -> tuple[Side | None, Array]:
        """A side with its basis found anew, and the squares in the order of its columns."""
        if side is None:
            return None, second
        moment = jnp.where(count == 0, mixed(b2, side.moment, gram), side.moment)

        def decomposed() -> tuple[Array, Array]:
            return jnp.linalg.eigh(moment)[1][..., ::-1], second

        def iterated() -> tuple[Array, Array]:
            image = exact_product(moment, side.basis)
            order = jnp.argsort(-jnp.sum(side.basis * image, axis=1), axis=-1)
            basis = jnp.linalg.qr(jnp.take_along_axis(image, order[:, None, :], axis=2))[0]
            shape = [second.shape[0], 1, 1]
            shape[axis] = -1
            return basis, jnp.take_along_axis(second, order.reshape(shape), axis=axis)

        if refresh_by == "eigh":
            basis, second = decomposed()
        else:
            basis, second = lax.cond(count == 0, decomposed, iterated)
        return Side(moment, basis), second

    def update(g: Stack, state: SoapState, count: Int[Array, ""], key: Key):
        del key
        left, right = state.left, state.right
        rotated = into(g, left, right)
        # the first gradient is in the statistics already, and moves nothing
        begun = count > 0
        first = jnp.where(begun, mixed(b1, state.moments.first, g), state.moments.first)
        second = jnp.where(
            begun, mixed(b2, state.moments.second, rotated * rotated), state.moments.second
        )
        d = Moments(into(first, left, right), second).direction(count, b1, b2, eps)
        d = jnp.where(begun, out_of(d, left, right), 0)
        by_left, by_right = grams(g)
        new = SoapState(
            Moments(first, second), seen(left, by_left, begun), seen(right, by_right, begun)
        )
        return d, new

    def seen(side: Side | None, gram: Array, begun: Array) -> Side | None:
        if side is None:
            return None
        return side._replace(moment=jnp.where(begun, mixed(b2, side.moment, gram), side.moment))

    return matrix_method(
        MatrixRule(init, update, refresh, precondition_every),
        learning_rate=learning_rate,
        adam=Adam(learning_rate, b1, b2, eps),
        weight_decay=weight_decay,
        name="soap",
        largest=largest,
        stacked=stacked,
        apart=apart,
        bucketed=bucketed,
    )


def into(x: Stack, left: Side | None, right: Side | None) -> Stack:
    """U_L^T X U_R."""
    if left is not None:
        x = exact_product(jnp.swapaxes(left.basis, 1, 2), x)
    return x if right is None else exact_product(x, right.basis)


def out_of(x: Stack, left: Side | None, right: Side | None) -> Stack:
    """U_L X U_R^T."""
    if left is not None:
        x = exact_product(left.basis, x)
    return x if right is None else exact_product(x, jnp.swapaxes(right.basis, 1, 2))
