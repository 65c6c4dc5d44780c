"""Small multilayer perceptrons: smooth, non-convex, with random starts."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optikit import losses
from optikit.calculus import composite
from optikit.core import Key, Params
from optikit.problems.data import load, standardised
from optikit.problems.problem import Problem
from optikit.problems.sizes import at_least


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


def mlp_classification(
    data: str = "digits", hidden: int = 32, depth: int = 1, l2: float = 1e-4
) -> Problem:
    """A tanh network under softmax cross-entropy + l2 |params|^2 / 2.

    Args:
      data: a data set's name or address, with classes.
      hidden: units of each hidden layer.
      depth: hidden layers.
      l2: coefficient of the penalty, biases included.

    Raises:
      ValueError: the data has real targets.
    """
    at_least(1, hidden=hidden)
    at_least(0, depth=depth)
    rows = load(data)
    if rows.classes < 2:
        msg = f"classification needs classes; {data!r} has real targets: use mlp-regression."
        raise ValueError(msg)
    sizes = (rows.inputs.shape[1], *[hidden] * depth, rows.classes)
    return _network(sizes, rows.inputs, rows.targets, losses.softmax_cross_entropy, l2, data)


def mlp_regression(
    data: str = "diabetes", hidden: int = 32, depth: int = 1, l2: float = 1e-4
) -> Problem:
    """A tanh network under squared error + l2 |params|^2 / 2, on standardised targets.

    Args:
      data: a data set's name or address; integer targets are taken as numbers.
      hidden: units of each hidden layer.
      depth: hidden layers.
      l2: coefficient of the penalty, biases included.
    """
    at_least(1, hidden=hidden)
    at_least(0, depth=depth)
    rows = load(data)
    targets = standardised(rows.numbers()[:, None])
    sizes = (rows.inputs.shape[1], *[hidden] * depth, 1)
    return _network(sizes, rows.inputs, targets, losses.squared_error, l2, data)


def overparameterized_regression(
    data: str = "diabetes", hidden: int = 256, depth: int = 2
) -> Problem:
    """A tanh network with far more parameters than examples, under mean squared error alone.

    It can meet every standardised target, so the least value is 0: how soon a method gets there is
    a matter of conditioning. The matrix of a Gauss-Newton step is best formed over examples.

    Args:
      data: a data set's name or address; integer targets are taken as numbers.
      hidden: units of each hidden layer.
      depth: hidden layers.

    Raises:
      ValueError: there are no more parameters than examples.
    """
    problem = mlp_regression(data, hidden, depth, l2=0.0)
    inputs = problem.args[0]
    wide = (inputs.shape[1] + 1) * hidden + (depth - 1) * (hidden + 1) * hidden + hidden + 1
    if wide <= len(inputs):
        msg = f"{wide} parameters for {len(inputs)} examples: take more hidden units."
        raise ValueError(msg)
    return dataclasses.replace(problem, optimum=0.0)


def _network(
    sizes: Sequence[int],
    inputs: np.ndarray,
    targets: np.ndarray,
    loss: losses.Loss,
    l2: float,
    data: str,
) -> Problem:
    return Problem(
        composite(perceptron, loss, penalty=losses.l2(l2) if l2 else None),
        lambda key: initial_layers(key, sizes),
        (standardised(inputs), targets),
        description=f"MLP {'-'.join(map(str, sizes))} on {data}",
    )
