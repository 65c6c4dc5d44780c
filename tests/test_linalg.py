"""Inner solvers and searches, by the identities that define them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optikit.calculus import bind, black_box
from optikit.core import Status, tree
from optikit.globalize import backtracking, trust_region, wolfe
from optikit.linalg import Direction, Inner, conjugate_gradients, lanczos
from optikit.linalg.dense import newton_step


def spectrum_matrix(values, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return jnp.asarray(q * np.asarray(values) @ q.T)


def quadratic(matrix, linear):
    return black_box(lambda x: 0.5 * x @ matrix @ x + linear @ x)


def propose(matrix, linear, radius, forcing=1e-10):
    oracle = bind(quadratic(matrix, linear))
    at = oracle.value_and_grad(jnp.zeros(len(linear)))
    model = conjugate_gradients().prepare(oracle, at, "hessian", jax.random.key(0))
    inner = Inner(jnp.asarray(forcing), jnp.asarray(0.0))
    return model.propose(jnp.asarray(radius), inner)


def test_cg_solves_a_convex_model():
    a, b = spectrum_matrix(np.logspace(-2, 2, 12)), jnp.ones(12)
    d = propose(a, b, jnp.inf)
    np.testing.assert_allclose(a @ d.step, -b, atol=1e-7)
    assert bool(d.convex)
    assert float(d.slope) == pytest.approx(float(b @ d.step))
    assert float(d.curvature) == pytest.approx(float(d.step @ a @ d.step), rel=1e-9)
    assert float(d.predicted) == pytest.approx(float(b @ jnp.linalg.solve(a, b)) / 2)
    assert int(d.counts.hvp) <= 24


@pytest.mark.parametrize(
    "values", [np.logspace(-2, 2, 8), np.linspace(-1, 5, 8), -np.ones(8), np.zeros(8)]
)
@pytest.mark.parametrize("radius", [1e-3, 1.0])
def test_steihaug_stays_in_the_radius_and_beats_the_cauchy_point(values, radius):
    a, g = spectrum_matrix(values), jnp.linspace(1.0, 2.0, 8)
    d = propose(a, g, radius)
    size = float(jnp.linalg.norm(d.step))
    assert size <= radius * (1 + 1e-12)
    curvature = float(g @ a @ g)
    length = float(jnp.linalg.norm(g))
    t = radius / length if curvature <= 0 else min(radius / length, length**2 / curvature)
    cauchy = t * length**2 - t**2 * curvature / 2
    model = -(float(g @ d.step) + float(d.step @ a @ d.step) / 2)
    assert model >= cauchy * (1 - 1e-12)
    assert float(d.predicted) == pytest.approx(model, rel=1e-9)
    if np.all(values < 0):
        assert size == pytest.approx(radius)


def test_cg_without_radius_descends_where_the_model_does_not_stop():
    a, g = spectrum_matrix(np.linspace(-1, 5, 8)), jnp.linspace(1.0, 2.0, 8)
    d = propose(a, g, jnp.inf)
    assert float(d.slope) < 0
    assert not bool(d.convex)
    assert np.isinf(float(d.promised))
    assert np.all(np.isfinite(d.step))


@pytest.mark.parametrize(
    "values", [[1, 2, 3.0], [1e-9, 1, 1.0], [-1, 1, 2.0], [-3, -2, -1.0], [0, 0, 1.0]]
)
def test_dense_newton_steps_descend_on_every_spectrum(values):
    a, g = spectrum_matrix(values), jnp.asarray([1.0, -2.0, 0.5])
    step, convex = newton_step(a, g, jnp.asarray(1.0))
    assert float(g @ step) < 0
    assert bool(convex) == (min(values) >= 0)
    if min(values) > 1e-6:
        np.testing.assert_allclose(step, -jnp.linalg.solve(a, g), rtol=1e-10)


def test_dense_newton_on_a_saddle_goes_along_the_negative_curvature():
    a = jnp.diag(jnp.asarray([2.0, -1.0, 3.0]))
    step, convex = newton_step(a, jnp.zeros(3), jnp.asarray(1.0))
    assert not bool(convex)
    assert abs(float(step[1])) > 0.05
    assert abs(float(step[0])) + abs(float(step[2])) < 1e-12


def test_dense_newton_does_not_move_along_a_null_space():
    """The gradient has no part there; rounding must not grow into one."""
    u = jnp.asarray([1.0, 1.0, 0.0]) / 2**0.5
    a = 1e6 * (jnp.eye(3) - jnp.outer(u, u))
    step, _ = newton_step(a, jnp.asarray([1.0, -1.0, 2.0]), jnp.asarray(1.0))
    assert abs(float(u @ step)) < 1e-4 * float(jnp.linalg.norm(step))


def test_lanczos_relation_and_orthogonality(dtype):
    n, k = 40, 15
    a = spectrum_matrix(np.linspace(-3, 7, n)).astype(dtype)
    ritz = lanczos(lambda v: a @ v, jnp.ones(n, dtype), k, jax.random.key(0))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(ritz.basis @ ritz.basis.T, np.eye(k), atol=50 * eps)
    assert float(jnp.sum(ritz.weights)) == pytest.approx(1, abs=50 * eps)
    for i in range(k):
        v = ritz.vector(i)
        residual = float(jnp.linalg.norm(a @ v - ritz.values[i] * v))
        assert residual == pytest.approx(float(ritz.residuals[i]), abs=200 * eps)
        distance = float(jnp.min(jnp.abs(jnp.linalg.eigvalsh(a) - ritz.values[i])))
        assert distance <= residual + 200 * eps


def test_lanczos_finds_multiple_eigenvalues_after_the_space_closes():
    a = jnp.diag(jnp.asarray([1.0, 1.0, 1.0, 5.0]))
    ritz = lanczos(lambda v: a @ v, jnp.ones(4), 4, jax.random.key(0))
    np.testing.assert_allclose(ritz.values, [1, 1, 1, 5], atol=1e-12)


LINES = {  # functions of one variable, searched from 0 along +1, all with slope < 0 there
    "quadratic": lambda t: (t - 0.3) ** 2,
    "far": lambda t: (t - 300.0) ** 2 / 1e4,
    "near": lambda t: (t - 1e-4) ** 2,
    "wall": lambda t: jnp.where(t < 0.7, (t - 0.2) ** 2, jnp.nan),
    "quartic": lambda t: (t - 1) ** 4 + 0.1 * t**2 - t,
    "wavy": lambda t: -t + 0.3 * jnp.sin(10 * t) - 3.5 * jnp.sin(t),
    "more-thuente-1": lambda t: -t / (t**2 + 2),
    "exponential": lambda t: jnp.exp(5 * t) - 20 * t,
}


def along(name, search):
    function = LINES[name]
    oracle = bind(black_box(lambda x: function(x[0])))
    at = oracle.value_and_grad(jnp.zeros(1))
    slope = at.grad[0]
    zero, no, yes = jnp.asarray(0.0), jnp.asarray(False), jnp.asarray(True)
    from optikit.core import Counts, times

    d = Direction(jnp.ones(1), slope, zero, no, yes, zero, times(0, Counts()))
    return at, search.search(oracle, at, lambda radius: d, search.init(at))


@pytest.mark.parametrize("name", sorted(LINES))
@pytest.mark.parametrize("c2", [0.1, 0.9])
def test_wolfe_points_satisfy_the_strong_wolfe_conditions(name, c2):
    at, found = along(name, wolfe(c2=c2))
    assert bool(found.accepted)
    slope = float(at.grad[0])
    assert float(found.next.value) <= float(at.value) + 1e-4 * float(found.step_size) * slope
    assert abs(float(found.next.grad[0])) <= c2 * abs(slope) * (1 + 1e-9)
    np.testing.assert_allclose(found.next.params[0], found.step_size)
    assert int(found.counts.grad) <= 20


@pytest.mark.parametrize("name", sorted(LINES))
@pytest.mark.parametrize("gradients", [False, True])
def test_backtracking_points_satisfy_armijo(name, gradients):
    at, found = along(name, backtracking(gradients=gradients))
    assert bool(found.accepted)
    t = float(found.step_size)
    value = float(LINES[name](jnp.asarray(t)))
    assert value <= float(at.value) + 1e-4 * t * float(at.grad[0])
    spent = found.counts.grad if gradients else found.counts.value
    assert 1 <= int(spent) <= 15
    assert (found.next is None) == (not gradients)


@pytest.mark.parametrize("search", [wolfe(), backtracking()])
def test_searches_report_failure_and_stay(search):
    @jax.custom_jvp
    def uphill(x):
        return jnp.sum(x)

    @uphill.defjvp
    def _(primals, tangents):
        return uphill(*primals), -jnp.sum(tangents[0])

    oracle = bind(black_box(uphill))
    at = oracle.value_and_grad(jnp.ones(1))
    zero, no, yes = jnp.asarray(0.0), jnp.asarray(False), jnp.asarray(True)
    from optikit.core import Counts, times

    d = Direction(-at.grad, -tree.vdot(at.grad, at.grad), zero, no, yes, zero, times(0, Counts()))
    found = search.search(oracle, at, lambda radius: d, search.init(at))
    assert not bool(found.accepted)
    assert int(found.status) == Status.LINE_SEARCH_FAILED
    np.testing.assert_array_equal(found.params, at.params)
    assert float(found.step_norm) == 0


def test_a_trust_region_grows_shrinks_and_rejects():
    steep = black_box(lambda x: jnp.sum(jnp.exp(3 * x) - x))
    oracle = bind(steep)
    at = oracle.value_and_grad(jnp.asarray([2.0]))
    region = trust_region(radius=100.0)

    def along_gradient(radius):
        step = -radius * jnp.sign(at.grad)
        slope = at.grad @ step
        zero = jnp.asarray(0.0)
        from optikit.core import Counts, times

        yes = jnp.asarray(True)
        return Direction(step, slope, zero, yes, yes, zero, times(0, Counts()))

    found = region.search(oracle, at, along_gradient, region.init(at))
    assert bool(found.accepted)
    assert float(found.next.value) < float(at.value)
    assert float(found.state) < 100.0  # the linear model promised far too much
