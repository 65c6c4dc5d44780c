"""Methods built on exact models: subproblems by their optimality conditions, methods by theorems."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.calculus import bind, black_box, composite, residuals
from optikit.core import Status
from optikit.linalg import Inner, conjugate_gradients, exact, krylov
from optikit.linalg.dogleg import double_dogleg_step
from optikit.linalg.exact import dogleg_step
from optikit.linalg.modified import shifted_newton_step
from optikit.optimizers import named
from optikit.problems import mgh
from optikit.solve.loop import advance, begin, gradient_criterion

N = 7


def rotation(seed=0, n=N):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


Q = rotation()
SPECTRA = {  # eigenvalues, and the gradient in the eigenbasis
    "convex": (np.logspace(-3, 3, N), np.ones(N)),
    "indefinite": (np.linspace(-2, 4, N), np.ones(N)),
    "concave": (-np.linspace(1, 3, N), np.ones(N)),
    "hard": (np.linspace(-2, 4, N), np.r_[0.0, np.ones(N - 1)]),
    "nearly-hard": (np.linspace(-2, 4, N), np.r_[1e-12, np.ones(N - 1)]),
    "hard-double": (np.r_[-1, -1, np.linspace(0, 3, N - 2)], np.r_[0.0, 0, np.ones(N - 2)]),
    "saddle": (np.linspace(-2, 4, N), np.zeros(N)),
    "singular": (np.r_[0.0, np.linspace(1, 3, N - 1)], np.r_[0.0, np.ones(N - 1)]),
    "flat": (np.zeros(N), np.ones(N)),
}


@jax.jit
def _model(matrix, linear, bound):
    objective = black_box(lambda x: 0.5 * x @ matrix @ x + linear @ x)
    oracle = bind(objective)
    at = oracle.value_and_grad(jnp.zeros_like(linear))
    inner = Inner(jnp.asarray(0.0, linear.dtype), jnp.asarray(0.0, linear.dtype))
    dense = exact(scaled=False), exact(region="cubic", scaled=False)
    found = [
        solver.prepare(oracle, at, "hessian", jax.random.key(0)).propose(bound, inner)
        for solver in (*dense, krylov(), krylov(region="cubic"))
    ]
    return [d._replace(counts=d.counts.hvp) for d in found]


def solved(name, bound, dtype):
    values, along = SPECTRA[name]
    h, g = (jnp.asarray(x, dtype) for x in (Q * values @ Q.T, Q @ along))
    h = (h + h.T) / 2
    return np.asarray(h, float), np.asarray(g, float), _model(h, g, jnp.asarray(bound, dtype))


@pytest.mark.parametrize("name", sorted(SPECTRA))
@pytest.mark.parametrize("bound", [1e-2, 1.0, 1e3])
def test_exact_minimisers_meet_the_optimality_conditions(name, bound, dtype):
    """(H + mu I) s = -g, H + mu I >= 0, mu (radius - |s|) = 0, or mu = sigma |s|: CGT 7.2.1."""
    h, g, found = solved(name, bound, dtype)
    least, scale = np.linalg.eigvalsh(h)[0], max(np.abs(np.linalg.eigvalsh(h)).max(), 1e-30)
    # the error of float32 in H alone moves s by eps |H| |s| / gap
    tol = 1e-9 if dtype == "float64" else 1e-3
    for d, cubic in zip(found[:2], (False, True), strict=True):
        s = np.asarray(d.step, float)
        size = np.linalg.norm(s)
        assert np.all(np.isfinite(s))
        mu = bound * size if cubic else max(0, -(s @ (h @ s + g)) / max(size, 1e-30) ** 2)
        residual = h @ s + mu * s + g
        assert np.linalg.norm(residual) <= tol * (np.linalg.norm(g) + (scale + mu) * size)
        assert least + mu >= -tol * scale
        if not cubic:
            assert size <= bound * (1 + tol)
            assert size >= bound * (1 - tol) or mu <= tol * scale
            assert bool(d.at_boundary) == (size >= bound * (1 - tol))
        assert bool(d.convex) == (SPECTRA[name][0].min() >= 0)
        decrease = -(g @ s + s @ h @ s / 2)  # in float32, of terms with condition 1e6
        near = pytest.approx(decrease, rel=1e-9 if dtype == "float64" else 1e-2, abs=1e-30)
        assert float(d.predicted) == near


@pytest.mark.parametrize("name", ["convex", "indefinite", "concave", "nearly-hard", "flat"])
@pytest.mark.parametrize("bound", [1e-2, 1.0])
def test_over_the_whole_space_krylov_is_exact(name, bound):
    h, g, found = solved(name, bound, "float64")

    def model(d, cubic):
        s = np.asarray(d.step)
        return g @ s + s @ h @ s / 2 + cubic * bound * np.linalg.norm(s) ** 3 / 3

    for here, there, cubic in ((found[0], found[2], 0), (found[1], found[3], 1)):
        assert model(there, cubic) <= model(here, cubic) * (1 - 1e-7)
        assert int(there.counts) <= N


@pytest.mark.parametrize("method", ["newton", "trust-region-exact", "cubic"])
def test_the_units_of_the_parameters_do_not_matter(method):
    """f(U x) from U^-1 x0 gives U^-1 times the same iterates, through an indefinite region too."""
    units = jnp.asarray([2.0**20, 2.0**-30, 2.0**10])  # of geometric mean 1
    first = {"trust-region-exact": {"radius": 0.5}, "cubic": {"sigma": 1.0}}.get(method, {})
    optimizer, start = named(method, **first), jnp.asarray([-1.2, 1.0, 0.3])

    def rosenbrock(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    for steps in (1, 5, 12):
        run = functools.partial(ok.minimize, method=optimizer, max_steps=steps)
        plain = run(rosenbrock, start)
        scaled = run(lambda x: rosenbrock(units * x), start / units)
        np.testing.assert_allclose(units * scaled.params, plain.params, rtol=1e-6)


def test_the_weight_of_an_idle_cubic_term_is_left_alone():
    """Far from its minimum a quadratic is solved in one step, whatever the weight: none is lost."""
    method, oracle = named("cubic", sigma=1e-6), bind(black_box(lambda x: jnp.sum((x - 3) ** 2)))
    start = begin(method, oracle, jnp.zeros(3), jax.random.key(0))
    end = advance(method, oracle, start, 30, jnp.asarray(1e-8), gradient_criterion)
    assert int(end.status) == Status.CONVERGED
    assert float(end.state.globalize) == 1e-6


def test_gltr_beats_steihaug_beyond_the_boundary():
    """The same Krylov space, but minimised over: more decrease, never less."""
    values = np.linspace(-1, 10, 40)
    q = rotation(1, 40)
    h, g = jnp.asarray(q * values @ q.T), jnp.ones(40)
    oracle = bind(black_box(lambda x: 0.5 * x @ h @ x + g @ x))
    at = oracle.value_and_grad(jnp.zeros(40))
    inner = Inner(jnp.asarray(1e-2), jnp.asarray(0.0))
    key = jax.random.key(0)
    radius = jnp.asarray(2.0)
    gltr, steihaug, best = (
        s.prepare(oracle, at, "hessian", key).propose(radius, inner)
        for s in (krylov(), conjugate_gradients(), exact(scaled=False))
    )
    assert float(steihaug.predicted) < float(gltr.predicted) <= float(best.predicted) * (1 + 1e-12)
    assert float(gltr.predicted) > 0.99 * float(best.predicted)
    assert int(gltr.counts.hvp) < 40


def test_the_dogleg_path():
    """Longer with the radius, falling in the model, ending at the Newton point."""
    h = np.diag([1.0, 10.0, 100.0])
    g = np.asarray([1.0, -2.0, 3.0])
    cauchy, newton = -(g @ g) / (g @ h @ g) * g, -np.linalg.solve(h, g)
    radii = np.linspace(1e-3, 1.2 * np.linalg.norm(newton), 40)
    steps, cut = jax.vmap(lambda r: dogleg_step(jnp.asarray(cauchy), jnp.asarray(newton), r))(
        jnp.asarray(radii)
    )
    sizes = np.linalg.norm(steps, axis=1)
    np.testing.assert_allclose(sizes, np.minimum(radii, np.linalg.norm(newton)), rtol=1e-12)
    model = np.asarray(steps) @ g + np.einsum("ki,ij,kj->k", steps, h, steps) / 2
    assert np.all(np.diff(model) <= 1e-14)
    np.testing.assert_array_equal(cut, radii < np.linalg.norm(newton))
    np.testing.assert_array_equal(steps[-1], newton)


def test_the_double_dogleg_path():
    """As long as asked, ever lower on the model, and straight along Newton's direction at last."""
    h = rotation(3, 3) * np.asarray([0.1, 1.0, 20.0]) @ rotation(3, 3).T
    g = np.asarray([1.0, -2.0, 3.0])
    cauchy, newton = -(g @ g) / (g @ h @ g) * g, -np.linalg.solve(h, g)
    size = np.linalg.norm(newton)
    gamma = (g @ g) ** 2 / ((g @ h @ g) * (g @ np.linalg.solve(h, g)))
    eta = 0.8 * gamma + 0.2
    radii = np.concatenate([np.linspace(1e-3, 1.2 * size, 40), [eta * size]])
    ends = (jnp.asarray(v) for v in (g, cauchy, newton))
    steps, cut = jax.vmap(double_dogleg_step, (None, None, None, 0))(*ends, jnp.asarray(radii))
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), np.minimum(radii, size), rtol=1e-12)
    model = np.asarray(steps) @ g + np.einsum("ki,ij,kj->k", steps, h, steps) / 2
    assert np.all(np.diff(model[:-1]) <= 1e-14)
    np.testing.assert_array_equal(cut, radii < size)
    np.testing.assert_allclose(steps[-1], eta * newton, rtol=1e-10)  # where the last part begins
    last = radii >= eta * size
    along = np.asarray(steps)[last] @ newton / size
    np.testing.assert_allclose(along, np.minimum(radii[last], size), rtol=1e-12)
    middle = np.asarray(steps)[(radii > np.linalg.norm(cauchy)) & ~last]
    for step in middle:  # on the line from the one point to the other
        part = (step - cauchy) @ (eta * newton - cauchy) / np.sum((eta * newton - cauchy) ** 2)
        assert 0 <= part <= 1
        np.testing.assert_allclose(step, cauchy + part * (eta * newton - cauchy), atol=1e-12)


