"""The kernel of curvature rows from products of layers, and the steps made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import optikit as ok
from optikit.calculus import bind, kernel
from optikit.calculus.kernel import curvature_kernel, plan_kernel
from optikit.calculus.rows import curvature_rows, row_source
from optikit.core import tree

KEY = jax.random.key(0)
COUNT = 6
MEMORY = 2**28


def mlp(p, x):
    return jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"] + p["c"][None]


def scalar(p, x):
    return mlp(p, x)[:, 0]


def conv(p, x):
    image = jnp.pad(x, ((0, 0), (0, 9)))[:, None, :].reshape(-1, 1, 4, 4)
    out = lax.conv_general_dilated(image, p["k"], (2, 2), "SAME")
    return jnp.tanh(out + p["b"][None, :, None, None]).reshape(len(x), -1) @ p["v"]


def tied(p, x):
    """One matrix at two layers, a bias of its own at each."""
    hidden = jnp.tanh(x @ p["w"] + p["b"][None])
    return jnp.tanh(hidden @ p["w"] + p["c"][None])[:, :3]


def autoencoder(p, x):
    """The decoder is the encoder transposed."""
    return jnp.tanh(x @ p["w"] + p["b"][None]) @ p["w"].T * p["s"][None]


def heads(p, x):
    hidden = jnp.tanh(x @ p["w"])
    return jnp.concatenate([hidden @ p["v"], jnp.exp(0.1 * hidden @ p["u"])], axis=1)


def scanned(p, x):
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["stack"])[0] @ p["v"]


def recurrent(p, x):
    """A weight that meets each example at every time."""

    def step(h, column):
        return jnp.tanh(h @ p["w"] + column[:, None]), None

    return lax.scan(step, jnp.ones((len(x), 7)), x.T)[0] @ p["v"]


def scaled(p, x):
    return (0.5 * jnp.tanh(x @ (2 * p["w"])) * p["gain"][None]) @ p["v"]


# model, shapes, first letters of the leaves that have rows
MODELS = {
    "mlp": (mlp, {"w": (7, 8), "b": (8,), "v": (8, 3), "c": (3,)}, ""),
    "conv": (conv, {"k": (8, 1, 3, 3), "b": (8,), "v": (32, 3)}, "kb"),
    "tied": (tied, {"w": (7, 7), "b": (7,), "c": (7,)}, "bc"),
    "heads": (heads, {"w": (7, 8), "v": (8, 2), "u": (8, 1)}, ""),
    "scanned": (scanned, {"stack": (3, 7, 7), "v": (7, 3)}, ""),
    "scaled": (scaled, {"w": (7, 8), "gain": (8,), "v": (8, 3)}, "g"),
}
LOSSES = {
    "squared": (ok.losses.squared_error, lambda k: jax.random.normal(k, (COUNT, 3))),
    "softmax": (ok.losses.softmax_cross_entropy, lambda _: jnp.arange(COUNT) % 3),
}


@pytest.fixture
def always(monkeypatch):
    """However little there is to save."""
    monkeypatch.setattr(kernel, "WORTH", 0)


def start(shapes, dtype=jnp.float64):
    keys = jax.random.split(KEY, len(shapes))
    return {
        name: 0.5 * jax.random.normal(key, shape, dtype)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def data(targets, dtype=jnp.float64):
    inputs = jax.random.normal(KEY, (COUNT, 7), dtype)
    weights = jnp.asarray([1.0, 0.0, 2.0, 3.0, 0.5, 1.5], dtype)
    targets = targets(jax.random.key(1))
    real = jnp.issubdtype(targets.dtype, jnp.floating)
    return inputs, targets.astype(dtype) if real else targets, weights


def planned(objective, params, args):
    # fewer rows than parameters or not, the kernel is the same
    return plan_kernel(objective, params, args, 1, MEMORY)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_the_kernel_is_that_of_the_rows(name, loss):
    predict, shapes, rest = MODELS[name]
    chosen, targets = LOSSES[loss]
    objective = ok.composite(predict, chosen, penalty=ok.losses.l2(0.01))
    params, args = start(shapes), data(targets)
    plan = planned(objective, params, args)
    assert plan is not None
    paths = sorted(params)
    assert {paths[i][0] for i in plan.rest} == set(rest)
    oracle = bind(objective, args)
    v, u = (jax.random.normal(KEY, (size,)) for size in (tree.size(params), 3 * COUNT))

    @jax.jit
    def both(p):
        products = row_source(oracle, p, "ggn").products
        assert products is not None
        found = curvature_kernel(oracle, p, "ggn", plan, jnp.dtype(jnp.float64))[0]
        rows = curvature_rows(oracle, p, "ggn")
        return found, rows, products.forward(v), products.backward(u)

    found, (rows, w, q, extra), forward, backward = both(params)
    dense = rows @ rows.T
    np.testing.assert_allclose(found.gram, dense, rtol=1e-12, atol=1e-13 * float(dense.max()))
    np.testing.assert_allclose(found.w, w, rtol=1e-13)
    np.testing.assert_allclose(found.q, q, rtol=1e-13)
    np.testing.assert_allclose(extra, found.extra)
    np.testing.assert_allclose(forward, rows @ v, atol=1e-12)
    np.testing.assert_allclose(backward, rows.T @ u, atol=1e-12)


@pytest.mark.usefixtures("always")
def test_what_has_rows_alone():
    """Weights that enter transposed too, or at many times; residuals; uneven diagonals; memory."""
    for predict, shapes, outputs in (
        (autoencoder, {"w": (7, 9), "b": (9,), "s": (7,)}, 7),
        (recurrent, {"w": (7, 7), "v": (7, 3)}, 3),
    ):
        objective = ok.composite(predict, ok.losses.squared_error)
        args = data(lambda k, outputs=outputs: jax.random.normal(k, (COUNT, outputs)))
        assert planned(objective, start(shapes), args) is None
    predict, shapes, _ = MODELS["mlp"]
    params, args = start(shapes), data(LOSSES["squared"][1])
    residuals = ok.residuals(lambda p, x, y, _: predict(p, x) - y)
    assert planned(residuals, params, args) is None
    groups = ok.losses.l2({"w": 1.0, "b": 0.0, "v": 1.0, "c": 0.0})
    uneven = ok.composite(predict, ok.losses.squared_error, penalty=groups)
    assert planned(uneven, params, args) is None
    objective = ok.composite(predict, ok.losses.squared_error)
    assert plan_kernel(objective, params, args, tree.size(params), MEMORY) is None
    # the kernel itself has to fit
    assert plan_kernel(objective, params, args, 18, 18**2 - 1) is None


def stepped(objective, params, args, monkeypatch, worth, **settings):
    """Where a step from a pull of a last direction ends, and what it counted and tapped."""
    monkeypatch.setattr(kernel, "WORTH", worth)
    method = ok.optimizers.natural_gradient(1.0, damping=0.1, adapt=False, momentum=0.5, **settings)
    taps = []

    @jax.jit
    def one(params):
        oracle = bind(objective, args)._replace(tap=taps.append)
        at, first = method.evaluate(oracle, params)
        direction = jax.random.normal(KEY, (tree.size(params),), tree.inner_dtype(params))
        state = method.init(at)._replace(direction=direction)
        new, _, _, info = method.step(oracle, at, state, KEY)
        return new, info, first

    new, info, first = one(params)
    counted = {k: int(v) for k, v in ok.core.tally(first, info.counts)._asdict().items() if int(v)}
    assert counted == {k: taps.count(k) for k in set(taps)}
    return new, info, counted


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("penalty", [None, 0.01])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_a_step_is_that_of_the_rows(name, penalty, dtype, monkeypatch):
    predict, shapes, rest = MODELS[name]
    loss, targets = LOSSES["softmax"]
    penalty = None if penalty is None else ok.losses.l2(penalty)
    objective = ok.composite(predict, loss, penalty=penalty)
    params, args = start(shapes, dtype), data(targets, dtype)
    one, info, counts = stepped(objective, params, args, monkeypatch, 0)
    assert counts.get("jacobian", 0) == bool(rest)
    other, expected, counts = stepped(objective, params, args, monkeypatch, float("inf"))
    assert counts["jacobian"] == 1
    assert tree.inner_dtype(one) == dtype
    close = 1e-11 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(tree.ravel(one), tree.ravel(other), rtol=close, atol=close)
    np.testing.assert_allclose(info.predicted, expected.predicted, rtol=close)


@pytest.mark.usefixtures("always")
def test_more_parameters_than_data_are_fitted_exactly():
    objective = ok.composite(scalar, ok.losses.squared_error)
    shapes = {"w": (7, 32), "b": (32,), "v": (32, 1), "c": (1,)}
    inputs, targets, _ = data(lambda k: jax.random.normal(k, (COUNT,)))
    sol = ok.minimize(
        objective, start(shapes), args=(inputs, targets), method="natural-gradient", max_steps=60
    )
    assert sol.success, str(sol)
    assert float(sol.value) < 1e-16
    assert not int(sol.counts.jacobian)
