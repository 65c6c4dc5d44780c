"""Parameter groups by path, objectives of a part of the parameters, accumulation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optikit as ok
from optikit.calculus import accumulate, bind
from optikit.calculus.restrict import part, restricted
from optikit.optimizers import adam, averaged, groups, named
from optikit.optimizers.protocol import folded

RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(12, 4))), jnp.asarray(RNG.integers(0, 3, 12))
PARAMS = {
    "layers": [{"kernel": jnp.asarray(RNG.normal(size=(4, 5))), "bias": jnp.zeros(5)}],
    "head": {"kernel": jnp.asarray(RNG.normal(size=(5, 3)))},
}
NAMES = ["head/kernel", "layers/0/bias", "layers/0/kernel"]


def predict(p, x):
    layer = p["layers"][0]
    return jnp.tanh(x @ layer["kernel"] + layer["bias"][None]) @ p["head"]["kernel"]


OBJECTIVE = ok.composite(predict, ok.losses.softmax_cross_entropy, penalty=ok.losses.l2(0.1))


def steps(method, count=4, objective=OBJECTIVE, args=(X, Y), params=PARAMS):
    """Parameters and counts after some steps."""
    method = folded(method)

    @jax.jit
    def run(p):
        oracle = bind(objective, args, fixed=False)
        at, price = method.evaluate(oracle, p)
        state, counts = method.init(at), [price]
        for k in range(count):
            p, _, state, info = method.step(oracle, at, state, jax.random.key(k))
            at, price = method.evaluate(oracle, p)
            counts += [info.counts, price]
        total = jax.tree.map(lambda *n: sum(n), *counts)
        return p, total, method.readout(p, state), info.extras

    return run(params)


def same(a, b, rtol=1e-10):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-12)


def test_groups_of_optax_methods_equal_its_partition():
    mine = steps(
        groups({"*/bias": optax.sgd(0.1), re.compile("^head/"): "sgd"}, default=adam(0.02))
    )
    labels = {"layers": [{"kernel": "adam", "bias": "sgd"}], "head": {"kernel": "plain"}}
    tx = optax.partition(
        {"adam": optax.adam(0.02), "sgd": optax.sgd(0.1), "plain": optax.sgd(1e-3)}, labels
    )
    same(mine[0], steps(ok.from_optax(tx))[0])
    assert int(mine[1].grad) == 5


def test_one_group_is_the_method_itself():
    shampoo = named("shampoo", learning_rate=0.1, precondition_every=2)
    same(steps(groups({"*": shampoo}))[0], steps(shampoo)[0])
    newton = named("newton")
    alone = steps(groups({"*": newton}), 2)
    same(alone[0], steps(newton, 2)[0])
    # a group's step evaluates for itself and the whole is evaluated again
    assert int(alone[1].hessian) == 2


def test_curvature_of_a_group_is_its_block():
    chosen = [name.endswith("kernel") for name in NAMES]
    oracle = bind(OBJECTIVE, (X, Y))
    inner = restricted(oracle, PARAMS, chosen)
    flat = np.concatenate(
        [np.full(x.size, c) for x, c in zip(jax.tree.leaves(PARAMS), chosen, strict=True)]
    )
    for kind in ("hessian", "ggn", "fisher"):
        whole = oracle.curvature(kind, PARAMS).dense()
        mine = inner.curvature(kind, part(PARAMS, chosen)).dense()
        np.testing.assert_allclose(mine, whole[np.ix_(flat, flat)], rtol=1e-10, atol=1e-12)
    at, sub = oracle.value_and_grad(PARAMS), inner.value_and_grad(part(PARAMS, chosen))
    np.testing.assert_allclose(at.value, sub.value, rtol=1e-14)
    same(part(at.grad, chosen), sub.grad)


@pytest.mark.parametrize("robust", [None, "huber"])
def test_residuals_of_a_part_keep_the_value(robust):
    objective = ok.residuals(
        lambda p, x: predict(p, x).ravel(),
        penalty=ok.losses.l2(0.3),
        robust=None if robust is None else ok.losses.robust.huber(0.5),
    )
    chosen = [True, False, True]
    oracle = bind(objective, (X,))
    inner = restricted(oracle, PARAMS, chosen)
    from optikit.linalg.least_squares import evaluate_residuals

    at, _ = evaluate_residuals(inner, part(PARAMS, chosen))
    exact = oracle.value_and_grad(PARAMS)
    np.testing.assert_allclose(at.value, exact.value, rtol=1e-12)
    same(at.grad, part(exact.grad, chosen))


def test_second_order_here_and_first_order_there():
    method = groups({"head/*": "newton", "*bias": "sophia"}, default="shampoo")
    params, counts, _, extras = steps(method, 3)
    start = float(OBJECTIVE(PARAMS, X, Y))
    assert float(OBJECTIVE(params, X, Y)) < start
    assert int(counts.hessian) == 3
    assert "default: learning_rate" in extras
    assert "head/*: step_size" in extras
    sol = ok.minimize(OBJECTIVE, PARAMS, args=(X, Y), method=method, max_steps=5)
    assert int(sol.steps) == 5
    assert float(sol.value) < start


def test_a_method_that_evaluates_for_itself():
    """Natural gradient on the head, whose evaluation is its own, as the whole problem has it."""
    method = groups({"head/*": "natural-gradient"}, default=adam(0.01))
    params, counts, _, _ = steps(method, 2)
    assert float(OBJECTIVE(params, X, Y)) < float(OBJECTIVE(PARAMS, X, Y))
    assert int(counts.grad) >= 3


def test_a_group_may_be_averaged():
    method = groups({"head/*": averaged(adam(0.1), 0.5)}, default=adam(0.1))
    params, _, read, _ = steps(method, 3)
    plain = steps(groups({"head/*": adam(0.1)}, default=adam(0.1)), 3)[0]
    same(params, plain)
    same(read["layers"], params["layers"])
    assert float(jnp.max(jnp.abs(read["head"]["kernel"] - params["head"]["kernel"]))) > 1e-3


@pytest.mark.parametrize(("methods", "default", "message"), [
    ({"head/*": "adam"}, None, r"no pattern fits 'layers/0/bias', 'layers/0/kernel': add one"),
    ({"hed/*": "adam"}, "sgd", r"'hed/\*' fits nothing: no leaf has such a name. The leaves are 'head/"),
    ({"*": "adam", "*bias": "sgd"}, None, r"earlier patterns take 'layers/0/bias'"),
    ({"*": "adm"}, None, "did you mean 'adam"),
    ({}, "adam", "has no pattern"),
])  # fmt: skip
def test_patterns_that_fit_badly(methods, default, message):
    with pytest.raises(ValueError, match=message):
        steps(groups(methods, default=default), 1)


def test_a_default_without_leaves_is_no_group():
    same(steps(groups({"*": adam(0.1)}, default="soap"))[0], steps(adam(0.1))[0])


# --- accumulation --------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, jnp.asarray(RNG.uniform(size=12))])
def test_accumulated_value_gradient_and_curvature(weights):
    args = (X, Y) if weights is None else (X, Y, weights)
    pieces = accumulate(OBJECTIVE, 3)
    assert pieces is not OBJECTIVE
    assert accumulate(OBJECTIVE, 3) == pieces
    whole, mine = (bind(o, args).value_and_grad(PARAMS) for o in (OBJECTIVE, pieces))
    # sums in another order
    np.testing.assert_allclose(mine.value, whole.value, rtol=1e-13)
    same(mine.grad, whole.grad, rtol=1e-11)
    v = jax.tree.map(jnp.ones_like, PARAMS)
    for kind in ("hessian", "ggn"):
        same(*(bind(o, args).curvature(kind, PARAMS).mv(v) for o in (OBJECTIVE, pieces)))


def test_accumulated_residuals_and_aux():
    objective = ok.residuals(lambda p, x, y: (predict(p, x)[:, 0] - y, jnp.sum(x)), has_aux=True)
    args = (X, X[:, 0])
    value, aux = accumulate(objective, 4)(PARAMS, *args)
    np.testing.assert_allclose(value, objective(PARAMS, *args)[0], rtol=1e-13)
    assert aux.shape == (4,)
    np.testing.assert_allclose(jnp.sum(aux), jnp.sum(X), rtol=1e-12)


def test_accumulation_needs_less_memory():
    """Beside inputs and outputs, activations of one of 16 microbatches."""
    wide = {"a": jnp.zeros((4, 512)), "b": jnp.zeros((512, 1))}

    def deep(p, x):
        h = x @ p["a"]
        for _ in range(4):
            h = jnp.tanh(h + 1)
        return (h @ p["b"])[:, 0]

    objective = ok.composite(deep, ok.losses.squared_error)
    args = (jnp.zeros((1024, 4)), jnp.zeros(1024))

    def held(objective):
        gradient = jax.jit(jax.grad(objective)).lower(wide, *args).compile()
        return gradient.memory_analysis().temp_size_in_bytes

    assert held(accumulate(objective, 16)) < held(objective) / 4


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: accumulate(ok.black_box(jnp.sum), 2), TypeError, "whose examples are known"),
    (lambda: accumulate(OBJECTIVE, 0), ValueError, "positive integer"),
    (lambda: accumulate(OBJECTIVE, 5)(PARAMS, X, Y), ValueError, "12 does not divide into 5"),
])  # fmt: skip
def test_wrong_accumulation(call, error, message):
    with pytest.raises(error, match=message):
        call()
