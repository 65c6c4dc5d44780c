"""How solves end: at the rounding floor in any units, behind a steep wall, on a fall without end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.core import Status
from optikit.globalize.search import line_left, resolution

METHODS = ("newton", "newton-cg", "trust-region", "trust-region-exact", "cubic", "dogleg", "sr1",
           "bfgs", "lbfgs", "nonlinear-cg")  # fmt: skip

CURVATURES = [1.0, 10.0, 1e2, 1e3, 1e4, 1e5]


def misfit(x, a, b):
    return jnp.sum((a @ x - b) ** 2)


def wall(x):
    """Convex, with minimum 1 where x = (0, 1, ..., 1); its slope is e^x behind the origin."""
    return jnp.exp(x[0]) - x[0] + jnp.sum(jnp.array(CURVATURES) * (x[1:] - 1) ** 2) / 2


@pytest.mark.parametrize("method", METHODS)
def test_the_rounding_floor_is_an_end_in_any_units(method):
    """The minimum is zero, so that no rounding of the value says where the floor is."""
    for units in (1.0, 1e4, 1e7):
        a = units * np.random.default_rng(2).normal(size=(8, 8))
        sol = ok.minimize(misfit, jnp.zeros(8), args=(a, a @ np.ones(8)), method=method)
        np.testing.assert_allclose(sol.params, 1, rtol=1e-6)
        assert bool(sol.success), (units, sol)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steep", [20.0, 45.0])
def test_behind_a_steep_wall_lies_the_minimum(method, steep):
    """Curvature met on the wall, 10^19 times the valley's, must be forgotten on the way down."""
    sol = ok.minimize(wall, jnp.full(7, 3.0).at[0].set(steep), method=method)
    assert bool(sol.success), sol
    assert float(sol.value) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fall", [
    lambda x: jnp.sum(x), lambda x: x[0] ** 2 + x[1], lambda x: -jnp.sqrt(1 + jnp.sum(x**2)),
])  # fmt: skip
def test_no_fall_without_end_is_a_success(method, fall):
    for dtype in (jnp.float64, jnp.float32):
        sol = ok.minimize(fall, jnp.ones(2, dtype), method=method, max_steps=300)
        assert not bool(sol.success), sol
        assert np.isfinite(float(sol.value))


@pytest.mark.parametrize("method", ["trust-region", "trust-region-exact", "cubic"])
def test_a_straight_fall_is_unbounded_before_squares_overflow(method):
    sol = ok.minimize(lambda x: jnp.sum(x), jnp.ones(2), method=method)
    assert int(sol.status) == Status.UNBOUNDED


@pytest.mark.parametrize("method", METHODS)
def test_a_step_that_was_cut_promises_what_lies_beyond(method):
    """Where parameters count in 10^12, a step of length one gains nothing, and is not the end."""

    def far(x):
        u = 1e-12 * x
        return jnp.sum(jnp.array([1.0, 10.0, 100.0]) * (u - 1) ** 2) + jnp.sum((u - 1) ** 4)

    for start in (0.0, 5e12):
        sol = ok.minimize(far, jnp.full(3, start), method=method)
        assert bool(sol.success)
        np.testing.assert_allclose(1e-12 * sol.params, 1, rtol=1e-4)


@pytest.mark.parametrize("method", ["newton-cg", "trust-region"])
@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_without_gradient_or_negative_curvature_it_is_over(method, unit):
    """A probe of the curvature is no step: none is promised, and none is taken."""

    def bowl(x, u):
        return jnp.sum(jnp.array([1.0, 10.0, 100.0]) * (x / u - 1) ** 2)

    sol = ok.minimize(bowl, jnp.full(3, unit), method=method, args=(unit,))
    assert bool(sol.success)
    assert int(sol.steps) == 1
    np.testing.assert_array_equal(sol.params, unit)


def test_a_kink_is_no_end_at_precision():
    """Where the slope turns without having shrunk, a line that holds nothing more shows nothing."""

    def ridge(x):
        return jnp.abs(x[0]) * 100 + x[1] ** 2 + x[1]

    for method in ("bfgs", "lbfgs", "nonlinear-cg", "sr1"):
        sol = ok.minimize(ridge, jnp.array([1.0, 1.0]), method=method, max_steps=200)
        assert not bool(sol.success) or float(sol.value) == pytest.approx(-0.25, abs=1e-6)


def test_what_is_left_on_a_line_is_exact_on_a_quadratic():
    t, slope, bend = 0.3, -4.0, 8.0
    left = line_left(jnp.asarray(slope), jnp.asarray(slope + bend * t), jnp.asarray(t), jnp.inf)
    assert float(left) == pytest.approx(slope**2 / (2 * bend))
    same = line_left(jnp.asarray(slope), jnp.asarray(slope), jnp.asarray(t), 7.0)
    assert float(same) == 7.0  # too short to tell: as before


