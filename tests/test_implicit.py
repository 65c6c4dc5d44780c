"""Derivatives of solutions: against closed forms, finite differences and unrolled iterations."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import METHODS, NEEDS_LAYERS, NEEDS_RESIDUALS, NEEDS_STRUCTURE, optimizer

import optikit as ok
from optikit.linalg import least_norm as stages
from optikit.linalg.equilibrate import equilibrating
from optikit.linalg.least_norm import least_norm
from optikit.linalg.minres import minres
from optikit.linalg.symmetric import factorized
from optikit.solve import implicit

RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(20, 3))), jnp.asarray(RNG.normal(size=20))
L2 = jnp.asarray(0.7)


def ridge_residuals(w, x, y, l2):
    return x @ w - y, jnp.sqrt(l2) * w


def ridge(w, x, y, l2):
    return jnp.sum((x @ w - y) ** 2) / 2 + l2 * jnp.sum(w**2) / 2


def ridge_solution(x, y, l2):
    return jnp.linalg.solve(x.T @ x + l2 * jnp.eye(3), x.T @ y)


def quartic(x, t):
    return jnp.sum((x - t) ** 2) + jnp.sum(x**4)


def quartic_slope(x):
    """dx/dt for every entry of the minimiser x of `quartic`: 2 (x - t) + 4 x^3 = 0."""
    return 1 / (1 + 6 * x**2)


# --- what the derivative is ----------------------------------------------------------------------

CIRCLES = {"muon", "soap"}  # round the minimum, at a constant rate
OTHERS = NEEDS_STRUCTURE | NEEDS_LAYERS | CIRCLES
BLACK_BOX = [m for m in METHODS if m not in OTHERS]
QUICK = {"newton", "lbfgs", "adam", "levenberg-marquardt"}


def marked(name):
    return pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("method", [marked(m) for m in [*BLACK_BOX, "optax.lbfgs"]])
def test_every_method_against_the_closed_form_of_ridge_regression(method):
    def solution(x, y, l2):
        args, chosen = (x, y, l2), optimizer(method)
        if method in NEEDS_RESIDUALS:
            return ok.least_squares(ridge_residuals, jnp.zeros(3), args=args, method=chosen).params
        tight = {"method": chosen, "tol": 1e-10, "max_steps": 20_000}
        return ok.minimize(ridge, jnp.zeros(3), args=args, **tight).params

    def gradients(solution):
        return jax.grad(lambda *data: jnp.vdot(solution(*data), Y[:3]), argnums=(0, 1, 2))(X, Y, L2)

    for found, expected in zip(gradients(solution), gradients(ridge_solution), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


def test_forward_reverse_and_second_derivatives_of_solution_and_value():
    def solve(l2):
        return ok.minimize(ridge, jnp.zeros(3), args=(X, Y, l2), method="newton")

    def best(l2):
        return ridge(ridge_solution(X, Y, l2), X, Y, l2)

    tangent = functools.partial(ridge_solution, X, Y)
    np.testing.assert_allclose(
        jax.jacfwd(lambda t: solve(t).params)(L2), jax.jacfwd(tangent)(L2), rtol=1e-10
    )
    twice = jax.jit(jax.jacfwd(jax.jacrev(lambda t: (solve(t).params, solve(t).value))))(L2)
    np.testing.assert_allclose(twice[0], jax.jacfwd(jax.jacfwd(tangent))(L2), rtol=1e-9)
    np.testing.assert_allclose(twice[1], jax.hessian(best)(L2), rtol=1e-9)


SHAPES = {"bias": jnp.zeros(2), "weight": jnp.zeros((3, 2))}
LABELS = jnp.asarray(RNG.integers(0, 2, 20))


def classifier(params, data, strength):
    scores = data["inputs"] @ params["weight"] + params["bias"][None, :]
    chosen = jnp.take_along_axis(scores, data["labels"][:, None], axis=1)[:, 0]
    penalty = strength[0] * jnp.sum(params["weight"] ** 2) + strength[1] * jnp.sum(
        params["bias"] ** 2
    )
    return jnp.mean(jax.nn.logsumexp(scores, axis=1) - chosen) + penalty


def test_pytrees_and_integer_data_against_finite_differences():
    def measure(data, strength):
        sol = ok.minimize(classifier, SHAPES, args=(data, strength), method="newton", tol=1e-12)
        return jnp.sum(jnp.sin(sol.params["weight"])) + sol.params["bias"][0] ** 2

    data, strength = {"inputs": X, "labels": LABELS}, (jnp.asarray(0.02), jnp.asarray(0.1))
    grads = jax.grad(measure, argnums=(0, 1), allow_int=True)(data, strength)
    assert grads[0]["labels"].dtype == jax.dtypes.float0
    along = jnp.asarray(RNG.normal(size=X.shape))

    def moved(t):
        return measure({**data, "inputs": X + t * along}, (strength[0] + t, strength[1] - t))

    h = 1e-5
    expected = (moved(h) - moved(-h)) / (2 * h)  # error h^2, and rounding 1e-12 / h
    found = jnp.vdot(grads[0]["inputs"], along) + grads[1][0] - grads[1][1]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_least_squares_uses_the_full_hessian_where_residuals_remain():
    t = jnp.linspace(0.0, 2.0, 12)
    far = jnp.sin(5 * t)  # fits badly: the residuals' own curvature counts

    def residual(p, t, y):
        return p[0] * jnp.exp(-p[1] * t) - y

    def rate(y, method="levenberg-marquardt"):
        tight = {"method": method, "tol": 1e-13}
        return ok.least_squares(residual, jnp.ones(2), args=(t, y), **tight).params[1]

    h = 1e-5
    along = jnp.cos(t)
    expected = (rate(far + h * along, "newton") - rate(far - h * along, "newton")) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(jax.grad(rate)(far), along), expected, rtol=1e-6)


def test_against_unrolled_gradient_descent():
    def unrolled(t):
        step = lambda x, _: (x - 0.1 * jax.grad(quartic)(x, t), None)  # noqa: E731
        return jax.lax.scan(step, jnp.zeros(2), length=300)[0]

    def solved(t):
        return ok.minimize(quartic, jnp.zeros(2), args=(t,), method="lbfgs", tol=1e-12).params

    t = jnp.asarray([0.5, -1.0])
    np.testing.assert_allclose(jax.jacrev(solved)(t), jax.jacrev(unrolled)(t), atol=1e-9)


def test_against_unrolled_newton_steps():
    """Each step differentiated, derivatives of the Hessian and of its factor included."""

    def unrolled(t):
        def step(x, _):
            slope, bend = jax.grad(quartic)(x, t), jax.hessian(quartic)(x, t)
            return x - jnp.linalg.solve(bend, slope), None

        return jax.lax.scan(step, t + 0.3, length=12)[0]

    def solved(t):
        return ok.minimize(quartic, jnp.zeros(2), args=(t,), method="newton", tol=1e-12).params

    t = jnp.asarray([0.5, -1.0])
    np.testing.assert_allclose(solved(t), unrolled(t), atol=1e-9)
    np.testing.assert_allclose(jax.jacfwd(solved)(t), jax.jacfwd(unrolled)(t), atol=1e-8)


def test_value_aux_and_the_fields_that_do_not_move():
    def fun(x, t, scale):
        return scale * quartic(x, t), {"first": x[0] * t, "steps": jnp.asarray(3)}

    def solve(t):
        return ok.minimize(fun, jnp.zeros(2), args=(t, 3.0), has_aux=True, trace=True, max_steps=20)

    t = jnp.asarray(0.8)
    sol, moved = jax.jvp(solve, (t,), (jnp.ones(()),))
    slope = quartic_slope(sol.params)
    np.testing.assert_allclose(moved.params, slope, rtol=1e-8)
    np.testing.assert_allclose(moved.value, -6 * jnp.sum(sol.params - t), rtol=1e-8)
    np.testing.assert_allclose(moved.aux["first"], sol.params[0] + t * slope[0], rtol=1e-8)
    np.testing.assert_array_equal(moved.grad_norm, 0)
    assert moved.steps.dtype == moved.aux["steps"].dtype == jax.dtypes.float0


def test_the_start_and_the_tolerance_have_no_part_in_it():
    def measure(start, tol, t):
        return jnp.sum(ok.minimize(quartic, start, args=(t,), tol=tol).params)

    start, tol, t = jnp.ones(2), jnp.asarray(1e-9), jnp.asarray(0.8)
    grads = jax.grad(measure, argnums=(0, 1, 2))(start, tol, t)
    np.testing.assert_array_equal(grads[0], 0)
    assert float(grads[1]) == 0
    x = ok.minimize(quartic, start, args=(t,), tol=tol).params
    np.testing.assert_allclose(grads[2], jnp.sum(quartic_slope(x)), rtol=1e-8)


def test_a_solve_that_was_cut_off_uses_the_formula_where_it_stopped():
    def stopped(t):
        return ok.minimize(quartic, jnp.ones(2), args=(t,), method="newton", max_steps=1).params

    t = jnp.asarray(-2.0)
    np.testing.assert_allclose(jax.jacfwd(stopped)(t), quartic_slope(stopped(t)), rtol=1e-12)


def test_float32_stays_float32():
    def solution(t):
        return ok.minimize(quartic, jnp.zeros(2, jnp.float32), args=(t,), method="newton").params

    t = jnp.asarray(0.8, jnp.float32)
    slopes = jax.jacrev(solution)(t)
    assert slopes.dtype == jnp.float32
    np.testing.assert_allclose(slopes, quartic_slope(solution(t)), rtol=1e-3)


def test_vmap_of_grad_equals_a_loop():
    def measure(t):
        return jnp.sum(ok.minimize(quartic, jnp.zeros(2), args=(t,), method="newton").params)

    ts = jnp.asarray([0.1, 0.8, -3.0])
    alone = [jax.grad(measure)(t) for t in ts]
    np.testing.assert_allclose(jax.vmap(jax.grad(measure))(ts), jnp.stack(alone), rtol=1e-12)


Box = collections.namedtuple("Box", ["lower", "upper"])


def test_parameters_on_their_bounds_move_with_them():
    """By a run of its own, so that the rule is tested whatever methods take bounds."""

    def fun(x, t):
        return quartic(x, t) + x[0] * x[1] + 0.5 * x[1] * x[2]

    def projected(objective, params, args, captured, box):
        assert captured == ()

        def step(x, _):
            return jnp.clip(x - 0.05 * jax.grad(objective)(x, *args), *box), None

        x = jax.lax.scan(step, params, length=400)[0]
        plain = ok.minimize(objective, x, args=args, max_steps=0)
        return dataclasses.replace(plain, trace=None)

    @jax.jit
    def solution(t, low, high):
        objective = ok.black_box(fun)
        return implicit.differentiable(projected, objective, jnp.zeros(3), (t,), box=Box(low, high))

    at = jnp.asarray([3.0, -2.0, 0.4]), jnp.full(3, -0.5), jnp.full(3, 0.9)
    sol = solution(*at)
    np.testing.assert_array_equal(sol.params[:2], [0.9, -0.5])
    moves = jnp.asarray([0.3, 0.1, -0.2]), jnp.asarray([0.2, 0.5, 0.1]), jnp.ones(3)
    moved = jax.jvp(solution, at, moves)[1]
    h = 1e-5
    up, down = (solution(*(a + s * h * m for a, m in zip(at, moves, strict=True))) for s in (1, -1))
    np.testing.assert_allclose(moved.params, (up.params - down.params) / (2 * h), rtol=1e-7)
    np.testing.assert_allclose(moved.value, (up.value - down.value) / (2 * h), rtol=1e-7)
    by_grad = jax.grad(lambda *a: jnp.sum(solution(*a).params), argnums=(0, 1, 2))(*at)
    total = sum(jnp.vdot(g, m) for g, m in zip(by_grad, moves, strict=True))
    np.testing.assert_allclose(total, jnp.sum(moved.params), rtol=1e-10)


# --- what a function closes over -----------------------------------------------------------------


def closed_over(t):
    return ok.minimize(lambda x: quartic(x, t), jnp.zeros(2), method="newton").params.sum()


def closed_over_by_a_compiled_function(t):
    compiled = jax.jit(lambda x: quartic(x, t))
    return ok.minimize(compiled, jnp.zeros(2), method="newton").params.sum()


def closed_over_by_residuals_and_passed(t):
    sol = ok.least_squares(
        lambda x, s: (jnp.sqrt(2.0) * (x - t / 2 - s / 2), jnp.sqrt(2.0) * x**2),
        jnp.zeros(2),
        args=(t,),
    )
    return sol.params.sum()


def closed_over_in_a_loop(t):
    def body(total, _):
        return total + closed_over(t), None

    return jax.lax.scan(body, jnp.zeros(()), length=2)[0] / 2


@pytest.mark.parametrize(
    "solve",
    [
        closed_over,
        closed_over_by_a_compiled_function,
        closed_over_by_residuals_and_passed,
        closed_over_in_a_loop,
    ],
)
def test_closures_are_followed(solve):
    t = jnp.asarray(0.8)
    x = ok.minimize(quartic, jnp.zeros(2), args=(t,), tol=1e-12).params
    np.testing.assert_allclose(jax.grad(solve)(t), jnp.sum(quartic_slope(x)), rtol=1e-7)


def test_closures_are_followed_under_jit_and_vmap():
    ts = jnp.asarray([0.8, -1.5])
    alone = jnp.stack([jax.grad(closed_over)(t) for t in ts])
    batch = jax.jit(jax.vmap(jax.value_and_grad(closed_over)))
    values, slopes = batch(ts)
    np.testing.assert_allclose(slopes, alone, rtol=1e-10)
    np.testing.assert_allclose(values, jnp.stack([closed_over(t) for t in ts]), rtol=1e-10)


def test_penalties_and_losses_are_followed_with_their_structure():
    def solution(strength, width):
        objective = ok.composite(
            lambda w, x: x @ w, ok.losses.huber(width), penalty=ok.losses.l2(strength)
        )
        return ok.minimize(objective, jnp.zeros(3), args=(X, Y), tol=1e-12)

    at = (jnp.asarray(0.1), jnp.asarray(0.5))
    compiled = jax.jit(solution)
    assert "linear model" in compiled(*at).reason
    h = 1e-6
    for i, slope in enumerate(jax.jacfwd(lambda *a: compiled(*a).params, argnums=(0, 1))(*at)):
        up, down = ([a + s * h * (i == j) for j, a in enumerate(at)] for s in (1, -1))
        expected = (compiled(*up).params - compiled(*down).params) / (2 * h)
        np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-8)


def test_a_hyperparameter_of_the_method_is_refused_by_name_of_the_remedy():
    def measure(rate):
        method = ok.optimizers.adam(rate)
        return ok.minimize(quartic, jnp.zeros(2), args=(0.5,), method=method).value

    with pytest.raises(TypeError, match="stop_gradient"):
        jax.grad(measure)(jnp.asarray(0.1))
    value, slope = jax.value_and_grad(lambda r: measure(jax.lax.stop_gradient(r)))(jnp.asarray(0.1))
    assert np.isfinite(value)
    assert slope == 0


def test_nobody_pays_who_does_not_differentiate():
    traced = collections.Counter()

    def fun(x, t):
        traced["times"] += 1
        return quartic(x, t)

    ok.minimize(fun, jnp.zeros(2), args=(0.5,), method="newton")
    plain = traced["times"]
    traced.clear()
    jax.jit(lambda t: ok.minimize(fun, jnp.zeros(2), args=(t,), method="newton").params)(0.5)
    assert traced["times"] <= plain + 1  # one look at what the function closes over


# --- singular and large Hessians -----------------------------------------------------------------


def test_a_singular_hessian_gives_the_answer_of_least_norm():
    def solve(t):  # only the sum is determined, and one parameter is idle
        return ok.minimize(
            lambda x, t: (x[0] + x[1] - t) ** 2, jnp.asarray([3.0, 1.0, 7.0]), args=(t,)
        )

    sol, moved = jax.jvp(solve, (jnp.asarray(2.0),), (jnp.ones(()),))
    assert bool(sol.success)
    np.testing.assert_allclose(moved.params, [0.5, 0.5, 0.0], atol=1e-12)
    slope = jax.jit(jax.vmap(jax.grad(lambda t: solve(t).params[0])))(jnp.asarray([1.0, 2.0]))
    np.testing.assert_allclose(slope, 0.5, rtol=1e-12)


def test_the_matrix_free_solve_agrees_with_the_dense_one(monkeypatch):
    n = 40
    scales = jnp.logspace(0.0, 2.0, n)

    def solution(t):
        def fun(x, t):
            r = scales * x - jnp.sin(t * jnp.arange(n, dtype=float))
            return jnp.sum(r[:-1] ** 2) + jnp.sum(x[:-1] ** 4)  # the last one is idle

        return ok.minimize(fun, jnp.ones(n), args=(t,), method="newton", tol=1e-12).params

    t = jnp.asarray(0.3)
    dense = jax.jacrev(lambda t: jnp.sum(solution(t)))(t)
    monkeypatch.setattr(implicit, "DENSE", 10)
    free = jax.jacrev(lambda t: jnp.sum(solution(t)))(t)
    np.testing.assert_allclose(free, dense, rtol=1e-9)


def test_a_linear_model_uses_its_gram_matrix(monkeypatch):
    monkeypatch.setattr(implicit, "DENSE", 10)
    monkeypatch.setattr(implicit, "least_norm", None)  # not to be reached
    m, n = 30, 50
    x = jnp.asarray(RNG.normal(size=(m, n)))
    y = jnp.asarray((RNG.uniform(size=m) > 0.5).astype(float))
    objective = ok.composite(lambda w, x: x @ w, ok.losses.logistic, penalty=ok.losses.l2(0.1))

    def solution(x):
        return ok.minimize(objective, jnp.zeros(n), args=(x, y), method="newton", tol=1e-12).params

    w, moved = jax.jvp(solution, (x,), (jnp.sin(x),))
    cross = jax.jvp(lambda x: jax.grad(objective)(w, x, y), (x,), (jnp.sin(x),))[1]
    expected = -jnp.linalg.solve(jax.hessian(objective)(w, x, y), cross)
    np.testing.assert_allclose(moved, expected, rtol=1e-8, atol=1e-12)


def spectrum(values):
    basis = np.linalg.qr(RNG.normal(size=(len(values), len(values))))[0]
    return jnp.asarray(basis * np.asarray(values) @ basis.T)


@pytest.mark.parametrize("consistent", [True, False])
def test_minres_and_the_factorization_give_the_pseudo_inverse(consistent):
    matrix = spectrum([0.0, 0.0, -3.0, -0.01, 0.1, 1.0, 2.0, 50.0, 50.0])
    b = jnp.asarray(RNG.normal(size=9))
    b = matrix @ b if consistent else b
    expected = np.linalg.pinv(matrix, rcond=1e-10, hermitian=True) @ b
    np.testing.assert_allclose(factorized(matrix)(b).x, expected, rtol=1e-9, atol=1e-9)
    found = jax.jit(lambda b: least_norm(lambda v: matrix @ v, b).x)(b)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


def test_units_cost_no_digits_and_trouble_is_not_hidden():
    units = jnp.asarray([1e-9, 1.0, 1e9])
    matrix = jnp.asarray([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    b = jnp.asarray([1.0, -2.0, 3.0])
    found = factorized(matrix * jnp.outer(units, units))(units * b).x
    np.testing.assert_allclose(units * found, jnp.linalg.solve(matrix, b), rtol=1e-12)
    indefinite = matrix.at[1, 1].set(-2.0)
    answer = factorized(indefinite * jnp.outer(units, units))(units * b)
    np.testing.assert_allclose(units * answer.x, jnp.linalg.solve(indefinite, b), rtol=1e-12)
    assert int(answer.status) == ok.Status.CONVERGED
    assert np.all(np.isnan(factorized(matrix.at[0, 0].set(jnp.nan))(b).x))
    assert np.all(np.isnan(least_norm(lambda v: matrix @ v, b.at[1].set(jnp.nan)).x))
    np.testing.assert_array_equal(least_norm(lambda v: matrix @ v, jnp.zeros(3)).x, 0)


# --- scaling -------------------------------------------------------------------------------------


def times(matrix):
    return lambda v: jnp.matmul(matrix, v, precision="highest")


def badly_scaled(values, decades, dtype="float64", seed=1):
    """S Q diag(values) Q^T S with scales S over that many decades, in no order."""
    rng = np.random.default_rng(seed)
    n = len(values)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    scales = rng.permutation(np.logspace(0, -decades, n))
    matrix = scales[:, None] * (basis * np.asarray(values) @ basis.T) * scales[None, :]
    return jnp.asarray((matrix + matrix.T) / 2, dtype), scales


def signed(n):
    return np.linspace(1.0, 4.0, n) * np.where(np.arange(n) % 3, 1, -1)


def test_equilibration_evens_out_the_rows_and_finds_idle_ones(dtype, key):
    matrix, _ = badly_scaled(signed(80), 6, dtype)
    matrix = matrix.at[7].set(0).at[:, 7].set(0)
    x, idle = equilibrating(times(matrix), matrix[0], key)
    np.testing.assert_array_equal(np.flatnonzero(idle), [7])
    assert x.dtype == matrix.dtype
    x, matrix = np.asarray(x, np.float64), np.asarray(matrix, np.float64)
    lengths = np.delete(np.linalg.norm(x[:, None] * matrix * x[None, :], axis=1), 7)
    # scales 1e6 apart, halved five times, leave a factor 1.5; noise of 0.2 four times its size, 2.2
    assert lengths.max() / lengths.min() < 1.5 * 2.2**2


def test_scaling_takes_fewer_products_to_the_same_accuracy(dtype):
    n = 150
    matrix, scales = badly_scaled(signed(n), 3, dtype)
    b = jnp.asarray(scales * np.random.default_rng(2).normal(size=n), dtype)
    exact = np.linalg.solve(*(np.asarray(a, np.float64) for a in (matrix, b)))
    eps, limit = float(jnp.finfo(dtype).eps), 3000
    plain = minres(times(matrix), b, floor=10 * eps, max_iters=limit)
    found = jax.jit(lambda b: least_norm(times(matrix), b, max_iters=limit))(b)

    def error(x):
        return np.linalg.norm(scales * (np.asarray(x, np.float64) - exact)) / np.linalg.norm(
            scales * exact
        )

    assert int(found.status) == ok.Status.CONVERGED
    # condition 4 after scaling, and what rounding the scaled entries of A costs
    assert error(found.x) < 200 * eps
    assert error(found.x) <= max(error(plain.x), 100 * eps)
    assert int(found.products) < int(plain.products) / 2


@pytest.mark.parametrize("consistent", [True, False])
def test_scaling_keeps_the_least_norm(consistent, monkeypatch):
    monkeypatch.setattr(stages, "TRIAL", 5)  # so that the scaled run is made, and given up
    n = 30
    values = signed(n)
    values[:2] = 0
    matrix, _ = badly_scaled(values, 1.5)
    b = jnp.asarray(np.random.default_rng(3).normal(size=n))
    b = matrix @ b if consistent else b
    pinv = np.linalg.pinv(matrix, rcond=1e-12, hermitian=True)
    found = least_norm(times(matrix), b, max_iters=2000, examine=True)
    # condition 1e4: the projection of b takes it twice
    np.testing.assert_allclose(found.x, pinv @ b, rtol=0, atol=1e-6 * np.abs(pinv @ b).max())
    expected = ok.Status.SINGULAR if consistent else ok.Status.INCONSISTENT
    assert int(found.status) == expected


def test_idle_parameters_do_not_forbid_scaling():
    matrix, scales = badly_scaled(signed(100), 3)
    matrix = matrix.at[7].set(0).at[:, 7].set(0)
    b = times(matrix)(jnp.asarray(np.random.default_rng(4).normal(size=100) / scales))
    found = least_norm(times(matrix), b, examine=True)
    pinv = np.linalg.pinv(matrix / np.outer(scales, scales), rcond=1e-12, hermitian=True)
    expected = pinv @ (b / scales)  # in units where the condition is 4: the null space is the same
    np.testing.assert_allclose(scales * found.x, expected, atol=1e-10 * np.abs(expected).max())
    assert int(found.status) == ok.Status.SINGULAR
    assert float(found.x[7]) == 0
    assert int(found.products) < 500  # 50, 20 for the scaling, and two runs


# --- whether the derivative is well posed --------------------------------------------------------

CASES = [[1.0, 2.0, -3.0, 4.0], [0.0, 2.0, -3.0, 4.0], [0.0, 2.0, -3.0, 4.0]]
VERDICTS = [ok.Status.CONVERGED, ok.Status.SINGULAR, ok.Status.INCONSISTENT]


@pytest.mark.parametrize("solver", ["dense", "products"])
def test_the_status_of_a_derivative(solver, dtype, monkeypatch):
    if solver == "products":
        monkeypatch.setattr(implicit, "DENSE", 0)
    matrices = jnp.stack([spectrum(values) for values in CASES]).astype(dtype)
    b = jnp.asarray(RNG.normal(size=(3, 4)), dtype)
    b = b.at[1].set(times(matrices[1])(b[1]))  # in its range; the third is not

    def fun(x, matrix, b, t):  # a stationary point moves by A^+ b
        return jnp.vdot(x, times(matrix)(x)) / 2 - t * jnp.vdot(b, x)

    def answer(matrix, b):
        t = jnp.ones((), dtype)
        return ok.implicit_response(fun, jnp.zeros(4, dtype), (None, None, t), args=(matrix, b, t))

    together = jax.jit(jax.vmap(answer))(matrices, b)
    assert [ok.Status(int(s)) for s in together.status] == VERDICTS
    # condition 4 of what is not null, twice where b is projected; MINRES stops at 10 eps
    near = 2e3 * float(jnp.finfo(dtype).eps)
    for i in range(3):
        exact = np.linalg.pinv(np.asarray(matrices[i], np.float64), rcond=1e-5, hermitian=True)
        exact = exact @ np.asarray(b[i], np.float64)
        np.testing.assert_allclose(together.params[i], exact, rtol=near, atol=near)
        alone = answer(matrices[i], b[i])
        assert alone.params.dtype == jnp.dtype(dtype)
        assert int(alone.status) == VERDICTS[i]
        np.testing.assert_allclose(alone.params, together.params[i], rtol=near, atol=near)


def test_what_products_do_not_solve_is_factorised(monkeypatch):
    monkeypatch.setattr(implicit, "DENSE", 0)
    n = 90  # singular and badly scaled, and more than the first short run can do
    matrix, scales = badly_scaled(np.r_[0.0, 0.0, signed(n - 2)], 2)
    b = times(matrix)(jnp.asarray(np.random.default_rng(5).normal(size=n) / scales))

    def answer():
        def fun(x, t):  # anew, so that it is traced with what is patched
            return jnp.vdot(x, times(matrix)(x)) / 2 - t * jnp.vdot(b, x)

        return ok.implicit_response(fun, jnp.zeros(n), (1.0,), args=(1.0,))

    found = answer()
    exact = np.linalg.pinv(matrix, rcond=1e-12, hermitian=True) @ b
    # condition 4e4, and as much again for the null space
    np.testing.assert_allclose(found.params, exact, atol=1e-6 * np.abs(exact).max())
    assert int(found.status) == ok.Status.SINGULAR
    monkeypatch.setattr(implicit, "DENSE_RESORT", 0)
    monkeypatch.setattr(stages, "LIMIT", 100)
    assert int(answer().status) == ok.Status.MAX_STEPS


def test_trouble_is_a_status_of_the_derivative():
    def fun(x, t):
        return jnp.sum((x - t) ** 2) * jnp.sqrt(t)

    answer = ok.implicit_response(fun, jnp.zeros(2), (1.0,), args=(-1.0,))
    assert int(answer.status) == ok.Status.NOT_FINITE


@pytest.mark.parametrize("solver", ["dense", "products"])
def test_a_response_is_the_derivative_of_the_solution_with_bounds_and_aux(solver, monkeypatch):
    if solver == "products":
        monkeypatch.setattr(implicit, "DENSE", 0)

    def fun(x, data):
        value = quartic(x, data["t"]) + x[0] * x[1]
        return value, {"sum": jnp.sum(x) * data["t"], "count": data["n"]}

    bounds = (-0.5, jnp.asarray([0.3, 9.0]))

    def solve(t):
        data = {"t": t, "n": jnp.asarray(3)}
        return ok.minimize(fun, jnp.zeros(2), args=(data,), bounds=bounds, has_aux=True, tol=1e-12)

    t = jnp.asarray(0.8)
    sol, moved = jax.jvp(solve, (t,), (jnp.ones(()),))

    def respond(t, x):
        data, moves = {"t": t, "n": jnp.asarray(3)}, ({"t": 1.0, "n": None},)
        return ok.implicit_response(fun, x, moves, args=(data,), bounds=bounds, has_aux=True)

    answer = respond(t, sol.params)
    np.testing.assert_allclose(answer.params, moved.params, rtol=1e-12)
    assert float(answer.params[0]) == 0  # held by its bound, and no part of a regular system
    np.testing.assert_allclose(answer.value, moved.value, rtol=1e-12)
    np.testing.assert_allclose(answer.aux["sum"], moved.aux["sum"], rtol=1e-12)
    assert answer.aux["count"].dtype == jax.dtypes.float0
    assert int(answer.status) == ok.Status.CONVERGED
    if solver == "products":
        return  # second derivatives take the same path, and seconds to compile
    second = jax.jacfwd(lambda t: respond(t, solve(t).params).params)(t)
    expected = jax.jacfwd(jax.jacfwd(lambda t: solve(t).params))(t)
    np.testing.assert_allclose(second, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("moves", "error", "match"),
    [
        ((1.0,), TypeError, "one for each of the 2 args"),
        (1.0, TypeError, "got float"),
        ((jnp.ones(2), None), ValueError, "has shape"),
        (({"a": 1.0}, None), ValueError, "structured"),
        ((None, 1), TypeError, "int"),
    ],
)
def test_moves_that_can_not_be_are_refused(moves, error, match):
    args = (0.5, jnp.asarray(2))
    with pytest.raises(error, match=match):
        ok.implicit_response(lambda x, t, n: quartic(x, t), jnp.zeros(2), moves, args=args)
