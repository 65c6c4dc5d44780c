"""`advise`: prices, probes, predictions: identities against dense float64 definitions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.analyze.predict import LAWS, bend, cg_iterations, descent_steps, predicted
from optikit.analyze.prices import Price, oracle_prices
from optikit.analyze.probe import probe
from optikit.solve import choose

N = 12
RNG = np.random.default_rng(0)
ROWS = jnp.asarray(RNG.normal(size=(40, N)))
LABELS = jnp.asarray(RNG.integers(0, 2, 40), jnp.float64)
LOGISTIC = ok.composite(lambda w, x: x @ w, ok.losses.logistic, penalty=ok.losses.l2(1e-2))


@pytest.fixture(scope="module")
def seen():
    return probe(LOGISTIC, jnp.full(N, 0.1), (ROWS, LABELS))


def test_a_probe_of_as_many_products_as_parameters_is_the_gradients_spectral_measure(seen):
    w = jnp.full(N, 0.1)
    matrix = np.asarray(jax.hessian(LOGISTIC)(w, ROWS, LABELS))
    values, vectors = np.linalg.eigh(matrix)
    gradient = np.asarray(jax.grad(LOGISTIC)(w, ROWS, LABELS))
    # rounding of a Krylov space of all 12 dimensions, the residuals taken to zero
    np.testing.assert_allclose(seen.nodes, values, rtol=1e-8)
    shares = (vectors.T @ gradient) ** 2 / (gradient @ gradient)
    np.testing.assert_allclose(seen.weights, shares, atol=1e-8)
    low, high = seen.condition
    assert low <= values[-1] / values[0] * (1 + 1e-8)
    assert high >= values[-1] / values[0] * (1 - 1e-8)
    assert seen.negative == 0
    promised = gradient @ np.linalg.solve(matrix, gradient) / 2
    assert seen.decrease == pytest.approx(promised, rel=1e-8)


def test_the_noise_scale_is_that_of_the_examples(seen):
    w = jnp.full(N, 0.1)
    plain = ok.composite(LOGISTIC.fun, ok.losses.logistic)
    each = np.asarray(ok.per_example_grads(plain, w, (ROWS, LABELS)))
    mean = each.mean(axis=0)
    exact = np.trace((each - mean).T @ (each - mean)) / len(each) / (mean @ mean)
    # eight products of a trace of twelve eigenvalues: a few ten per cent
    assert 0.5 < seen.noise_scale / exact < 2


def test_a_probe_of_a_saddle_or_a_stationary_point():
    saddle = ok.calculus.black_box(lambda x: x[0] ** 2 - 3 * x[1] ** 2 + x[2] ** 2)
    found = probe(saddle, jnp.zeros(3), ())
    assert found.negative == 1
    assert found.condition == (np.inf, np.inf)
    np.testing.assert_allclose(found.nodes, [-6, 2, 2], atol=1e-12)


def test_a_probe_counts_no_rounding_as_negative_and_squares_nothing_large():
    rows = jnp.asarray(RNG.normal(size=(2, 6)))  # rank 2 of 6: four eigenvalues are rounding
    for unit in (1.0, 1e12, 1e-12):
        flat = ok.calculus.black_box(lambda x, u: u * jnp.sum((rows @ x - 1) ** 2))
        found = probe(flat, jnp.ones(6), (jnp.asarray(unit),))
        assert found.negative == 0
        assert found.condition[1] == np.inf
    steep = probe(ok.calculus.black_box(lambda x: jnp.sum(jnp.exp(x))), jnp.full(3, 600.0), ())
    assert steep.decrease == pytest.approx(3 * np.exp(600) / 2, rel=1e-8)  # g^2 / H of each


def test_prices_are_of_what_exists_and_count_the_operations():
    found = oracle_prices(LOGISTIC, jnp.full(N, 0.1), (ROWS, LABELS), seconds=0.05)
    assert set(found) == {
        "dispatch", "value", "grad", "hvp", "jvp", "ggnvp", "hessian", "cholesky", "eigh",
    }  # fmt: skip
    assert all(price.seconds >= 0 and price.compile_seconds > 0 for price in found.values())
    product = 2 * 40 * N  # one pass over the rows; two of them are most of a product
    assert found["value"].flops >= product
    assert 2 * product <= found["ggnvp"].flops <= 4 * product
    assert found["dispatch"].flops == 0
    fit = ok.residuals(lambda w, x, y: jnp.tanh(x @ w) - y)
    assert {"jacobian", "vjp"} <= set(
        oracle_prices(fit, jnp.zeros(N), (ROWS, LABELS), seconds=0.01)
    )


def test_what_would_take_too_long_is_not_priced():
    found = oracle_prices(
        ok.calculus.black_box(lambda x: jnp.sum(x**2)), jnp.zeros(2001), (), seconds=0.01
    )
    assert not {"hessian", "cholesky", "eigh"} & set(found)


# --- predictions ---------------------------------------------------------------------------------


def test_iterations_of_conjugate_gradients_are_theirs():
    nodes = np.geomspace(1e-2, 1, 30)
    weights = np.full(30, 1 / 30)
    r = p = np.sqrt(weights)
    x, done = np.zeros(30), 0
    while np.linalg.norm(r) > 1e-3:
        step = (r @ r) / (p @ (nodes * p))
        after = r - step * nodes * p
        p, r, x, done = after + (after @ after) / (r @ r) * p, after, x + step * p, done + 1
    found = cg_iterations(nodes, weights, 1e-3)
    assert done - 1 < found <= done


def test_steps_of_gradient_descent_are_theirs():
    nodes, weights = np.array([0.1, 0.4, 1.0]), np.array([0.2, 0.3, 0.5])
    steps = descent_steps(nodes, weights, 1e-4)
    left = np.sqrt(np.sum(weights * (1 - nodes) ** (2 * steps)))
    assert left == pytest.approx(1e-4, rel=1e-6)


def test_more_accuracy_and_worse_conditioning_never_take_fewer_steps():
    weights = np.full(8, 1 / 8)
    for steps in (cg_iterations, descent_steps):
        by_accuracy = [steps(np.linspace(0.01, 1, 8), weights, 10.0**-k) for k in range(1, 20)]
        assert by_accuracy == sorted(by_accuracy)
        by_condition = [steps(np.linspace(low, 1, 8), weights, 1e-2) for low in (0.5, 0.1, 1e-3)]
        assert by_condition == sorted(by_condition)


def test_the_bend_is_nothing_on_a_quadratic_and_most_without_convexity(seen):
    end = seen._replace(value=seen.value - seen.decrease)
    assert bend(seen, end) == pytest.approx(0, abs=1e-12)
    assert bend(seen, seen._replace(value=seen.value - 10 * seen.decrease)) > 2
    assert bend(seen._replace(decrease=np.inf), end) == 5
    assert bend(seen, seen) == 0  # nowhere to go


def test_every_law_is_of_a_registered_method_and_needs_the_prices_it_says(seen):
    price = Price(1e-3, 1e6, 1e6)
    everything = dict.fromkeys(
        ("dispatch", "value", "grad", "hvp", "hessian", "jacobian", "cholesky", "eigh"), price
    )
    without = {k: v for k, v in everything.items() if k not in ("hessian", "cholesky", "eigh")}
    facts = {"residuals": 40, "itemsize": 8, "overhead": 1e-6, "call": 1e-4}
    dense = {"newton", "newton-bfgs", "trust-region-exact"}
    for name in LAWS:
        assert name in ok.optimizers.OPTIMIZERS
        found = predicted(name, seen, seen, 1e-8, everything, **facts)
        assert found.steps >= 1
        assert 1e-4 < found.seconds < np.inf
        assert found.bytes >= 8 * N
        if name in dense:  # what is too large to be priced is too large to be taken
            assert predicted(name, seen, seen, 1e-8, without, **facts).seconds == np.inf


@pytest.fixture(scope="module")
def advice():
    return ok.advise(
        LOGISTIC, jnp.zeros(N), (ROWS, LABELS), methods=["newton", "lbfgs", "gradient-descent"],
        seconds=0.2, rehearsals=2,
    )  # fmt: skip


def test_what_was_rehearsed_to_the_end_is_what_a_solve_takes(advice):
    by = {p.method: p for p in advice.predictions}
    assert by["newton"].compile_seconds > 0
    for name in ("newton", "lbfgs"):
        if by[name].source == "rehearsed":
            sol = ok.minimize(LOGISTIC, jnp.zeros(N), args=(ROWS, LABELS), method=name)
            assert by[name].steps == int(sol.steps)
    assert by["newton"].source == "rehearsed"  # the usual choice of a linear model is always tried
    assert [p.seconds for p in advice.predictions] == sorted(p.seconds for p in advice.predictions)
    assert advice.method == advice.predictions[0].method
    assert advice.near.grad_norm < advice.start.grad_norm
    text, rows = str(advice), advice.predictions
    assert "1020 KiB" in str(replace(advice, predictions=(replace(rows[0], bytes=1020 * 1024.0),)))
    for word in ("take", "newton", "lbfgs", "gradient-descent", "cholesky", "condition"):
        assert word in text


def test_minimize_by_advice_says_why_and_asks_once(monkeypatch, advice):
    calls = []
    monkeypatch.setattr(choose, "_ADVISED", type(choose._ADVISED)())
    monkeypatch.setattr("optikit.analyze.advise", lambda *a, **k: calls.append(a) or advice)
    for tol in (1e-8, jnp.asarray(1e-8)):
        sol = ok.minimize(LOGISTIC, jnp.zeros(N), args=(ROWS, LABELS), method="advise", tol=tol)
        assert sol.success
        assert sol.method == advice.method
        assert sol.reason == advice.reason
    assert len(calls) == 1


def test_a_rehearsal_that_is_cut_off_is_extrapolated_and_one_that_fails_says_so():
    def bowl(x, sign):
        return sign * jnp.sum(jnp.geomspace(1e-4, 1, 6) * x**2)

    start, how = jnp.ones(6), {"methods": ["gradient-descent"], "rehearsals": 1}
    only = ok.advise(bowl, start, (1.0,), seconds=1e-6, **how).predictions[0]
    assert only.source == "extrapolated"
    assert only.steps > 16
    # no minimum: it runs off to -infinity, in 16 steps or in the 64 that there is time for
    downhill = ok.advise(bowl, start, (-1.0,), seconds=0.05, **how)
    assert downhill.predictions[0].source == "failed"
    assert "without convergence" in downhill.reason


def test_mistakes_raise():
    with pytest.raises(ValueError, match="no law"):
        ok.advise(lambda x: jnp.sum(x**2), jnp.ones(2), methods=["adam"])
    with pytest.raises(ValueError, match="nan at the start"):
        ok.advise(lambda x: jnp.sum(jnp.log(x)), -jnp.ones(2), seconds=1e-6)
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda x: ok.advise(lambda y: jnp.sum(y**2), x).accuracy)(jnp.ones(2))
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda x: ok.minimize(lambda y: jnp.sum(y**2), x, method="advise"))(jnp.ones(2))
    bowl, start = (lambda x: jnp.sum(x**2)), jnp.ones(2)
    for wrong in ({"accuracy": -1.0}, {"accuracy": float("nan")}, {"rehearsals": -1}):
        with pytest.raises(ValueError, match="must not be negative"):
            ok.advise(bowl, start, **wrong)
    with pytest.raises(TypeError, match=r"write methods=\['lbfgs'\]"):
        ok.advise(bowl, start, methods="lbfgs")
    with pytest.raises(ValueError, match="methods is empty"):
        ok.advise(bowl, start, methods=[])
    with pytest.raises(TypeError, match="give fun itself"):
        ok.advise(ok.hessian(bowl, start), start)
    for look in (ok.advise, ok.certify):
        with pytest.raises(TypeError, match="bfloat16: eigenvalues cannot be had"):
            look(bowl, start.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match=r"ask ok\.advise"):
        ok.minimize_many(bowl, jnp.ones((3, 2)), method="advise")


# --- unusual objectives ---------------------------------------------------------------------------


@jax.custom_vjp
def reverse_only(x):
    return jnp.tanh(x) + x


reverse_only.defvjp(
    lambda x: (jnp.tanh(x) + x, x), lambda x, g: (g * (2 - jnp.tanh(x) ** 2),)
)  # fmt: skip


@jax.custom_vjp
def called_back(x):
    """|x|^2 on the host, where JAX cannot look."""
    return jax.pure_callback(
        lambda v: np.sum(np.asarray(v) ** 2), jax.ShapeDtypeStruct((), x.dtype), x,
        vmap_method="sequential",
    )  # fmt: skip


def pulled_back(x, g):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    slope = jax.pure_callback(lambda v: 2 * np.asarray(v), shape, x, vmap_method="sequential")
    return (g * slope,)


called_back.defvjp(lambda x: (called_back(x), x), pulled_back)


def test_without_forward_mode_what_needs_it_has_no_price_and_is_no_candidate():
    fit = ok.residuals(lambda p, t: reverse_only(p * t) - t)
    found = ok.advise(fit, jnp.zeros(3), (jnp.arange(1.0, 4.0),), seconds=0.1, rehearsals=0)
    assert {"grad", "hvp", "vjp", "hessian"} <= set(found.prices)
    assert not {"jvp", "ggnvp", "jacobian"} & set(found.prices)
    names = {p.method for p in found.predictions}
    assert "newton" in names
    assert not {"gauss-newton", "levenberg-marquardt"} & names


def test_without_hessian_products_it_says_what_is_missing():
    with pytest.raises(TypeError, match=r"Hessian products, and the objective has none.*'lbfgs'"):
        ok.advise(called_back, jnp.ones(2), seconds=1e-6)


def test_what_is_recommended_has_been_seen_to_run_or_nothing_did():
    names = ["lbfgs", "newton", "newton-bfgs"]

    def tent(x):  # one rehearsal was asked for; none of the methods can end at the kink
        return jnp.sum(jnp.abs(x - jnp.array([1.0, 2.0])))

    found = ok.advise(tent, jnp.zeros(2), methods=names, seconds=1e-3, rehearsals=1)
    assert {p.source for p in found.predictions} == {"failed"}
    assert "every method that was tried" in found.reason

    def bent(x):  # has no Hessian at the start: Newton's method cannot begin
        return jnp.sum(jnp.abs(x) ** 1.5 + (x - 1) ** 2)

    found = ok.advise(bent, jnp.zeros(2), methods=["newton", "bfgs"], seconds=1e-3, rehearsals=1)
    assert found.predictions[0].source in ("rehearsed", "extrapolated")
    assert found.predictions[-1].source == "failed"
    assert "without convergence ended 'newton'" in found.reason
    assert ok.minimize(bent, jnp.zeros(2), method=found.method).success


def test_a_start_without_a_gradient_or_an_accuracy_below_rounding_is_no_error():
    def hill(x):  # the start is a maximum, with a curved valley around it
        y = x**2
        return jnp.sum(100 * (y[1:] - y[:-1] ** 2) ** 2 + (1 - y[:-1]) ** 2)

    found = ok.advise(
        hill, jnp.zeros(6), methods=["newton-cg"], seconds=1e-6, rehearsals=1, accuracy=0.0
    )
    only = found.predictions[0]
    assert found.start.grad_norm == 0
    assert only.source == "extrapolated"  # the time was for 16 steps
    assert np.isfinite([only.steps, only.seconds]).all()