@pytest.mark.parametrize("squares", [True, False])
def test_the_double_dogleg_gets_there(squares):
    objective = ok.residuals(lambda x: jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]))
    fun = objective if squares else (lambda x: objective(x))
    sol = ok.minimize(fun, jnp.array([-1.2, 1.0]), method=named("dogleg", double=True))
    assert bool(sol.success)
    np.testing.assert_allclose(sol.params, 1.0, rtol=1e-6)


def test_dogleg_takes_the_structure_that_there_is():
    def decay(p, t, y):
        return p[0] * jnp.exp(-p[1] * t) - y

    t = jnp.linspace(0.0, 3.0, 20)
    args = (t, 2 * jnp.exp(-0.8 * t))
    sol = ok.least_squares(decay, jnp.asarray([1.0, 0.1]), args=args, method="dogleg")
    assert bool(sol.success)
    np.testing.assert_allclose(sol.params, [2.0, 0.8], rtol=1e-8)
    assert int(sol.counts.jacobian) == int(sol.steps) + 1
    assert int(sol.counts.hessian) == int(sol.counts.grad) == 0
    x = jnp.asarray(np.random.default_rng(0).normal(size=(30, 3)))
    logistic = composite(lambda w, x: x @ w, ok.losses.logistic, penalty=ok.losses.l2(0.1))
    method = named("dogleg", curvature="ggn")
    sol = ok.minimize(logistic, jnp.zeros(3), args=(x, (x[:, 0] > 0).astype(float)), method=method)
    assert bool(sol.success)
    assert int(sol.counts.hessian) == int(sol.steps)


