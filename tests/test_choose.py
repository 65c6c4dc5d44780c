"""`method="auto"`: structure, size, dtype, and a measurement where these leave it open."""

import jax
import jax.numpy as jnp
import pytest

import optikit as ok
from optikit.solve import choose as rules
from optikit.solve.choose import choose, hessian_over_gradient


def chain(x):
    return jnp.sum((x[1:] - x[:-1] ** 2) ** 2) + jnp.sum((x - 1) ** 2)


def given(monkeypatch, cost):
    """Count the measurements, and let them say this."""
    calls = []
    monkeypatch.setattr(rules, "_MEASURED", type(rules._MEASURED)())
    monkeypatch.setattr(rules, "hessian_over_gradient", lambda *args: calls.append(args) or cost)
    return calls


@pytest.mark.parametrize(("cost", "name"), [(3.0, "newton-bfgs"), (200.0, "lbfgs")])
def test_what_is_measured_decides_in_the_middle_and_is_remembered(monkeypatch, cost, name):
    calls = given(monkeypatch, cost)
    objective = ok.calculus.black_box(chain)
    for _ in range(3):
        found, reason = choose(objective, jnp.zeros(150), ())
        assert found == name
        assert f"{cost:.2g} gradients" in reason
    assert len(calls) == 1
    choose(objective, jnp.zeros(151), ())
    assert len(calls) == 2


@pytest.mark.parametrize("n", [2, 100, 1001])
def test_nothing_is_measured_where_size_decides(monkeypatch, n):
    calls = given(monkeypatch, 1.0)
    found, reason = choose(ok.calculus.black_box(chain), jnp.zeros(n), ())
    assert found == ("newton-bfgs" if n <= 100 else "lbfgs")
    assert str(n) in reason
    assert not calls


def test_nothing_is_measured_under_a_transformation(monkeypatch):
    calls = given(monkeypatch, 1.0)
    start = jnp.full((2, 120), 0.5)
    sols = jax.vmap(lambda x: ok.minimize(chain, x, max_steps=5))(start)
    assert sols.method == "lbfgs"
    jax.eval_shape(lambda x: ok.minimize(chain, x).value, start[0])
    assert not calls


def test_the_measurement_itself():
    ratio = hessian_over_gradient(ok.calculus.black_box(chain), jnp.zeros(120), ())
    assert 0 < ratio < 1e6


def test_half_precision_is_not_factorised():
    name, reason = choose(ok.calculus.black_box(chain), jnp.zeros(5, jnp.bfloat16), ())
    assert name == "lbfgs"
    assert "bfloat16" in reason


@pytest.mark.parametrize(
    ("features", "rows", "words"),
    [(3, 50, "Gram product"), (100, 10_000, "factorised"), (20_000, 1000, "diagonal")],
)
def test_a_linear_model_is_newtons_at_every_size(features, rows, words):
    objective = ok.composite(lambda w, x: x @ w, ok.losses.logistic)
    blank = jax.ShapeDtypeStruct
    args = (blank((rows, features), jnp.float32), blank((rows,), jnp.float32))
    name, reason = choose(objective, blank((features,), jnp.float32), args)
    assert name == "newton"
    assert words in reason


def test_bounds_on_a_large_linear_model_keep_to_products():
    objective = ok.composite(lambda w, x: x @ w, ok.losses.squared_error)
    x = jnp.ones((10, 3000)).at[:, ::7].set(0.5)
    sol = ok.minimize(objective, jnp.zeros(3000), args=(x, jnp.ones(10)), bounds=(0.0, 1.0))
    assert sol.method == "newton-cg"
