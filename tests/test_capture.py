"""Layers found without registration: rows against per-example gradients, factors against rows."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optikit.calculus.capture import capture

D = 8


def draw(seed, *shape):
    scale = 0.1 if len(shape) == 1 else shape[0] ** -0.5
    return scale * jax.random.normal(jax.random.key(seed), shape)


def mlp(p, x):
    dense = jax.jit(lambda w, b, h: h @ w + b)  # a layer inside a jit
    h = jax.nn.relu(dense(p["w0"], p["b0"], x))
    h = jnp.tanh(p["w1"] @ h + p["b1"])  # the weight on the left
    return h @ (0.5 * p["w2"].T)  # transposed and scaled, without a bias


def convolutional(p, x):
    def conv(h, kernel, stride):
        numbers = ("NHWC", "HWIO", "NHWC")
        strides = (stride, stride)
        return jax.lax.conv_general_dilated(
            h[None], kernel, strides, "SAME", dimension_numbers=numbers
        )[0]

    h = jax.nn.gelu(conv(x, p["k0"], 1) + p["b0"][None, None])
    return jax.nn.gelu(conv(h, p["k1"], 2)).mean((0, 1)) @ p["w"]


def block(p, h, heads=2):
    """Attention with fused projections and normalisation, then a layer of its own."""
    centred = h - h.mean(-1, keepdims=True)
    n = centred / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5) * p["g"][None] + p["beta"][None]
    split = jnp.split(n @ p["qkv"], 3, -1)
    q, k, v = (u.reshape(-1, heads, u.shape[-1] // heads) for u in split)
    mask = jnp.where(jnp.tri(len(h), dtype=bool), 0.0, -1e9)
    a = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k) + mask[None], -1)
    h = h + jnp.einsum("hts,shd,hdo->to", a, v, p["o"])
    return h + jax.nn.gelu(h @ p["w1"] + p["b1"][None]) @ p["w2"]


def block_params(seed):
    return {
        "g": 1 + draw(seed, D), "beta": draw(seed + 1, D), "qkv": draw(seed + 2, D, 3 * D),
        "o": draw(seed + 3, 2, D // 2, D), "w1": draw(seed + 4, D, 16), "b1": draw(seed + 5, 16),
        "w2": draw(seed + 6, 16, D),
    }  # fmt: skip


def tied_transformer(p, ids):
    return block(p["block"], p["embedding"][ids]) @ p["embedding"].T


def stacked_layers(p, ids):
    layer = jax.checkpoint(lambda h, q: (block(q, h), None))
    return jax.lax.scan(layer, p["embedding"][ids], p["blocks"])[0] @ p["head"]


def recurrent(p, x):
    def cell(h, xt):
        return jnp.tanh(h @ p["wh"] + xt @ p["wx"] + p["b"]), h

    return jax.lax.scan(cell, jnp.zeros(6, x.dtype), x)[1] @ p["wo"]


def grouped(p, x):
    return jnp.einsum("hi,hio->ho", x, p["w"]).ravel() - p["b"]


IDS = jax.random.randint(jax.random.key(52), (4, 6), 0, 11)
STACKED = jax.tree.map(lambda *a: jnp.stack(a), *[block_params(30 + 10 * i) for i in range(3)])
MODELS = {
    "mlp": (mlp, {"w0": draw(0, 5, 7), "b0": draw(1, 7), "w1": draw(2, 6, 7), "b1": draw(3, 6),
                  "w2": draw(4, 3, 6)}, draw(50, 4, 5)),
    "convolutional": (convolutional, {"k0": draw(0, 3, 3, 2, 4), "b0": draw(1, 4),
                                      "k1": draw(2, 3, 2, 4, 5), "w": draw(3, 5, 3)},
                      draw(51, 4, 8, 8, 2)),
    "tied transformer": (tied_transformer, {"embedding": draw(9, 11, D), "block": block_params(20)},
                         IDS),
    "stacked layers": (stacked_layers, {"embedding": draw(9, 11, D), "head": draw(10, D, 4),
                                        "blocks": STACKED}, IDS),
    "recurrent": (recurrent, {"wh": draw(0, 6, 6), "wx": draw(1, 5, 6), "b": draw(2, 6),
                              "wo": draw(3, 6, 2)}, draw(53, 4, 9, 5)),
    "grouped": (grouped, {"w": draw(0, 3, 4, 2), "b": draw(1, 6)}, draw(54, 4, 3, 4)),
}  # fmt: skip


def loss(outputs):
    return jnp.sum(jnp.sin(outputs) + outputs**2)


def batched(model):
    return lambda p, x: jax.vmap(model, (None, 0))(p, x)


def difference(got, exact):
    """The largest difference relative to the largest entry, over the leaves."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
