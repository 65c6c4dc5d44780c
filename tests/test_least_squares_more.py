"""Least squares in full: certified cases, claims, robust losses, boxes, wide systems, inference."""

import collections
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy.optimize._lsq.least_squares import IMPLEMENTED_LOSSES

import optikit as ok
from optikit.calculus import bind
from optikit.core import Status, as_box
from optikit.linalg.damped_step import LinearModel, scaled_by, within
from optikit.linalg.least_squares import column_norms, gauss_newton_step
from optikit.losses.robust import ROBUST, SMALLEST_SHARE
from optikit.optimizers import BOUNDED, bounded_levenberg_marquardt, levenberg_marquardt
from optikit.solve.least_squares import residual_criterion
from optikit.solve.loop import advance, begin

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
from nist_problems import MODELS, digits, load

TIGHT = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}


def certified(name):
    problem = load(name)
    args = (jnp.asarray(problem.x), jnp.asarray(problem.y))
    for start in problem.starts:
        sol = ok.least_squares(problem.residual, jnp.asarray(start), args=args)
        assert bool(sol.success), str(sol)
        assert digits(np.asarray(sol.params), problem.certified) >= 8
        assert 2 * float(sol.value) == pytest.approx(problem.squares, rel=1e-9, abs=1e-20)
    found = ok.parameter_covariance(problem.residual, sol.params, args)
    np.testing.assert_allclose(found.standard_errors, problem.deviations, rtol=1e-6)


def test_certified_values_are_met():
    """NIST's, from both of its starts, one of them beside a plateau."""
    certified("BoxBOD")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"BoxBOD", "Lanczos1"}))
def test_certified_values_are_met_by_all_models(name):
    certified(name)  # Lanczos1's standard errors are rounding themselves


def test_a_plateau_is_no_solution():
    """Far out the model has saturated: its rate no longer matters, and the slope is exactly 0."""

    def residual(b, x):
        return b[0] * (1 - jnp.exp(-b[1] * x)) - jnp.asarray([1.0, 1.5, 1.8, 1.9])

    x = jnp.arange(1.0, 5.0)
    method = levenberg_marquardt(accept=-jnp.inf, radius=1e4)  # so that the first leap is taken
    sol = ok.least_squares(residual, jnp.asarray([1e-3, 1.0]), args=(x,), method=method)
    assert float(sol.params[1]) > 100
    assert not bool(sol.success), str(sol)


def test_a_start_without_any_influence_is_not_called_a_solution():
    sol = ok.least_squares(lambda p: jnp.exp(-1000.0 - p**2) - 1.0, jnp.asarray([3.0, 4.0]))
    assert int(sol.status) == Status.STALLED


# wide systems


def test_the_kernel_form_takes_the_same_steps_as_the_primal():
    rng = np.random.default_rng(0)
    j, r = jnp.asarray(rng.normal(size=(4, 9))), jnp.asarray(rng.normal(size=4))
    d = column_norms(j)
    for radius in (0.3, 1e9):
        scaled = scaled_by(LinearModel(j, r), d)
        damped = within(scaled, r, jnp.asarray(radius))
        step = np.asarray(scaled.lift(damped.step) / d)
        normal = j.T @ j + damped.damping * jnp.diag(d**2)
        expected = -np.linalg.lstsq(normal, j.T @ r, rcond=1e-12)[0]
        if radius > 1:  # of all solutions of J s = -r the one of least |D s|
            expected = -np.linalg.lstsq(j / d[None, :], r, rcond=None)[0] / d
        np.testing.assert_allclose(step, expected, rtol=1e-9, atol=1e-12)
        assert float(damped.size) == pytest.approx(float(jnp.linalg.norm(d * step)), rel=1e-12)


@pytest.mark.parametrize("method", ["levenberg-marquardt", "gauss-newton"])
def test_a_wide_problem_builds_no_square_of_its_parameters(method):
    n = 20_000

    def residual(p, target):
        return jnp.stack([jnp.sum(jnp.tanh(p[i::3])) for i in range(3)]) - target

    def solve(p, target):
        return ok.least_squares(residual, p, args=(target,), method=method)

    start, target = jnp.full(n, 0.1), jnp.asarray([1.0, 2.0, 3.0])
    assert largest_array(jax.make_jaxpr(solve)(start, target).jaxpr) <= 4 * n
    sol = solve(start, target)
    assert bool(sol.success)
    assert float(sol.value) < 1e-20


