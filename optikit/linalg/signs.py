"""Random vectors of signs, as pytrees."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from optikit.core import Key
from optikit.core.typing import PyTree


def signs(key: Key, like: PyTree) -> PyTree:
    """Independent random signs in the shapes and dtypes of `like`, a key for each leaf.

    A random word makes 32 of them: a word for each would be drawn in six arrays of that size.

    Example:
      >>> found = signs(jax.random.key(0), {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))})
      >>> sorted({abs(float(x)) for leaf in jax.tree.leaves(found) for x in leaf.ravel()})
      [1.0]
    """
    leaves, structure = jax.tree.flatten(like)
    places = jnp.arange(32, dtype=jnp.uint32)[None]

    def drawn(key: Key, leaf: Array) -> Array:
        words = jax.random.bits(key, (-(-leaf.size // 32), 1), jnp.uint32)
        bits = ((words >> places) & 1).astype(bool).ravel()[: leaf.size]
        one = jnp.ones((), leaf.dtype)
        return jnp.where(bits, one, -one).reshape(leaf.shape)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [drawn(k, x) for k, x in zip(keys, leaves, strict=True)])
