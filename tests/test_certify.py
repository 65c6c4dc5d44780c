"""Certificates: right on a zoo of points, dense and by Lanczos, in both precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.analyze import Kind, evidence
from optikit.linalg import lanczos, lower_bound

LARGE = 1200
SPREAD = np.linspace(1.0, 100.0, LARGE)


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def spread(x, sign):
    scales = jnp.asarray(SPREAD, x.dtype) * jnp.where(jnp.arange(LARGE) == 7, sign, 1).astype(
        x.dtype
    )
    return jnp.sum(scales * x**2) / 2


ZOO = {
    "bowl": (lambda x: jnp.sum(x**2), np.zeros(3), Kind.MINIMUM),
    "rosenbrock": (rosenbrock, np.ones(4), Kind.MINIMUM),
    "saddle": (lambda x: x[0] ** 2 - x[1] ** 2, np.zeros(2), Kind.SADDLE),
    "index-2": (lambda x: x[0] ** 2 - x[1] ** 2 - 3 * x[2] ** 2, np.zeros(3), Kind.SADDLE),
    "hill": (lambda x: -jnp.sum(x**2), np.zeros(3), Kind.MAXIMUM),
    "monkey-saddle": (lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2, np.zeros(2), Kind.DEGENERATE),
    "valley": (lambda x: (x[0] - x[1]) ** 2, np.ones(2), Kind.DEGENERATE),
    "quartic": (lambda x: jnp.sum(x**4), np.zeros(2), Kind.DEGENERATE),
    "plateau": (lambda x: 0 * jnp.sum(x), np.zeros(2), Kind.DEGENERATE),
    "ridge": (lambda x: -((x[0] + x[1]) ** 2), np.zeros(2), Kind.DEGENERATE),
    "slope": (lambda x: jnp.sum(x), np.zeros(2), Kind.NOT_STATIONARY),
    "off-centre": (rosenbrock, np.zeros(4), Kind.NOT_STATIONARY),
    "far-tail": (lambda x: jnp.exp(-x[0]), np.array([20.0]), Kind.NOT_STATIONARY),
    "step": (lambda x: jnp.sum(x**2) + jnp.where(x[0] > 0, 1, 0 * x[0]), np.zeros(2),
             Kind.NON_SMOOTH),
    "low-step": (lambda x: jnp.sum((x - 1) ** 2) + jnp.where(x[1] >= 1, 0.01, 0 * x[1]),
                 np.ones(2), Kind.NON_SMOOTH),
    "large-bowl": (lambda x: spread(x, 1), np.zeros(LARGE), Kind.MINIMUM),
    "large-saddle": (lambda x: spread(x, -1), np.zeros(LARGE), Kind.SADDLE),
    "large-slope": (lambda x: spread(x, 1), np.ones(LARGE), Kind.NOT_STATIONARY),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_zoo_is_told_apart(name, dtype):
    function, point, kind = ZOO[name]
    cert = ok.certify(function, jnp.asarray(point, dtype))
    assert cert.kind == kind, str(cert)
    assert cert.dense == (len(point) <= 1000)
    if cert.kind == Kind.MINIMUM:
        assert cert.better is None
    elif cert.better is not None:
        value = float(function(cert.better))
        assert value < cert.value
        assert cert.value - value == pytest.approx(cert.gain, rel=1e-5)


@pytest.mark.parametrize("name", ["saddle", "large-saddle", "hill", "off-centre", "slope"])
def test_there_is_a_way_out_of_what_is_no_minimum(name):
    function, point, _ = ZOO[name]
    cert = ok.certify(function, jnp.asarray(point))
    assert cert.gain > 0
    assert float(jnp.linalg.norm(cert.direction)) == pytest.approx(1, rel=1e-9)
    sol = ok.minimize(function, cert.better, method="newton-cg", max_steps=3)
    assert float(sol.value) <= cert.value - cert.gain


def test_the_direction_of_a_saddle_has_the_parameters_structure():
    cert = ok.certify(
        lambda p: jnp.sum(p["a"] ** 2) - p["b"] ** 2, {"a": jnp.zeros(3), "b": jnp.asarray(0.0)}
    )
    assert cert.kind == "saddle"
    assert abs(float(cert.direction["b"])) == pytest.approx(1)


def test_the_decrement_estimates_the_distance_to_the_optimum():
    a = jnp.diag(jnp.asarray([1.0, 10.0, 100.0]))
    cert = ok.certify(lambda x: 0.5 * x @ a @ x + 3.0, jnp.full(3, 1e-6))
    assert cert.decrement == pytest.approx(0.5e-12 * 111)
    assert cert.step_norm == pytest.approx(1e-6 * 3**0.5)
    assert (cert.smallest, cert.largest) == pytest.approx((1, 100))


def test_lanczos_ends_come_with_bounds_that_hold():
    cert = ok.certify(lambda x: spread(x, 1), jnp.zeros(LARGE))
    for value, error in ((cert.smallest, cert.smallest_error), (cert.largest, cert.largest_error)):
        assert np.min(np.abs(SPREAD - value)) <= error + 1e-9
    assert int(cert.counts.hvp) == 80


def test_an_unresolved_end_of_the_spectrum_is_admitted():
    scales = jnp.asarray(np.logspace(0, 8, LARGE))
    cert = ok.certify(lambda x: jnp.sum(scales * x**2), jnp.zeros(LARGE), num_products=20)
    assert cert.kind == Kind.CANNOT_TELL
    assert "raise num_products" in str(cert)


def test_what_minimize_calls_converged_is_certified():
    sol = ok.minimize(rosenbrock, jnp.asarray([-1.2, 1.0, 0.0]), method="bfgs")
    assert ok.certify(rosenbrock, sol.params).kind == "minimum"


def test_a_lost_point_is_an_error():
    with pytest.raises(FloatingPointError, match="nan"):
        ok.certify(lambda x: jnp.sum(jnp.log(x)), -jnp.ones(2))


def test_data_and_objectives_are_accepted():
    x, y = jnp.eye(3), jnp.ones(3)
    objective = ok.composite(lambda w, x: x @ w, ok.losses.squared_error)
    cert = ok.certify(objective, jnp.ones(3), (x, y))
    assert cert.kind == "minimum"
    assert cert.smallest == pytest.approx(2 / 3)


# --- under jit and vmap, and by the thousand -----------------------------------------------------


def tilted(x, a):
    return a[0] * x[0] ** 2 + a[1] * x[1] ** 2


CURVATURES = jnp.asarray([[1.0, 2.0], [1.0, -1.0], [-1.0, -3.0], [1.0, 0.0], [jnp.nan, 1.0]])
EXPECTED = ["minimum", "saddle", "maximum", "degenerate", "cannot-tell"]


def test_many_points_are_certified_as_one_by_one(dtype):
    curvatures = CURVATURES.astype(dtype)
    points = jnp.zeros((5, 2), dtype)
    many = ok.certify_many(tilted, points, (curvatures,))
    mapped = jax.jit(jax.vmap(lambda x, a: ok.certify(tilted, x, (a,))))(points, curvatures)
    assert many.kind.tolist() == mapped.kind.tolist() == EXPECTED
    assert many.gain.dtype == mapped.smallest.dtype == dtype
    for i in range(4):
        alone = ok.certify(tilted, points[i], (curvatures[i],))
        assert alone.kind == EXPECTED[i]
        assert float(mapped.smallest[i]) == pytest.approx(alone.smallest, abs=1e-6)
        assert float(many.gain[i]) == pytest.approx(alone.gain, abs=1e-6)
        assert int(many.counts.value[i]) == int(alone.counts.value) == (0 if i == 0 else 33)
        assert int(many.counts.hessian[i]) == 1
        assert int(many.counts.grad[i]) == 21  # the point, and 20 around it
    assert np.isnan(many.smallest[4])


def test_another_number_of_points_compiles_nothing():
    traced = []

    def counted(x):
        traced.append(1)
        return jnp.sum((x**2 - 1) ** 2)

    kinds = ok.certify_many(counted, jnp.linspace(-1.0, 1.0, 9)[:, None]).kind
    before = len(traced)
    ok.certify_many(counted, jnp.zeros((16, 1)))
    assert len(traced) == before
    assert (kinds[0], kinds[4], kinds[-1]) == ("minimum", "maximum", "minimum")
    with pytest.raises(ValueError, match="batch is empty"):
        ok.certify_many(counted, jnp.zeros((0, 1)))


def test_a_batch_of_solves_is_certified():
    starts = jnp.asarray([[-2.0], [0.0], [2.0]])
    sols = ok.minimize_many(lambda x: jnp.sum((x**2 - 1) ** 2), starts, method="bfgs")
    kinds = ok.certify_many(lambda x: jnp.sum((x**2 - 1) ** 2), sols.params).kind
    assert kinds.tolist() == ["minimum", "maximum", "minimum"]  # 0 is where bfgs cannot leave


# --- evidence ------------------------------------------------------------------------------------


def test_noise_is_measured_and_hides_what_it_must():
    """A curvature of 1e-3 under a gradient whose residuals carry errors of 1e-3."""
    tall = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 2)))[0] * [7.0, 0.14]

    def noisy(x, offset):  # an argument: the compiler would cancel a constant
        model = jnp.dot(jnp.asarray(tall, x.dtype), x, precision="highest") + offset
        return jnp.mean((model - offset) ** 2)

    point, offset = jnp.asarray([1e-5, 0.03], jnp.float32), jnp.asarray(1e4, jnp.float32)
    cert = ok.certify(noisy, point, (offset,))
    exact = jax.grad(noisy)(point.astype(jnp.float64), offset.astype(jnp.float64))
    error = np.linalg.norm(np.asarray(jax.grad(noisy)(point, offset)) - np.asarray(exact))
    assert error / 10 < cert.grad_noise < 10 * error  # one draw against a standard deviation
    assert cert.at_noise
    assert cert.kind == "cannot-tell"
    assert "noise" in cert.reason
    sharp = ok.certify(noisy, point.astype(jnp.float64), (offset.astype(jnp.float64),))
    assert sharp.kind == "not-stationary"
    assert not sharp.at_noise


def test_the_gap_is_a_bound_where_its_assumption_holds():
    """Curvature grows away from the point, so that it is nowhere below `lower`."""
    cert = ok.certify(lambda x: jnp.sum(jnp.cosh(x)), jnp.full(3, 1e-5))
    assert 3 * (np.cosh(1e-5) - 1) <= cert.gap * (1 + 1e-6)
    assert cert.radius * (1 + 1e-6) >= 3**0.5 * 1e-5
    assert cert.gap == pytest.approx(cert.decrement, rel=1e-3)


def test_the_confidence_of_a_lower_bound_is_kept():
    """At 50 % the bound fails at most in half of 400 starts, to three standard deviations."""
    scales = jnp.asarray(np.concatenate([[0.5], np.linspace(1, 100, 299)]))

    def bound(key):
        start = jax.random.normal(key, scales.shape)
        ritz = lanczos(lambda v: scales * v, start, 12, key)
        args = ritz.diagonal, ritz.off_diagonal, 300
        return lower_bound(*args, 0.5), lower_bound(*args, 0.99)

    half, sure = jax.jit(lambda keys: jax.lax.map(bound, keys))(
        jax.random.split(jax.random.key(0), 400)
    )
    assert np.mean(half > 0.5) <= 0.5 + 3 * 0.025
    assert np.mean(sure > 0.5) <= 0.01 + 3 * 0.005
    assert np.all(sure < half)
    assert np.median(half) > -100  # and says something


def test_without_room_for_a_basis_a_few_vectors_say_the_same(monkeypatch, dtype):
    held = {s: ok.certify(lambda x, s=s: spread(x, s), jnp.zeros(LARGE, dtype)) for s in (1, -1)}
    monkeypatch.setattr(evidence, "BASIS_UP_TO", 0)
    for sign, kind in ((1, "minimum"), (-1, "saddle")):
        few = ok.certify(lambda x, s=sign: spread(x, s), jnp.zeros(LARGE, dtype))
        assert few.kind == held[sign].kind == kind
        # both are within their errors of the same end
        assert few.smallest == pytest.approx(held[sign].smallest, rel=0.1)
        assert int(few.counts.hvp) == (160 if sign == 1 else 200)
        if sign == -1:
            assert abs(float(few.direction[7])) > 0.99
            assert few.gain > 0
            assert few.num_negative == 1
    few = ok.certify(lambda x: spread(x, 1), jnp.ones(LARGE, dtype))
    assert few.kind == "not-stationary"
    # half as many products resolve a condition number of 100 to a percent
    assert few.step_norm == pytest.approx(LARGE**0.5, rel=0.01)
    assert few.gain == pytest.approx(few.value, rel=0.01)


def test_lanczos_counts_at_least_the_index():
    signs = np.where(np.arange(LARGE) < 5, -50.0 - 10 * np.arange(LARGE), 1.0)
    cert = ok.certify(lambda x: jnp.sum(jnp.asarray(signs) * x**2), jnp.zeros(LARGE))
    assert cert.kind == "saddle"
    assert cert.num_negative == 5
    assert "at least 5" in str(cert)


def test_a_negative_eigenvalue_that_hides_makes_no_minimum():
    """One negative among 1,199 over up to four decades: seen, or not told."""
    rng = np.random.default_rng(0)
    for trial in range(12):
        scales = np.linspace(1, 10 ** rng.uniform(0.5, 4), LARGE)
        scales[7] = -(10 ** rng.uniform(-2, 0))
        cert = ok.certify(
            weighted, jnp.zeros(LARGE), (jnp.asarray(scales),), key=jax.random.key(trial)
        )
        assert cert.kind in ("saddle", "cannot-tell"), str(cert)
        assert cert.lower <= scales[7]


def weighted(x, scales):
    return jnp.sum(scales * x**2) / 2


@pytest.mark.parametrize("basis", [True, False])
@pytest.mark.parametrize("unit", [2.0**-100, 2.0**100])
def test_units_hide_no_negative_eigenvalue(unit, basis, monkeypatch):
    """Squares of these gradients and products are not numbers of single precision."""
    if not basis:
        monkeypatch.setattr(evidence, "BASIS_UP_TO", 0)
    x = jnp.zeros(LARGE, jnp.float32)
    scales = np.where(np.arange(LARGE) == 7, -1, SPREAD) * unit
    cert = ok.certify(weighted, x, (jnp.asarray(scales, jnp.float32),))
    assert cert.kind == "saddle", str(cert)
    assert cert.smallest == pytest.approx(-unit, rel=1e-3)
    bowl = ok.certify(weighted, x, (jnp.asarray(SPREAD * unit, jnp.float32),))
    assert bowl.kind == "minimum", str(bowl)
    assert bowl.lower <= unit
