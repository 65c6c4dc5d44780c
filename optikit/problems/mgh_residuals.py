"""Residuals and data of the Moré-Garbow-Hillstrom functions; see `mgh`.

Every function is (x, *data) -> r with r of shape (m,), the paper's f_1 ... f_m in order where one
system has several kinds of equation.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Vector = Float[Array, " n"]
Residuals = Float[Array, " m"]


def rosenbrock(x: Vector) -> Residuals:
    """Functions 1 and 21."""
    odd, even = x[::2], x[1::2]
    return jnp.concatenate([10 * (even - odd**2), 1 - odd])


def freudenstein_roth(x: Vector) -> Residuals:
    """Function 2, with a local minimum of 48.98 besides."""
    a, b = x
    return jnp.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


def powell_badly_scaled(x: Vector) -> Residuals:
    """Function 3."""
    return jnp.stack([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


def brown_badly_scaled(x: Vector) -> Residuals:
    """Function 4."""
    return jnp.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(x: Vector) -> Residuals:
    """Function 5."""
    a, b = x
    return jnp.stack([1.5 - a * (1 - b), 2.25 - a * (1 - b**2), 2.625 - a * (1 - b**3)])


def jennrich_sampson(x: Vector, i: Residuals) -> Residuals:
    """Function 6."""
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def helical_valley(x: Vector) -> Residuals:
    """Function 7; the angle is cut along the negative second axis."""
    a, b, c = x
    safe = jnp.where(a == 0, 1, a)
    quarter = jnp.where(a == 0, jnp.sign(b) / 4, jnp.arctan(b / safe) / (2 * jnp.pi))
    angle = quarter + jnp.where(a < 0, 0.5, 0)
    return jnp.stack([10 * (c - 10 * angle), 10 * (jnp.hypot(a, b) - 1), c])


_I15 = np.arange(1.0, 16)
BARD = (
    np.array(
        [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]
    ),
    _I15,
    16 - _I15,
    np.minimum(_I15, 16 - _I15),
)


def bard(x: Vector, y: Residuals, u: Residuals, v: Residuals, w: Residuals) -> Residuals:
    """Function 8."""
    return y - (x[0] + u / (v * x[1] + w * x[2]))


_RISING = [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521]
GAUSSIAN = ((8 - _I15) / 2, np.array([*_RISING, 0.3989, *_RISING[::-1]]))


def gaussian(x: Vector, t: Residuals, y: Residuals) -> Residuals:
    """Function 9."""
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - y


MEYER = (
    45 + 5 * np.arange(1.0, 17),
    np.array(
        [
            34780.0, 28610, 23650, 19630, 16370, 13720, 11540, 9744,
            8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872,
        ]
    ),
)  # fmt: skip


def meyer(x: Vector, t: Residuals, y: Residuals) -> Residuals:
    """Function 10."""
    return x[0] * jnp.exp(x[1] / (t + x[2])) - y


def gulf(x: Vector, t: Residuals, y: Residuals) -> Residuals:
    """Function 11, Gulf research and development."""
    gap = jnp.abs(y - x[1])
    safe = jnp.where(gap > 0, gap, 1)
    return jnp.exp(-jnp.where(gap > 0, safe ** x[2], 0) / x[0]) - t


def box(x: Vector, t: Residuals) -> Residuals:
    """Function 12, Box three-dimensional; also zero where x_1 = x_2 and x_3 = 0."""
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))


def powell_singular(x: Vector) -> Residuals:
    """Functions 13 and 22."""
    a, b, c, d = x[::4], x[1::4], x[2::4], x[3::4]
    return jnp.concatenate([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])


def wood(x: Vector) -> Residuals:
    """Function 14."""
    a, b, c, d = x
    return jnp.stack(
        [
            10 * (b - a**2),
            1 - a,
            90**0.5 * (d - c**2),
            1 - c,
            10**0.5 * (b + d - 2),
            (b - d) / 10**0.5,
        ]
    )


KOWALIK = (
    np.array(
        [0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]
    ),
    np.array([4, 2, 1, 0.5, 0.25, 0.1670, 0.1250, 0.1, 0.0833, 0.0714, 0.0625]),
)


def kowalik_osborne(x: Vector, y: Residuals, u: Residuals) -> Residuals:
    """Function 15."""
    return y - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x: Vector, t: Residuals) -> Residuals:
    """Function 16."""
    return (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - jnp.cos(t)) ** 2


OSBORNE_1 = (
    10 * np.arange(33.0),
    np.array(
        [
            0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751,
            0.718, 0.685, 0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490,
            0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406,
        ]
    ),
)  # fmt: skip


def osborne_1(x: Vector, t: Residuals, y: Residuals) -> Residuals:
    """Function 17."""
    return y - (x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4]))


def biggs(x: Vector, t: Residuals, y: Residuals) -> Residuals:
    """Function 18, Biggs EXP6; also a local minimum of 5.65565e-3."""
    return x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4]) - y


OSBORNE_2 = (
    np.arange(65.0) / 10,
    np.array(
        [
            1.366, 1.191, 1.112, 1.013, 0.991, 0.885, 0.831, 0.847, 0.786, 0.725, 0.746, 0.679,
            0.608, 0.655, 0.616, 0.606, 0.602, 0.626, 0.651, 0.724, 0.649, 0.649, 0.694, 0.644,
            0.624, 0.661, 0.612, 0.558, 0.533, 0.495, 0.500, 0.423, 0.395, 0.375, 0.372, 0.391,
            0.396, 0.405, 0.428, 0.429, 0.523, 0.562, 0.607, 0.653, 0.672, 0.708, 0.633, 0.668,
            0.645, 0.632, 0.591, 0.559, 0.597, 0.625, 0.739, 0.710, 0.729, 0.720, 0.636, 0.581,
            0.428, 0.292, 0.162, 0.098, 0.054,
        ]
    ),
)  # fmt: skip


def osborne_2(x: Vector, t: Residuals, y: Residuals) -> Residuals:
    """Function 19."""
    heights, widths, centres = x[1:4], x[5:8], x[8:11]
    peaks = jnp.exp(-((t[:, None] - centres[None, :]) ** 2) * widths[None, :]) @ heights
    return y - (x[0] * jnp.exp(-t * x[4]) + peaks)


def watson_data(n: int) -> tuple[np.ndarray, np.ndarray]:
    """(values, derivatives) of the n monomials at 1/29, ..., 1."""
    t = np.arange(1.0, 30) / 29
    powers = np.vander(t, n, increasing=True)
    slopes = np.zeros_like(powers)
    slopes[:, 1:] = powers[:, :-1] * np.arange(1, n)
    return powers, slopes


def watson(x: Vector, powers: Float[Array, "29 n"], slopes: Float[Array, "29 n"]) -> Residuals:
    """Function 20, a polynomial solution of y' = 1 + y^2, increasingly ill-conditioned in n."""
    ends = jnp.stack([x[0], x[1] - x[0] ** 2 - 1])
    return jnp.concatenate([slopes @ x - (powers @ x) ** 2 - 1, ends])


