"""Operators and matrices against dense float64 autodiff; structure found; nothing assumed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import optikit as ok
from optikit.calculus.affine import affine_terms
from optikit.calculus.gram import weighted_gram
from optikit.losses import LOSSES, l2, smooth_l1

ROWS, FEATURES, CLASSES = 30, 5, 3


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return {
        "x": jnp.asarray(rng.normal(size=(ROWS, FEATURES))),
        "binary": jnp.asarray(rng.integers(0, 2, ROWS)),
        "classes": jnp.asarray(rng.integers(0, CLASSES, ROWS)),
        "real": jnp.asarray(rng.normal(size=ROWS)),
        "reals": jnp.asarray(rng.normal(size=(ROWS, CLASSES))),
        "positive": jnp.asarray(rng.exponential(size=ROWS)),
        "weights": jnp.asarray(rng.uniform(size=ROWS)).at[3].set(0.0),
    }


def normal(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def unflat(t):
    return t[: FEATURES * CLASSES].reshape(FEATURES, CLASSES), t[FEATURES * CLASSES :]


# (predict, params, loss, targets): every way a linear model is commonly written
LINEAR = {
    "vector": (lambda w, x: x @ w, normal(5), "logistic", "binary"),
    "bias": (lambda p, x: x @ p["w"] + p["b"], {"w": normal(5), "b": jnp.asarray(0.3)}, "poisson", "positive"),
    "bias-last-entry": (
        lambda w, x: jax.vmap(lambda row: jnp.dot(w[:-1], row) + w[-1])(x),
        normal(6), "squared_error", "real",
    ),
    "classes": (
        lambda p, x: x @ p["w"] + p["b"][None, :],
        {"w": normal(5, 3), "b": normal(3)}, "softmax_cross_entropy", "classes",
    ),
    "classes-by-rows": (
        lambda p, x: jax.vmap(lambda row: p["w"] @ row + p["b"])(x),
        {"w": normal(3, 5), "b": normal(3)}, "softmax_cross_entropy", "classes",
    ),
    "flat-vector": (
        lambda t, x: x @ unflat(t)[0] + unflat(t)[1][None, :],
        normal(18), "softmax_cross_entropy", "classes",
    ),
    "several-outputs": (
        lambda p, x: 2.0 * (x @ p["w"]) - p["b"],
        {"w": normal(5, 3), "b": jnp.asarray(0.1)}, "huber", "reals",
    ),
    "inner-jit": (
        jax.jit(lambda p, x: (x @ p["w"])[:, 0] + x[:, 0] * p["a"]),
        {"w": normal(5, 1), "a": jnp.asarray(0.1)}, "log_cosh", "real",
    ),
    "scaled-rows": (lambda w, x: (x @ w) * x[:, 1] / 3.0 + x[:, 0], normal(5), "gamma", "positive"),
    "constant": (lambda b, x: jnp.broadcast_to(b, x.shape[:1]), jnp.asarray(0.3), "squared_error", "real"),
    "two-leaves": (lambda p, x: x @ p[0] + x[:, :2] @ p[1], [normal(5), normal(2)], "logistic", "binary"),
    "tied": (lambda w, x: x @ w + x[:, ::-1] @ w, normal(5), "logistic", "binary"),
    "negated": (lambda w, x: x[:, 0] - x @ (-w), normal(5), "squared_hinge", "binary"),
    "embedding-einsum": (
        lambda w, x: jnp.einsum("nd,dk->nk", x, w), normal(5, 3), "softmax_cross_entropy", "classes",
    ),
}  # fmt: skip
NOT_LINEAR = {
    "tanh": (lambda w, x: jnp.tanh(x @ w), normal(5), "logistic", "binary"),
    "product": (lambda p, x: (x @ p[0]) * p[1], [normal(5), jnp.asarray(0.7)], "logistic", "binary"),
    "network": (
        lambda p, x: jnp.tanh(x @ p[0]) @ p[1],
        [normal(5, 4), normal(4, 3)], "softmax_cross_entropy", "classes",
    ),
    "stopped": (
        lambda p, x: x @ jax.lax.stop_gradient(p["w"]) + p["b"],
        {"w": normal(5), "b": jnp.asarray(0.3)}, "logistic", "binary",
    ),
    "scan": (
        lambda w, x: jax.lax.scan(lambda c, row: (c, row @ c), w, x)[1], normal(5), "logistic", "binary",
    ),
    "clipped": (lambda w, x: x @ jnp.clip(w, -1, 1), normal(5), "squared_error", "real"),
}  # fmt: skip
ALL = LINEAR | NOT_LINEAR


def build(name, data, *, weighted=False, penalty=None):
    predict, params, loss, targets = ALL[name]
    objective = ok.composite(predict, LOSSES[loss], penalty=penalty)
    args = (data["x"], data[targets]) + ((data["weights"],) if weighted else ())
    return objective, params, args


def flat_function(objective, params, args):
    flat, unravel = ravel_pytree(params)
    return flat, lambda v: objective(unravel(v), *args)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", sorted(ALL))
def test_dense_hessian_equals_autodiff(name, weighted, data):
    objective, params, args = build(name, data, weighted=weighted, penalty=l2(0.1))
    flat, function = flat_function(objective, params, args)
    expected = jax.hessian(function)(flat)
    scale = float(jnp.max(jnp.abs(expected)))
    found = ok.hessian(objective, params, args).dense()
    np.testing.assert_allclose(found, expected, atol=1e-13 * scale)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_linear_model_is_found_where_there_is_one_and_only_there(name, data):
    predict, params, _, _ = ALL[name]
    assert (affine_terms(predict, params, data["x"]) is not None) == (name in LINEAR)


@pytest.mark.parametrize("name", sorted(ALL))
def test_products_agree_with_the_dense_matrices(name, data):
    objective, params, args = build(name, data, weighted=True, penalty=smooth_l1(0.1, 0.2))
    flat, unravel = ravel_pytree(params)
    kinds = [ok.hessian, ok.ggn, ok.empirical_fisher]
    if objective.loss.fisher is not None:
        kinds.append(ok.fisher)
    for kind in kinds:
        op = kind(objective, params, args)
        dense = op.dense()
        product = jnp.stack([ravel_pytree(op @ unravel(e))[0] for e in jnp.eye(flat.size)])
        np.testing.assert_allclose(product, dense, atol=1e-12 * float(jnp.max(jnp.abs(dense))))


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_for_a_linear_model_gauss_newton_is_the_hessian(name, data):
    objective, params, args = build(name, data)
    h, g = ok.hessian(objective, params, args).dense(), ok.ggn(objective, params, args).dense()
    np.testing.assert_allclose(g, h, atol=1e-14 * float(jnp.max(jnp.abs(h))))


@pytest.mark.parametrize("name", ["network", "classes", "tanh"])
def test_fisher_and_empirical_fisher_by_their_definitions(name, data):
    objective, params, args = build(name, data)
    inputs, _ = args
    each = ok.per_example_grads(objective, params, args)
    rows = jax.vmap(lambda g: ravel_pytree(g)[0])(each)
    np.testing.assert_allclose(
        ok.empirical_fisher(objective, params, args).dense(), rows.T @ rows / ROWS, atol=1e-14
    )
    # exact Fisher: the expectation of g g^T over the model's own labels, enumerated
    outputs = objective.fun(params, inputs)
    labels = range(2 if outputs.ndim == 1 else CLASSES)
    p1 = jax.nn.sigmoid(outputs) if outputs.ndim == 1 else None
    expected = 0
    for label in labels:
        targets = jnp.full(ROWS, label)
        g = jax.vmap(lambda t: ravel_pytree(t)[0])(
            ok.per_example_grads(objective, params, (inputs, targets))
        )
        p = (p1 if label else 1 - p1) if p1 is not None else jax.nn.softmax(outputs)[:, label]
        expected = expected + (g.T * p[None, :]) @ g / ROWS
    np.testing.assert_allclose(ok.fisher(objective, params, args).dense(), expected, atol=1e-14)


def test_sampled_fisher_is_unbiased(data):
    objective, params, args = build("tanh", data)
    exact = ok.fisher(objective, params, args).dense()
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = jax.lax.map(
        lambda k: ok.fisher(objective, params, args, key=k).dense(), keys, batch_size=500
    )
    spread = jnp.std(draws, axis=0) / len(keys) ** 0.5
    z = (jnp.mean(draws, axis=0) - exact) / spread
    assert float(jnp.max(jnp.abs(z))) < 4.5


def test_hvp_grad_and_value_agree_with_jax(data):
    objective, params, args = build("network", data, penalty=l2(0.2))
    vector = jax.tree.map(lambda x: jnp.cos(jnp.arange(1.0, x.size + 1)).reshape(x.shape), params)
    value, grad = jax.value_and_grad(objective)(params, *args)
    found_value, found_grad = ok.value_and_grad(objective, params, args)
    assert float(found_value) == pytest.approx(float(value), rel=1e-15)
    expected = jax.jvp(lambda p: jax.grad(objective)(p, *args), (params,), (vector,))[1]
    for a, b in ((found_grad, grad), (ok.grad(objective, params, args), grad),
                 (ok.hvp(objective, params, vector, args), expected)):  # fmt: skip
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)


def test_jacobian_in_both_modes_and_as_an_operator():
    def tall(x):
        return jnp.concatenate([jnp.sin(x), x**2, jnp.outer(x, x).ravel()])

    def wide(x):
        return jnp.stack([jnp.sum(x**2), jnp.prod(x)])

    x = normal(4)
    for function in (tall, wide):
        expected = jax.jacobian(function)(x)
        jac = ok.jacobian(function, x)
        np.testing.assert_allclose(jac.dense(), expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(
            jac @ normal(4, seed=2), expected @ normal(4, seed=2), rtol=1e-12
        )
        u = normal(expected.shape[0], seed=3)
        np.testing.assert_allclose(jac.rmv(u), expected.T @ u, rtol=1e-12, atol=1e-14)


def test_residuals_offer_gauss_newton_and_their_jacobian(data):
    def residual(p, x, y):
        return {"fit": jnp.tanh(x @ p["w"]) - y, "prior": 0.1 * p["w"]}

    objective = ok.residuals(residual, penalty=l2(0.01))
    params = {"w": normal(5)}
    args = (data["x"], data["real"])
    jac = ok.jacobian(objective, params, args).dense()
    assert jac.shape == (ROWS + 5 + 5, 5)  # residuals, prior, and a row per penalised parameter
    np.testing.assert_allclose(ok.ggn(objective, params, args).dense(), jac.T @ jac, atol=1e-13)
    r = jnp.concatenate([*residual(params, *args).values(), 0.1 * params["w"]])
    assert float(objective(params, *args)) == pytest.approx(float(r @ r / 2))


def test_large_dense_matrices_are_built_in_slices():
    n = 600  # more than one slice of columns
    scales = jnp.linspace(1.0, 2.0, n)
    found = ok.hessian(
        lambda x: jnp.sum(scales * jnp.cos(x)) + jnp.sum(x) ** 2, jnp.zeros(n)
    ).dense()
    np.testing.assert_allclose(found, 2.0 - jnp.diag(scales), atol=1e-12)


@pytest.mark.parametrize("rows", [3, 511, 5000])
@pytest.mark.parametrize("columns", [1, 15, 16, 33])
def test_weighted_gram_for_every_split(rows, columns, dtype):
    a = normal(rows, columns).astype(dtype)
    w = jnp.abs(normal(rows, seed=2)).astype(dtype)
    wide = np.asarray(a, np.float64)
    expected = wide.T @ (np.asarray(w, np.float64)[:, None] * wide)
    tolerance = (2e-6 if dtype == "float32" else 1e-14) * rows
    found = jax.jit(weighted_gram)(a, w)
    assert found.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(found, expected, atol=tolerance)
    np.testing.assert_array_equal(found, found.T)


def test_everything_works_under_jit_vmap_and_grad(data):
    objective, params, args = build("classes", data)

    def trace_of_hessian(scale):
        scaled = jax.tree.map(lambda x: scale * x, params)
        return jnp.trace(ok.hessian(objective, scaled, args).dense())

    scales = jnp.asarray([0.5, 1.0, 2.0])
    batched = jax.jit(jax.vmap(trace_of_hessian))(scales)
    np.testing.assert_allclose(batched, [trace_of_hessian(s) for s in scales], rtol=1e-12)
    step = 1e-5
    slope = jax.grad(trace_of_hessian)(jnp.asarray(1.0))
    numeric = (trace_of_hessian(1.0 + step) - trace_of_hessian(1.0 - step)) / (2 * step)
    assert float(slope) == pytest.approx(float(numeric), rel=1e-6)


def test_masked_examples_leave_no_trace_of_their_nan(data):
    predict, params, loss, targets = LINEAR["vector"]
    objective = ok.composite(predict, LOSSES[loss])
    mask = jnp.arange(ROWS) < 20
    spoiled = data["x"].at[20:].set(jnp.nan)
    value, _grad = ok.value_and_grad(objective, params, (data["x"][:20], data[targets][:20]))
    got = objective(params, spoiled, data[targets], mask)
    assert float(got) == pytest.approx(float(value), rel=1e-14)


def test_structure_is_demanded_where_it_is_needed():
    box = ok.black_box(lambda x: jnp.sum(x**2))
    with pytest.raises(
        TypeError, match=r"ggn needs an Objective from composite\(...\) or residuals"
    ):
        ok.ggn(box, jnp.ones(2))
    hinge = ok.composite(lambda w, x: x @ w, ok.losses.squared_hinge)
    with pytest.raises(TypeError, match="squared_hinge is not a negative log-likelihood"):
        ok.fisher(hinge, jnp.ones(2), (jnp.ones((3, 2)), jnp.ones(3)))
    with pytest.raises(TypeError, match="per-example gradients need an Objective from composite"):
        ok.per_example_grads(box, jnp.ones(2))
    with pytest.raises(ValueError, match="the vector's structure"):
        ok.hvp(box, jnp.ones(2), {"a": jnp.ones(2)})


def test_an_empty_batch_is_refused():
    objective = ok.composite(lambda w, x: x @ w, ok.losses.logistic)
    with pytest.raises(ValueError, match="the batch is empty"):
        objective(jnp.ones(2), jnp.ones((0, 2)), jnp.ones(0))


def test_objectives_built_twice_are_equal():
    predict = LINEAR["vector"][0]
    a, b = (ok.composite(predict, ok.losses.huber(0.5), penalty=l2(1e-3)) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
