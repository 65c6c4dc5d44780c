"""Whether examples of a batch see each other in a model: told where it is certain, and only there."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optikit as ok
from optikit.calculus.apart import examples_meet
from optikit.calculus.layers import model_of
from optikit.calculus.validate import as_objective

W, X = jnp.ones((6, 4)), jnp.linspace(-1.0, 1.0, 48).reshape(8, 6)


def batch_norm(w, x):
    h = x @ w
    return (h - h.mean(0, keepdims=True)) / jnp.sqrt(h.var(0, keepdims=True) + 1e-5)


def layer_norm(w, x):
    h = x @ w
    return (h - h.mean(1, keepdims=True)) / jnp.sqrt(h.var(1, keepdims=True) + 1e-5)


def across_the_batch(w, x):
    h = x @ w
    return jax.nn.softmax(h @ h.T) @ h


def distances(w, x):
    h = x @ w
    return jnp.exp(-jnp.sum((h[:, None] - h[None]) ** 2, -1)).sum(1)


def in_a_loop(w, x):
    def body(h, row):
        return h - h.mean(0, keepdims=True) + row[:, None] * w[:1], h

    return jax.lax.scan(body, jnp.zeros((8, 4)), x.T)[0]


def recurrent(w, x):
    def body(h, row):
        return jnp.tanh(h + row[:, None] * w[:1]), h

    return jax.lax.scan(body, jnp.zeros((8, 4)), x.T)[1][-1]


def images(w, x):
    kernel = jnp.broadcast_to(w[:3, :2, None], (3, 2, 1)).transpose(0, 2, 1)
    seen = jax.lax.conv_general_dilated(
        x[:, :, None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return seen.reshape(8, -1)


MEET = {
    "batch norm": batch_norm,
    "jitted": lambda w, x: jax.jit(batch_norm)(w, x),
    "rematerialised": jax.checkpoint(batch_norm),
    "in a branch": lambda w, x: jax.lax.cond(w[0, 0] > 0, batch_norm, layer_norm, w, x),
    "attention": across_the_batch,
    "distances": distances,
    "ranks": lambda w, x: jnp.sort(x @ w, axis=0),
    "in a loop": in_a_loop,
}
APART = {
    "layer norm": layer_norm,
    "by vmap": lambda w, x: jax.vmap(lambda row: jax.nn.softmax(row @ w))(x),
    "embedding": lambda w, x: w[x.astype(int)[:, 0]],
    "its own parameters": lambda w, x: x @ (w - w.mean(0, keepdims=True)),
    "the batch's size": lambda w, x: x @ w / x.shape[0],
    "recurrent": recurrent,
    "images": images,
    "log-sum-exp": lambda w, x: jax.nn.logsumexp(x @ w, axis=-1),
}


@pytest.mark.parametrize("name", MEET)
def test_examples_that_meet_are_noticed(name):
    model, w = MEET[name], W * jnp.arange(1.0, 5.0)[None]
    assert examples_meet(model, W, X)
    moved = model(w, X.at[0].add(1.0)) - model(w, X)
    assert float(jnp.max(jnp.abs(moved[1:]))) > 0, "an example moves the outputs of others"


@pytest.mark.parametrize("name", APART)
def test_examples_apart_raise_no_alarm(name):
    assert not examples_meet(APART[name], W, X)


@pytest.mark.parametrize(
    "name",
    [
        "deep-autoencoder",
        "conv-classifier",
        "char-transformer",
        "mlp-regression",
        "gamma-regression",
    ],
)
def test_no_model_of_the_registry_raises_an_alarm(name):
    problem = ok.problems.PROBLEMS[name]()
    predict, inputs = model_of(as_objective(problem.objective, has_aux=False), problem.args)
    few = jax.tree.map(lambda leaf: jnp.asarray(leaf[:4]), inputs)
    assert not examples_meet(predict, problem.start(jax.random.key(0)), few)


@pytest.mark.parametrize("method", ["ekfac", "natural-gradient"])
def test_methods_that_take_examples_alone_say_so_once(method):
    targets = jnp.asarray(np.arange(8) % 4)
    for model, alarmed in ((batch_norm, True), (layer_norm, False)):
        own = functools.partial(model)  # one that the other method's run has not spoken of
        objective = ok.composite(own, ok.losses.softmax_cross_entropy)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for steps in (1, 2):
                ok.minimize(objective, W, args=(X, targets), method=method, max_steps=steps)
        told = [w for w in seen if "see each other" in str(w.message)]
        assert len(told) == alarmed, [str(w.message) for w in seen]


def test_kfac_takes_the_batch_as_it_is():
    targets = jnp.asarray(np.arange(8) % 4)
    objective = ok.composite(batch_norm, ok.losses.softmax_cross_entropy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sol = ok.minimize(objective, W, args=(X, targets), method="kfac", max_steps=2)
    assert bool(jnp.isfinite(sol.value))
