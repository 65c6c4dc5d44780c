"""`advise`: prices, probes, predictions: identities against dense float64 definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.analyze.prices import oracle_prices
from optikit.analyze.probe import probe

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
