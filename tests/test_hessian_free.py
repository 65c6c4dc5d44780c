"""Damped conjugate gradients, Nystrom sketches, and the methods made of products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.calculus import bind
from optikit.calculus.rows import curvature_diagonal
from optikit.core import tree
from optikit.linalg.damped_cg import backtracked, damped_cg
from optikit.linalg.nystrom import nystrom
from optikit.optimizers.protocol import refresh_key
from optikit.optimizers.subsampled_newton import sampled_rows

KEY = jax.random.key(0)
N = 12


def spd(eigenvalues, seed=0):
    """A symmetric matrix of these eigenvalues."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    return jnp.asarray((q * np.asarray(eigenvalues)) @ q.T)


MATRIX = spd(np.geomspace(1e-2, 10.0, N))
GRADIENT = jnp.asarray(np.random.default_rng(1).normal(size=N))


def reference_cg(a, g, s, steps):
    """Textbook conjugate gradients on <g, s> + <s, A s> / 2: iterates and model values."""
    s, iterates, models = np.array(s), [], []
    r = a @ s + g
    p = -r
    for _ in range(steps):
        alpha = r @ r / (p @ a @ p)
        s = s + alpha * p
        new = r + alpha * a @ p
        p = -new + new @ new / (r @ r) * p
        r = new
        iterates.append(s)
        models.append(g @ s + s @ a @ s / 2)
    return np.array(iterates), np.array(models)


# --- conjugate gradients


@pytest.mark.parametrize("how", ["none", "diagonal", "nystrom"])
@pytest.mark.parametrize("warm", [False, True])
def test_to_convergence_they_are_the_exact_damped_solve(how, warm):
    product = functools.partial(jnp.matmul, MATRIX)
    start = 0.5 * GRADIENT if warm else None
    sketch = nystrom(product, 4, N, jnp.float64, KEY)
    change = {
        "none": None,
        "diagonal": lambda v: v / jnp.diag(MATRIX) ** 0.75,
        "nystrom": functools.partial(sketch.flattened, 1e-2),
    }[how]
    found = damped_cg(
        product, GRADIENT, start, max_iters=60, progress=None, tol=1e-13, precondition=change
    )
    exact = jnp.linalg.solve(MATRIX, -GRADIENT)
    # a condition number of 1e3 on a relative residual of 1e-13
    np.testing.assert_allclose(found.step, exact, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.model, GRADIENT @ exact / 2, rtol=1e-12)
    np.testing.assert_array_equal(found.stored[found.number - 1], found.step)
    assert float(found.residual) <= 1e-13
    assert int(found.iterations) < 60


@pytest.fixture(scope="module")
def long_run():
    """A spectrum on which progress runs out long before the residual does."""
    a = spd(np.geomspace(3e-3, 1.0, 150), seed=3)
    g = jnp.asarray(np.random.default_rng(4).normal(size=150))
    start = -0.1 * g
    found = damped_cg(functools.partial(jnp.matmul, a), g, start, max_iters=120, progress=5e-4)
    return found, *reference_cg(np.asarray(a), np.asarray(g), np.asarray(start), 120)


def test_they_stop_where_the_model_makes_no_more_progress(long_run):
    found, _, models = long_run
    stops = [
        i
        for i in range(11, 121)
        for k in [max(10, int(np.ceil(0.1 * i)))]
        if models[i - 1] < 0 and (models[i - 1] - models[i - 1 - k]) / models[i - 1] < k * 5e-4
    ]
    assert 20 < stops[0] < 120
    assert int(found.iterations) == stops[0] + 1  # one product for the warm start


