"""Gradient accumulation: a batch's model evaluated and differentiated piece by piece."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optikit.calculus.objective import Objective, fingerprint
from optikit.core import Params, memoized


@memoized
def accumulate(objective: Objective, microbatches: int) -> Objective:
    """The same objective in the memory of a microbatch: equal values, gradients and products.

    Examples are taken a microbatch at a time along axis 0 of the inputs, and each one's activations
    are computed again when it is differentiated: one more forward pass, 4/3 of the time. What is
    held of the whole batch are inputs and outputs. The objective keeps its structure, so every
    method works on it, curvature and sampled labels included, and a step is billed as on the whole
    batch. The model must treat examples one by one: batch statistics would be a microbatch's.

    Args:
      objective: from `composite`, or `residuals` all of whose arguments have examples along axis 0
        and whose residuals do too.
      microbatches: how many; it must divide the batch. A smaller batch is taken whole.

    Returns: the objective; auxiliary outputs are stacked, one for each microbatch.

    Raises:
      TypeError: the objective is a black box.
      ValueError: microbatches is not positive, or (when called) does not divide the batch.

    Example:
      >>> import optikit as ok
      >>> obj = ok.composite(lambda w, x: jnp.tanh(x @ w), ok.losses.squared_error)
      >>> data = (jnp.arange(8.0).reshape(4, 2), jnp.ones(4))
      >>> bool(jnp.allclose(accumulate(obj, 2)(jnp.ones(2), *data), obj(jnp.ones(2), *data)))
      True
    """
    if objective.kind == "black_box":
        msg = (
            "accumulate needs an Objective from composite(...) or residuals(...), whose examples "
            f"are known; got {fingerprint(objective)}."
        )
        raise TypeError(msg)
    if microbatches < 1:
        msg = f"microbatches must be a positive integer; got {microbatches!r}."
        raise ValueError(msg)
    fun = jax.checkpoint(objective.fun)

    def in_pieces(params: Params, *data: Any) -> Any:
        sizes = {jnp.shape(x)[0] for x in jax.tree.leaves(data)}
        if len(sizes) != 1:
            msg = f"axis 0 must number the examples of every array; their lengths are {sizes}."
            raise ValueError(msg)
        (batch,) = sizes
        if batch < microbatches or microbatches == 1:
            return objective.fun(params, *data)
        if batch % microbatches:
            msg = f"a batch of {batch} does not divide into {microbatches} microbatches."
            raise ValueError(msg)
        pieces = jax.tree.map(
            lambda x: jnp.reshape(x, (microbatches, batch // microbatches, *jnp.shape(x)[1:])), data
        )
        results = lax.map(lambda piece: fun(params, *piece), pieces)
        results, aux = results if objective.has_aux else (results, None)
        joined = jax.tree.map(_joined, results)
        return (joined, aux) if objective.has_aux else joined

    return objective._replace(fun=in_pieces)


def _joined(x: jax.Array) -> jax.Array:
    """(pieces, examples, ...) -> (pieces * examples, ...)."""
    return x.reshape((-1, *x.shape[2:]))
