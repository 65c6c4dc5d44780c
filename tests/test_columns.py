"""Dense matrices from products, in groups of columns that suit the size of a product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.calculus import columns as rules
from optikit.calculus.columns import map_units, value_and_jacobian

N = 12
GRID = jnp.linspace(0, 1, 700)


def peaks(x):
    """A sum over a grid that is large against the parameters, behind a call and a loop."""

    @jax.jit
    def inner(x):
        return jnp.exp(-((GRID[:, None] - x[None, :]) ** 2))

    return jnp.sum(
        jax.lax.fori_loop(0, 2, lambda _, s: s + jnp.sum(inner(x), axis=1), 0 * GRID) ** 3
    )


def loops(function, *args):
    """The number of loops in a program."""
    return str(jax.make_jaxpr(function)(*args)).count(" scan[")


@pytest.mark.parametrize("room", [1, 3 * 700 * N * 8, 2**31])  # one column, three, all together
def test_groups_of_columns_make_the_same_matrix(monkeypatch, room):
    monkeypatch.setattr(rules, "CPU_BYTES", room)
    monkeypatch.setattr(rules, "DEVICE_BYTES", room)
    x = jnp.linspace(0, 1, N)
    exact = jax.hessian(peaks)(x)
    np.testing.assert_allclose(ok.hessian(peaks, x).dense(), exact, rtol=1e-10, atol=1e-8)

    def push(v):
        return jax.jvp(jax.grad(peaks), (x,), (v,))[1]

    def whole(v):
        return jnp.sum(v[:, None] * map_units(push, v))

    np.testing.assert_allclose(map_units(push, x), exact, rtol=1e-10, atol=1e-8)
    # the loop over groups is one more than those of a product
    assert loops(whole, x) == loops(push, x) + (room < 2**31)


def test_small_products_are_never_split():
    assert loops(lambda v: map_units(lambda u: 2 * u, v), jnp.ones(200)) == 0
    np.testing.assert_array_equal(map_units(lambda u: 2 * u, jnp.ones(200)), 2 * np.eye(200))


@pytest.mark.parametrize(("rows", "n"), [(20, 9), (9, 20), (3, 3)])
def test_a_jacobian_is_swept_from_its_shorter_side_and_traced_once(rows, n):
    a = jax.random.normal(jax.random.key(0), (rows, n))
    seen = []

    def function(p):
        seen.append(1)
        return jnp.sin(a @ p["x"])

    x = jnp.linspace(0, 1, n)
    value, jacobian = value_and_jacobian(function, {"x": x})
    assert len(seen) == 1
    np.testing.assert_allclose(value, jnp.sin(a @ x), rtol=1e-14)
    np.testing.assert_allclose(jacobian, jnp.cos(a @ x)[:, None] * a, rtol=1e-13)
