"""Curvature as rows, damped systems in either space, and the steps made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.calculus import bind
from optikit.calculus.rows import curvature_rows
from optikit.core import tree
from optikit.linalg.woodbury import damped_solve, orthogonal_solve

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


@pytest.mark.parametrize("solve", [damped_solve, orthogonal_solve])
@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5), (1, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_forms_solve_the_damped_system(shape, dtype, solve):
    keys = jax.random.split(KEY, 4)
    m, n = shape
    rows, w, q = (
        jax.random.normal(k, s, dtype) for k, s in zip(keys[:3], (shape, (m,), (n,)), strict=True)
    )
    diagonal = 0.1 + jax.random.uniform(keys[3], (n,), dtype)
    got = solve(rows, diagonal, w, q)
    assert got.dtype == dtype
    a, d, b, c = (np.asarray(x, np.float64) for x in (rows, diagonal, w, q))
    exact = np.linalg.solve(a.T @ a + np.diag(d), a.T @ b + c)
    # the condition number is below 1e3
    np.testing.assert_allclose(
        got, exact, rtol=1e3 * np.finfo(dtype).eps, atol=1e-5 if dtype == "float32" else 1e-12
    )


@pytest.mark.parametrize("solve", [damped_solve, orthogonal_solve])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_float32_rows_with_a_damping_below_float32_rounding(shape, solve):
    """R of condition 1e4: R^T R and R R^T, of 1e8, are not definite in float32 any more.

    In float64 the float32 rows are exact; orthogonalised in float32, the error is eps times the
    condition number of R, not its square.
    """
    rng = np.random.default_rng(0)
    u, _, v = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    rows = jnp.asarray(u * np.geomspace(1, 1e-4, 6) @ v, jnp.float32)
    w, q = jnp.asarray(rng.normal(size=shape[0]), jnp.float32), jnp.zeros(shape[1], jnp.float32)
    level = jnp.full(shape[1], 1e-10, jnp.float32)
    a, b = np.asarray(rows, np.float64), np.asarray(w, np.float64)
    exact = np.linalg.solve(a.T @ a + np.diag(np.asarray(level, np.float64)), a.T @ b)
    got = solve(rows, level, w, q)
    small = 1e-5 if solve is damped_solve else 1e4 * np.finfo(np.float32).eps * 10
    assert np.linalg.norm(np.asarray(got, np.float64) - exact) <= small * np.linalg.norm(exact)


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


@pytest.mark.parametrize("kind", ["softmax", "huber", "residuals"])
@pytest.mark.parametrize("count", [7, 30])
def test_rows_computed_in_blocks_give_the_same_step(kind, count):
    """Blocks of one or two examples, the last one not full; in either space."""
    predict, loss, targets, outputs = LOSSES["squared" if kind == "residuals" else kind]
    params, args = net_params(outputs), data(count, targets)
    objective = ok.composite(predict, loss, penalty=ok.losses.l2(0.01))
    if kind == "residuals":
        objective = ok.residuals(lambda p, x, y: predict(p, x) - y, penalty=ok.losses.l2(0.01))
        args = args[:2]
    n = tree.size(params)
    whole, blocked = (
        one_step(
            ok.optimizers.natural_gradient(0.5, damping=0.1, memory=m), objective, params, args
        )
        for m in (2**28, 8 * outputs * n)
    )
    np.testing.assert_allclose(tree.ravel(blocked), tree.ravel(whole), rtol=1e-10)


def test_rows_of_robust_residuals_have_the_robust_gradient():
    objective = ok.residuals(
        lambda p, x, y: scalar_net(p, x) - y, robust=ok.losses.robust.huber(0.3)
    )
    params, args = net_params(1), data(9, "real")[:2]
    rows, w, q, _ = curvature_rows(bind(objective, args), params, "ggn")
    gradient = tree.ravel(ok.grad(objective, params, args=args))
    np.testing.assert_allclose(w @ rows + q, gradient, rtol=1e-11, atol=1e-13)


def test_the_grid_at_once_finds_its_best_point():
    objective = ok.composite(scalar_net, ok.losses.logistic)
    params, args = net_params(1), data(20, "binary")[:2]
    direction = ok.optimizers.natural_gradient(1.0, damping=1e-3)
    step = tree.ravel(one_step(direction, objective, params, args)) - tree.ravel(params)
    unravel = jax.flatten_util.ravel_pytree(params)[1]
    grid = [tree.ravel(params) + step * 0.5**k for k in range(9)]
    best = min(grid, key=lambda x: float(objective(unravel(x), *args)))
    method = ok.optimizers.natural_gradient(damping=1e-3, parallel=True, halvings=8)
    found = one_step(method, objective, params, args)
    np.testing.assert_allclose(tree.ravel(found), best, rtol=1e-12)


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


@pytest.mark.parametrize(
    ("name", "value"), [("momentum", 1.0), ("damping", 0.0), ("norm_constraint", 0.0)]
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=name):
        ok.optimizers.natural_gradient(**{name: value})


def test_a_million_parameters_on_thousands_of_rows_fit_in_memory():
    """Compiled, not run: 4096 rows of 1,013,000 float64 numbers are 33 GB; blocks fill 2.

    The kernel is 0.13 GB more, and some vectors; a second copy of the blocks would not fit.
    """

    def wide(p, x):
        hidden = jnp.tanh(x @ p["a"] + p["b"][None])
        return (jnp.tanh(hidden @ p["c"] + p["d"][None]) @ p["e"])[:, 0]

    shapes = {"a": (10, 1000), "b": (1000,), "c": (1000, 1000), "d": (1000,), "e": (1000, 1)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float64) for k, s in shapes.items()}
    args = tuple(jax.ShapeDtypeStruct(s, jnp.float64) for s in ((4096, 10), (4096,)))
    objective = ok.composite(wide, ok.losses.squared_error)
    compiled = (
        jax.jit(lambda p, a: one_step(ok.optimizers.natural_gradient(), objective, p, a))
        .lower(params, args)
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 2.5e9
