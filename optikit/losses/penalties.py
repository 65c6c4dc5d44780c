"""Penalties on the parameters, added to the mean loss of a composite objective."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optikit.core import Params, Scalar, memoized, tree

Coefficients = Any  # a number, or a pytree prefix of the parameters with a number per group


class Penalty(NamedTuple):
    """A function of the parameters alone, usually a sum over entries with a diagonal Hessian.

    Attributes:
      value: params -> scalar.
      diagonal: params -> the Hessian's diagonal, in the structure of params; None for a penalty
        that is not separable, whose Hessian is then found by autodiff.
      residual: params -> pytree r with value = |r|^2 / 2, for sums of squares; else None.
      name: for messages and reports.
      even: whether the diagonal is one and the same number for all entries.
    """

    value: Callable[[Params], Scalar]
    diagonal: Callable[[Params], Params] | None
    residual: Callable[[Params], Params] | None = None
    name: str = "penalty"
    even: bool = False


def _grouped(build):
    """A factory over coefficients in any pytree, memoised on their values and structure."""
    cached = memoized(build)

    def factory(coefficients: Coefficients, *args: Any) -> Penalty:
        leaves, structure = jax.tree.flatten(coefficients)
        return cached(tuple(leaves), structure, *args)

    return factory


def _by_group(function, leaves: tuple, structure, params: Params) -> Params:
    """function(coefficient, leaf) over all leaves, each with its group's coefficient."""
    try:
        return jax.tree.map(
            lambda c, group: jax.tree.map(lambda w: function(jnp.asarray(c, w.dtype), w), group),
            jax.tree.unflatten(structure, leaves),
            params,
        )
    except ValueError as error:
        msg = f"the penalty's coefficients {structure} are no prefix of the parameters: {error}"
        raise ValueError(msg) from error


def _total(terms: Params) -> Scalar:
    sums = [jnp.sum(x.astype(tree.inner_dtype(x))) for x in jax.tree.leaves(terms)]
    return functools.reduce(operator.add, sums)


@_grouped
def _l2(leaves: tuple, structure) -> Penalty:
    return Penalty(
        value=lambda p: _total(_by_group(lambda c, w: c * w**2 / 2, leaves, structure, p)),
        diagonal=lambda p: _by_group(
            lambda c, w: jnp.broadcast_to(c, w.shape), leaves, structure, p
        ),
        residual=lambda p: _by_group(lambda c, w: jnp.sqrt(c) * w, leaves, structure, p),
        name="l2",
        even=structure.num_nodes == 1 and len(leaves) == 1,
    )


def l2(coefficients: Coefficients) -> Penalty:
    """sum_g c_g |w_g|^2 / 2: gradient c w, as optax's weight decay.

    Args:
      coefficients: one number for all parameters, or a pytree prefix of the parameters with a
        non-negative number per group: `l2({"w": 1e-4, "b": 0.0})` leaves the bias free.

    Example:
      >>> float(l2({"w": 0.5, "b": 0.0}).value({"w": jnp.array([2.0]), "b": jnp.array(9.0)}))
      1.0
    """
    return _l2(coefficients)


@_grouped
def _smooth_l1(leaves: tuple, structure, width: float) -> Penalty:
    def value(c, w):
        # sqrt(w^2 + width^2) - width without cancellation near 0
        return c * w**2 / (jnp.sqrt(w**2 + width**2) + width)

    return Penalty(
        value=lambda p: _total(_by_group(value, leaves, structure, p)),
        diagonal=lambda p: _by_group(
            lambda c, w: c * width**2 / (w**2 + width**2) ** 1.5, leaves, structure, p
        ),
        name="smooth_l1",
    )


def smooth_l1(coefficients: Coefficients, width: float = 1e-3) -> Penalty:
    """sum_g c_g sum(sqrt(w^2 + width^2) - width): the L1 norm with its corner rounded.

    Args:
      coefficients: as for `l2`.
      width: where it turns from quadratic to linear; |w| is missed by at most `width`.

    Example:
      >>> float(smooth_l1(1.0, 1e-3).value(jnp.array([3.0, -4.0]))) > 6.99
      True
    """
    return _smooth_l1(coefficients, width)