def test_sr1_learns_a_quadratic_in_n_steps():
    """Hereditary: after n independent steps B is the Hessian, so the next step is the last."""
    values = np.asarray([-3.0, 1.0, 2.0, 5.0])
    q = rotation(2, 4)
    h = jnp.asarray(q * values @ q.T)
    oracle = bind(black_box(lambda x: 0.5 * x @ h @ x + jnp.sum(x)))
    method = named("sr1")
    at = oracle.value_and_grad(jnp.zeros(4))
    state = method.init(at)
    for _ in range(8):  # unbounded below: the steps go on
        _, at, state, _ = method.step(oracle, at, state, jax.random.key(0))
    np.testing.assert_allclose(state.matrix, h, atol=1e-6)
    sol = ok.minimize(lambda x: 0.5 * x @ h @ h @ x + jnp.sum(x), jnp.zeros(4), method="sr1")
    assert bool(sol.success)
    assert int(sol.steps) <= 12


def test_sr1_in_a_scaled_region_gets_through_a_badly_scaled_valley():
    """In the user's units a thousand steps do not suffice."""
    problem = mgh("powell-badly-scaled")
    sols = [
        ok.minimize(
            problem.objective, problem.start(jax.random.key(0)), args=problem.args, method=m
        )
        for m in (named("sr1"), named("sr1", scaled=False))
    ]
    assert bool(sols[0].success)
    assert not bool(sols[1].success)
    assert float(sols[0].value) < 1e-16 < float(sols[1].value)