def is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def largest_array(jaxpr):
    sizes = [v.aval.size for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "size")]
    held = [
        v for e in jaxpr.eqns for v in jax.tree.leaves(list(e.params.values()), is_leaf=is_jaxpr)
    ]
    inner = [largest_array(getattr(v, "jaxpr", v)) for v in held if is_jaxpr(v)]
    return max([0, *sizes, *inner])


# robust losses


def decay(p, t, y):
    return p[0] * jnp.exp(-p[1] * t) + p[2] - y


@pytest.fixture(scope="module")
def outliers():
    t = np.linspace(0, 4, 40)
    y = 2.5 * np.exp(-1.3 * t) + 0.5 + 0.05 * np.random.default_rng(0).standard_normal(40)
    y[[3, 10, 20, 31]] += [2.0, -1.5, 3.0, 4.0]
    return jnp.asarray(t), jnp.asarray(y)


def test_robust_terms_are_scipys():
    z = np.concatenate([[0.0], np.geomspace(1e-12, 1e12, 41)])
    for name, factory in ROBUST.items():
        expected = np.zeros((3, z.size))
        IMPLEMENTED_LOSSES[name](z, expected, False)
        found = factory().terms(jnp.asarray(z))
        # scipy's soft L1 cancels near 0
        atol = 1e-15 if name == "soft_l1" else 0.0
        np.testing.assert_allclose(np.stack(found), expected, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("name", sorted(ROBUST))
def test_scaled_residuals_have_the_gradient_and_the_curvature_of_the_cost(name):
    robust = ROBUST[name](0.7)
    r = jnp.asarray([-30.0, -2.0, -0.3, 0.0, 1e-4, 0.4, 0.9, 5.0, 1e3])
    slope, bend = jax.jvp(jax.grad(lambda x: jnp.sum(robust.cost(x))), (r,), (jnp.ones_like(r),))
    a, b = robust.scaled(r)
    np.testing.assert_allclose(a * b * r, slope, rtol=1e-12)
    share = SMALLEST_SHARE * np.where(r == 0, 1, slope / np.where(r == 0, 1, r))
    np.testing.assert_allclose(b**2, np.maximum(bend, share), rtol=1e-9)
    wide = robust.scaled(jnp.asarray([1e25, -3e30], jnp.float32))
    assert all(np.all(np.isfinite(part)) for part in wide)


def test_robust_fits_agree_with_scipy(outliers):
    loss, scale = "cauchy", 0.1
    sol = ok.least_squares(decay, jnp.ones(3), args=outliers, robust=loss, robust_scale=scale)
    expected = optimize.least_squares(
        lambda p: np.asarray(decay(p, *outliers)), np.ones(3), loss=loss, f_scale=scale, **TIGHT,
        jac=lambda p: np.asarray(jax.jacobian(decay)(jnp.asarray(p), *outliers)),
    )  # fmt: skip
    assert bool(sol.success), str(sol)
    np.testing.assert_allclose(sol.params, expected.x, rtol=1e-6)
    assert float(sol.value) == pytest.approx(expected.cost, rel=1e-12)
    objective = ok.residuals(decay, robust=ok.losses.robust.ROBUST[loss](scale))
    np.testing.assert_allclose(sol.grad, jax.grad(objective)(sol.params, *outliers), atol=1e-12)


def test_the_gauss_newton_matrix_of_a_robust_objective(outliers):
    robust = ok.losses.robust.soft_l1(0.1)
    objective = ok.residuals(decay, robust=robust)
    p = jnp.asarray([2.0, 1.0, 0.4])
    weights = robust.scaled(decay(p, *outliers))[1] ** 2
    jacobian = jax.jacobian(decay)(p, *outliers)
    expected = (jacobian * weights[:, None]).T @ jacobian
    np.testing.assert_allclose(
        ok.ggn(objective, p, args=outliers).dense(), expected, rtol=1e-12, atol=1e-12
    )


def test_robust_mistakes_are_told():
    with pytest.raises(ValueError, match="unknown robust loss 'hubert'"):
        ok.least_squares(decay, jnp.ones(3), robust="hubert")
    with pytest.raises(ValueError, match="positive finite number"):
        ok.least_squares(decay, jnp.ones(3), robust="huber", robust_scale=0.0)
    with pytest.raises(ValueError, match="without a robust loss"):
        ok.least_squares(decay, jnp.ones(3), robust_scale=2.0)
    with pytest.raises(TypeError, match="has a loss of its own"):
        ok.least_squares(
            ok.composite(lambda w, x: x @ w, ok.losses.squared_error), jnp.ones(3), robust="huber"
        )
    with pytest.raises(TypeError, match="with a robust loss, which estimates it"):
        ok.parameter_covariance(decay, jnp.ones(3), (1.0, 1.0), robust="huber", variance=1.0)


# boxes

BOXES = [
    (0.0, None),
    ([0.0, 0.0, 0.6], [2.0, 5.0, 5.0]),  # one side reached
    ([0.0, 0.0, 0.0], [2.0, 1.0, 0.3]),  # corners
    ([3.0, 0.0, 0.0], [4.0, 9.0, 1.0]),  # the start's side
    (None, [np.inf, 1.2, np.inf]),
]


@pytest.mark.parametrize("bounds", BOXES)
def test_boxes_agree_with_scipy(bounds, outliers):
    low = np.broadcast_to(-np.inf if bounds[0] is None else bounds[0], 3).astype(float)
    high = np.broadcast_to(np.inf if bounds[1] is None else bounds[1], 3).astype(float)
    start = np.clip(np.ones(3), low, high)
    sol = ok.least_squares(decay, jnp.asarray(start), args=outliers, bounds=bounds)
    expected = optimize.least_squares(
        lambda p: np.asarray(decay(p, *outliers)), start, bounds=(low, high), **TIGHT,
        max_nfev=2000, jac=lambda p: np.asarray(jax.jacobian(decay)(jnp.asarray(p), *outliers)),
    )  # fmt: skip
    assert bool(sol.success), str(sol)
    assert float(sol.value) <= expected.cost * (1 + 1e-12)
    np.testing.assert_allclose(sol.params, expected.x, rtol=1e-5)
    x, g = np.asarray(sol.params), np.asarray(sol.grad)
    assert np.all((x >= low) & (x <= high))
    free = (x > low) & (x < high)
    assert np.all(np.abs(g[free]) <= 1e-7)  # |J_j| |r| is about 10
    assert np.all(g[x == low] >= 0)
    assert np.all(g[x == high] <= 0)


def test_equal_bounds_fix_a_parameter_and_nothing_is_compiled_again(outliers):
    traced = collections.Counter()

    def counted(p, t, y):
        traced["times"] += 1
        return decay(p, t, y)

    start = jnp.asarray([1.0, 1.3, 1.0])
    ok.least_squares(counted, start, args=outliers, bounds=(0.0, 5.0))
    before = traced["times"]
    sol = ok.least_squares(
        counted, start, args=outliers, bounds=([0.0, 1.3, 0.0], [9.0, 1.3, jnp.inf])
    )
    assert traced["times"] == before
    assert bool(sol.success)
    assert float(sol.params[1]) == 1.3
    t, y = map(np.asarray, outliers)
    design = np.stack([np.exp(-1.3 * t), np.ones_like(t)], axis=1)
    np.testing.assert_allclose(
        np.asarray(sol.params)[[0, 2]], np.linalg.lstsq(design, y, rcond=None)[0], rtol=1e-9
    )
    all_fixed = ok.least_squares(counted, start, args=outliers, bounds=(start, start))
    assert bool(all_fixed.success)
    np.testing.assert_array_equal(all_fixed.params, start)


def test_random_linear_boxes_agree_with_bounded_linear_least_squares():
    """Under vmap, against scipy's BVLS."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(24, 8, 3)), rng.normal(size=(24, 8))
    low, high = -rng.uniform(0, 0.3, size=(24, 3)), rng.uniform(0, 0.3, size=(24, 3))

    def solve(a, b, low, high):
        return ok.least_squares(
            lambda p, a, b: a @ p - b, jnp.zeros(3), args=(a, b), bounds=(low, high)
        )

    sol = jax.jit(jax.vmap(solve))(*map(jnp.asarray, (a, b, low, high)))
    assert bool(jnp.all(sol.success)), sol.status
    assert int(jnp.max(sol.steps)) <= 30
    for i in range(24):
        expected = optimize.lsq_linear(a[i], b[i], (low[i], high[i]), method="bvls", tol=1e-14)
        np.testing.assert_allclose(sol.params[i], expected.x, atol=1e-8)


def test_boxes_and_outliers_together_in_any_pytree_and_float32(outliers):
    args = tuple(x.astype(jnp.float32) for x in outliers)

    def residual(p, t, y):
        return decay([p["height"], p["rate"], p["floor"][0]], t, y)

    start = {
        "floor": (jnp.full((), 0.2, jnp.float32),),
        "height": jnp.float32(1),
        "rate": jnp.float32(1),
    }
    sol = ok.least_squares(
        residual, start, args=args, robust="soft_l1", robust_scale=0.1,
        bounds=({"floor": 0.0, "height": None, "rate": 0.0}, {"floor": 0.4, "height": 9, "rate": None}),
    )  # fmt: skip
    assert bool(sol.success), str(sol)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((sol.params, sol.value, sol.grad)))
    assert float(sol.params["floor"][0]) == pytest.approx(0.4)
    expected = optimize.least_squares(
        lambda p: np.asarray(decay([p[0], p[1], p[2]], *outliers)), [1.0, 1.0, 0.2], loss="soft_l1",
        f_scale=0.1, bounds=([-np.inf, 0, 0], [9, np.inf, 0.4]), **TIGHT,
    )  # fmt: skip
    np.testing.assert_allclose(
        [sol.params["height"], sol.params["rate"]], expected.x[:2], rtol=2e-3
    )


def test_the_bounded_ledger_is_what_happened_at_the_door(outliers):
    taps = collections.Counter()
    box = as_box((0.0, [2.0, 5.0, 0.7]), jnp.ones(3) / 2)
    method = bounded_levenberg_marquardt().inside(box)

    @jax.jit
    def run(params):
        def tap(name):
            jax.debug.callback(lambda: taps.update([name]))

        oracle = bind(ok.residuals(decay), outliers, tap=tap)
        start = begin(method, oracle, params, jax.random.key(0))
        return advance(method, oracle, start, 50, jnp.asarray(1e-10), residual_criterion)

    progress = jax.block_until_ready(run(jnp.ones(3) / 2))
    jax.effects_barrier()
    assert {k: int(v) for k, v in progress.counts._asdict().items() if int(v)} == dict(taps)


def test_box_mistakes_are_told():
    start = {"a": jnp.ones(2)}

    def residual(p):
        return p["a"] - 3.0

    for bounds, words in (
        ((2.0, 3.0), r"params\['a'\]\[0\] starts at 1.0, below its lower bound 2.0"),
        ((3.0, 2.0), "above its upper bound"),
        ((jnp.nan, None), "is NaN somewhere"),
        ((0.0, 1.0, 2.0), r"must be a pair \(lower, upper\)"),
        (({"b": 0.0}, None), "bounds are not structured like params"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            ok.least_squares(residual, start, bounds=bounds)
    with pytest.raises(
        ValueError, match=r"'gauss-newton' takes no bounds: use .*'levenberg-marquardt'"
    ):
        ok.least_squares(residual, start, bounds=(0.0, 2.0), method="gauss-newton")
    inside = jax.jit(lambda x: ok.least_squares(lambda p: p - 3.0, x, bounds=(1.5, 2.0)))
    assert float(inside(jnp.asarray(9.0)).params) == 2.0


# inference


def test_covariance_is_curve_fits(outliers):
    t, y = map(np.asarray, outliers)
    sol = ok.least_squares(decay, jnp.ones(3), args=outliers)
    found = jax.jit(lambda p: ok.parameter_covariance(decay, p, outliers))(sol.params)
    _, covariance = optimize.curve_fit(
        lambda t, a, b, c: a * np.exp(-b * t) + c, t, y, np.ones(3), ftol=1e-15, xtol=1e-15
    )
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-5)
    assert (int(found.dof), int(found.rank)) == (37, 3)
    assert bool(found.full_rank)
    assert float(found.variance) == pytest.approx(2 * float(sol.value) / 37)
    np.testing.assert_allclose(np.diagonal(found.correlation), 1, rtol=1e-12)
    known = ok.parameter_covariance(decay, sol.params, outliers, variance=1.0)
    jacobian = np.asarray(jax.jacobian(decay)(sol.params, *outliers))
    np.testing.assert_allclose(known.covariance, np.linalg.inv(jacobian.T @ jacobian), rtol=1e-10)


def test_what_the_residuals_do_not_determine_has_no_finite_error():
    def residual(p, x, y):
        return p["scale"] * 1e-8 * x + (p["shared"][0] + p["shared"][1]) - y

    x = jnp.linspace(0.0, 1.0, 8)
    p = {"scale": jnp.asarray(1e8), "shared": jnp.asarray([0.5, 0.5])}
    y = x + 1 + 0.1 * jnp.cos(9 * x)
    found = ok.parameter_covariance(residual, p, (x, y))
    assert (int(found.rank), int(found.dof)) == (2, 6)
    assert not bool(found.full_rank)
    np.testing.assert_array_equal(found.standard_errors["shared"], [jnp.inf, jnp.inf])
    jacobian = np.stack([1e-8 * x, np.ones(8), np.ones(8)], axis=1)
    d = np.linalg.norm(jacobian, axis=0)
    unit = np.linalg.pinv(jacobian / d) / d[:, None]
    np.testing.assert_allclose(found.covariance, found.variance * unit @ unit.T, rtol=1e-9)
    assert np.isfinite(float(found.standard_errors["scale"]))
    few = ok.parameter_covariance(lambda p: p[:1] * 2.0, jnp.ones(3))
    assert (int(few.rank), int(few.dof)) == (1, 0)
    assert np.isnan(float(few.variance))


def test_parameters_on_a_bound_are_held_in_the_covariance(outliers):
    bounds = (0.0, [jnp.inf, 1.2, jnp.inf])
    sol = ok.least_squares(decay, jnp.ones(3), args=outliers, bounds=bounds)
    assert float(sol.params[1]) == 1.2
    found = ok.parameter_covariance(decay, sol.params, outliers, bounds=bounds)
    alone = ok.parameter_covariance(
        lambda p, t, y: decay([p[0], 1.2, p[1]], t, y), sol.params[jnp.asarray([0, 2])], outliers
    )
    assert (int(found.rank), int(found.free), int(found.dof)) == (2, 2, 38)
    assert bool(found.full_rank)
    np.testing.assert_allclose(found.standard_errors[1], 0.0)
    np.testing.assert_allclose(
        found.standard_errors[jnp.asarray([0, 2])], alone.standard_errors, rtol=1e-10
    )
    assert float(found.condition) == pytest.approx(float(alone.condition), rel=1e-9)


def test_weights_and_robust_losses_enter_the_covariance():
    rng = np.random.default_rng(3)
    x, y = jnp.asarray(rng.normal(size=(60, 2))), jnp.asarray(rng.normal(size=60))
    weights = jnp.asarray(rng.uniform(0.5, 2.0, 60)).at[:10].set(0.0)
    objective = ok.composite(lambda w, x: x @ w, ok.losses.squared_error)
    sol = ok.least_squares(objective, jnp.zeros(2), args=(x, y, weights))
    found = ok.parameter_covariance(objective, sol.params, (x, y, weights))
    root = jnp.sqrt(weights)[10:]
    plain = ok.parameter_covariance(lambda p: root * (x[10:] @ p - y[10:]), sol.params)
    assert int(found.dof) == int(plain.dof) == 48
    np.testing.assert_allclose(found.covariance, plain.covariance, rtol=1e-9)

    def line(p, x, y):
        return x @ p - y

    wide = ok.parameter_covariance(line, sol.params, (x, y), robust="huber", robust_scale=1e3)
    squares = ok.parameter_covariance(line, sol.params, (x, y))
    np.testing.assert_allclose(wide.covariance, squares.covariance, rtol=1e-9)


@pytest.mark.slow
def test_robust_standard_errors_are_the_scatter_of_estimates():
    """Over 2,000 data sets with outliers, to the 5 % that so many leave."""
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.normal(size=(80, 2)))
    noise = rng.normal(size=(2000, 80)) * np.where(rng.uniform(size=(2000, 80)) < 0.1, 8.0, 1.0)
    y = jnp.asarray(np.asarray(x) @ [1.0, -2.0] + noise)

    def line(p, y):
        return x @ p - y

    options = {"robust": "huber", "robust_scale": 1.5}
    sols = ok.least_squares_many(line, jnp.zeros((2000, 2)), (y,), **options)
    errors = jax.jit(
        jax.vmap(lambda p, y: ok.parameter_covariance(line, p, (y,), **options).standard_errors)
    )(sols.params, y)
    np.testing.assert_allclose(jnp.mean(errors, 0), jnp.std(sols.params, axis=0), rtol=0.05)


# --- variants of Levenberg-Marquardt -------------------------------------------------------------


def valley(p, b):
    return jnp.stack([b * (p[1] - p[0] ** 2), 1 - p[0]])


@pytest.mark.parametrize("wide", [False, True])
def test_acceleration_is_the_second_order_term(wide):
    """bend = J^T r''[v, v], and along curved valleys it spares steps, also in the kernel form."""
    objective = ok.residuals(valley, robust=ok.losses.robust.soft_l1(2.0))
    p, v = jnp.asarray([0.3, -0.7]), jnp.asarray([0.5, 2.0])
    second = jnp.asarray([-2 * 10.0 * v[0] ** 2, 0.0])
    b2 = objective.robust.scaled(valley(p, 10.0))[1] ** 2
    expected = jax.jacobian(valley)(p, 10.0).T @ (b2 * second)
    np.testing.assert_allclose(bind(objective, (10.0,)).bend(p, v), expected, rtol=1e-12)

    def residual(p, b):
        return valley(p[:2], b) + (0.1 * p[2:] if wide else 0)

    start = jnp.concatenate([jnp.asarray([-1.2, 1.0]), jnp.full(2 if wide else 0, 0.1)])
    plain, bent = (
        ok.least_squares(
            residual, start, args=(10.0,), method=levenberg_marquardt(acceleration=turned)
        )
        for turned in (False, True)
    )
    assert bool(plain.success & bent.success)
    assert float(bent.value) < 1e-20
    assert int(bent.steps) <= int(plain.steps)
    assert int(bent.counts.jvp) == 2 * int(bent.counts.vjp) > 0


@pytest.mark.parametrize("acceleration", [False, True])
@pytest.mark.parametrize("damping", ["ratio", "nielsen"])
def test_every_damping_reaches_a_certified_minimum_and_keeps_the_books(damping, acceleration):
    method = levenberg_marquardt(damping=damping, acceleration=acceleration)
    problem = load("Chwirut2")
    args = (jnp.asarray(problem.x), jnp.asarray(problem.y))
    sol = ok.least_squares(problem.residual, jnp.asarray(problem.starts[0]), args=args,
                           method=method)  # fmt: skip
    assert bool(sol.success), str(sol)
    assert digits(np.asarray(sol.params), problem.certified) >= 8
    taps = collections.Counter()

    @jax.jit
    def run(params):
        oracle = bind(
            ok.residuals(valley), (10.0,),
            tap=lambda name: jax.debug.callback(lambda: taps.update([name])),
        )  # fmt: skip
        start = begin(method, oracle, params, jax.random.key(0))
        return advance(method, oracle, start, 30, jnp.asarray(1e-10), residual_criterion)

    progress = jax.block_until_ready(run(jnp.asarray([-1.2, 1.0])))
    jax.effects_barrier()
    assert {k: int(v) for k, v in progress.counts._asdict().items() if int(v)} == dict(taps)
    with pytest.raises(ValueError, match="damping must be one of"):
        levenberg_marquardt(damping="nilsen")


@pytest.mark.parametrize("damping", ["ratio", "nielsen"])
def test_rejected_trials_are_never_tested_for_convergence(damping):
    """Nothing but the start is finite: ever smaller steps are no convergence."""

    def residual(p):
        return jnp.where(p == 1.0, p - 3.0, jnp.nan)

    method = levenberg_marquardt(damping=damping)
    sol = ok.least_squares(residual, jnp.asarray([1.0]), method=method)
    assert int(sol.status) in (Status.STALLED, Status.NOT_FINITE)
    assert float(sol.params[0]) == 1.0
    assert float(sol.value) == 2.0


# --- derivatives through bounded solves ----------------------------------------------------------

BOUNDED_QUICK = {"levenberg-marquardt", "lbfgs"}


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=[] if n in BOUNDED_QUICK else pytest.mark.slow) for n in sorted(BOUNDED)
])  # fmt: skip
def test_derivatives_through_every_bounded_method_under_vmap(name):
    """Against finite differences; one entry of the solution lies on its bound."""

    def residual(p, t):
        return jnp.stack([p[0] + p[1] - t, p[0] - 2.0, p[1] + 0.1 * p[1] ** 3 - t**2])

    def solution(t):
        return ok.least_squares(
            residual, jnp.asarray([0.5, 0.5]), args=(t,), bounds=(0.0, [1.0, 9.0]),
            method=BOUNDED[name](), tol=1e-12,
        ).params  # fmt: skip

    at, step = jnp.asarray([0.8, 1.5]), 1e-4
    both = jax.jit(jax.vmap(jax.jacrev(solution))), jax.jit(jax.vmap(jax.jacfwd(solution)))
    ahead, behind = (jax.jit(jax.vmap(solution))(at + s) for s in (step, -step))
    for found in (f(at) for f in both):
        np.testing.assert_allclose(found, (ahead - behind) / (2 * step), atol=1e-6)
    np.testing.assert_array_equal(ahead[:, 0], 1.0)


UNITS = [(1.0, 1.0), (1e8, 1.0), (1e-8, 1.0), (1.0, 1e8), (1.0, 1e-8), (1e8, 1e-8)]
"""Of the parameters, and of the residuals."""


def in_units(residual):
    return lambda p, u, v: v * residual(p / u)


def freudenstein_roth(p):
    """At its minimum of large residual the columns of J are parallel."""
    x, y = p[0], p[1]
    return jnp.stack([-13 + x + ((5 - y) * y - 2) * y, -29 + x + ((y + 1) * y - 14) * y])


@pytest.mark.parametrize("bounds", [None, (None, None)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_parameter_without_influence_does_not_hide_the_others(bounds, dtype):
    def idle(p):
        return jnp.stack([p[0] - 1, p[0] ** 2 - 1, p[0] + 0 * p[1]])

    expected = optimize.least_squares(idle, np.array([3.0, 3.0]), **TIGHT).x[0]
    for u, v in UNITS:
        args = (jnp.asarray(u, dtype), jnp.asarray(v, dtype))
        start = jnp.full(2, 3 * u, dtype)
        sol = ok.least_squares(in_units(idle), start, args=args, bounds=bounds)
        assert bool(sol.success)
        assert float(sol.params[0]) / u == pytest.approx(expected, rel=1e-3)
        assert float(sol.params[1]) == pytest.approx(3 * u)


@pytest.mark.parametrize("bounds", [None, (None, None)])
def test_squares_of_a_jacobian_may_overflow(bounds):
    """The columns of J are 10^21, their squares infinite in float32."""

    def walled(p, u):
        return jnp.stack([jnp.exp(p[0] / u) - 1, p[1] / u - 1])

    u = jnp.asarray(1e-8, jnp.float32)
    start = u * jnp.array([30.0, 3.0], jnp.float32)
    sol = ok.least_squares(walled, start, args=(u,), bounds=bounds)
    assert bool(sol.success)
    assert float(sol.value) < 1e-10


@pytest.mark.parametrize("bounds", [None, (None, None)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_singular_minimum_of_large_residual_is_told_in_any_units(bounds, dtype):
    for u, v in UNITS:
        args = (jnp.asarray(u, dtype), jnp.asarray(v, dtype))
        start = u * jnp.array([0.5, -2.0], dtype)
        sol = ok.least_squares(in_units(freudenstein_roth), start, args=args, bounds=bounds)
        assert bool(sol.success), sol
        assert float(sol.value) / v**2 == pytest.approx(24.49213, rel=1e-5)


def test_a_direction_far_too_long_is_not_taken_for_noise():
    """Where J is nearly singular, a part of 10^-9 of the Gauss-Newton step still goes too far."""
    sol = ok.least_squares(freudenstein_roth, jnp.array([0.5, -2.0]), method="gauss-newton")
    jacobian = jax.jacobian(freudenstein_roth)(sol.params)
    slopes = np.abs(sol.grad) / np.linalg.norm(jacobian, axis=0)
    assert not bool(sol.success) or np.max(slopes) <= 1e-6 * np.sqrt(2 * float(sol.value))


def test_the_dogleg_does_not_depend_on_the_units_of_the_residuals():
    start = jnp.array([0.5, -2.0], jnp.float32)
    for v in (1.0, 1e8, 1e-8):
        args = (jnp.ones((), jnp.float32), jnp.asarray(v, jnp.float32))
        sol = ok.least_squares(in_units(freudenstein_roth), start, args=args, method="dogleg")
        assert bool(sol.success)
        assert float(sol.value) / v**2 == pytest.approx(24.49213, rel=1e-4)


@pytest.mark.parametrize("method", ["gauss-newton", "dogleg"])
def test_no_parameter_is_forgotten_beside_a_large_one(method):
    """The last step still moves the first parameter by half of its size."""

    def mixed(p):
        return jnp.stack([jnp.sqrt(p[0]) - 1e-3, p[1] - 1])

    sol = ok.least_squares(mixed, jnp.array([5.0, 0.0], jnp.float32), method=method)
    assert bool(sol.success)
    assert float(sol.params[0]) == pytest.approx(1e-6, rel=1e-2)


def test_units_do_not_decide_the_rank():
    rng = np.random.default_rng(0)
    j, r = rng.normal(size=(8, 4)), rng.normal(size=8)
    for dtype in (np.float32, np.float64):
        units = np.array([1.0, 2.0**-30, 2.0**30, 2.0**-60], dtype)  # exact
        for matrix in (j, j[:, [0, 1, 2, 0]]):
            plain, scaled = (
                gauss_newton_step(jnp.asarray(m.astype(dtype)), jnp.asarray(r.astype(dtype)))
                for m in (matrix, matrix.astype(dtype) * units)
            )
            np.testing.assert_allclose(scaled * units, plain, rtol=1e-3)


@pytest.mark.parametrize("bounds", [None, (None, None)])
@pytest.mark.parametrize("power", [2, 3])
def test_a_sum_of_squares_that_has_vanished_is_a_success(bounds, power):
    for dtype in (jnp.float32, jnp.float64):
        start = jnp.array([3.0, 1.0], dtype)
        sol = ok.least_squares(lambda p: p**power, start, bounds=bounds)
        assert bool(sol.success), sol
        assert float(sol.value) <= float(jnp.finfo(dtype).tiny)


@pytest.mark.parametrize(("residual", "error", "message"), [
    (lambda p: None, ValueError, "returned no residuals"),
    (lambda p: jnp.arange(3), TypeError, "returned int64 residuals: they must be real"),
    (lambda p: jax.lax.complex(p, p), TypeError, "returned complex128 residuals: they must be real"),
])  # fmt: skip
def test_residuals_that_are_no_real_numbers_are_told(residual, error, message):
    for bounds in (None, (None, None)):
        with pytest.raises(error, match=message):
            ok.least_squares(residual, jnp.ones(3), bounds=bounds)


@pytest.mark.parametrize("bounds", [None, (0.0, np.array([2.0, 5.0]))])
@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32")])
def test_parameters_and_residuals_of_two_precisions(bounds, dtypes):
    start = jnp.ones(2, dtypes[0])
    with jax.numpy_dtype_promotion("standard"):
        sol = ok.least_squares(lambda p: p.astype(dtypes[1]) - 3, start, bounds=bounds)
    assert bool(sol.success)
    assert sol.params.dtype == dtypes[0]
    np.testing.assert_allclose(sol.params, [3 if bounds is None else 2, 3], rtol=1e-6)


def test_a_small_part_in_an_undetermined_direction_is_no_finite_error():
    """The null vector is (1, -1, 10^-5, 0)."""
    a, b, c = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 3)))[0].T
    matrix = jnp.asarray(np.stack([a, a + 1e-5 * b, b, c], axis=1))
    found = ok.parameter_covariance(lambda p: matrix @ p - 1, jnp.zeros(4))
    assert int(found.rank) == 3
    np.testing.assert_array_equal(np.isinf(found.standard_errors), [True, True, True, False])


def test_standard_errors_are_right_where_squares_overflow():
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)))
    plain = ok.parameter_covariance(lambda p: matrix @ p - 1, jnp.zeros(3))
    for unit in (1e200, 1e-200):
        found = ok.parameter_covariance(lambda p, u: matrix @ (u * p) - 1, jnp.zeros(3), (unit,))
        assert bool(found.full_rank)
        np.testing.assert_allclose(
            np.asarray(found.standard_errors) * unit, plain.standard_errors, rtol=1e-9
        )


def test_the_condition_of_no_column_and_of_a_zero_one():
    def fit(p):
        return jnp.stack([p[0], p[0], 0 * p[1]]) - 1

    held = ok.parameter_covariance(fit, jnp.zeros(2), bounds=(0.0, 1.0))
    assert float(held.condition) == 1
    assert bool(held.full_rank)
    assert float(ok.parameter_covariance(fit, jnp.zeros(2)).condition) == np.inf


def jennrich_sampson(x):
    i = jnp.arange(1.0, 11.0)
    return 2 + 2 * i - jnp.exp(i * x[0]) - jnp.exp(i * x[1])


@pytest.mark.parametrize(("residual", "start", "value"), [
    (freudenstein_roth, [0.5, -2.0], 24.4921268396), (jennrich_sampson, [0.3, 0.4], 62.1810911778),
])  # fmt: skip
def test_a_dogleg_ends_at_a_minimum_of_large_residual(residual, start, value):
    """J is singular there to rounding, and promises nearly all of the value."""
    sol = ok.least_squares(residual, jnp.asarray(start), method="dogleg")
    assert bool(sol.success), sol
    assert int(sol.steps) < 100
    assert float(sol.value) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("method", ["dogleg", "gauss-newton", "levenberg-marquardt"])
def test_where_the_jacobian_vanishes_along_the_way_is_a_plateau(method, dtype):
    """The infimum is at infinity, where every column of J underflows to zero."""
    t = jnp.linspace(-1.0, 1.0, 9, dtype=dtype)

    def saturating(x):
        return jnp.tanh(x[0] * t + x[1]) - 2 * jnp.sign(t)

    sol = ok.least_squares(saturating, jnp.asarray([1.0, 0.3], dtype), method=method)
    assert not bool(sol.success), sol


@pytest.mark.parametrize("method", ["dogleg", "gauss-newton", "levenberg-marquardt"])
def test_a_parameter_that_never_counted_is_no_plateau(method):
    sol = ok.least_squares(
        lambda x: jnp.stack([x[0] - 1, 2 * x[0] + 3]), jnp.ones(2), method=method
    )
    assert bool(sol.success), sol
    np.testing.assert_allclose(sol.params, [-1.0, 1.0], atol=1e-12)