def test_the_resolution_is_that_of_value_and_parameters():
    def value(x):
        return 3.0 * (x - 1.0)

    x = jnp.asarray(2.0**20 + 1.0)
    at = ok.calculus.bind(ok.calculus.black_box(value), ()).value_and_grad(x)
    step = np.spacing(float(x))
    assert float(resolution(at)) >= abs(float(value(x + step) - value(x)))
    huge = at._replace(grad=jnp.asarray(1e200), params=jnp.asarray(1e200))
    assert np.isfinite(float(resolution(huge)))


def test_the_floor_is_told_under_vmap_and_jit():
    a = 1e6 * np.random.default_rng(0).normal(size=(3, 5, 5))

    @jax.jit
    @jax.vmap
    def solve(a):
        return ok.minimize(misfit, jnp.zeros(5), args=(a, a @ jnp.ones(5)), method="lbfgs")

    assert bool(jnp.all(solve(a).success))


STEPPED = ("newton", "newton-cg", "trust-region", "trust-region-exact", "cubic", "dogleg", "sr1",
           "bfgs", "lbfgs", "nonlinear-cg", "newton-bfgs")  # fmt: skip


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_that_was_refused_is_not_returned(name):
    """Nor its evaluation: the gradient reported is that of the point reported."""

    def cliff(x):  # NaN beyond the wall, and poorly modelled before it
        return jnp.sum(
            100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2 - 1e-3 * jnp.log(2 - x[0])
        )

    method = ok.optimizers.named(name)
    oracle = ok.calculus.bind(ok.calculus.black_box(cliff), ())
    step = jax.jit(lambda at, state, key: method.step(oracle, at, state, key))
    at, _ = method.evaluate(oracle, jnp.array([-1.9, 1.9, -3.0]))
    state = method.init(at)
    for i in range(12):
        params, following, state, info = step(at, state, jax.random.key(i))
        assert float(following.value) <= float(at.value)
        np.testing.assert_array_equal(params, following.params)
        if not bool(info.accepted):
            np.testing.assert_array_equal(params, at.params)
        again = oracle.value_and_grad(params)
        np.testing.assert_allclose(following.grad, again.grad, rtol=1e-9)
        at = following


@pytest.mark.parametrize("damping", ["ratio", "nielsen"])
def test_a_trial_that_is_not_finite_raises_the_damping(damping):
    method = ok.optimizers.levenberg_marquardt(damping=damping)
    oracle = ok.calculus.bind(ok.residuals(lambda p: jnp.log(p) - 3.0), ())
    at, _ = method.evaluate(oracle, jnp.array([0.01]))
    state = method.init(at)

    def walled(p):  # finite at the start alone
        return jnp.where(p == 0.01, jnp.log(p) - 3.0, jnp.nan)

    wall = ok.calculus.bind(ok.residuals(walled), ())
    params, _, state, first = method.step(wall, at, state, jax.random.key(0))
    params, _, _, second = method.step(wall, at._replace(params=params), state, jax.random.key(1))
    assert not bool(first.accepted)
    assert float(second.extras["damping"]) > float(first.extras["damping"])
    np.testing.assert_array_equal(params, at.params)


def test_tolerances_come_from_the_dtype():
    """One that float32 cannot meet would call every float32 solve a failure."""
    ends = {
        dtype: ok.minimize(lambda x: jnp.sum((x - 3) ** 2), jnp.zeros(2, dtype), method="lbfgs")
        for dtype in (jnp.float32, jnp.float64)
    }
    assert all(bool(sol.success) for sol in ends.values())
    quartic = {
        dtype: ok.minimize(lambda x: jnp.sum((x - 3) ** 4), jnp.zeros(2, dtype), method="lbfgs")
        for dtype in ends
    }
    assert int(quartic[jnp.float64].steps) > int(quartic[jnp.float32].steps)


def test_no_residuals_is_told():
    with pytest.raises(ValueError, match="returned no residuals"):
        ok.least_squares(lambda p: p[:0], jnp.zeros(2))


BOX = (-3.0, 3.0)


@pytest.mark.parametrize(("method", "bounds"), [
    ("newton", None), ("newton-cg", None), ("trust-region", None), ("trust-region-exact", None),
    ("cubic", None), ("newton", BOX), ("newton-cg", BOX),
])  # fmt: skip
def test_a_saddle_that_is_hit_exactly_is_left(method, bounds):
    """One step ends on it, where no gradient tells of the other direction."""
    sol = ok.minimize(
        lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4, jnp.array([1.0, 0.0]), method=method,
        bounds=bounds,
    )  # fmt: skip
    assert bool(sol.success), sol
    assert float(sol.value) == pytest.approx(-1)
