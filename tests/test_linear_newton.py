"""Newton and Fisher scoring on linear models: against dense definitions, and at the edges."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.calculus import bind
from optikit.calculus.predictor import linear_predictor
from optikit.core import Status
from optikit.linalg.lagged import blank, diagonal, factorized, kronecker, lagged_solve
from optikit.optimizers import linear_newton, named, newton
from optikit.solve.loop import advance, begin, gradient_criterion

ROWS, FEATURES, OUTPUTS = 60, 4, 3


@pytest.fixture
def every_size(monkeypatch):
    """Small models take the path of large ones."""
    monkeypatch.setattr(linear_newton, "WORTHWHILE", 0)


def draw(dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, FEATURES))
    x[:, 0] = 1
    return jnp.asarray(x, dtype), rng


def scalar(p, inputs):
    """With an offset, and a bias of its own."""
    x, offset = inputs
    return x @ p["w"] + p["b"] + offset


def several(p, inputs):
    x, offset = inputs
    return x @ p["w"] + jnp.broadcast_to(p["b"], (len(x), OUTPUTS)) + offset[:, None]


def problem(name, dtype="float64"):
    """(objective, start, args) with offsets and weights, some of them zero."""
    x, rng = draw(dtype)
    offset = jnp.asarray(0.3 * rng.normal(size=ROWS), dtype)
    weights = jnp.asarray(rng.integers(0, 3, size=ROWS), dtype)
    z = np.asarray(x @ jnp.arange(FEATURES, dtype=dtype) / 4 + offset)
    targets = {
        "logistic": rng.random(ROWS) < 1 / (1 + np.exp(-z)),
        "poisson": rng.poisson(np.exp(z)),
        "gamma": np.exp(z) * rng.exponential(size=ROWS),
        "huber": z + rng.standard_t(1, size=ROWS),
        "log_cosh": z + rng.normal(size=ROWS),
        "softmax_cross_entropy": rng.integers(0, OUTPUTS, size=ROWS),
        "squared_error": rng.normal(size=(ROWS, OUTPUTS)),
    }[name]
    many = name in ("softmax_cross_entropy", "squared_error")
    integer = many and targets.ndim == 1
    y = jnp.asarray(targets, "int32" if integer else dtype)
    shape = (FEATURES, OUTPUTS) if many else (FEATURES,)
    start = {"w": jnp.zeros(shape, dtype), "b": jnp.zeros(shape[1:], dtype)}
    predict = several if many else scalar
    loss = getattr(ok.losses, name)
    objective = ok.composite(lambda p, i: predict(p, i), loss, penalty=ok.losses.l2(1e-3))
    return objective, start, ((x, offset), y, weights)


LOSSES = (
    "logistic", "poisson", "gamma", "huber", "log_cosh", "softmax_cross_entropy", "squared_error",
)  # fmt: skip


@pytest.mark.parametrize("name", ["logistic", "softmax_cross_entropy", "squared_error"])
def test_the_predictor_is_its_dense_definition(name):
    objective, start, args = problem(name)
    params = jax.tree.map(lambda v: v + 0.1, start)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    found = linear_predictor(objective, params, args)
    outputs = found.outputs(params)
    a = jax.jacobian(lambda v: found.outputs(unravel(v)).ravel())(flat)
    v = jnp.cos(jnp.arange(flat.size, dtype=flat.dtype))
    u = jnp.sin(jnp.arange(outputs.size, dtype=flat.dtype))
    np.testing.assert_allclose(found.forward(unravel(v)).ravel(), a @ v, atol=1e-13)
    pulled = jax.flatten_util.ravel_pytree(found.backward(u.reshape(outputs.shape)))[0]
    np.testing.assert_allclose(pulled, a.T @ u, atol=1e-13)

    parts = found.parts(outputs, params)
    value, grad = jax.value_and_grad(objective)(params, *args)
    np.testing.assert_allclose(parts.value, value, rtol=1e-14)
    for mine, right in zip(*map(jax.tree.leaves, (found.gradient(parts), grad)), strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-14)

    curve = found.curvature(objective.loss.hvp, outputs)
    d = jax.vmap(lambda e: curve(e.reshape(outputs.shape)).ravel())(jnp.eye(outputs.size))
    width = found.width
    weights = found.diagonal(curve)
    np.testing.assert_allclose(weights.ravel(), jnp.diagonal(d), atol=1e-16)
    data = jax.hessian(lambda v: objective._replace(penalty=None)(unravel(v), *args))(flat)
    grid = found.grid()
    for k in range(width):
        block = found.grams(weights)[k]
        np.testing.assert_allclose(block, data[grid[:, k]][:, grid[:, k]], atol=1e-14)
        np.testing.assert_allclose(found.squares(weights)[k], jnp.diagonal(block), atol=1e-14)
    whole = jnp.diagonal(jax.hessian(lambda v: objective(unravel(v), *args))(flat))
    mine = found.hessian_diagonal(objective.loss.hvp, params)
    np.testing.assert_allclose(mine, whole, atol=1e-14)


@pytest.mark.parametrize("method", ["newton", "fisher-scoring"])
@pytest.mark.parametrize("name", LOSSES)
def test_it_ends_where_the_dense_method_does(name, method, every_size):
    objective, start, args = problem(name)
    assert linear_newton.plan_for(objective, start, args) is not None
    sol = ok.minimize(objective, start, args=args, method=method, tol=1e-10)
    assert sol.success, str(sol)
    reference = ok.minimize(
        objective, start, args=args, method="trust-region-exact", tol=1e-12, max_steps=200
    )
    for mine, right in zip(*map(jax.tree.leaves, (sol.params, reference.params)), strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-6)
    for x, g in zip(
        *map(jax.tree.leaves, (jax.grad(objective)(sol.params, *args), sol.grad)), strict=True
    ):
        np.testing.assert_allclose(x, g, atol=1e-13)


@pytest.mark.parametrize("name", ["logistic", "poisson", "softmax_cross_entropy"])
def test_scoring_is_newton_for_a_canonical_link(name, every_size):
    objective, start, args = problem(name)
    a, b = (
        ok.minimize(objective, start, args=args, method=m) for m in ("newton", "fisher-scoring")
    )
    assert int(a.steps) == int(b.steps)
    assert int(a.counts.hvp) == int(b.counts.ggnvp) > 0
    np.testing.assert_allclose(a.params["w"], b.params["w"], atol=1e-12)


@pytest.mark.parametrize("name", ["logistic", "poisson", "softmax_cross_entropy"])
def test_the_ledger_is_what_happened_at_the_door(name, every_size):
    objective, start, args = problem(name)
    start = jax.tree.map(lambda v: v - 4.0, start)  # far off, so that trials are rejected
    taps = collections.Counter()

    def tap(kind):
        jax.debug.callback(lambda: taps.update([kind]))

    @jax.jit
    def run(params, args):
        oracle = bind(objective, args, tap=tap)
        progress = begin(newton(), oracle, params, jax.random.key(0))
        return advance(newton(), oracle, progress, 30, jnp.asarray(1e-9), gradient_criterion)

    progress = jax.block_until_ready(run(start, args))
    jax.effects_barrier()
    ledger = {k: int(v) for k, v in progress.counts._asdict().items() if int(v)}
    assert ledger == dict(taps)
    assert ledger["hessian"] <= int(progress.steps)
    if name == "poisson":
        assert ledger["value"] > 0


@pytest.mark.parametrize("name", ["logistic", "softmax_cross_entropy"])
def test_float32_stays_float32(name, every_size):
    objective, start, args = problem(name, "float32")
    sol = ok.minimize(objective, start, args=args, method="newton")
    assert sol.success, str(sol)
    assert {x.dtype for x in jax.tree.leaves((sol.params, sol.grad, sol.value))} == {
        jnp.dtype("float32")
    }


def test_vmap_jit_and_continuing(every_size):
    objective, start, args = problem("logistic")
    starts = jax.tree.map(lambda v: jnp.stack([v, v + 0.5]), start)

    def solve(p, **more):
        return ok.minimize(objective, p, args=args, method="newton", **more)

    together = jax.jit(jax.vmap(solve))(starts)
    for i in range(2):
        alone = solve(jax.tree.map(lambda v, i=i: v[i], starts))
        assert int(alone.steps) == int(together.steps[i])
        np.testing.assert_allclose(together.params["w"][i], alone.params["w"], atol=1e-10)
    half = solve(start, max_steps=2)
    rest, whole = solve(start, state=half.state), solve(start)
    np.testing.assert_array_equal(rest.params["w"], whole.params["w"])
    assert jax.tree.map(int, rest.counts) == jax.tree.map(int, whole.counts)


def test_derivatives_go_through(every_size):
    objective, start, (inputs, y, weights) = problem("logistic")

    def answer(scale):
        args = (inputs, y, 1 + scale * weights)
        return ok.minimize(objective, start, args=args, method="newton", tol=1e-12).params["w"][1]

    h = 1e-5
    slope = (answer(1 + h) - answer(1 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(answer)(1.0), slope, rtol=1e-6)


def plain(loss, l2=0.0):
    penalty = ok.losses.l2(l2) if l2 else None
    return ok.composite(lambda w, x: x @ w, loss, penalty=penalty)


def test_rank_deficient_and_badly_scaled_data(every_size):
    x, rng = draw()
    x = jnp.concatenate([x, x[:, :2], 1e5 * x[:, 2:]], axis=1)  # dependent columns, other units
    y = jnp.asarray(rng.random(ROWS) < 0.5, jnp.float64)
    objective = plain(ok.losses.logistic)
    sol = ok.minimize(objective, jnp.zeros(8), args=(x, y), method="newton", tol=1e-10)
    small = ok.minimize(objective, jnp.zeros(4), args=(x[:, :4], y), method="newton", tol=1e-12)
    assert sol.success, str(sol)
    np.testing.assert_allclose(sol.value, small.value, rtol=1e-12)


def test_separable_data_have_no_minimum_and_nothing_breaks(every_size):
    x, _ = draw()
    y = (x[:, 1] > 0).astype(x.dtype)
    sol = ok.minimize(plain(ok.losses.logistic), jnp.zeros(4), args=(x, y), method="newton")
    assert np.all(np.isfinite(sol.params))
    assert int(sol.status) in (Status.CONVERGED, Status.CONVERGED_TO_PRECISION, Status.STALLED)
    assert float(sol.value) < 1e-6  # of an infimum of 0


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_rows_than_parameters(rows, every_size):
    x, _ = draw()
    y = jnp.asarray([1.0, 0.0, 1.0])[:rows]
    objective = plain(ok.losses.logistic, 1e-2)
    sol = ok.minimize(objective, jnp.zeros(4), args=(x[:rows], y), method="newton", tol=1e-10)
    assert sol.success, str(sol)


def test_only_one_weight_is_not_zero(every_size):
    x, _ = draw()
    y = jnp.ones(ROWS).at[3].set(jnp.nan)  # without weight: never looked at
    weights = jnp.zeros(ROWS).at[7].set(2.0)
    objective = plain(ok.losses.logistic, 1e-2)
    sol = ok.minimize(objective, jnp.zeros(4), args=(x, y, weights), method="newton", tol=1e-10)
    one = ok.minimize(objective, jnp.zeros(4), args=(x[7:8], y[7:8]), method="newton", tol=1e-10)
    np.testing.assert_allclose(sol.params, one.params, atol=1e-9)


def test_nan_data_are_a_status(every_size):
    x, _ = draw()
    x = x.at[2, 1].set(jnp.nan)
    sol = ok.minimize(plain(ok.losses.logistic), jnp.zeros(4), args=(x, x[:, 0]), method="newton")
    assert int(sol.status) == Status.NOT_FINITE
    np.testing.assert_array_equal(sol.params, 0)


def test_a_loss_that_is_not_convex_is_left_downhill(every_size):
    x, rng = draw()
    y = jnp.asarray(rng.random(ROWS) < 0.5, jnp.float64)
    objective = plain(ok.losses.focal(gamma=2.0), 1e-3)
    sol = ok.minimize(objective, jnp.full(4, 3.0), args=(x, y), method="newton")
    assert sol.success, str(sol)
    assert np.linalg.eigvalsh(jax.hessian(objective)(sol.params, x, y))[0] > 0


def test_a_start_on_a_stationary_point_that_is_no_minimum(every_size):
    bump = ok.composite(lambda w, x: x @ w, lambda o, t: (o**2 - t) ** 2)
    x, _ = draw()
    sol = ok.minimize(bump, jnp.zeros(4), args=(x, jnp.ones(ROWS)), method="newton")
    assert float(sol.value) < 0.99
    assert sol.success, str(sol)


@pytest.mark.parametrize("name", ["several terms", "one term", "axes of time"])
def test_products_with_examples_in_columns_are_hessian_products(name):
    objective, start, args = problem("softmax_cross_entropy")
    if name != "several terms":
        (x, _), y, weights = args
        shape = (6, 10) if name == "axes of time" else (ROWS,)
        args = (x.reshape(*shape, FEATURES), y.reshape(shape), weights.reshape(shape))
        objective = objective._replace(fun=lambda p, x: x @ p["w"])
        start = {"w": start["w"]}
    params = jax.tree.map(lambda v: v + np.sin(1.0 + np.arange(v.size)).reshape(v.shape), start)
    found = linear_predictor(objective, params, args)
    bend = found.bend(objective.loss.hvp, found.outputs(params))
    grid = found.grid().T
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    data = jax.hessian(lambda v: objective._replace(penalty=None)(unravel(v), *args))(flat)
    v = jnp.cos(jnp.arange(flat.size, dtype=flat.dtype))
    mine = found.product(bend)(v[grid])
    np.testing.assert_allclose(mine, (data @ v)[grid], atol=1e-15)  # sums to some 0.1
    outer, inner = found.kronecker(bend)  # its trace is the Hessian's, its blocks are not
    np.testing.assert_allclose(jnp.trace(outer) * jnp.trace(inner), jnp.trace(data), rtol=1e-13)
    off = jnp.max(jnp.abs(jnp.kron(outer, inner) - data[grid.ravel()][:, grid.ravel()]))
    assert off > 1e-3


@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_at_equal_probabilities_the_kronecker_factor_is_the_hessian(l2):
    objective, params, args = problem("softmax_cross_entropy")
    penalty = None if l2 == 0 else ok.losses.l2(l2)
    objective = objective._replace(penalty=penalty, fun=lambda p, i: several(p, (i[0], 0 * i[1])))
    found = linear_predictor(objective, params, args)
    order = found.grid().T.ravel()
    outer, inner = found.kronecker(found.bend(objective.loss.hvp, found.outputs(params)))
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    dense = jax.hessian(lambda v: objective(unravel(v), *args))(flat)[order][:, order]
    shape = (outer.shape[0], inner.shape[0])
    eye = l2 * jnp.eye(flat.size)
    np.testing.assert_allclose(jnp.kron(outer, inner) + eye, dense, atol=1e-15)
    factor = kronecker(outer, inner, jnp.full(shape, l2))
    seen = factor.unwhiten(jnp.sin(jnp.arange(flat.size, dtype=flat.dtype)).reshape(shape))
    np.testing.assert_allclose(factor.unwhiten(factor.whiten(seen)), seen, atol=1e-12)
    # M = C^-2 with C = whiten's map, so <colour(u), H colour(u)> = |u|^2 off the null space;
    # there (equal changes of all outputs) M is of the rounding size that `kronecker` puts in
    u = factor.whiten((dense @ seen.ravel()).reshape(shape))
    image = (dense @ factor.colour(u).ravel()).reshape(shape)
    np.testing.assert_allclose(factor.whiten(image), u, atol=1e-5 * jnp.max(jnp.abs(u)))


@pytest.mark.parametrize("method", ["newton-cg", "trust-region"])
def test_products_alone_solve_a_badly_scaled_model_by_its_exact_diagonal(method):
    """Columns of scales 1 to 1e-3: condition number 1e6, which the diagonal takes away."""
    rng = np.random.default_rng(2)
    n = 30
    rows = rng.normal(size=(400, n))
    scales = np.logspace(0, -3, n)
    y = jnp.asarray(rows @ rng.normal(size=n) / n**0.5 + rng.logistic(size=400) > 0, jnp.float64)
    objective = ok.composite(lambda w, x: x @ w, ok.losses.logistic)
    preconditioned = named(method, precondition="diagonal")
    taps = collections.Counter()

    @jax.jit
    def run(x):
        tap = lambda kind: jax.debug.callback(lambda: taps.update([kind]))  # noqa: E731
        oracle = bind(objective, (x, y), tap=tap)
        start = begin(preconditioned, oracle, jnp.zeros(n), jax.random.key(0))
        limit, tol = 50, jnp.asarray(1e-10)
        return advance(preconditioned, oracle, start, limit, tol, gradient_criterion)

    end = jax.block_until_ready(run(jnp.asarray(rows * scales)))
    jax.effects_barrier()
    assert Status(int(end.status)) == Status.CONVERGED
    assert {k: int(v) for k, v in end.counts._asdict().items() if int(v)} == dict(taps)
    assert int(end.counts.hvp) <= 60  # some six steps of up to ten products; 1e3 without
    reference = ok.minimize(
        objective, jnp.zeros(n), args=(jnp.asarray(rows), y), method="newton", tol=1e-12
    )
    np.testing.assert_allclose(end.at.params * scales, reference.params, atol=1e-6)


@pytest.mark.parametrize("kind", ["Kronecker", "diagonal"])
def test_a_million_parameters(kind, monkeypatch):
    rows, features, outputs = (64, 1000, 1000) if kind == "diagonal" else (64, 10, 40)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, features)), jnp.float32)
    y = jnp.asarray(rng.integers(0, outputs, size=rows))
    objective = ok.composite(
        lambda w, x: x @ w, ok.losses.softmax_cross_entropy, penalty=ok.losses.l2(1e-2)
    )
    monkeypatch.setattr(linear_newton, "WORTHWHILE", 0)
    start = jnp.zeros((features, outputs), jnp.float32)
    assert linear_newton.plan_for(objective, start, (x, y)).dense == (kind == "Kronecker")
    sol = ok.minimize(objective, start, args=(x, y), method="auto")
    assert sol.method == "newton"
    assert kind in sol.reason
    assert sol.success, str(sol)


@pytest.mark.parametrize("shape", [(1, 6), (3, 4)])
def test_any_factor_leads_to_the_solution(shape):
    blocks, size = shape
    n = blocks * size
    rng = np.random.default_rng(1)
    root = rng.normal(size=(n, n))
    matrix = jnp.asarray(root @ root.T + np.eye(n))
    gradient = jnp.asarray(rng.normal(size=shape))
    own = jnp.stack([matrix[i * size : (i + 1) * size, i * size : (i + 1) * size]
                     for i in range(blocks)])  # fmt: skip

    def product(v):
        return (matrix @ v.ravel()).reshape(shape)

    old = {
        "none": blank(blocks, size, jnp.float64, dense=True),
        "own": factorized(own),
        "foreign": factorized(jnp.stack([jnp.diag(jnp.arange(1.0, size + 1))] * blocks)),
        "not positive": factorized(-own),
        "diagonal": diagonal(jnp.ones(shape)),
    }
    for name, factor in old.items():
        solve = lagged_solve(
            product, gradient, factor,
            (lambda: diagonal(jnp.ones(shape))) if name == "diagonal" else lambda: factorized(own),
            jnp.asarray(1e-10), patience=2, max_iters=200,
        )  # fmt: skip
        right = -jnp.linalg.solve(matrix, gradient.ravel())
        np.testing.assert_allclose(solve.step.ravel(), right, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(solve.slope, jnp.vdot(gradient, solve.step), rtol=1e-12)
        np.testing.assert_allclose(
            solve.curvature, jnp.vdot(solve.step, product(solve.step)), rtol=1e-8
        )
    exact = factorized(matrix[None]) if blocks == 1 else None
    if exact is not None:
        solve = lagged_solve(
            product, gradient, exact, lambda: exact, jnp.asarray(1e-8), patience=3, max_iters=9
        )
        assert (int(solve.products), int(solve.builds)) == (1, 0)


def test_a_model_with_a_shared_parameter_is_put_together(every_size):
    x, rng = draw()
    y = jnp.asarray(rng.random(ROWS) < 0.5, jnp.float64)
    shared = ok.composite(lambda w, x: x @ w - 2.0 * w[0] * x[:, 1], ok.losses.logistic)
    plan = linear_newton.plan_for(shared, jnp.zeros(4), (x, y))
    sol = ok.minimize(shared, jnp.zeros(4), args=(x, y), method="newton", tol=1e-10)
    assert plan is None or plan.assembled
    assert sol.success, str(sol)
