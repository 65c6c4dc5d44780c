"""The curvature of a mean over more examples than fit in memory: products by scans of batches."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optikit.calculus.objective import Objective, split_data
from optikit.calculus.oracle import CurvatureKind, bind, columns
from optikit.core import Counts, Key, LinearOperator, Params, tally, times, tree


def curvature_in_batches(
    objective: Objective,
    params: Params,
    args: tuple,
    kind: CurvatureKind,
    batch_size: int,
    key: Key | None = None,
) -> LinearOperator:
    """The operator of all examples, from `batch_size` of them at a time along axis 0 of args.

    A composite objective's batches enter with their share of the weights, so a last batch may be
    smaller; any other objective must be a mean over examples, with batches of one size. Memory is
    that of one batch; as nothing is kept, a product linearises anew: one grad more.

    Raises:
      ValueError: leading axes that disagree, batches of unequal size where these need weights, or
        none.
      TypeError: residuals, which are summed.
    """
    if objective.kind == "residuals":
        msg = "residuals are summed, not averaged, over examples: pass batch_size=None."
        raise TypeError(msg)
    chunks, shares = _chunks(objective, args, batch_size)
    keys = None if key is None else jax.random.split(key, len(shares))

    def product(v: Params) -> Params:
        def step(total: Params, chunk: Any) -> tuple[Params, None]:
            batch, share, one = chunk
            part = bind(objective, batch).curvature(kind, params, one).mv(v)
            return tree.add_scaled(total, share, part), None

        return lax.scan(step, tree.zeros_like(v), (chunks, shares, keys))[0]

    call = Counts(hvp=1) if kind == "hessian" else Counts(ggnvp=1)
    setup = Counts(grad=1) if kind == "hessian" else Counts(value=1)
    price = tally(call, setup)
    return LinearOperator(
        linearize=lambda: product,
        matrix=lambda: columns(product, params),
        price=price,
        setup=Counts(),
        matrix_price=times(tree.size(params), price),
    )


def _chunks(objective: Objective, args: tuple, batch_size: int) -> tuple[tuple, jax.Array]:
    """Args with a leading axis of batches, and each batch's share of the mean."""
    sizes = {jnp.shape(x)[0] if jnp.ndim(x) else 0 for x in jax.tree.leaves(args)}
    if len(sizes) != 1 or 0 in sizes:
        msg = f"batches run along axis 0 of every array in args; their lengths are {sizes}."
        raise ValueError(msg)
    if batch_size < 1:
        msg = f"batch_size={batch_size}: give 1 or more examples at a time."
        raise ValueError(msg)
    rows = sizes.pop()
    count = -(-rows // batch_size)
    missing = count * batch_size - rows
    if objective.kind == "composite":
        inputs, targets, weights = split_data(objective, args)
        dtype = jnp.result_type(float) if weights is None else jnp.asarray(weights).dtype
        weights = jnp.ones(rows, dtype) if weights is None else jnp.asarray(weights)
        args = (inputs, targets, weights)
    elif missing:
        msg = f"{rows} examples do not divide into batches of {batch_size}: here they must."
        raise ValueError(msg)

    def cut(x: Any, fill: str) -> jax.Array:
        x = jnp.asarray(x)
        pad = [(0, missing)] + [(0, 0)] * (x.ndim - 1)
        padded = jnp.pad(x, pad, mode=fill) if missing else x
        return padded.reshape(count, batch_size, *x.shape[1:])

    if objective.kind == "composite":
        data = jax.tree.map(lambda x: cut(x, "edge"), args[:2])
        mass = cut(args[2], "constant")
        chunks = (*data, mass)
        totals = jnp.sum(mass.reshape(count, -1), axis=1)
    else:
        chunks = jax.tree.map(lambda x: cut(x, "edge"), args)
        totals = jnp.ones(count)
    return chunks, totals / jnp.sum(totals)