@pytest.mark.parametrize("method", ["trust-region-exact", "cubic", "dogleg"])
@pytest.mark.parametrize("start", [[0.0, 0.0, 0.0], [1e-12, 0.1, 0.0]])
def test_a_saddle_is_left_even_from_on_top_of_it(method, start):
    sol = ok.minimize(double_well, jnp.asarray(start), method=method)
    assert bool(sol.success)
    assert float(sol.value) == pytest.approx(-0.25, abs=1e-10)


def double_well(x):
    return x[0] ** 4 / 4 - x[0] ** 2 / 2 + jnp.sum(x[1:] ** 2) / 2


def valley(x):
    return (x[0] - x[1]) ** 2 + (x[0] - x[1]) ** 4


@pytest.mark.parametrize("method", ["trust-region-exact", "cubic", "dogleg", "sr1"])
def test_a_flat_valley_is_no_trouble(method):
    sol = ok.minimize(valley, jnp.array([3.0, -1.0]), method=method)
    assert bool(sol.success)
    assert float(sol.value) < 1e-12
    assert abs(float(sol.params[0] + sol.params[1]) - 2.0) < 1e-3  # no drift along the valley


@pytest.mark.parametrize("method", ["trust-region-exact", "cubic", "dogleg", "sr1"])
def test_falling_without_bound_is_no_success(method):
    sol = ok.minimize(lambda x: -jnp.sum(x**2), jnp.array([0.5, 0.1]), method=method)
    assert ok.Status(int(sol.status)) in (Status.UNBOUNDED, Status.NOT_FINITE)
    assert np.isfinite(float(sol.value))


def meyer(x, t, y):
    return x[0] * jnp.exp(x[1] / (t + x[2])) - y


MEYER = [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427,
         3820, 3307, 2872.0]  # fmt: skip


@pytest.mark.parametrize("method", ["trust-region-exact", "cubic"])
def test_parameters_of_very_different_units_do_not_end_a_solve_early(method):
    """Condition 1e16: eigenvalues alone see a singular Hessian (Moré, Garbow & Hillstrom 10)."""
    t = 45 + 5 * jnp.arange(1.0, 17.0)
    start = jnp.asarray([0.02, 4000.0, 250.0])
    sol = ok.minimize(residuals(meyer), start, args=(t, jnp.asarray(MEYER)), method=method)
    assert bool(sol.success)
    assert float(sol.value) == pytest.approx(87.9458 / 2, rel=1e-5)


@pytest.mark.parametrize("method", ["trust-region", "cubic"])
def test_krylov_models_where_dense_ones_do_not_fit(method):
    """5000 parameters, a saddle at the start, and every product in the books."""
    target = jnp.linspace(-1.0, 1.0, 5000)

    def wells(x, t):
        return jnp.sum((x**2 - 1) ** 2 / 4 + (x - t) ** 2 / 100)

    options = {"subproblem": "gltr"} if method == "trust-region" else {}
    sol = ok.minimize(wells, 0.1 * target, args=(target,), method=named(method, **options))
    assert bool(sol.success)
    assert float(jnp.min(jnp.abs(sol.params))) > 0.9  # no entry is left between the wells
    assert int(sol.counts.hessian) == 0
    assert int(sol.counts.hvp) < 400


@pytest.mark.parametrize("start", [[0.0, 0.0, 0.0], [0.1, 0.5, 0.5]])
def test_newton_by_modified_cholesky_leaves_saddles(start):
    method = named("newton", modify="cholesky")
    sol = ok.minimize(double_well, jnp.asarray(start), method=method)
    assert bool(sol.success)
    assert float(sol.value) == pytest.approx(-0.25, abs=1e-10)
    assert int(sol.counts.hessian) == int(sol.steps)


