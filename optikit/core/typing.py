"""Aliases for what travels between the rooms."""

from typing import Any

import jax
from jaxtyping import Array, Float

PyTree = Any
"""Any nesting of tuples, lists, dicts and registered nodes with arrays at the leaves."""

Params = Any
"""A pytree whose leaves are real floating-point arrays: what is optimised."""

Scalar = Float[Array, ""]
"""A real number on the device, shape ()."""

Key = jax.Array
"""A typed PRNG key, from `jax.random.key`."""
