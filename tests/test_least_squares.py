"""Least squares: scale-free convergence, rank deficiency, float32, and known minima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import optikit as ok
from optikit.linalg.least_squares import gauss_newton_step

METHODS = ["levenberg-marquardt", "gauss-newton"]


def decay(p, t, y):
    return p[0] * jnp.exp(-p[1] * t) + p[2] - y


@pytest.fixture(scope="module")
def observations():
    t = np.linspace(0, 4, 40)
    noise = 0.05 * np.random.default_rng(0).standard_normal(40)
    return jnp.asarray(t), jnp.asarray(2.5 * np.exp(-1.3 * t) + 0.5 + noise)


@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_minpack_to_eight_digits(method, observations):
    t, y = observations
    sol = ok.least_squares(decay, jnp.ones(3), method=method, args=(t, y))
    expected = optimize.least_squares(
        lambda p: np.asarray(decay(p, t, y)), np.ones(3), method="lm", xtol=1e-15, ftol=1e-15,
        gtol=1e-15, jac=lambda p: np.asarray(jax.jacobian(decay)(jnp.asarray(p), t, y)),
    )  # fmt: skip
    assert bool(sol.success), str(sol)
    np.testing.assert_allclose(sol.params, expected.x, rtol=2e-8)
    assert float(sol.value) == pytest.approx(expected.cost, rel=1e-12)


@pytest.mark.parametrize("units", [1e-6, 1.0, 1e6])
def test_the_units_of_residuals_do_not_matter(units, observations):
    t, y = observations
    base = ok.least_squares(decay, jnp.ones(3), args=(t, y))
    sol = ok.least_squares(lambda p, t, y: units * decay(p, t, y), jnp.ones(3), args=(t, y))
    assert bool(sol.success)
    assert int(sol.steps) == int(base.steps)
    np.testing.assert_allclose(sol.params, base.params, rtol=1e-8)


@pytest.mark.parametrize("units", [1e-5, 1e5])
def test_the_units_of_parameters_do_not_matter(units, observations):
    t, y = observations
    base = ok.least_squares(decay, jnp.ones(3), args=(t, y))
    sol = ok.least_squares(
        lambda p, t, y: decay(p * jnp.asarray([1.0, units, 1.0]), t, y),
        jnp.asarray([1.0, 1 / units, 1.0]), args=(t, y),
    )  # fmt: skip
    assert bool(sol.success)
    np.testing.assert_allclose(sol.params[1] * units, base.params[1], rtol=1e-7)
    assert abs(int(sol.steps) - int(base.steps)) <= 1


def test_float32_survives_a_condition_number_that_normal_equations_do_not():
    """Columns nearly parallel: cond(J) = 2e3, cond(J^T J) = 4e6 near 1 / eps of float32."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((50, 1))
    j = np.hstack([base, base + 1e-3 * rng.standard_normal((50, 1))])
    truth = np.array([1.0, -2.0])
    y = j @ truth
    args = (jnp.asarray(j, jnp.float32), jnp.asarray(y, jnp.float32))
    sol = ok.least_squares(lambda p, j, y: j @ p - y, jnp.zeros(2, jnp.float32), args=args)
    assert sol.params.dtype == jnp.float32
    assert bool(sol.success), str(sol)
    np.testing.assert_allclose(sol.params, truth, rtol=5e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_deficient_jacobian_is_survived(method):
    def residual(p, x, y):
        return x * (p[0] + p[1]) - y  # only the sum is determined

    x = jnp.linspace(1.0, 2.0, 10)
    sol = ok.least_squares(residual, jnp.asarray([3.0, -1.0]), method=method, args=(x, 5.0 * x))
    assert bool(sol.success), str(sol)
    assert float(jnp.sum(sol.params)) == pytest.approx(5.0, abs=1e-9)
    assert float(sol.params[0] - sol.params[1]) == pytest.approx(4.0, abs=1e-3)  # the nearest


@pytest.mark.parametrize("method", METHODS)
def test_fewer_residuals_than_parameters(method):
    a = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6)))
    sol = ok.least_squares(lambda p, y: jnp.tanh(a @ p) - y, jnp.zeros(6), method=method,
                           args=(jnp.asarray([0.2, -0.5, 0.1]),))  # fmt: skip
    assert bool(sol.success), str(sol)
    assert float(sol.value) < 1e-18


