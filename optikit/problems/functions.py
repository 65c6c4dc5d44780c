"""Rosenbrock's valley, Powell's singular function, and a zoo of saddles; all minima known."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optikit.calculus import black_box, residuals
from optikit.core import Scalar
from optikit.problems.mgh import mgh
from optikit.problems.problem import Problem
from optikit.problems.sizes import at_least


def _rosenbrock_value(x: Float[Array, " n"]) -> Scalar:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def rosenbrock(n: int = 2) -> Problem:
    """The chained Rosenbrock valley, from (-1.2, 1, -1.2, 1, ...); minimum 0 at ones.

    Every unknown but the ends is in two terms; the separable form is `mgh`'s extended-rosenbrock.
    From n = 4 on there is a second local minimum near (-1, 1, ..., 1).

    Reference: Moré, Garbow & Hillstrom (1981), problem 1; chained as in Kok & Sandrock (2009),
    "Locating and characterizing the stationary points of the extended Rosenbrock function".
    """
    at_least(1, n=n)
    start = np.where(np.arange(n) % 2 == 0, -1.2, 1.0)
    return Problem(
        black_box(_rosenbrock_value),
        start,
        (),
        0.0,
        f"Rosenbrock, n = {n}",
        solution=np.ones(n),
    )


def powell_singular() -> Problem:
    """Powell's function, whose Hessian is singular at the minimum 0 at the origin.

    Reference: Moré, Garbow & Hillstrom (1981), problem 13.
    """
    return mgh("powell-singular")


def _wells_value(x: Float[Array, " n"], wells: Float[Array, " n"]) -> Scalar:
    return jnp.sum(wells * (x**4 / 4 - x**2 / 2) + (1 - wells) * x**2 / 2)


def double_well(n: int = 3, offset: float = 0.0, wells: int = 1) -> Problem:
    """x^4 / 4 - x^2 / 2 in each of the wells, x^2 / 2 in the rest: saddles wherever a well is at 0.

    The minimum is -wells / 4, at +-1 in every well.

    Args:
      n: parameters.
      offset: the wells' unknowns at the start; 0 starts exactly on the stable manifold of a saddle.
      wells: how many unknowns, from the first on: the directions of negative curvature at 0.

    Raises:
      ValueError: more wells than unknowns.
    """
    at_least(1, n=n)
    if not 1 <= wells <= n:
        msg = f"wells must be 1 to n = {n}; got {wells}."
        raise ValueError(msg)
    which = (np.arange(n) < wells).astype(float)
    start = np.where(which == 1, offset, 0.5)
    return Problem(
        black_box(_wells_value), start, (which,), -wells / 4, "double well", solution=which
    )


def _monkey_value(x: Float[Array, " 2"]) -> Scalar:
    a, b = x
    return a**3 - 3 * a * b**2 + (a**2 + b**2) ** 2


def monkey_saddle(offset: float = 0.1) -> Problem:
    """x^3 - 3 x y^2 + |.|^4: a saddle with zero curvature at 0; minimum -27/256 at (-3/4, 0).

    No second-order test sees the way down from 0; two more minima are a third of a turn away.

    Args:
      offset: distance of the start from 0, along the uphill direction (1, 0) and a tenth across.
    """
    start = np.array([offset, offset / 10])
    return Problem(
        black_box(_monkey_value),
        start,
        (),
        -27 / 256,
        "monkey saddle",
        solution=np.array([-0.75, 0.0]),
    )


def _product_residual(x: Float[Array, " n"]) -> Float[Array, " 1"]:
    return jnp.prod(x)[None] - 1


def product_saddle(n: int = 4, offset: float = 0.1) -> Problem:
    """(x_1 x_2 ... x_n - 1)^2 / 2, a deep linear network of width 1: flat to order n at 0.

    The minimum 0 is a whole surface; one point of it is ones.

    Args:
      n: factors, at least 2.
      offset: every unknown at the start.
    """
    at_least(2, n=n)
    return Problem(
        residuals(_product_residual),
        np.full(n, offset),
        (),
        0.0,
        f"product of {n} factors",
        solution=np.ones(n),
    )


def _intensities(
    x: Float[Array, " n"], rows: Float[Array, "m n"], observed: Float[Array, " m"]
) -> Float[Array, " m"]:
    return ((rows @ x) ** 2 - observed) / (2 * observed.size) ** 0.5


def phase_retrieval(n: int = 20, m: int | None = None, seed: int = 0) -> Problem:
    """Recover x up to sign from m intensities (a_i' x)^2: mean square misfit / 4, minimum 0.

    The origin is a maximum or saddle between x and -x. The start is a random point of length 1/2.

    Args:
      n: unknowns; the truth is a random unit vector.
      m: observations, 6 n if absent.
      seed: of the truth, the rows and the start.
    """
    at_least(1, n=n, m=m)
    m = 6 * n if m is None else m
    rng = np.random.default_rng(seed)
    truth, start, rows = rng.standard_normal(n), rng.standard_normal(n), rng.standard_normal((m, n))
    truth /= np.linalg.norm(truth)
    return Problem(
        residuals(_intensities),
        start / np.linalg.norm(start) / 2,
        (rows, (rows @ truth) ** 2),
        0.0,
        f"phase retrieval, {m} intensities of {n} unknowns",
        solution=truth,
    )
