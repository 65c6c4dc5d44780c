"""Curvature as rows, damped systems in either space, and the steps made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.calculus import bind
from optikit.calculus.rows import curvature_rows
from optikit.core import tree
from optikit.linalg.woodbury import damped_solve

KEY = jax.random.key(0)


def net(p, x):
    return jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"]


def net_params(outputs, width=4):
    keys = jax.random.split(KEY, 2)
    return {
        "w": jax.random.normal(keys[0], (3, width)),
        "b": jnp.full(width, 0.1),
        "v": jax.random.normal(keys[1], (width, outputs)),
    }


def one_step(method, objective, params, args):
    """Where a step ends, whether or not it helped."""
    oracle = bind(objective, args)
    at = method.evaluate(oracle, params)[0]
    return method.step(oracle, at, method.init(at), KEY)[0]


def scalar_net(p, x):
    return net(p, x)[:, 0]


def data(count, kind):
    keys = jax.random.split(jax.random.key(count), 3)
    inputs = jax.random.normal(keys[0], (count, 3))
    targets = {
        "real": jax.random.normal(keys[1], (count,)),
        "binary": jnp.arange(count, dtype=float) % 2,
        "counts": (jnp.arange(count) % 4).astype(float),
        "classes": jnp.arange(count) % 3,
    }[kind]
    return (
        inputs,
        targets,
        jnp.where(jnp.arange(count) == 1, 0.0, 1.0 + jax.random.uniform(keys[2], (count,))),
    )


LOSSES = {
    "squared": (scalar_net, ok.losses.squared_error, "real", 1),
    "logistic": (scalar_net, ok.losses.logistic, "binary", 1),
    "poisson": (scalar_net, ok.losses.poisson, "counts", 1),
    "softmax": (net, ok.losses.softmax_cross_entropy, "classes", 3),
    "huber": (scalar_net, ok.losses.huber(1.5), "real", 1),
}


@pytest.mark.parametrize("count", [2, 40])
@pytest.mark.parametrize("name", LOSSES)
def test_rows_make_up_curvature_and_gradient(name, count):
    """R^T R + diag is the GGN (or Fisher matrix), R^T w + q the gradient; weights and penalty in."""
    predict, loss, kind, outputs = LOSSES[name]
    objective = ok.composite(predict, loss, penalty=ok.losses.l2(0.01))
    params, args = net_params(outputs), data(count, kind)
    kinds = {"ggn": ok.ggn} | ({} if loss.fisher is None else {"fisher": ok.fisher})
    for curvature, matrix in kinds.items():
        rows, w, q, extra = curvature_rows(bind(objective, args), params, curvature)
        dense = matrix(objective, params, args=args).dense()
        np.testing.assert_allclose(rows.T @ rows + jnp.diag(extra), dense, rtol=1e-11, atol=1e-13)
        gradient = tree.ravel(ok.grad(objective, params, args=args))
        np.testing.assert_allclose(w @ rows + q, gradient, rtol=1e-11, atol=1e-13)


def test_rows_of_residuals_are_the_jacobian():
    objective = ok.residuals(lambda p, t: p["a"] * jnp.exp(-p["b"] * t) - t)
    params, t = {"a": jnp.asarray(2.0), "b": jnp.asarray(0.5)}, jnp.linspace(0.0, 1.0, 7)
    rows, w, q, extra = curvature_rows(bind(objective, (t,)), params, "ggn")
    assert rows.shape == (7, 2)
    assert not q.any()
    assert not extra.any()
    np.testing.assert_allclose(w, objective.fun(params, t))


def test_rows_need_structure():
    with pytest.raises(TypeError, match="least-squares method needs"):
        ok.minimize(lambda x: jnp.sum(x**2), jnp.ones(2), method="natural-gradient")
    penalty = ok.losses.Penalty(lambda p: jnp.linalg.norm(tree.ravel(p)), None, name="norm")
    objective = ok.composite(scalar_net, ok.losses.squared_error, penalty=penalty)
    with pytest.raises(TypeError, match="norm gives no diagonal"):
        curvature_rows(bind(objective, data(5, "real")), net_params(1), "ggn")


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5), (1, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_forms_solve_the_damped_system(shape, dtype):
    keys = jax.random.split(KEY, 4)
    m, n = shape
    rows, w, q = (
        jax.random.normal(k, s, dtype) for k, s in zip(keys[:3], (shape, (m,), (n,)), strict=True)
    )
    diagonal = 0.1 + jax.random.uniform(keys[3], (n,), dtype)
    got = damped_solve(rows, diagonal, w, q)
    assert got.dtype == dtype
    a, d, b, c = (np.asarray(x, np.float64) for x in (rows, diagonal, w, q))
    exact = np.linalg.solve(a.T @ a + np.diag(d), a.T @ b + c)
    # the condition number is below 1e3
    np.testing.assert_allclose(
        got, exact, rtol=1e3 * np.finfo(dtype).eps, atol=1e-5 if dtype == "float32" else 1e-12
    )


@pytest.mark.parametrize("count", [4, 60])
@pytest.mark.parametrize("name", ["squared", "softmax", "huber"])
def test_a_step_is_that_of_the_dense_system(name, count):
    predict, loss, kind, outputs = LOSSES[name]
    objective = ok.composite(predict, loss, penalty=ok.losses.l2(0.01))
    params, args = net_params(outputs), data(count, kind)
    method = ok.optimizers.natural_gradient(1.0, damping=0.1, adapt=False)
    new = one_step(method, objective, params, args)
    matrix = ok.ggn(objective, params, args=args).dense()
    data_part = matrix - 0.01 * jnp.eye(len(matrix))
    rows = len(args[0]) * outputs
    level = 0.1 * jnp.trace(data_part) / min(rows, len(matrix))
    gradient = tree.ravel(ok.grad(objective, params, args=args))
    exact = tree.ravel(params) - jnp.linalg.solve(matrix + level * jnp.eye(len(matrix)), gradient)
    np.testing.assert_allclose(tree.ravel(new), exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("count", [6, 60])
def test_momentum_pulls_towards_the_last_direction(count):
    """d minimises |R d + w|^2 + lambda |d - mu d_last|^2 (the gradient of that vanishes)."""
    objective = ok.composite(scalar_net, ok.losses.squared_error)
    params, args = net_params(1), data(count, "real")[:2]
    method = ok.optimizers.natural_gradient(0.1, damping=0.5, momentum=0.9, adapt=False)
    oracle = bind(objective, args)
    at = method.evaluate(oracle, params)[0]
    state = method.init(at)
    last = jax.random.normal(KEY, state.direction.shape)
    new = method.step(oracle, at, state._replace(direction=last), KEY)[2].direction
    rows, w, _, _ = at.local
    level = 0.5 * jnp.sum(rows**2) / min(rows.shape)
    slope = rows.T @ (rows @ new + w) + level * (new - 0.9 * last)
    assert float(jnp.abs(slope).max()) < 1e-10


def test_the_step_does_not_depend_on_how_a_layer_is_parameterised():
    """Amari (1998): to vanishing damping, an affine change of a layer's parameters changes nothing."""
    objective = ok.composite(scalar_net, ok.losses.squared_error)
    params, args = net_params(1, width=3), data(80, "real")[:2]
    mixing = jax.random.normal(KEY, (3, 3)) + 2 * jnp.eye(3)

    def changed(q):
        return {**q, "w": mixing @ q["w"] + 0.3, "b": 0.2 * q["b"] + 1.0}

    start = {
        **params,
        "w": jnp.linalg.solve(mixing, params["w"] - 0.3),
        "b": 5 * (params["b"] - 1.0),
    }
    other = ok.composite(lambda q, x: scalar_net(changed(q), x), ok.losses.squared_error)
    method = ok.optimizers.natural_gradient(0.5, damping=1e-13, adapt=False)
    one = one_step(method, objective, params, args)
    two = one_step(method, other, start, args)
    np.testing.assert_allclose(tree.ravel(changed(two)), tree.ravel(one), rtol=1e-6)


def test_more_parameters_than_data_are_fitted_exactly():
    objective = ok.composite(scalar_net, ok.losses.squared_error)
    params, args = net_params(1, width=32), data(30, "real")[:2]
    sol = ok.minimize(objective, params, args=args, method="natural-gradient", max_steps=60)
    assert sol.success, str(sol)
    assert float(sol.value) < 1e-16


def test_batches():
    objective = ok.composite(scalar_net, ok.losses.squared_error)
    inputs = data(64, "real")[0]
    targets = scalar_net(net_params(1), inputs)
    batches = [(inputs[i : i + 16], targets[i : i + 16]) for i in range(0, 64, 16)]
    start = jax.tree.map(lambda x: 0.7 * x, net_params(1))
    method = ok.optimizers.natural_gradient(0.5, momentum=0.9, damping=0.1, adapt=False)
    run = ok.fit(objective, start, batches, method=method, budget=ok.Budget(steps=80))
    assert float(objective(run.params, inputs, targets)) < 1e-3 * float(
        objective(start, inputs, targets)
    )


@pytest.mark.parametrize(("name", "value"), [("momentum", 1.0), ("damping", 0.0)])
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=name):
        ok.optimizers.natural_gradient(**{name: value})