def test_a_singular_minimum_is_an_end():
    """Powell's function: J loses rank as the minimum nears, and no step ever settles a digit."""

    def powell(x):
        a, b, c, d = x
        flat = jnp.stack([(b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])
        return jnp.concatenate([jnp.stack([a + 10 * b, 5**0.5 * (c - d)]), flat])

    for dtype, near in ((jnp.float64, 1e-9), (jnp.float32, 1e-2)):
        start = jnp.asarray([3.0, -1.0, 0.0, 1.0], dtype)
        sol = ok.least_squares(powell, start, method="levenberg-marquardt")
        assert bool(sol.success), str(sol)
        np.testing.assert_allclose(sol.params, 0, atol=near)


def test_an_unused_parameter_stays_where_it_is():
    sol = ok.least_squares(
        lambda p: p["used"] ** 2 - 4.0, {"used": jnp.ones(2), "idle": jnp.asarray(7.0)}
    )
    assert bool(sol.success)
    assert float(sol.params["idle"]) == 7.0
    np.testing.assert_allclose(sol.params["used"], 2.0, rtol=1e-9)


def test_nan_trials_are_rejected_without_poison():
    def residual(p):
        return jnp.stack([jnp.log(p[0]) + 5.0, 10 * (p[1] - p[0] ** 2)])

    sol = ok.least_squares(residual, jnp.asarray([3.0, 1.0]))
    assert bool(sol.success), str(sol)
    np.testing.assert_allclose(sol.params, [np.exp(-5), np.exp(-10)], rtol=1e-7)


MGH = {  # Moré, Garbow & Hillstrom (1981): residuals, start, sum of squares at the minimum
    "rosenbrock": (lambda x: jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]), [-1.2, 1.0], 0.0),
    "freudenstein-roth": (
        lambda x: jnp.stack([-13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1],
                             -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1]]),
        [0.5, -2.0], 48.9842536792400,
    ),
    "powell-badly-scaled": (
        lambda x: jnp.stack([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001]),
        [0.0, 1.0], 0.0,
    ),
    "helical-valley": (
        lambda x: jnp.stack([10 * (x[2] - 10 * jnp.arctan2(x[1], x[0]) / (2 * jnp.pi)),
                             10 * (jnp.hypot(x[0], x[1]) - 1), x[2]]),
        [-1.0, 0.0, 0.0], 0.0,
    ),
    "bard": (
        lambda x: jnp.asarray([0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73,
                               0.96, 1.34, 2.1, 4.39])
        - (x[0] + jnp.arange(1.0, 16) / ((16 - jnp.arange(1.0, 16)) * x[1]
           + jnp.minimum(jnp.arange(1.0, 16), 16 - jnp.arange(1.0, 16)) * x[2])),
        [1.0, 1.0, 1.0], 8.21487730657899e-3,
    ),
    "brown-dennis": (
        lambda x: (x[0] + x[1] * jnp.arange(1.0, 21) / 5 - jnp.exp(jnp.arange(1.0, 21) / 5)) ** 2
        + (x[2] + x[3] * jnp.sin(jnp.arange(1.0, 21) / 5) - jnp.cos(jnp.arange(1.0, 21) / 5)) ** 2,
        [25.0, 5.0, -5.0, -1.0], 85822.2016263563,
    ),
    "wood": (
        lambda x: jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0], 90**0.5 * (x[3] - x[2] ** 2),
                             1 - x[2], 10**0.5 * (x[1] + x[3] - 2), (x[1] - x[3]) / 10**0.5]),
        [-3.0, -1.0, -3.0, -1.0], 0.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MGH))
def test_known_minima_are_found(name):
    residual, start, squares = MGH[name]
    sol = ok.least_squares(residual, jnp.asarray(start))
    assert bool(sol.success), str(sol)
    assert 2 * float(sol.value) == pytest.approx(squares, rel=1e-9, abs=1e-18)


def test_composite_squared_error_is_a_least_squares_problem():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(30, 3))), jnp.asarray(rng.normal(size=30))
    weights = jnp.asarray(rng.uniform(size=30)).at[0].set(0.0)
    objective = ok.composite(lambda w, x: x @ w, ok.losses.squared_error, penalty=ok.losses.l2(0.3))
    args = (x.at[0].set(jnp.nan), y, weights)
    by_lm = ok.least_squares(objective, jnp.zeros(3), args=args)
    by_newton = ok.minimize(objective, jnp.zeros(3), args=(x, y, weights), method="newton")
    assert float(by_lm.value) == pytest.approx(float(by_newton.value), rel=1e-12)
    np.testing.assert_allclose(by_lm.params, by_newton.params, rtol=1e-8)


@pytest.mark.parametrize("shape", [(8, 3), (3, 3), (3, 8)])
def test_gauss_newton_step_is_the_minimum_norm_solution(shape):
    rng = np.random.default_rng(0)
    j, r = rng.normal(size=shape), rng.normal(size=shape[0])
    expected = -np.linalg.lstsq(j, r, rcond=None)[0]
    np.testing.assert_allclose(
        gauss_newton_step(jnp.asarray(j), jnp.asarray(r)), expected, rtol=1e-10
    )
    j[:, -1] = j[:, 0]
    expected = -np.linalg.lstsq(j, r, rcond=None)[0]
    np.testing.assert_allclose(
        gauss_newton_step(jnp.asarray(j), jnp.asarray(r)), expected, rtol=1e-9, atol=1e-12
    )


def test_auxiliary_output_of_residuals():
    sol = ok.least_squares(lambda p: (p - 1.0, {"twice": 2 * p}), jnp.zeros(2), has_aux=True)
    np.testing.assert_array_equal(sol.aux["twice"], 2 * sol.params)


def test_smooth_methods_serve_residuals_too(observations):
    t, y = observations
    expected = ok.least_squares(decay, jnp.ones(3), args=(t, y)).value
    for method in ("newton", "bfgs", "trust-region"):
        sol = ok.least_squares(decay, jnp.ones(3), method=method, args=(t, y))
        assert float(sol.value) == pytest.approx(float(expected), rel=1e-8)