def test_rows_make_up_the_gradient_of_each_example(name):
    """Every use of every parameter is found: what stands beside it and the gradient there suffice."""
    model, params, inputs = MODELS[name]
    began = time.perf_counter()
    found = capture(model, params, inputs[0])
    assert time.perf_counter() - began < 2
    assert found.generic == ()
    leaves, structure = jax.tree.flatten(params)

    def from_rows(x):
        def run(probes):
            outputs, beside = found.with_rows(params, x, probes)
            return loss(outputs), beside

        slopes, beside = jax.grad(run, has_aux=True)(found.probes())
        total = [jnp.zeros_like(leaf) for leaf in leaves]

        def add(leaf, use):
            total[leaf] += jax.linear_transpose(use, leaves[leaf])(slopes[key])[0]

        for key, site in found.sites.items():
            stacked = [level in site.view.levels for level in range(len(site.trips))]

            def use(w, site=site, stacked=stacked, others=beside[key]):
                apply = site.apply
                for is_sliced in reversed(stacked):
                    apply = jax.vmap(apply, (0 if is_sliced else None, 0))
                return apply(site.view(w), others)

            add(site.view.leaf, use)
            if site.bias is not None:
                shape = slopes[key].shape
                depth = len(site.stacked)

                def spread(b, shape=shape, depth=depth):
                    between = (1,) * (len(shape) - b.ndim)
                    return jnp.broadcast_to(
                        b.reshape(b.shape[:depth] + between + b.shape[depth:]), shape
                    )

                add(site.bias, spread)
        return jax.tree.unflatten(structure, total)

    exact = jax.vmap(jax.grad(lambda p, x: loss(model(p, x))), (None, 0))(params, inputs)
    got = jax.jit(jax.vmap(from_rows))(inputs)
    assert difference(got, exact) < 1e-12  # rounding of sums over at most a hundred rows


@pytest.mark.parametrize("name", MODELS)
def test_factors_are_the_sums_over_rows_and_the_gradient_stays(name):
    model, params, inputs = MODELS[name]
    found = capture(batched(model), params, inputs)

    def with_factors(p, slots):
        return loss(found.with_factors(p, inputs, slots))

    gradient, factors = jax.jit(jax.grad(with_factors, (0, 1)))(params, found.slots())
    plain = jax.grad(lambda p: loss(batched(model)(p, inputs)))(params)
    assert difference(gradient, plain) < 1e-12

    def run(probes):
        outputs, beside = found.with_rows(params, inputs, probes)
        return loss(outputs), beside

    slopes, beside = jax.grad(run, has_aux=True)(found.probes())
    for key, site in found.sites.items():
        per_trip = site.factors
        for _ in site.trips:
            per_trip = jax.vmap(per_trip)
        expected = per_trip(beside[key], slopes[key])
        shared = tuple(i for i in range(len(site.trips)) if i not in site.view.levels)
        expected = [jnp.sum(f, axis=shared) for f in expected]
        assert difference(factors[key], expected) < 1e-12