def penalty_1(x: Vector) -> Residuals:
    """Function 23."""
    return jnp.append(1e-5**0.5 * (x - 1), x @ x - 0.25)


def penalty_2(x: Vector, y: Vector, falling: Vector) -> Residuals:
    """Function 24."""
    grown = jnp.exp(x / 10)
    parts = [
        x[:1] - 0.2,
        1e-5**0.5 * (grown[1:] + grown[:-1] - y),
        1e-5**0.5 * (grown[1:] - float(np.exp(-0.1))),
        (falling @ x**2 - 1)[None],
    ]
    return jnp.concatenate(parts)


def variably_dimensioned(x: Vector, i: Vector) -> Residuals:
    """Function 25."""
    along = i @ (x - 1)
    return jnp.concatenate([x - 1, jnp.stack([along, along**2])])


def trigonometric(x: Vector, i: Vector) -> Residuals:
    """Function 26."""
    return x.size - jnp.sum(jnp.cos(x)) + i * (1 - jnp.cos(x)) - jnp.sin(x)


def brown_almost_linear(x: Vector) -> Residuals:
    """Function 27; also a local minimum of 1 at (0, ..., 0, n + 1)."""
    return jnp.append(x[:-1] + jnp.sum(x) - (x.size + 1), jnp.prod(x) - 1)


def discrete_boundary(x: Vector, t: Vector) -> Residuals:
    """Function 28: y'' = (y + t + 1)^3 / 2, y(0) = y(1) = 0, by central differences."""
    h = 1 / (x.size + 1)
    padded = jnp.pad(x, 1)
    return 2 * x - padded[:-2] - padded[2:] + h**2 * (x + t + 1) ** 3 / 2


def discrete_integral(x: Vector, t: Vector) -> Residuals:
    """Function 29: the same equation in its integral form."""
    h = 1 / (x.size + 1)
    cubes = (x + t + 1) ** 3
    below = jnp.cumsum(t * cubes)
    above = jnp.sum((1 - t) * cubes) - jnp.cumsum((1 - t) * cubes)
    return x + h * ((1 - t) * below + t * above) / 2


def broyden_tridiagonal(x: Vector) -> Residuals:
    """Function 30."""
    padded = jnp.pad(x, 1)
    return (3 - 2 * x) * x - padded[:-2] - 2 * padded[2:] + 1


def broyden_banded(x: Vector) -> Residuals:
    """Function 31, five diagonals below and one above."""
    n, terms = x.size, x * (1 + x)
    padded = jnp.pad(terms, (5, 1))
    neighbours = sum(padded[k : k + n] for k in (0, 1, 2, 3, 4, 6))
    return x * (2 + 5 * x**2) + 1 - neighbours


def linear_full_rank(x: Vector, extra: Float[Array, " rest"]) -> Residuals:
    """Function 32."""
    mean = 2 * jnp.sum(x) / (x.size + extra.size)
    return jnp.concatenate([x, extra]) - mean - 1


def linear_rank_one(x: Vector, rows: Residuals, columns: Vector) -> Residuals:
    """Functions 33 and 34; minima form a plane."""
    return rows * (columns @ x) - 1


def chebyquad(x: Vector, integrals: Residuals) -> Residuals:
    """Function 35: equal-weight quadrature exact for shifted Chebyshev polynomials."""
    shifted = 2 * x - 1
    previous, current, means = jnp.ones_like(x), shifted, []
    for _ in range(integrals.size):
        means.append(jnp.mean(current))
        previous, current = current, 2 * shifted * current - previous
    return jnp.stack(means) - integrals
