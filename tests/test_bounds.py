"""Box bounds: the box itself, and `minimize` inside it against scipy and closed forms."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import optikit as ok
from optikit.calculus import bind, black_box
from optikit.core import Status, as_box, start_inside
from optikit.optimizers import BOUNDED
from optikit.solve.choose import MEASURED
from optikit.solve.loop import advance, begin, gradient_criterion

METHODS = sorted(set(BOUNDED) - {"levenberg-marquardt"})  # that one is for least squares
RNG = np.random.default_rng(0)
MATRIX, VECTOR = RNG.normal(size=(30, 8)), RNG.normal(size=30)
LABELS = (MATRIX @ np.linspace(-2, 2, 8) + RNG.normal(size=30) > 0).astype(float)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def squares(x, a, b):
    return jnp.sum((a @ x - b) ** 2) / 2


def logistic(w, x, y):
    return jnp.mean(jnp.logaddexp(0.0, x @ w) - y * (x @ w))


def distance(x, target):
    return jnp.sum((x - target) ** 2)


CASES = {
    "rosenbrock": (rosenbrock, (), np.zeros(4), -0.5, np.array([0.4, np.inf, 0.1, 2.0])),
    "nonnegative": (squares, (MATRIX, VECTOR), np.zeros(8), 0.0, np.inf),
    "logistic": (logistic, (MATRIX, LABELS), np.zeros(8), -0.5, 0.5),
}


@functools.cache
def solved(method, case):
    fun, args, start, lower, upper = CASES[case]
    bounds = (jnp.asarray(lower), jnp.asarray(upper))
    return ok.minimize(
        fun, jnp.asarray(start), args=tuple(map(jnp.asarray, args)), method=method, bounds=bounds,
        trace=True, max_steps=200,
    )  # fmt: skip


def by_scipy(case):
    fun, args, start, lower, upper = CASES[case]
    lower, upper = np.broadcast_to(lower, start.shape), np.broadcast_to(upper, start.shape)
    both = jax.jit(jax.value_and_grad(lambda x: fun(x, *map(jnp.asarray, args))))
    found = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(v) for v in both(x)), start, jac=True, method="L-BFGS-B",
        bounds=list(zip(lower, upper, strict=True)), options={"ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    return found, lower, upper, both


# --- agreement -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(CASES))
def test_agrees_with_scipy_and_with_the_conditions_of_a_minimum(case):
    found, lower, upper, both = by_scipy(case)
    for method in METHODS:
        sol = solved(method, case)
        assert bool(sol.success), str(sol)
        x, g = np.asarray(sol.params), np.asarray(both(sol.params)[1])
        np.testing.assert_allclose(float(sol.value), found.fun, rtol=1e-10)
        np.testing.assert_allclose(x, found.x, atol=1e-5)
        assert np.all((x >= lower) & (x <= upper))
        on_lower, on_upper = x == lower, x == upper
        assert np.any(on_lower | on_upper)  # on the bound itself, not near it
        assert np.all(g[on_lower] >= -1e-6)
        assert np.all(g[on_upper] <= 1e-6)
        assert np.all(np.abs(g[~on_lower & ~on_upper]) < 1e-5)
        size = np.max(np.abs(x - np.clip(x - g, lower, upper)))
        assert float(sol.grad_norm) == pytest.approx(size, rel=1e-6, abs=1e-14)


def test_nonnegative_least_squares_is_scipys():
    expected, _ = scipy.optimize.nnls(MATRIX, VECTOR)
    assert np.any(expected == 0)
    for method in METHODS:
        x = np.asarray(solved(method, "nonnegative").params)
        np.testing.assert_allclose(x, expected, atol=1e-6)
        np.testing.assert_array_equal(x == 0, expected == 0)


def test_newton_is_as_fast_as_without_bounds_once_the_face_is_found():
    assert int(solved("newton", "nonnegative").steps) <= 6
    assert int(solved("newton", "logistic").steps) <= 10


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_first_step_of_limited_memory_fits_the_box_in_any_units(dtype):
    def scaled(x, u):
        return rosenbrock(x / u)

    for u in (1e-8, 1.0, 1e8):
        lower, upper = (u * jnp.array(v, dtype) for v in ([-2.0, -2.0], [0.8, 2.0]))
        sol = ok.minimize(
            scaled, u * jnp.array([-1.2, 1.0], dtype), args=(jnp.asarray(u, dtype),),
            method="lbfgs", bounds=(lower, upper),
        )  # fmt: skip
        assert bool(sol.success), (u, sol)
        assert float(sol.value) == pytest.approx(0.04, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_point_is_inside_monotone_and_billed(method):
    """Callbacks at the door and in the objective, executed by the compiled program."""
    lower, upper = -0.5, np.array([0.4, np.inf, 0.1, 2.0])
    taps, seen = collections.Counter(), []

    def tap(name):
        jax.debug.callback(lambda: taps.update([name]))

    def watched(x):
        jax.debug.callback(lambda v: seen.append(np.asarray(v)), x)
        return rosenbrock(x)

    @jax.jit
    def run(start):
        box = as_box((lower, jnp.asarray(upper)), start)
        optimizer, oracle = BOUNDED[method]().inside(box), bind(black_box(watched), (), tap=tap)
        progress = begin(optimizer, oracle, start, jax.random.key(0))
        return advance(optimizer, oracle, progress, 30, jnp.asarray(1e-12), gradient_criterion)

    progress = jax.block_until_ready(run(jnp.zeros(4)))
    jax.effects_barrier()
    ledger = {k: int(v) for k, v in progress.counts._asdict().items() if int(v)}
    assert ledger == dict(taps)
    assert len(seen) > 3
    assert all(np.all((x >= lower) & (x <= upper)) for x in seen)
    trace = solved(method, "rosenbrock").trace
    values = np.asarray(trace.value)
    values = values[np.isfinite(values)]
    assert np.all(np.diff(values) <= 1e-14 * np.maximum(1, np.abs(values[:-1])))


# --- special boxes -------------------------------------------------------------------------------

TARGET = jnp.asarray([3.0, -2.0, 0.5, 0.0])


@pytest.mark.parametrize("method", METHODS)
def test_boxes_of_every_kind_in_one_program(method):
    """Fixed entries, a box that is a point, free entries, one side: the answer is the projection."""
    inf = jnp.inf
    lower = jnp.asarray([[0.0, -1, 0, 0.2], [0.0, 0, 0, 0], [-inf, -inf, -inf, -inf], [1, 1, 1, 1]])
    upper = jnp.asarray([[1.0, 5, 0, 0.2], [0.0, 0, 0, 0], [inf, inf, inf, inf], [2, inf, 1, inf]])

    def solve(low, high):
        start = jnp.clip(jnp.full(4, 0.3), low, high)
        return ok.minimize(distance, start, args=(TARGET,), method=method, bounds=(low, high))

    together = jax.jit(jax.vmap(solve))(lower, upper)
    assert np.all(together.success)
    np.testing.assert_allclose(together.params, np.clip(TARGET, lower, upper), atol=1e-6)
    fixed = np.asarray(lower == upper)
    np.testing.assert_array_equal(np.asarray(together.params)[fixed], np.asarray(lower)[fixed])
    alone = solve(lower[0], upper[0])
    assert int(alone.steps) == int(together.steps[0])
    np.testing.assert_array_equal(alone.params, together.params[0])


@pytest.mark.parametrize("method", METHODS)
def test_float32_pytrees_and_one_sided_bounds(method):
    params = {"a": jnp.float32(0.0), "b": jnp.ones((2, 2), jnp.float32)}
    bounds = ({"a": None, "b": 0.0}, {"a": 2.0, "b": None})

    def fun(p):
        return (p["a"] - 3) ** 2 + jnp.sum(jnp.cosh(p["b"] + 1))

    sol = ok.minimize(fun, params, method=method, bounds=bounds)
    assert bool(sol.success), str(sol)
    assert sol.grad_norm.dtype == sol.params["a"].dtype == sol.params["b"].dtype == jnp.float32
    assert float(sol.params["a"]) == 2.0
    np.testing.assert_array_equal(sol.params["b"], 0.0)


@pytest.mark.parametrize("method", ["newton", "newton-cg"])
def test_a_saddle_inside_the_box_is_left(method):
    sol = ok.minimize(
        lambda x: jnp.sum(x**4 / 4 - x**2) + 0.3 * x[0] * x[1], jnp.zeros(2), method=method,
        bounds=(-1.0, 0.7),
    )  # fmt: skip
    assert bool(sol.success), str(sol)
    assert float(sol.value) < -1.0
    assert float(jnp.max(jnp.abs(sol.params))) == 1.0


def test_a_bound_keeps_a_fall_finite_and_no_bound_is_said():
    sol = ok.minimize(lambda x: -jnp.sum(jnp.exp(x)), jnp.zeros(2), bounds=(-1.0, 5.0))
    assert bool(sol.success)
    np.testing.assert_array_equal(sol.params, 5.0)
    sol = ok.minimize(lambda x: -jnp.sum(x**2), jnp.asarray([0.1, -0.3]), bounds=(-1.0, None))
    assert int(sol.status) == Status.UNBOUNDED
    assert np.isfinite(float(sol.value))


def test_a_traced_start_is_projected_and_crossed_bounds_are_no_success():
    @jax.jit
    def solve(low, high):
        return ok.minimize(distance, jnp.zeros(4), args=(TARGET,), bounds=(low, high))

    sol = solve(jnp.asarray(0.3), jnp.asarray(1.0))
    np.testing.assert_allclose(sol.params, np.clip(TARGET, 0.3, 1.0), atol=1e-7)
    sol = solve(jnp.asarray(1.0), jnp.asarray(0.3))
    assert int(sol.status) == Status.NOT_FINITE


def test_new_bounds_do_not_compile_again():
    traced = []

    def fun(x):
        traced.append(1)
        return jnp.sum((x - 2) ** 2)

    ok.minimize(fun, jnp.zeros(2), bounds=(-1.0, 1.0))
    first = len(traced)
    sol = ok.minimize(fun, jnp.zeros(2), bounds=(None, jnp.asarray([0.5, 3.0])), max_steps=70)
    assert len(traced) == first
    np.testing.assert_allclose(sol.params, [0.5, 2.0])


def test_a_bounded_solve_goes_on_where_it_was_cut_off():
    bounds = (-0.5, np.array([0.4, np.inf, 0.1, 2.0]))
    whole = ok.minimize(rosenbrock, jnp.zeros(4), bounds=bounds)
    half = ok.minimize(rosenbrock, jnp.zeros(4), bounds=bounds, max_steps=3)
    rest = ok.minimize(rosenbrock, jnp.zeros(4), bounds=bounds, state=half.state)
    np.testing.assert_array_equal(rest.params, whole.params)
    assert int(rest.counts.grad) == int(whole.counts.grad)
    with pytest.raises(ValueError, match="start inside the box"):
        ok.minimize(rosenbrock, jnp.zeros(4), bounds=(-9.0, -8.0), state=half.state)


def test_the_derivative_of_a_bounded_solution():
    """Held entries move with their bound, free ones with the data."""

    def solve(t, low):
        return ok.minimize(distance, jnp.full(4, 2.5), args=(t,), bounds=(low, 2.6)).params

    by_target, by_bound = jax.jacobian(solve, argnums=(0, 1))(TARGET, jnp.asarray(0.3))
    free = np.asarray((TARGET > 0.3) & (TARGET < 2.6))
    np.testing.assert_allclose(by_target, np.diag(free.astype(float)), atol=1e-6)
    np.testing.assert_allclose(by_bound, np.asarray(TARGET < 0.3).astype(float), atol=1e-6)


def test_auto_chooses_by_size_and_says_so():
    small = ok.minimize(rosenbrock, jnp.zeros(4), bounds=(-0.5, np.array([0.4, np.inf, 0.1, 2.0])))
    assert small.method == "newton"
    assert "bounds" in small.reason
    n = MEASURED + 1  # up to there a Hessian's price decides, and that depends on the machine
    large = ok.minimize(distance, jnp.zeros(n), args=(jnp.ones(n),), bounds=(0.0, 0.5))
    assert large.method == "lbfgs"
    np.testing.assert_array_equal(large.params, 0.5)


# --- calls that are wrong: fact, value, remedy ---------------------------------------------------

PARAMS = {"a": jnp.ones(2), "b": jnp.ones(())}
WRONG = {
    "no pair": (lambda: as_box(3.0, PARAMS), TypeError, r"must be a pair \(lower, upper\); got fl"),
    "structure": (lambda: as_box((0, {"a": 2.0}), PARAMS), ValueError, "upper bounds are not struc"),
    "crossed": (lambda: as_box(({"a": jnp.asarray([1.0, 3.0]), "b": None}, 2.0), PARAMS),
                ValueError, r"params\['a'\]\[1\] has lower bound 3.0 above its upper bound 2.0"),
    "nan": (lambda: as_box((np.nan, None), PARAMS), ValueError, r"lower bound of params\['a'\] is"),
    "shape": (lambda: as_box(({"a": np.ones(3), "b": None}, None), PARAMS), ValueError,
              r"shape \(3,\), which does not broadcast to \(2,\)"),
    "text": (lambda: as_box(("x", None), PARAMS), TypeError, "is str: give a number"),
    "outside": (lambda: start_inside(as_box((2.0, None), PARAMS), PARAMS), ValueError,
                r"params\['a'\]\[0\] starts at 1.0, below its lower bound 2.0: start inside"),
    "method": (lambda: ok.minimize(rosenbrock, jnp.zeros(2), method="bfgs", bounds=(0, 1)),
               ValueError, "'bfgs' takes no bounds: use 'lbfgs', 'newton', 'newton-cg' or 'auto'"),
    "optimizer": (lambda: ok.minimize(rosenbrock, jnp.zeros(2), method=ok.optimizers.newton(),
                                      bounds=(0, 1)), ValueError, "takes no bounds"),
    "budget": (lambda: ok.minimize(rosenbrock, jnp.zeros(2), bounds=(0, 1), max_steps=-1),
               ValueError, "must not be negative"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_box_raises_at_once(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_sides_broadcast_over_the_tree():
    box = as_box((0, {"a": [2.0, 3.0], "b": None}), PARAMS)
    np.testing.assert_array_equal(box.lower["a"], [0.0, 0.0])
    np.testing.assert_array_equal(box.upper["a"], [2.0, 3.0])
    assert float(box.upper["b"]) == np.inf
    assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(box))
