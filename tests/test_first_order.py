"""Nonlinear conjugate gradients, the Hager-Zhang search, and quasi-Newton scaling."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.calculus import bind, black_box
from optikit.core import Counts, Status, times
from optikit.globalize import backtracking, hager_zhang
from optikit.linalg import Direction
from optikit.optimizers import bfgs, gradient_descent, lbfgs, nonlinear_cg
from optikit.optimizers.nonlinear_cg import Beta

BETAS = typing.get_args(Beta)
N = 8


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def quadratic(x, a, b):
    return x @ (a @ x) / 2 - b @ x


@pytest.fixture(scope="module")
def system():
    rng = np.random.default_rng(3)
    q = np.linalg.qr(rng.normal(size=(N, N)))[0]
    return q @ np.diag(np.logspace(0, 2, N)) @ q.T, rng.normal(size=N)


def linear_cg_values(a, b):
    """The values of the quadratic along linear conjugate gradients from the origin."""
    x, r = np.zeros(N), b.copy()
    p, values = r.copy(), [0.0]
    for _ in range(N):
        alpha = r @ r / (p @ a @ p)
        x = x + alpha * p
        new = r - alpha * a @ p
        p = new + new @ new / (r @ r) * p
        r = new
        values.append(x @ a @ x / 2 - b @ x)
    return np.array(values)


# --- nonlinear conjugate gradients ---------------------------------------------------------------


@pytest.mark.parametrize("beta", BETAS)
def test_every_beta_is_linear_cg_on_a_quadratic_with_an_exact_search(beta, system):
    """The same values step by step, and the solution after as many steps as parameters."""
    a, b = system
    method = nonlinear_cg(beta, globalize=hager_zhang(c2=1e-9, start="previous"))
    sol = ok.minimize(
        quadratic, jnp.zeros(N), args=(jnp.asarray(a), jnp.asarray(b)), method=method,
        tol=1e-7, max_steps=3 * N, trace=True,
    )  # fmt: skip
    values = np.asarray(sol.trace.value)
    reference = linear_cg_values(a, b)
    assert bool(sol.success), str(sol)
    assert N - 1 <= int(sol.steps) <= N + 2
    np.testing.assert_allclose(values[:N], reference[:N], atol=1e-9 * abs(reference[-1]))
    reached = values[min(N, int(sol.steps))]  # what follows only sees that nothing is left
    np.testing.assert_allclose(reached, reference[-1], rtol=1e-9)
    np.testing.assert_allclose(sol.params, np.linalg.solve(a, b), atol=1e-6)


def test_a_restart_at_every_step_is_steepest_descent(system):
    a, b = system
    method = nonlinear_cg(restart=1, globalize=hager_zhang(c2=1e-9, start="previous"))
    sol = ok.minimize(
        quadratic, jnp.zeros(N), args=(jnp.asarray(a), jnp.asarray(b)), method=method,
        max_steps=5, trace=True,
    )  # fmt: skip
    x, values = np.zeros(N), [0.0]
    for _ in range(5):
        g = a @ x - b
        x = x - g @ g / (g @ a @ g) * g
        values.append(x @ a @ x / 2 - b @ x)
    np.testing.assert_allclose(sol.trace.value, values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", ["hager-zhang", "polak-ribiere+"])
def test_a_curved_valley_is_followed_to_its_end(beta):
    start = jnp.tile(jnp.asarray([-1.2, 1.0]), 3)
    sol = ok.minimize(rosenbrock, start, method=nonlinear_cg(beta))
    assert bool(sol.success), str(sol)
    assert float(jnp.linalg.norm(jax.grad(rosenbrock)(sol.params))) < 1e-4


@pytest.mark.parametrize("method", [nonlinear_cg(), bfgs(), lbfgs(globalize=hager_zhang())])
def test_the_rounding_floor_is_a_success_not_a_failure(method):
    """An offset hides the last digits of the decrease; the tolerance cannot be met."""

    def raised(x):
        return 1e4 + jnp.sum(jnp.asarray([1.0, 30.0, 900.0], x.dtype) * jnp.cosh(x - 0.7))

    sol = ok.minimize(raised, jnp.zeros(3, jnp.float32), method=method, tol=0.0, max_steps=300)
    assert bool(sol.success), str(sol)
    # the curvature times the squared error is less than what the value can show
    error = np.asarray([1.0, 30.0, 900.0]) * (np.asarray(sol.params) - 0.7) ** 2 / 2
    assert np.sum(error) <= 4 * np.finfo(np.float32).eps * float(sol.value)


def test_wrong_calls_say_what_to_do():
    with pytest.raises(ValueError, match="unknown beta 'hz': choose from 'hager-zhang', 'polak"):
        nonlinear_cg("hz")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="restart must be at least 1"):
        nonlinear_cg(restart=0)
    with pytest.raises(TypeError, match="nonlinear_cg needs a search that evaluates gradients"):
        ok.minimize(
            rosenbrock, jnp.zeros(2), method=nonlinear_cg(globalize=backtracking(gradients=False))
        )


# --- the Hager-Zhang search ----------------------------------------------------------------------


def wave(x, c):
    """A family on the line: quartic, quadratic, wave, a wall beyond which it is NaN."""
    inside = jnp.where(x[0] < c[3], 1.0, jnp.nan)
    return inside * (c[0] * x[0] ** 4 + c[1] * x[0] ** 2 + c[2] * jnp.cos(5 * x[0])) - x[0]


def test_hager_zhang_ends_on_its_conditions():
    """On a family of functions with minima from 1e-3 to 1e3 away, walls and many local minima."""
    c1, c2 = 0.1, 0.2
    coefficients = jnp.asarray(
        [[0.0, 500.0, 0.0, 1e9], [0.0, 5e-4, 0.0, 1e9], [1.0, 0.0, 0.0, 1e9],
         [1e-6, 1.0, 0.0, 1e9], [0.0, 0.1, 0.3, 1e9], [0.0, 0.01, 0.0, 0.6], [1e6, 1.0, 0.0, 0.7],
         [1e-9, 0.0, 0.1, 1e9]]
    )  # fmt: skip

    def search(c):
        oracle = bind(black_box(wave), (c,))
        at = oracle.value_and_grad(jnp.zeros(1))
        slope, no, zero = at.grad[0], jnp.asarray(False), jnp.zeros(())
        free = times(0, Counts())
        direction = Direction(jnp.ones(1), slope, zero, no, ~no, zero, free)
        method = hager_zhang(c1=c1, c2=c2)
        return at, method.search(oracle, at, lambda radius: direction, method.init(at))

    at, found = jax.jit(jax.vmap(search))(coefficients)
    assert np.all(found.accepted)
    assert np.all(found.status == Status.RUNNING)
    t, slope, slope0 = found.step_size, found.next.grad[:, 0], at.grad[:, 0]
    rise = found.next.value - at.value
    np.testing.assert_array_equal(found.params[:, 0], t)
    by_value = rise <= c1 * t * slope0
    by_slope = (rise <= 1e-15 * np.abs(at.value)) & (slope <= (2 * c1 - 1) * slope0)
    met = (by_value | by_slope) & (np.abs(slope) <= -c2 * slope0)
    walled = np.asarray(coefficients[:, 3]) < 1.0
    # a minimum behind a wall cannot be reached: the best decrease in front of it is taken
    assert np.all(met[~walled])
    assert np.all(rise < 0)
    assert np.all(found.counts.grad <= 40)
    assert np.median(found.counts.grad) <= 8


@pytest.mark.parametrize("method", [bfgs(globalize=hager_zhang()),
                                    gradient_descent(line_search="hager-zhang")])  # fmt: skip
def test_hager_zhang_serves_other_methods(method):
    sol = ok.minimize(lambda x: jnp.sum(jnp.cosh(x - 1)), jnp.zeros(3), method=method)
    assert bool(sol.success), str(sol)
    np.testing.assert_allclose(sol.params, 1.0, atol=1e-6)


# --- quasi-Newton scaling ------------------------------------------------------------------------


def test_bfgs_learns_an_ill_conditioned_quadratic_and_claims_nothing_early():
    weights = jnp.logspace(0, 6, 30)
    sol = ok.minimize(lambda x: jnp.sum(weights * (x - 1) ** 2), jnp.zeros(30), method="bfgs")
    assert bool(sol.success), str(sol)
    assert int(sol.steps) <= 3 * 30
    assert float(sol.value) < 1e-8 * float(jnp.sum(weights))
    np.testing.assert_allclose(sol.params, 1.0, atol=1e-2)


@pytest.mark.parametrize("method", ["bfgs", "lbfgs", "sr1", "nonlinear-cg"])
def test_learnt_curvature_claims_no_success_far_from_a_stationary_point(method):
    """A valley whose walls rise by tens of orders of magnitude, where learning comes to rest."""
    times_, truth = jnp.arange(50.0, 130.0, 5.0), jnp.asarray([5.6e-3, 6180.0, 345.0])

    def model(p):
        return p[0] * jnp.exp(p[1] / (times_ + p[2]))

    def misfit(p):
        return jnp.sum((model(p * jnp.asarray([1e-2, 1e1, 1.0])) - model(truth)) ** 2)

    start = jnp.asarray([200.0, 400.0, 250.0])
    sol = ok.minimize(misfit, start, method=method)
    first = jnp.max(jnp.abs(jax.grad(misfit)(start)))
    scale = max(1.0, float(first), abs(float(sol.value)))
    assert not sol.success or float(sol.grad_norm) <= 1e-6 * scale


@pytest.mark.parametrize("name", ["bfgs", "lbfgs", "nonlinear-cg"])
def test_what_was_learnt_is_dropped_once_when_its_direction_fails(name):
    oracle = bind(black_box(lambda x: jnp.sum(jnp.cosh(x))))
    at, method = oracle.value_and_grad(jnp.ones(2)), ok.optimizers.named(name)
    fresh = method.init(at)
    uphill = {
        "bfgs": lambda: fresh._replace(inverse_hessian=-jnp.eye(2), fresh=jnp.asarray(False)),
        "lbfgs": lambda: fresh._replace(
            gamma=-fresh.gamma, held=jnp.asarray(1, jnp.int32), sy=jnp.diag(jnp.arange(1.0, 11.0))
        ),
        "nonlinear-cg": lambda: fresh._replace(direction=at.grad, since=jnp.asarray(3, jnp.int32)),
    }[name]()
    key = jax.random.key(0)
    _, end, state, info = method.step(oracle, at, uphill, key)
    assert int(info.status) == Status.RUNNING
    assert not bool(info.accepted)
    np.testing.assert_array_equal(end.params, at.params)
    _, end, _, info = method.step(oracle, at, state, key)
    assert bool(info.accepted)
    assert float(end.value) < float(at.value)


def brown_badly_scaled(x):
    return (x[0] - 1e6) ** 2 + (x[1] - 2e-6) ** 2 + (x[0] * x[1] - 2) ** 2


def powell_badly_scaled(x):
    return (1e4 * x[0] * x[1] - 1) ** 2 + (jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001) ** 2


@pytest.mark.parametrize("method", ["bfgs", "lbfgs"])
@pytest.mark.parametrize(
    ("fun", "start"), [(brown_badly_scaled, [1.0, 1.0]), (powell_badly_scaled, [0.0, 1.0])]
)
def test_badly_scaled_problems_are_solved(method, fun, start):
    """More, Garbow & Hillstrom (1981), problems 3 and 4: the minimum is 0."""
    sol = ok.minimize(fun, jnp.asarray(start), method=method)
    assert bool(sol.success), str(sol)
    assert float(sol.value) < 1e-12
