"""Convex quadratics with chosen spectra, in their eigenbasis or rotated; two classical hard ones.

The minimum of each is known exactly.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optikit.calculus import black_box
from optikit.core import Scalar
from optikit.problems.problem import Problem
from optikit.problems.sizes import at_least


def _diagonal_value(x: Float[Array, " n"], scales: Float[Array, " n"]) -> Scalar:
    return jnp.sum(scales * (x - 1) ** 2) / 2


def _rotated_value(
    x: Float[Array, " n"], scales: Float[Array, " n"], reflectors: Float[Array, "k n"]
) -> Scalar:
    """The same in a basis turned by Householder reflections: n k products, not n^2."""
    y = x - 1
    for v in reflectors:
        y = y - 2 * v * (v @ y)
    return jnp.sum(scales * y**2) / 2


def quadratic(
    n: int = 50,
    condition: float = 1e3,
    spectrum: Literal["log", "linear", "clusters", "outlier"] = "log",
    rotated: bool = False,
    seed: int = 0,
) -> Problem:
    """A quadratic with eigenvalues from 1/condition to 1; from 0, minimum 0 at ones.

    Args:
      n: unknowns.
      condition: the largest eigenvalue over the least.
      spectrum: "log" and "linear" spacing; "clusters" at both ends and the geometric mean
        (conjugate gradients take three steps); "outlier": one large, the rest the least.
      rotated: turn the eigenbasis by three random reflections, so that diagonal scaling does not
        solve the problem.
      seed: of the reflections.

    Raises:
      ValueError: a condition below 1, or no unknowns.
    """
    at_least(1, n=n)
    if not condition >= 1:
        msg = f"condition is the largest eigenvalue over the least, at least 1; got {condition}."
        raise ValueError(msg)
    scales = _spectrum(spectrum, n, condition)
    text = f"quadratic, {spectrum} spectrum, condition {condition:g}, n = {n}"
    if not rotated:
        return Problem(
            black_box(_diagonal_value), np.zeros(n), (scales,), 0.0, text, solution=np.ones(n)
        )
    v = np.random.default_rng(seed).standard_normal((3, n))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return Problem(
        black_box(_rotated_value),
        np.zeros(n),
        (scales, v),
        0.0,
        f"rotated {text}",
        solution=np.ones(n),
    )


def _spectrum(name: str, n: int, condition: float) -> np.ndarray:
    least = 1 / condition
    if name == "log":
        return np.geomspace(least, 1, n)
    if name == "linear":
        return np.linspace(least, 1, n)
    if name == "clusters":
        return np.array([least, least**0.5, 1.0])[np.arange(n) * 3 // max(n, 1)]
    if name == "outlier":
        return np.r_[np.full(n - 1, least), 1.0]
    msg = f"unknown spectrum {name!r}: choose from log, linear, clusters, outlier."
    raise ValueError(msg)


def _nesterov_value(x: Float[Array, " n"]) -> Scalar:
    steps = jnp.diff(x, prepend=0, append=0)
    return (jnp.sum(steps**2) / 2 - x[0]) / 4


def nesterov(n: int = 100) -> Problem:
    """Nesterov's worst function for first-order methods: from 0 a step reveals one more unknown.

    (x_1^2 + sum (x_i - x_{i+1})^2 + x_n^2) / 8 - x_1 / 4, 1-Lipschitz gradient, minimum
    (-1 + 1 / (n + 1)) / 8 at 1 - i / (n + 1). Its condition number grows as n^2.

    Reference: Nesterov (2004), "Introductory lectures on convex optimization", section 2.1.2.
    """
    at_least(1, n=n)
    solution = 1 - np.arange(1, n + 1) / (n + 1)
    least = -(1 - 1 / (n + 1)) / 8
    return Problem(
        black_box(_nesterov_value),
        np.zeros(n),
        (),
        least,
        f"Nesterov's worst case, n = {n}",
        solution=solution,
    )


def _form_value(x: Float[Array, " n"], matrix: Float[Array, "n n"]) -> Scalar:
    d = x - 1
    return d @ (matrix @ d) / 2


def hilbert(n: int = 8, ridge: float = 0.0) -> Problem:
    """(x - 1)' H (x - 1) / 2 with the Hilbert matrix 1 / (i + j - 1): condition about e^(3.5 n).

    Args:
      n: unknowns; from 13 on the matrix is singular to double precision.
      ridge: added to the diagonal.
    """
    at_least(1, n=n)
    i = np.arange(n)
    matrix = 1.0 / (i[:, None] + i[None, :] + 1) + ridge * np.eye(n)
    return Problem(
        black_box(_form_value),
        np.zeros(n),
        (matrix,),
        0.0,
        f"Hilbert matrix, n = {n}",
        solution=np.ones(n),
    )
