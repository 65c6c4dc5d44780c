"""Which examples a step sees: a pure function of a key and the step, so that rivals see the same.

Nothing is stored between steps: a batch can be drawn inside a compiled loop, again after a resume,
and out of order.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from optikit.core import Key, memoized

Batches = Callable[[Key, Int[Array, ""], tuple], tuple]
"""(key, step, args) -> the args of that step's batch."""

_ROUNDS = 8


@memoized
def epochs(size: int) -> Batches:
    """Batches of `size` examples without repetition, in another random order in every epoch.

    Examples stand along axis 0 of every leaf of args. The examples that are left over at the end
    of an epoch (fewer than a batch) are skipped in it.

    Raises:
      ValueError: when drawn, a size that is not 1 to the number of examples.

    Example:
      >>> data = (jnp.arange(10),)
      >>> one, two = (epochs(5)(jax.random.key(0), jnp.asarray(k), data)[0] for k in (0, 1))
      >>> sorted([*one.tolist(), *two.tolist()])
      [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def batch(key: Key, step: Int[Array, ""], args: tuple) -> tuple:
        examples = jax.tree.leaves(args)[0].shape[0]
        if not 1 <= size <= examples:
            msg = f"a batch of {size} cannot be drawn from {examples} examples."
            raise ValueError(msg)
        each = examples // size
        step = jnp.asarray(step, jnp.int32)
        epoch, within = step // each, step % each
        places = (within * size + jnp.arange(size, dtype=jnp.int32)).astype(jnp.uint32)
        rows = shuffled(jax.random.fold_in(key, epoch), places, examples)
        return jax.tree.map(lambda x: x[rows], args)

    return batch


@memoized
def windows(size: int) -> Batches:
    """Batches of `size` windows at random places of a sequence, and the same ones a place later.

    args are the sequence cut into windows: (windows, places) of entries and of those that follow.

    Example:
      >>> data = (jnp.arange(12).reshape(3, 4), jnp.arange(1, 13).reshape(3, 4))
      >>> seen, following = windows(2)(jax.random.key(0), jnp.asarray(0), data)
      >>> seen.shape, bool((following == seen + 1).all())
      ((2, 4), True)
    """
    if size < 1:
        msg = f"a batch must hold at least one window; got {size}."
        raise ValueError(msg)

    def batch(key: Key, step: Int[Array, ""], args: tuple) -> tuple:
        inputs, targets = args
        length = inputs.shape[1]
        last = inputs.size - length
        own = jax.random.fold_in(key, step)
        begin = jax.random.randint(own, (size, 1), 0, last + 1, jnp.int32)
        places = begin + jnp.arange(length, dtype=jnp.int32)[None, :]
        return inputs.ravel()[places], targets.ravel()[places]

    return batch


def shuffled(key: Key, places: Int[Array, " b"], n: int) -> Int[Array, " b"]:
    """Where a random permutation of 0, ..., n - 1 puts some of these numbers.

    A Feistel network over the next larger rectangle, walked until it ends inside: the cost is that
    of the places asked for, not of all n.

    Reference: Black & Rogaway (2002), "Ciphers with arbitrary finite domains", sections 3 and 5.
    """
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)
    sides = (jnp.uint32(rows), jnp.uint32(columns))

    def once(x: Array) -> Array:
        left, right = x % sides[0], x // sides[0]
        for k in range(_ROUNDS):  # left is of 0, ..., rows - 1 before even rounds
            side = sides[k % 2]
            left, right = right, (left + _mixed(right, keys[k]) % side) % side
        return left + sides[0] * right

    def walk(x: Array) -> Array:
        return jnp.where(x < n, x, once(x))

    found = jax.lax.while_loop(lambda x: jnp.any(x >= n), walk, once(places.astype(jnp.uint32)))
    return found.astype(jnp.int32)


def _mixed(x: Array, key: Array) -> Array:
    """A hash of 32 bits (MurmurHash3's finaliser, Appleby 2011)."""
    x = x ^ key
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
