"""A quadratic model of the objective on the span of a few directions, without its matrix."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optikit.calculus.layers import model_of
from optikit.calculus.objective import example_losses, loss_of, mean_weights, split_data
from optikit.calculus.oracle import Oracle
from optikit.core import Params, tree


def inner_products(oracle: Oracle, params: Params, directions: list[Params]) -> Float[Array, "d d"]:
    """<u, F v> for all pairs of directions, F the Gauss-Newton matrix with the penalty's Hessian.

    Price: Counts(value=1, jvp=d): products with the Jacobian, none with its transpose.
    """
    objective = oracle.objective
    predict, inputs = model_of(objective, oracle.args)
    oracle.tap("value")
    outputs, forward = jax.linearize(lambda p: predict(p, inputs), params)
    moved = []
    for direction in directions:
        oracle.tap("jvp")
        moved.append(forward(direction))
    if objective.kind == "residuals":
        bent = moved
        robust = objective.robust
        if robust is not None:
            weights = jax.tree.map(lambda r: robust.scaled(r)[1] ** 2, outputs)
            bent = [jax.tree.map(jnp.multiply, weights, m) for m in moved]
    else:
        loss = loss_of(objective)
        _, targets, weights = split_data(objective, oracle.args)
        values = example_losses(objective, outputs, targets, weights)[0]
        factor = mean_weights(values, weights)
        factor = factor.reshape(factor.shape + (1,) * loss.event_ndim)
        bent = [jnp.where(factor == 0, 0, factor * loss.hvp(outputs, targets, m)) for m in moved]
    rows = [[tree.vdot(u, v) for v in bent] for u in moved]
    products = jnp.stack([jnp.stack(row) for row in rows])
    penalty = objective.penalty
    if penalty is not None:
        gradient = jax.grad(penalty.value)
        extra = [jax.jvp(gradient, (params,), (v,))[1] for v in directions]
        more = [[tree.vdot(u, v) for v in extra] for u in directions]
        products = products + jnp.stack([jnp.stack(row) for row in more]).astype(products.dtype)
    return products
