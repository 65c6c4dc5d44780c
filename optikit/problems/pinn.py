"""Physics-informed networks: a differential equation as a least-squares problem in the weights.

A tanh network u(x) is fitted so that the equation holds at points inside the domain and the data at
points on its boundary. Derivatives with respect to x are carried forward through the network
together with the value, in one matrix product per layer (as the "forward Laplacian" of Li et al.),
so that curvature methods see each weight enter once, shared by the derivatives.

References: Raissi, Perdikaris & Karniadakis (2019); Mueller & Zeinhofer (2023), "Achieving high
accuracy with PINNs via energy natural gradient descent", sections 4 and C (the problems); Dangel,
Mueller & Zeinhofer (2024), "Kronecker-factored approximate curvature for physics-informed neural
networks" (the sharing); Li et al. (2023), arXiv:2307.08214 (the forward Laplacian).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from optikit import losses
from optikit.calculus import composite
from optikit.core import Params, Scalar
from optikit.problems.networks import initial_layers, perceptron
from optikit.problems.problem import Metric, Problem
from optikit.problems.sizes import at_least

_TEST_POINTS = 9000


def differentials(
    params: Params, points: Float[Array, "m d"], weights: Sequence[float]
) -> tuple[Float[Array, " m"], Float[Array, "m d"], Float[Array, " m"]]:
    """(u, grad u, sum_i weights[i] d^2 u / dx_i^2) of a scalar `perceptron` at some points.

    Costs as many forward passes as the domain has dimensions, and two.
    """
    m, d = points.shape
    dtype = points.dtype
    units = jnp.broadcast_to(jnp.eye(d, dtype=dtype), (m, d, d))
    # along axis 1: the value, its d first derivatives, the weighted second one
    carried = jnp.concatenate([points[:, None], units, jnp.zeros((m, 1, d), dtype)], axis=1)
    bends = jnp.asarray(weights, dtype)[None, :, None]
    for layer in params[:-1]:
        product = carried @ layer["weights"]
        value = jnp.tanh(product[:, 0] + layer["bias"][None, :])
        slope = 1 - value**2
        first, second = product[:, 1:-1], product[:, -1]
        bend = slope * (second - 2 * value * jnp.sum(bends * first**2, axis=1))
        carried = jnp.concatenate([value[:, None], slope[:, None] * first, bend[:, None]], axis=1)
    last = (carried @ params[-1]["weights"])[..., 0]
    return last[:, 0] + params[-1]["bias"], last[:, 1:-1], last[:, -1]


def poisson_operator(
    params: Params, inputs: tuple[Float[Array, "m d"], Bool[Array, " m"]]
) -> Float[Array, " m"]:
    """-Laplace u at the points inside, u at those on the boundary."""
    points, inside = inputs
    value, _, laplacian = differentials(params, points, (1.0,) * points.shape[1])
    return jnp.where(inside, -laplacian, value)


def heat_operator(
    params: Params, inputs: tuple[Float[Array, "m 2"], Bool[Array, " m"]]
) -> Float[Array, " m"]:
    """u_t - u_xx / 4 at the points (t, x) inside, u at those on the boundary and at t = 0."""
    points, inside = inputs
    value, gradient, bend = differentials(params, points, (0.0, 1.0))
    return jnp.where(inside, gradient[:, 0] - bend / 4, value)


_POISSON = composite(poisson_operator, losses.squared_error)
_HEAT = composite(heat_operator, losses.squared_error)


def pinn_poisson(
    dimension: int = 2,
    hidden: Sequence[int] | int = 64,
    interior: int = 900,
    boundary: int = 120,
    truth: Literal["auto", "sin-product", "cos-sum"] = "auto",
    seed: int = 0,
) -> Problem:
    """-Laplace u = f on the unit cube with u given on its boundary, by a tanh network.

    The objective is half the mean square of the equation's residual plus half that of the
    boundary's, as a mean over all points with weights: arguments (points, inside), right-hand
    sides, weights. Reported besides: the relative L2 error of u at 9000 other points.

    Args:
      dimension: of the cube. A larger one for a GPU: 5, with hidden [64, 64, 48, 48], 3000 points
        inside and 500 on the boundary.
      hidden: units of the hidden layer, or of each.
      interior, boundary: points, uniform, the same in every run.
      truth: the solution: prod sin(pi x_i), or sum cos(pi x_i); by default the product up to two
        dimensions (it is nearly zero nearly everywhere in many).
      seed: of the points; the network's start is drawn from the trial's own seed.
    """
    sines = truth == "sin-product" or (truth == "auto" and dimension <= 2)
    if truth not in ("auto", "sin-product", "cos-sum"):
        msg = f"unknown truth {truth!r}: use 'auto', 'sin-product' or 'cos-sum'."
        raise ValueError(msg)
    at_least(1, dimension=dimension, hidden=hidden, interior=interior, boundary=boundary)
    solution = sine_product if sines else cosine_sum
    factor = np.pi**2 * (dimension if sines else 1)
    rng = np.random.default_rng(seed)
    inside, test = rng.random((interior, dimension)), rng.random((_TEST_POINTS, dimension))
    edge = rng.random((boundary, dimension))
    edge[np.arange(boundary), rng.integers(dimension, size=boundary)] = rng.integers(
        2, size=boundary
    )
    return _fitted(
        _POISSON,
        _sizes(dimension, hidden),
        (inside, factor * solution(inside)),
        (edge, solution(edge)),
        (test, solution(test)),
        f"{'sin product' if sines else 'cos sum'} from -Laplace u = f in {dimension}-D",
    )


def pinn_heat(
    hidden: Sequence[int] | int = 64, interior: int = 900, boundary: int = 120, seed: int = 0
) -> Problem:
    """u_t = u_xx / 4 for 0 < t, x < 1 from u = sin(pi x) at t = 0, by a tanh network.

    The solution is exp(-pi^2 t / 4) sin(pi x). Objective, data and metric: as in `pinn_poisson`.

    Args:
      hidden: units of the hidden layer, or of each.
      interior, boundary: points, uniform, the same in every run; half of the boundary's lie on
        t = 0, half on the two sides.
      seed: of the points; the network's start is drawn from the trial's own seed.
    """
    at_least(1, hidden=hidden, interior=interior, boundary=boundary)
    rng = np.random.default_rng(seed)
    inside, test = rng.random((interior, 2)), rng.random((_TEST_POINTS, 2))
    edge = rng.random((boundary, 2))
    first = np.arange(boundary) % 2 == 0
    edge[first, 0] = 0
    edge[~first, 1] = rng.integers(2, size=int((~first).sum()))
    return _fitted(
        _HEAT,
        _sizes(2, hidden),
        (inside, np.zeros(interior)),
        (edge, heat_solution(edge)),
        (test, heat_solution(test)),
        "the heat equation in 1+1-D",
    )


def sine_product(x: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
    """Prod sin(pi x_i), for which -Laplace u = d pi^2 u."""
    return np.sin(np.pi * x).prod(axis=1)


def cosine_sum(x: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
    """Sum cos(pi x_i), for which -Laplace u = pi^2 u."""
    return np.cos(np.pi * x).sum(axis=1)


def heat_solution(x: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, " m"]:
    """exp(-pi^2 t / 4) sin(pi x) at (t, x), for which u_t = u_xx / 4."""
    return np.exp(-(np.pi**2) * x[:, 0] / 4) * np.sin(np.pi * x[:, 1])


def relative_error(
    params: Params, points: Float[Array, "m d"], truth: Float[Array, " m"]
) -> Scalar:
    """|u - u*| / |u*| over some points."""
    error = perceptron(params, points)[:, 0] - truth
    return jnp.linalg.norm(error) / jnp.linalg.norm(truth)


def _fitted(
    objective: Callable,
    sizes: tuple[int, ...],
    inside: tuple[np.ndarray, np.ndarray],
    edge: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    description: str,
) -> Problem:
    points, targets = (np.concatenate(pair) for pair in zip(inside, edge, strict=True))
    counts = (len(inside[1]), len(edge[1]))
    # each part's mean, in a mean over all points: squared_error is r^2 and the weights sum to 2
    weights = np.concatenate([np.full(n, 1 / n) for n in counts])
    mask = np.arange(sum(counts)) < counts[0]
    return Problem(
        objective,
        lambda key: initial_layers(key, sizes),
        ((points, mask), targets, weights),
        description=f"{description}, {'-'.join(map(str, sizes))}",
        metrics={"relative L2 error": Metric(relative_error, test)},
    )


def _sizes(dimension: int, hidden: Sequence[int] | int) -> tuple[int, ...]:
    return (dimension, *([hidden] if isinstance(hidden, int) else hidden), 1)