def test_they_keep_the_iterates_at_growing_distances(long_run):
    found, iterates, _ = long_run
    last = int(found.iterations) - 1
    marks = sorted({int(np.ceil(1.3**j)) for j in range(30)})
    expected = [m for m in marks if m < last] + [last]
    number = int(found.number)
    assert [int(p) for p in found.places[:number]] == expected
    np.testing.assert_allclose(
        found.stored[:number], iterates[np.array(expected) - 1], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("row", [0, 2, 5])
def test_the_objective_chooses_among_the_iterates(long_run, row):
    found = long_run[0]
    last = int(found.number) - 1
    chosen = backtracked(found, lambda d: jnp.sum((d - found.stored[row]) ** 2))
    assert int(chosen.row) == row
    np.testing.assert_array_equal(chosen.step, found.stored[row])
    # every one from the last to the first that is worse again
    assert int(chosen.asked) == min(last - row + 2, last + 1)


def test_an_iterate_where_the_objective_is_not_finite_is_never_chosen(long_run):
    found = long_run[0]
    far = jnp.sum(found.stored[int(found.number) - 3] ** 2)
    chosen = backtracked(
        found, lambda d: jnp.where(jnp.sum(d**2) > 1.0001 * far, jnp.nan, -jnp.sum(d**2))
    )
    assert int(chosen.row) == int(found.number) - 3


# --- sketches


@pytest.mark.parametrize(("rank", "used"), [(5, 3), (20, 12)])
def test_a_sketch_beyond_the_rank_is_exact(rank, used):
    values = np.zeros(N)
    values[:used] = np.geomspace(1.0, 1e-3, used)
    a = spd(values)
    sketch = nystrom(functools.partial(jnp.matmul, a), rank, N, jnp.float64, KEY)
    rebuilt = sketch.vectors.T * sketch.values[None] @ sketch.vectors
    # the shift against rounding, eps sqrt(n) |Y|, stays behind in what is left out
    np.testing.assert_allclose(rebuilt, a, atol=1e-13)
    np.testing.assert_allclose(sketch.values[:used], values[:used], rtol=1e-9)


def test_what_a_sketch_does_to_a_vector_is_what_its_dense_form_does():
    sketch = nystrom(functools.partial(jnp.matmul, MATRIX), 4, N, jnp.float64, KEY)
    v, lam, rho = np.asarray(sketch.vectors).T, np.asarray(sketch.values), 0.3
    dense = v * lam @ v.T + rho * np.eye(N)
    np.testing.assert_allclose(
        sketch.inverse(rho, GRADIENT), np.linalg.solve(dense, GRADIENT), rtol=1e-11
    )
    half = sketch.root(rho, sketch.root(rho, GRADIENT))
    np.testing.assert_allclose(half, np.linalg.solve(dense, GRADIENT), rtol=1e-11)
    flat = (lam[-1] + rho) * v / (lam + rho) @ v.T + np.eye(N) - v @ v.T
    np.testing.assert_allclose(sketch.flattened(rho, GRADIENT), flat @ GRADIENT, rtol=1e-11)


def test_a_sketch_of_what_is_not_finite_is_zero():
    sketch = nystrom(lambda v: v * jnp.nan, 3, N, jnp.float64, KEY)
    assert not sketch.values.any()
    assert not sketch.vectors.any()


# --- methods on a small network


def predict(p, x):
    return (jnp.tanh(x @ p["w"]) @ p["v"])[:, 0]


OBJECTIVE = ok.composite(predict, ok.losses.squared_error, penalty=ok.losses.l2(1e-2))
PARAMS = {"w": jax.random.normal(KEY, (3, 3)), "v": jnp.ones((3, 1))}
ARGS = (jax.random.normal(jax.random.key(1), (20, 3)), jnp.sin(jnp.arange(20.0)))


def stepped(method, objective=OBJECTIVE, params=PARAMS, args=ARGS):
    """The step's outcome after all that is due before it."""
    oracle = bind(objective, args)
    at = method.evaluate(oracle, params)[0]
    state = method.init(at)
    for i, part in enumerate(method.refresh):
        state = part.update(oracle, at, state, refresh_key(KEY, i))[0]
    return state, method.step(oracle, at, state, KEY)


@pytest.mark.parametrize("precondition", ["none", "diagonal", "nystrom"])
def test_a_step_is_that_of_the_dense_damped_system(precondition):
    method = ok.optimizers.ggn_cg(
        1.0, damping=0.1, tol=1e-13, max_iters=100, precondition=precondition
    )
    new = stepped(method)[1][0]
    matrix = ok.ggn(OBJECTIVE, PARAMS, args=ARGS).dense()
    gradient = tree.ravel(ok.grad(OBJECTIVE, PARAMS, args=ARGS))
    exact = tree.ravel(PARAMS) - jnp.linalg.solve(matrix + 0.1 * jnp.eye(len(matrix)), gradient)
    np.testing.assert_allclose(tree.ravel(new), exact, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", ["composite", "residuals"])
def test_the_diagonal_is_that_of_the_dense_matrix(kind):
    objective = OBJECTIVE
    if kind == "residuals":
        objective = ok.residuals(lambda p, x, y: predict(p, x) - y, penalty=ok.losses.l2(0.3))
    found = curvature_diagonal(bind(objective, ARGS), PARAMS, "ggn")
    np.testing.assert_allclose(
        found, jnp.diag(ok.ggn(objective, PARAMS, args=ARGS).dense()), rtol=1e-12
    )


@pytest.mark.parametrize(("bent", "factor"), [(0.0, 2 / 3), (1e3, 1.5**4)])
def test_damping_follows_what_the_model_promised(bent, factor):
    """A sum of squares of an affine function keeps every promise; one that explodes, none."""
    objective = ok.residuals(lambda p: p - 1 + bent * (p - 1) ** 3)
    start = jnp.zeros(3) if not bent else jnp.full(3, 1.001)
    if bent:  # the Jacobian says 1, the residual far away says 1e3
        objective = ok.residuals(lambda p: jnp.where(p == start, p - 2, bent * jnp.exp(p)))
    method = ok.optimizers.ggn_cg(damping=1e-3, max_trials=5)
    before, (_, _, after, info) = stepped(method, objective, start, ())
    assert bool(info.accepted) == (not bent)
    np.testing.assert_allclose(after.damping / before.damping, factor, rtol=1e-12)


def test_the_first_damping_is_in_units_of_the_curvature_along_the_gradient():
    _, (_, _, state, info) = stepped(ok.optimizers.hessian_free())
    matrix = ok.ggn(OBJECTIVE, PARAMS, args=ARGS).dense()
    g = tree.ravel(ok.grad(OBJECTIVE, PARAMS, args=ARGS))
    np.testing.assert_allclose(state.unit, g @ matrix @ g / (g @ g), rtol=1e-11)
    np.testing.assert_allclose(info.extras["damping"], 1e-2 * state.unit, rtol=1e-12)


@pytest.mark.parametrize("precondition", ["none", "diagonal", "nystrom"])
def test_hessian_free_fits_a_network(precondition):
    targets = predict(jax.tree.map(lambda x: 0.5 * x + 0.1, PARAMS), ARGS[0])
    fit = ok.composite(predict, ok.losses.squared_error)
    method = ok.optimizers.hessian_free(precondition=precondition)
    sol = ok.minimize(fit, PARAMS, args=(ARGS[0], targets), method=method, max_steps=200)
    assert sol.success, str(sol)
    assert float(sol.value) < 1e-12


def test_hessian_free_on_batches_and_with_a_schedule():
    inputs = ARGS[0]
    targets = predict(jax.tree.map(lambda x: 0.5 * x, PARAMS), inputs)
    batches = [(inputs[i : i + 10], targets[i : i + 10]) for i in (0, 10)]
    method = ok.optimizers.ggn_cg(lambda step: 0.5 / (1 + 0.01 * step), max_iters=10)
    fit = ok.composite(predict, ok.losses.squared_error)
    run = ok.fit(fit, PARAMS, batches, method=method, budget=ok.Budget(steps=40))
    before, after = (float(fit(p, inputs, targets)) for p in (PARAMS, run.params))
    assert after < 1e-2 * before


# --- SketchySGD


@pytest.fixture(scope="module")
def sketched():
    method = ok.optimizers.sketchy_sgd(rank=4, power_iterations=60)
    objective = ok.black_box(lambda x: x @ MATRIX @ x / 2 + GRADIENT @ x)
    return stepped(method, objective, jnp.zeros(N), ())


def test_the_sketched_step_is_that_of_the_dense_preconditioner(sketched):
    state, (new, _, _, info) = sketched
    v, lam, rho = np.asarray(state.sketch.vectors), np.asarray(state.sketch.values), state.rho
    dense = v.T * lam @ v + float(rho) * np.eye(N)
    assert float(rho) == lam[-1]
    np.testing.assert_allclose(new, -state.rate * np.linalg.solve(dense, GRADIENT), rtol=1e-10)
    np.testing.assert_allclose(info.extras["step_size"], state.rate)


def test_the_step_size_is_half_of_what_the_preconditioned_hessian_allows(sketched):
    state = sketched[0]
    v, lam = np.asarray(state.sketch.vectors), np.asarray(state.sketch.values)
    dense = v.T * lam @ v + float(state.rho) * np.eye(N)
    top = np.linalg.eigvals(np.linalg.solve(dense, MATRIX)).real.max()
    # 60 power iterations come this near to the largest eigenvalue
    np.testing.assert_allclose(state.rate, 0.5 / top, rtol=1e-2)


# --- subsampled Newton


def test_a_sample_has_distinct_rows_and_none_of_weight_zero():
    weights = jnp.where(jnp.arange(20) < 12, 1.0, 0.0)
    args = (*ARGS, weights)
    x, y, w = sampled_rows(OBJECTIVE, args, 0.5, 1, KEY)
    assert x.shape == (10, 3)
    assert len(np.unique(y)) == 10
    assert bool(jnp.all(w > 0))
    assert not np.array_equal(y, sampled_rows(OBJECTIVE, args, 0.5, 1, jax.random.key(5))[1])
    assert sampled_rows(OBJECTIVE, args, 0.1, 7, KEY)[1].shape == (7,)
    assert sampled_rows(OBJECTIVE, args, 1.0, 1, KEY) is args
    assert sampled_rows(ok.residuals(lambda p: p), args, 0.1, 1, KEY) is args


def test_subsampled_newton_on_part_of_the_rows():
    objective = ok.composite(lambda w, x: x @ w, ok.losses.logistic, penalty=ok.losses.l2(1e-2))
    inputs = jax.random.normal(KEY, (300, 5))
    args = (inputs, (inputs[:, 0] + 0.3 * inputs[:, 1] ** 2 > 0).astype(float))
    method = ok.optimizers.subsampled_newton(0.2, least=1)
    sol = ok.minimize(objective, jnp.zeros(5), args=args, method=method)
    exact = ok.minimize(objective, jnp.zeros(5), args=args, method="newton", tol=1e-12)
    assert sol.success, str(sol)
    assert 3 < int(sol.steps) < 100  # linear at the rate of the sampling error, not quadratic
    np.testing.assert_allclose(sol.params, exact.params, atol=1e-6)


# --- the Fisher information by sampling


@pytest.mark.parametrize("loss", ["logistic", "poisson"])
def test_sampled_fisher_information_is_unbiased(loss):
    """A z-test over 2000 draws of labels: |z| <= 4.5 has a chance of 7e-6 a form."""
    objective = ok.composite(lambda w, x: x @ w, getattr(ok.losses, loss))
    params = jnp.array([0.5, -0.3, 0.2])
    args = (ARGS[0], jnp.zeros(20))
    vectors = jnp.array([[1.0, 0, 0], [0.3, -1.0, 0.5], [0, 0, 1.0]])
    exact = ok.fisher(objective, params, args=args).dense()

    @jax.jit
    @jax.vmap
    def forms(key):
        sampled = ok.fisher(objective, params, args=args, key=key)
        return jnp.stack([v @ (sampled @ v) for v in vectors])

    drawn = np.asarray(forms(jax.random.split(jax.random.key(11), 2000)))
    wanted = np.einsum("ki,ij,kj->k", vectors, exact, vectors)
    z = (drawn.mean(0) - wanted) / (drawn.std(0, ddof=1) / np.sqrt(len(drawn)))
    assert np.abs(z).max() <= 4.5


@pytest.mark.parametrize(
    ("name", "settings", "what"),
    [
        ("hessian-free", {"precondition": "jacobi"}, "precondition"),
        ("hessian-free", {"damping": 0.0}, "damping"),
        ("ggn-cg", {"omega": 1.0}, "omega"),
        ("sketchy-sgd", {"rank": 0}, "rank"),
        ("sketchy-sgd", {"rho": -1.0}, "rho"),
        ("subsampled-newton", {"fraction": 0.0}, "fraction"),
        ("subsampled-newton", {"least": 0}, "least"),
    ],
)
def test_settings_out_of_range(name, settings, what):
    with pytest.raises(ValueError, match=what):
        ok.optimizers.named(name, **settings)