@pytest.mark.parametrize("name", sorted(SPECTRA))
def test_shifted_newton_steps_descend_and_are_newtons_where_that_is_safe(name):
    values, along = SPECTRA[name]
    h, g = Q * values @ Q.T, Q @ along
    step, convex = shifted_newton_step(
        jnp.asarray((h + h.T) / 2), jnp.asarray(g), jnp.asarray(1.0), jnp.linspace(1.0, 2.0, N)
    )
    assert bool(convex) == (values.min() >= 0)
    assert float(g @ step) < 0 or name == "saddle"
    if values.min() < 0:
        assert float(step @ h @ step + 2 * g @ step) < 0
    if values.min() > 0:
        np.testing.assert_allclose(step, -np.linalg.solve(h, g), rtol=1e-8)


def ill_conditioned(kind):
    """Condition 1e6: from a decaying spectrum, or from the units of the parameters."""
    n = 200
    rng = np.random.default_rng(3)
    if kind == "nystrom":
        values = np.r_[np.logspace(0, -4, 40), np.logspace(-4, -6, n - 40)]
        q = rotation(4, n)
        linear = q @ (np.sqrt(values) * rng.normal(size=n))
        return jnp.asarray(q * values @ q.T), jnp.asarray(linear)
    units = np.logspace(-3, 0, n)
    inner = np.eye(n) + 0.3 * np.diag(np.ones(n - 1), 1) + 0.3 * np.diag(np.ones(n - 1), -1)
    h = units[:, None] * inner * units
    return jnp.asarray(h), jnp.asarray(h @ rng.normal(size=n))


def bowl(x, h, b):
    return 0.5 * x @ h @ x - b @ x + 1e-14 * jnp.sum(x**4)


@pytest.mark.parametrize("kind", ["nystrom", "diagonal"])
@pytest.mark.parametrize("method", ["newton-cg", "trust-region"])
def test_preconditioners_spare_most_products(method, kind):
    args = ill_conditioned(kind)
    start = jnp.zeros(200)
    solve = [
        ok.minimize(bowl, start, args=args, method=named(method, precondition=p), tol=1e-6)
        for p in (kind, "none")
    ]
    assert bool(solve[0].success), str(solve[0])
    assert float(solve[0].value) <= float(solve[1].value) + 1e-8 * abs(float(solve[1].value))
    assert 3 * int(solve[0].counts.hvp) < int(solve[1].counts.hvp), [
        int(s.counts.hvp) for s in solve
    ]


VARIANTS = {
    "nystrom": ("newton-cg", {"precondition": "nystrom"}),
    "diagonal": ("trust-region", {"precondition": "diagonal"}),
    "gltr": ("trust-region", {"subproblem": "gltr"}),
    "cubic-krylov": ("cubic", {"subproblem": "krylov"}),
    "modified-cholesky": ("newton", {"modify": "cholesky"}),
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_variants_of_methods_keep_the_books(variant):
    """As in the contract suite, for what has no name of its own there."""
    name, options = VARIANTS[variant]
    method = named(name, **options)
    taps = collections.Counter()

    def tap(kind):
        jax.debug.callback(lambda: taps.update([kind]))

    @jax.jit
    def run(params):
        oracle = bind(black_box(chained), tap=tap)
        start = begin(method, oracle, params, jax.random.key(0))
        return advance(method, oracle, start, 60, jnp.asarray(1e-8), gradient_criterion)

    progress = jax.block_until_ready(run({"x": jnp.asarray([-1.2, 1.0, -1.2, 1.0])}))
    jax.effects_barrier()
    assert Status(int(progress.status)) == Status.CONVERGED
    ledger = {k: int(v) for k, v in progress.counts._asdict().items() if int(v)}
    assert ledger == dict(taps)


def chained(p):
    x = p["x"]
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.parametrize("call", [
    lambda: named("newton", modify="lu"), lambda: named("cubic", subproblem="cg"),
    lambda: named("newton-cg", precondition="jacobi"), lambda: named("dogleg", curvature="gn"),
    lambda: named("trust-region", subproblem="exact"),
    lambda: named("trust-region", subproblem="gltr", precondition="nystrom"),
])  # fmt: skip
def test_unknown_options_are_said(call):
    with pytest.raises(ValueError, match=r"got '"):
        call()
