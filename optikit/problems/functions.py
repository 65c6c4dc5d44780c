"""Test functions with known minima: conditioned quadratics, valleys, saddles, curve fits."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optikit.calculus import black_box, residuals
from optikit.core import Params, Scalar
from optikit.problems.problem import Problem


def _quadratic_value(x: Float[Array, " n"], scales: Float[Array, " n"]) -> Scalar:
    return jnp.sum(scales * (x - 1) ** 2) / 2


def quadratic(n: int = 50, condition: float = 1e3) -> Problem:
    """sum_i c_i (x_i - 1)^2 / 2 with log-spaced c from 1/condition to 1; minimum 0 at ones."""
    scales = np.logspace(-np.log10(condition), 0, n)
    return Problem(
        black_box(_quadratic_value),
        np.zeros(n),
        (scales,),
        0.0,
        f"quadratic, condition {condition:g}",
    )


def _rosenbrock_value(x: Float[Array, " n"]) -> Scalar:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def rosenbrock(n: int = 2) -> Problem:
    """The chained Rosenbrock valley, from (-1.2, 1, -1.2, 1, ...); minimum 0 at ones.

    Reference: Moré, Garbow & Hillstrom (1981), problems 1 and 21.
    """
    start = np.where(np.arange(n) % 2 == 0, -1.2, 1.0)
    return Problem(black_box(_rosenbrock_value), start, (), 0.0, f"Rosenbrock, n = {n}")


def _powell_residuals(x: Float[Array, " 4"]) -> Float[Array, " 4"]:
    root5, root10 = 5**0.5, 10**0.5
    return jnp.stack(
        [
            x[0] + 10 * x[1],
            root5 * (x[2] - x[3]),
            (x[1] - 2 * x[2]) ** 2,
            root10 * (x[0] - x[3]) ** 2,
        ]
    )


def powell_singular() -> Problem:
    """Powell's function, whose Hessian is singular at the minimum 0 at the origin.

    Reference: Moré, Garbow & Hillstrom (1981), problem 13.
    """
    return Problem(
        residuals(_powell_residuals), np.array([3.0, -1.0, 0.0, 1.0]), (), 0.0, "Powell singular"
    )


def _double_well_value(x: Float[Array, " n"]) -> Scalar:
    return x[0] ** 4 / 4 - x[0] ** 2 / 2 + jnp.sum(x[1:] ** 2) / 2


def double_well(n: int = 3, offset: float = 0.0) -> Problem:
    """x_0^4 / 4 - x_0^2 / 2 + |rest|^2 / 2: a saddle at 0, minima -1/4 at x_0 = +-1.

    Args:
      n: parameters.
      offset: x_0 at the start; 0 starts exactly on the stable manifold of the saddle.
    """
    start = np.full(n, 0.5)
    start[0] = offset
    return Problem(black_box(_double_well_value), start, (), -0.25, "double well")


def _decay_residuals(p: Params, times: Float[Array, " m"], counts: Float[Array, " m"]):
    return p["amplitude"] * jnp.exp(-p["rate"] * times) + p["floor"] - counts


def exponential_decay(m: int = 60, noise: float = 0.01) -> Problem:
    """Fit amplitude exp(-rate t) + floor to noisy observations, by least squares."""
    rng = np.random.default_rng(0)
    times = np.linspace(0, 4, m)
    counts = 2.5 * np.exp(-1.3 * times) + 0.5 + noise * rng.standard_normal(m)
    start = {"amplitude": np.array(1.0), "rate": np.array(1.0), "floor": np.array(0.0)}
    return Problem(residuals(_decay_residuals), start, (times, counts), None, "exponential decay")