def test_factors_of_a_layer_are_what_the_papers_say():
    """One layer with a bias: A = sum [x; 1] [x; 1]^T and G = sum g g^T."""
    params, inputs = {"w": draw(0, 5, 3), "b": draw(1, 3)}, draw(2, 20, 5)

    def predict(p, x):
        return x @ p["w"] + p["b"][None]

    found = capture(predict, params, inputs)
    ((key, site),) = found.sites.items()
    assert site.bias == 0
    a, g = jax.grad(lambda s: loss(found.with_factors(params, inputs, s)))(found.slots())[key]
    rows = jnp.concatenate([inputs, jnp.ones((20, 1))], axis=1)
    slopes = jax.grad(loss)(predict(params, inputs))
    np.testing.assert_allclose(a[0], rows.T @ rows, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(g[0], slopes.T @ slopes, rtol=1e-13, atol=1e-13)


def low_rank(p, x):
    return x @ (p["a"] @ p["b"]) + p["c"][None]


def normalised(p, x):
    return x @ (p["a"] / jnp.linalg.norm(p["a"])) + p["c"][None]


def carried(p, x):
    return (
        jax.lax.scan(lambda h, xt: (jnp.tanh(h + xt), None), p["a"], x)[0] @ p["b"] + p["c"][None]
    )


@pytest.mark.parametrize(
    ("model", "generic"),
    [(low_rank, ("['a']", "['b']")), (normalised, ("['a']",)), (carried, ("['a']",))],
)
def test_other_uses_are_named(model, generic):
    params = {"a": draw(0, 5, 5), "b": draw(1, 5, 5), "c": draw(2, 5)}
    inputs = draw(3, 7, 5, 5) if model is carried else draw(3, 7, 5)
    found = capture(model, params, inputs)
    assert found.generic == generic
    assert "['c']" not in found.generic
    blank = found.slots()
    gradient = jax.grad(lambda p: loss(found.with_factors(p, inputs, blank)))(params)
    assert difference(gradient, jax.grad(lambda p: loss(model(p, inputs)))(params)) < 1e-12


def test_a_model_without_layers_keeps_its_gradient():
    """A leaf that also enters otherwise has no site at all."""
    params, inputs = draw(0, 4, 3), draw(1, 5, 4)

    def predict(p, x):
        return x @ p + jnp.sum(p**2)

    found = capture(predict, params, inputs)
    assert found.generic == ("",)
    assert found.slots() == found.probes() == {}
    gradient = jax.grad(lambda p: loss(found.with_factors(p, inputs, {})))(params)
    assert difference(gradient, jax.grad(lambda p: loss(predict(p, inputs)))(params)) < 1e-12


def test_what_has_no_derivative_is_no_use():
    def predict(p, x):
        return x @ p * jnp.exp(jax.lax.stop_gradient(p)[:1])

    found = capture(predict, draw(0, 4, 3), draw(1, 5, 4))
    assert found.generic == found.tied == ()
    assert [s.kind for s in found.sites.values()] == ["dense"]


def test_tied_leaves_are_named():
    model, params, inputs = MODELS["tied transformer"]
    assert capture(model, params, inputs[0]).tied == ("['embedding']",)


def test_factors_of_half_precision_are_single():
    def predict(p, x):
        return x @ p

    params = jnp.ones((4, 3), jnp.bfloat16)
    found = capture(predict, params, jnp.ones((5, 4), jnp.bfloat16))
    assert {f.dtype for f in jax.tree.leaves(found.slots())} == {jnp.dtype(jnp.float32)}


def test_nothing_is_computed_to_find_layers():
    shapes = jax.eval_shape(lambda: (jnp.zeros((10**5, 10**5)), jnp.zeros((10**5, 10**5))))
    found = capture(lambda p, x: jnp.tanh(x @ p), *shapes)
    assert [s.shape for s in found.sites.values()] == [(1, 10**5, 10**5)]
