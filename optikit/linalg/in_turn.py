"""Decompositions of several stacks of matrices, one after another.

On a CPU a batched decomposition waits, on a thread of XLA's pool, for the parts that it has handed
to the same pool. As many of them at once as there are threads wait for each other for ever (with
jaxlib 0.10.2, two batched `eigh` on two cores). XLA runs independent operations at once, so each is
made to depend on the one before.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def in_turn(
    decompose: Callable[[Float[Array, "b n n"]], Float[Array, "b n n"]],
    stacks: Sequence[Float[Array, "_ n n"]],
) -> list[Float[Array, "_ n n"]]:
    """`decompose` of every stack: those of one size in one call, and one size at a time.

    Args:
      decompose: matrix by matrix, in the dtype and of the size that it is given.

    Example:
      >>> import jax.numpy as jnp
      >>> q = in_turn(lambda a: jnp.linalg.qr(a)[0], [jnp.ones((1, 2, 2)), jnp.ones((3, 2, 2))])
      >>> [x.shape for x in q]
      [(1, 2, 2), (3, 2, 2)]
    """
    sizes: dict[int, list[int]] = {}
    for i, stack in enumerate(stacks):
        sizes.setdefault(stack.shape[-1], []).append(i)
    found: list[Array] = list(stacks)
    previous = None
    for members in sizes.values():
        previous = decompose(after(previous, jnp.concatenate([stacks[i] for i in members])))
        start = 0
        for i in members:
            found[i] = previous[start : start + stacks[i].shape[0]]
            start += stacks[i].shape[0]
    return found


def after(previous: Float[Array, "..."] | None, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x`, which is not there before `previous` is; as it is where that is None.

    Example:
      >>> after(jnp.ones(2), jnp.arange(3.0)).tolist()
      [0.0, 1.0, 2.0]
    """
    if previous is None:
        return x
    # never so, which the compiler cannot know: a barrier would be removed on a CPU
    never = previous.ravel()[0] < -jnp.finfo(previous.dtype).max / 2
    return jnp.where(never, jnp.zeros_like(x), x)
