"""Solves in other units of the values and the parameters, where squares over- or underflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.linalg.damped_cg import damped_cg
from optikit.linalg.exact import dogleg_step
from optikit.linalg.minres import minres
from optikit.optimizers.quasi_newton import unit_of

START = np.array([-1.2, 1.0, 0.5])


def valley(x, height, width):
    """Rosenbrock's function with its minimum at 1 / width."""
    x = width * x
    return height * jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def solved(method, dtype, height, width, **options):
    sol = ok.minimize(
        valley, jnp.asarray(START / width, dtype), method=method,
        args=(jnp.asarray(height, dtype), jnp.asarray(width, dtype)), **options,
    )  # fmt: skip
    assert bool(sol.success), sol
    np.testing.assert_allclose(width * np.asarray(sol.params, np.float64), 1, atol=5e-3)


GLTR = ok.optimizers.trust_region_newton(subproblem="gltr")


@pytest.mark.parametrize(
    "method", ["newton-cg", "trust-region", GLTR], ids=["newton-cg", "trust-region", "gltr"]
)
@pytest.mark.parametrize("height", [1e10, 1e14, 1e18])
def test_gradients_whose_squares_overflow_in_float32(method, height):
    solved(method, jnp.float32, height, 1.0)


@pytest.mark.parametrize("method", [
    "newton", "newton-bfgs", "newton-cg", "trust-region", "trust-region-exact", "cubic", "dogleg",
    "sr1", "bfgs", "lbfgs", "nonlinear-cg",
])  # fmt: skip
def test_gradients_whose_squares_overflow_in_float64(method):
    for height in (1e100, 1e200, 1e280):
        solved(method, jnp.float64, height, 1.0)


def test_a_descent_is_the_same_in_units_whose_squares_overflow():
    def path(height):
        sol = ok.minimize(
            valley, jnp.asarray(START), args=(height, 1.0), method="gradient-descent", max_steps=20
        )
        return sol.params

    np.testing.assert_allclose(path(1e200), path(1e100), rtol=1e-6)


@pytest.mark.parametrize("method", ["newton-cg", "trust-region", "lbfgs", "nonlinear-cg"])
@pytest.mark.parametrize("width", [1e-8, 1e8])
def test_parameters_of_any_size_in_float32(method, width):
    solved(method, jnp.float32, 1.0, width)


@pytest.mark.parametrize("method", ["newton", "newton-cg", "lbfgs"])
@pytest.mark.parametrize("width", [1e-8, 1e8])
def test_parameters_of_any_size_within_bounds_in_float32(method, width):
    box = jnp.float32(-2 / width), jnp.float32(1.05 / width)
    solved(method, jnp.float32, 1.0, width, bounds=box)


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1.0, 1e14, 1e25])
@pytest.mark.parametrize("radius", [0.5, 100.0, np.inf])
def test_inner_solvers_are_linear_in_the_gradient(size, radius):
    """In float32: of H scaled with g the step is the same, whatever squares would do."""
    a = np.diag([1.0, 3.0, 10.0, -2.0 if radius < 1 else 2.0]).astype(np.float32)
    g = np.array([1.0, -2.0, 0.5, 1.0], np.float32)

    def step(solve, unit):
        def quadratic(x, a, g):
            return g @ x + x @ (a @ x) / 2

        oracle = ok.calculus.bind(
            ok.calculus.black_box(quadratic), (jnp.asarray(unit * a), jnp.asarray(unit * g))
        )
        at = oracle.value_and_grad(jnp.zeros(4, jnp.float32))
        inner = ok.linalg.Inner(jnp.float32(1e-6), jnp.float32(0))
        model = solve.prepare(oracle, at, "hessian", jax.random.key(0))
        found = model.propose(jnp.float32(radius), inner)
        return found.step, found.predicted / unit

    for solve in (ok.linalg.conjugate_gradients(), ok.linalg.krylov()):
        (s, predicted), (usual, promised) = (
            step(solve, np.float32(size)),
            step(solve, np.float32(1)),
        )
        np.testing.assert_allclose(s, usual, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(predicted, promised, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_iterations_for_systems_do_not_square_the_right_hand_side(size):
    a = jnp.diag(jnp.asarray([1.0, 3.0, 10.0], jnp.float32))
    b = jnp.asarray([1.0, -2.0, 0.5], jnp.float32)
    exact = b / jnp.diagonal(a)
    found = minres(lambda v: a @ v, jnp.float32(size) * b, floor=1e-6, max_iters=9)
    assert bool(found.consistent)
    np.testing.assert_allclose(found.x / jnp.float32(size), exact, rtol=1e-5)
    for start in (None, jnp.float32(size) * jnp.ones(3, jnp.float32)):
        descent = damped_cg(
            lambda v: a @ v, -jnp.float32(size) * b, start, max_iters=9, progress=None, tol=1e-6
        )
        np.testing.assert_allclose(descent.step / jnp.float32(size), exact, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_a_dogleg_of_any_size(size):
    size = jnp.float32(size)
    first, last = size * jnp.float32([1, 0]), size * jnp.float32([1, 2])
    for radius in (0.5, 1.5):
        step, cut = dogleg_step(first, last, size * jnp.float32(radius))
        assert bool(cut)
        np.testing.assert_allclose(jnp.linalg.norm(step / size), radius, rtol=1e-6)


def test_units_of_gradients_are_powers_of_two_and_usually_one(dtype):
    for size in (1e-3, 1.0, 7e5):
        assert float(unit_of(jnp.asarray([size, -0.1], dtype))) == 1
    info = jnp.finfo(dtype)
    for size in (float(info.max) / 3, float(info.max) ** 0.5, float(info.tiny) ** 0.5):
        g = jnp.asarray([-size, size / 3], dtype)
        unit = unit_of(g)
        assert 1 <= float(jnp.max(jnp.abs(g / unit))) < 2
        np.testing.assert_array_equal(unit * (g / unit), g)
    for empty in (0.0, np.inf, np.nan):
        assert float(unit_of(jnp.asarray([empty], dtype))) == 1
