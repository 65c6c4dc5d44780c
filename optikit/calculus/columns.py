"""Dense matrices from products: many columns together, but no more than a cache or a memory holds.

Products with unit vectors are independent, and together they fill a machine that one alone would
leave idle. Where a single product already works on large arrays, the same arrays times the number
of columns leave the cache of a CPU, and the columns are faster one after another.
"""

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from optikit.core import Params

COLUMNS_AT_ONCE = 256
"""Products evaluated together when a dense matrix is built from products, at most."""

FEW = 8
"""Columns up to which nobody looks how large the products are."""

CPU_BYTES, DEVICE_BYTES = 2**20, 2**31
"""The largest array of a group of products: what stays in a core's cache, what a device spares."""


def value_and_jacobian(
    function: Callable[[Params], Float[Array, " m"]], params: Params
) -> tuple[Float[Array, " m"], Float[Array, "m n"]]:
    """A vector function and its dense Jacobian over the ravelled parameters, in one sweep."""
    flat, unravel = ravel_pytree(params)
    value, push = jax.linearize(lambda v: function(unravel(v)), flat)
    if value.size >= flat.size:
        return value, map_units(push, flat).T
    pull = jax.linear_transpose(push, flat)
    return value, map_units(lambda u: pull(u)[0], value)


def columns(product: Callable[[Params], Params], params: Params) -> Float[Array, "n n"]:
    """The dense matrix of a symmetric product over the ravelled parameters."""
    flat, unravel = ravel_pytree(params)
    matrix = map_units(lambda v: ravel_pytree(product(unravel(v)))[0], flat)
    return (matrix + matrix.T) / 2


def map_units(
    function: Callable[[Float[Array, " n"]], Float[Array, " m"]], like: Float[Array, " n"]
) -> Float[Array, "n m"]:
    """function(e_i) as rows, in groups that fit.

    Example:
      >>> map_units(lambda v: 2.0 * v, jnp.zeros(2)).tolist()
      [[2.0, 0.0], [0.0, 2.0]]
    """
    units = jnp.eye(like.size, dtype=like.dtype)
    if like.size <= FEW:
        return jax.vmap(function)(units)
    traced = jax.make_jaxpr(function)(like)
    room = CPU_BYTES if jax.default_backend() == "cpu" else DEVICE_BYTES
    together = min(max(room // max(_sizes(traced.jaxpr), default=1), 1), COLUMNS_AT_ONCE)

    def row(unit: Array) -> Array:
        return jex.jaxpr_as_fun(traced)(unit)[0]

    if together >= like.size:
        return jax.vmap(row)(units)
    return lax.map(row, units, batch_size=together)


def _sizes(jaxpr: jex.Jaxpr) -> Iterator[int]:
    """Bytes of every array that a program makes, also within its loops and calls."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            shape = getattr(variable.aval, "shape", ())
            itemsize = getattr(getattr(variable.aval, "dtype", None), "itemsize", 1)
            yield max(1, math.prod(shape)) * itemsize
        for inner in jex.jaxprs_in_params(equation.params):
            yield from _sizes(inner)
