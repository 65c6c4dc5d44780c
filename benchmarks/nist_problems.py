"""The 27 models of NIST's nonlinear regression set, read from its own files in `nist/`."""

import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

FOLDER = pathlib.Path(__file__).parent / "nist"


class Regression(NamedTuple):
    """One model with its data: residual(b, x, y) from `starts` should come to `certified`."""

    name: str
    residual: Callable
    x: np.ndarray  # (m,), or (2, m) for Nelson
    y: np.ndarray  # (m,)
    starts: np.ndarray  # (2, n)
    certified: np.ndarray  # (n,)
    deviations: np.ndarray  # (n,), certified standard deviations of the parameters
    squares: float  # certified residual sum of squares


def misra1a(b, x):
    return b[0] * (1 - jnp.exp(-b[1] * x))


def chwirut(b, x):
    return jnp.exp(-b[0] * x) / (b[1] + b[2] * x)


def three_exponentials(b, x):
    return b[0] * jnp.exp(-b[1] * x) + b[2] * jnp.exp(-b[3] * x) + b[4] * jnp.exp(-b[5] * x)


def two_peaks(b, x):
    background = b[0] * jnp.exp(-b[1] * x)
    first = b[2] * jnp.exp(-((x - b[3]) ** 2) / b[4] ** 2)
    return background + first + b[5] * jnp.exp(-((x - b[6]) ** 2) / b[7] ** 2)


def cubic_over_cubic(b, x):
    above = b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3
    return above / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def quadratic_over_quadratic(b, x):
    return (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2)


def enso(b, x):
    def wave(cosine, sine, period):
        return cosine * jnp.cos(2 * jnp.pi * x / period) + sine * jnp.sin(2 * jnp.pi * x / period)

    return b[0] + wave(b[1], b[2], 12.0) + wave(b[4], b[5], b[3]) + wave(b[7], b[8], b[6])


MODELS = {
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": misra1a,
    "Chwirut1": chwirut,
    "Chwirut2": chwirut,
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "ENSO": enso,
    "Eckerle4": lambda b, x: (b[0] / b[1]) * jnp.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Gauss1": two_peaks,
    "Gauss2": two_peaks,
    "Gauss3": two_peaks,
    "Hahn1": cubic_over_cubic,
    "Kirby2": quadratic_over_quadratic,
    "Lanczos1": three_exponentials,
    "Lanczos2": three_exponentials,
    "Lanczos3": three_exponentials,
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH10": lambda b, x: b[0] * jnp.exp(b[1] / (x + b[2])),
    "MGH17": lambda b, x: b[0] + b[1] * jnp.exp(-x * b[3]) + b[2] * jnp.exp(-x * b[4]),
    "Misra1a": misra1a,
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda b, x: b[0] - b[1] * x[0] * jnp.exp(-b[2] * x[1]),
    "Rat42": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Roszman1": lambda b, x: b[0] - b[1] * x - jnp.arctan(b[2] / (x - b[3])) / jnp.pi,
    "Thurber": cubic_over_cubic,
}


def load(name: str) -> Regression:
    """The problem of a name in MODELS."""
    text = (FOLDER / f"{name}.dat").read_text()
    rows = re.findall(r"^\s+b\d+ =\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)", text, re.M)
    table = np.array(rows, dtype=float)
    squares = re.search(r"Residual Sum of Squares:\s+(\S+)", text)
    assert squares is not None
    numbers = text[text.rindex("Data:") :].splitlines()[1:]
    data = np.array([line.split() for line in numbers if line.strip()], dtype=float).T
    y, x = data[0], data[1] if len(data) == 2 else data[1:]
    if name == "Nelson":
        y = np.log(y)
    model = MODELS[name]

    def residual(b, x, y):
        return model(b, x) - y

    starts = table[:, :2].T
    return Regression(
        name, residual, x, y, starts, table[:, 2], table[:, 3], float(squares.group(1))
    )


def digits(found: np.ndarray, certified: np.ndarray) -> float:
    """Digits right in the worst parameter, at most 11 (what is certified), at least 0."""
    if not np.all(np.isfinite(found)):
        return 0.0
    error = np.max(np.abs(found - certified) / np.abs(certified))
    return float(np.clip(-np.log10(max(error, 1e-11)), 0, 11))
