"""Small multilayer perceptrons: smooth, non-convex, with random starts."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from optikit import losses
from optikit.calculus import composite
from optikit.core import Key, Params
from optikit.problems.data import load, standardised
from optikit.problems.problem import Problem


def perceptron(params: Params, inputs: Float[Array, "m d"]) -> Float[Array, "m k"]:
    """Tanh layers and a linear one; params is a list of {"weights", "bias"}."""
    hidden = inputs
    for layer in params[:-1]:
        hidden = jnp.tanh(hidden @ layer["weights"] + layer["bias"][None, :])
    return hidden @ params[-1]["weights"] + params[-1]["bias"][None, :]


def initial_layers(key: Key, sizes: Sequence[int]) -> Params:
    """Weights normal with variance 1 / fan-in (LeCun), biases zero."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"weights": jax.random.normal(k, (a, b)) / a**0.5, "bias": jnp.zeros(b)}
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def mlp_classification(data: str = "digits", hidden: int = 32, l2: float = 1e-4) -> Problem:
    """A tanh network with one hidden layer under softmax cross-entropy + l2 |params|^2 / 2."""
    rows = load(data)
    sizes = (rows.inputs.shape[1], hidden, rows.classes)
    penalty = losses.l2(l2) if l2 else None
    return Problem(
        composite(perceptron, losses.softmax_cross_entropy, penalty=penalty),
        lambda key: initial_layers(key, sizes),
        (standardised(rows.inputs), rows.targets),
        description=f"MLP {'-'.join(map(str, sizes))} on {data}",
    )
