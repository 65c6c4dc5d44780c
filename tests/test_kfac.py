"""K-FAC, EKFAC and FOOF: factors against definitions, steps against exact ones, nets that train."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_capture import MODELS, batched, difference

import optikit as ok
from optikit.calculus import bind
from optikit.calculus.by_example import has_rows, second_moments, statistics_by_example
from optikit.calculus.factors import statistics
from optikit.calculus.layers import find_layers
from optikit.calculus.subspace import inner_products
from optikit.optimizers import as_optax, ekfac, foof, kfac
from optikit.optimizers.approximation import split_damping

KEY = jax.random.key(0)
N = 6


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape) / shape[0] ** 0.5


def linear(p, x):
    return x @ p["w"] + p["b"][None]


def deep_linear(p, x):
    return (x @ p["u"]) @ p["v"] @ p["w"]


def network(p, x):
    return jnp.tanh(x @ p["u"] + p["b"][None]) @ (0.5 * p["w"].T)


def by_leaf(layers, found):
    """Statistics by the first leaf of their block."""
    return {b.leaves()[0]: f for b, f in zip(layers.layout.blocks, found, strict=True)}


def dense_blocks(layers, found):
    """The block-diagonal curvature over the ravelled parameters, written out."""
    total = 0
    flat = [jnp.zeros(s.shape) for s in layers.shapes]
    like = jax.tree.unflatten(layers.structure, flat)
    vector, unravel = jax.flatten_util.ravel_pytree(like)
    held = jax.vmap(lambda e: layers.matrices(unravel(e)))(jnp.eye(vector.size))
    for rows, f in zip(held, found, strict=True):
        if isinstance(f.g, tuple):
            total += jnp.einsum("pn,n,qn->pq", rows.reshape(vector.size, -1), f.a.ravel(),
                                rows.reshape(vector.size, -1))  # fmt: skip
        else:
            total += jnp.einsum("pkio,kij,kol,qkjl->pq", rows, f.a, f.g, rows)
    return total


LINEAR = {"w": draw(0, 4, 3), "b": draw(1, 3)}
DEEP = {"u": draw(2, 4, 3), "v": draw(3, 3, 5), "w": draw(4, 5, 2)}
NET = {"b": draw(5, 5), "u": draw(6, 4, 5), "w": draw(7, 3, 5)}
X = draw(8, N, 4) * 2
LABELS = jax.random.randint(jax.random.key(9), (N,), 0, 3)


@pytest.mark.parametrize(
    ("model", "params", "outputs"), [(linear, LINEAR, 3), (deep_linear, DEEP, 2)]
)
def test_exact_where_theory_says_so(model, params, outputs):
    """One linear layer is the whole Gauss-Newton matrix; deep linear ones are its blocks."""
    objective = ok.composite(model, ok.losses.squared_error)
    args = (X, draw(10, N, outputs))
    layers = find_layers(objective, params, args)
    oracle = bind(objective, args)
    counts = []

    @jax.jit
    def gather():
        found, price = statistics(oracle, params, layers, KEY, source="exact")
        counts.append(price)
        return found

    found = gather()
    assert (counts[0].value, counts[0].vjp) == (1, outputs)
    exact = ok.ggn(objective, params, args=args).dense()
    mine = dense_blocks(layers, found.blocks)
    np.testing.assert_allclose(mine, jnp.where(mine == 0, 0, exact), atol=1e-14)
    if model is linear:
        np.testing.assert_allclose(mine, exact, atol=1e-14)
    directions = [params, jax.tree.map(jnp.ones_like, params)]
    flat = jnp.stack([jax.flatten_util.ravel_pytree(d)[0] for d in directions])
    np.testing.assert_allclose(
        inner_products(oracle, params, directions), flat @ exact @ flat.T, rtol=1e-12
    )


def test_factors_are_what_the_paper_defines():
    """A = mean [a; 1] [a; 1]^T and G = E g g^T, in float64, with the views of the leaves."""
    objective = ok.composite(network, ok.losses.softmax_cross_entropy)
    args = (X, LABELS)
    layers = find_layers(objective, NET, args)
    oracle = bind(objective, args)
    gathered = jax.jit(lambda: statistics(oracle, NET, layers, KEY, source="exact")[0].blocks)()
    found = by_leaf(layers, gathered)
    hidden = np.tanh(X @ NET["u"] + NET["b"][None])
    p = jax.nn.softmax(hidden @ (0.5 * NET["w"].T))
    fisher = [np.diag(q) - np.outer(q, q) for q in np.asarray(p)]
    ones = np.concatenate([X, np.ones((N, 1))], axis=1)
    np.testing.assert_allclose(found[1].a[0], ones.T @ ones / N, rtol=1e-12, atol=1e-14)
    back = [(1 - h**2)[:, None] * (0.5 * np.asarray(NET["w"]).T) for h in np.asarray(hidden)]
    g = sum(b @ f @ b.T for b, f in zip(back, fisher, strict=True)) / N
    np.testing.assert_allclose(found[1].g[0], g, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(found[2].a[0], 0.25 * hidden.T @ hidden / N, rtol=1e-12)
    np.testing.assert_allclose(found[2].g[0], sum(fisher) / N, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("fixed", [True, False])
def test_a_direction_is_the_damped_inverse_written_out(fixed):
    """Damped relative to each block on fixed data, to the largest of them on batches."""
    objective = ok.composite(network, ok.losses.softmax_cross_entropy)
    args, damping = (X, LABELS), 0.1
    method = kfac(curvature="exact", damping=damping, learning_rate=1.0, momentum=0.0, adapt=False)
    oracle = bind(objective, args, fixed=fixed)

    @jax.jit
    def once(params):
        at, _ = method.evaluate(oracle, params)
        state = method.init(at)
        for refresh in method.refresh:
            state, _ = refresh.update(oracle, at, state, KEY)
        return method.step(oracle, at, state, KEY)[0], state

    new, state = once(NET)
    layers = find_layers(objective, NET, args)
    gradient = jax.grad(objective)(NET, *args)
    factors = [[np.asarray(f[0], np.float64) for f in kept.factors] for kept in state.blocks]
    sizes = [np.prod([np.trace(f) / len(f) for f in pair]) for pair in factors]
    expected = []
    for (a, g), own, v in zip(factors, sizes, layers.matrices(gradient), strict=True):
        means = np.trace(a) / len(a), np.trace(g) / len(g)
        size = own if fixed else max(sizes)
        pi, gamma = np.sqrt(means[0] / means[1]), np.sqrt(damping * size)
        left = np.linalg.inv(a + pi * gamma * np.eye(len(a)))
        right = np.linalg.inv(g + gamma / pi * np.eye(len(g)))
        dense = np.kron(left, right) @ np.asarray(v[0]).ravel()
        expected.append(jnp.asarray(dense.reshape(v.shape)))
    step = layers.assembled(expected, [], gradient)
    assert difference(jax.tree.map(jnp.subtract, NET, new), step) < 1e-11


@pytest.mark.parametrize("source", ["empirical", "exact"])
def test_second_moments_are_those_of_each_examples_gradient(source):
    objective = ok.composite(network, ok.losses.softmax_cross_entropy)
    args = (X, LABELS)
    layers = find_layers(objective, NET, args, single=True)
    oracle = bind(objective, args)
    shapes = [b.shape for b in layers.layout.blocks]
    assert all(has_rows(layers, b) for b in layers.layout.blocks)
    bases = [tuple(jnp.linalg.qr(draw(20 + d, d, d))[0][None] for d in s[1:]) for s in shapes]
    found = jax.jit(lambda: second_moments(oracle, NET, layers, KEY, bases, source=source)[0])()

    def gradients(label):
        def one(x):
            return jax.grad(
                lambda p: ok.losses.softmax_cross_entropy.value(network(p, x[None])[0], label)
            )(NET)

        return jax.vmap(one)(X)

    p = jax.nn.softmax(network(NET, X))
    total = [0.0] * len(bases)
    for label in range(3):
        weight = p[:, label] if source == "exact" else (label == LABELS).astype(p.dtype)
        each = jax.vmap(layers.matrices)(gradients(label))
        for i, ((u, w), v) in enumerate(zip(bases, each, strict=True)):
            rotated = jnp.einsum("kij,nkio,kop->nkjp", u, v, w)
            total[i] += jnp.einsum("n,nkjp->kjp", weight, rotated**2) / N
    for mine, definition in zip(found, total, strict=True):
        np.testing.assert_allclose(mine, definition, rtol=1e-10, atol=1e-15)


def views_of_biases(p, x):
    """In another order, repeated, in the order of the outputs, sliced, with a number added."""
    h = jnp.tanh(x @ p["w0"] + p["turned"].T.ravel()[None])
    h = jnp.tanh(h @ p["w1"] + jnp.repeat(p["twice"], 2)[None])
    h = jnp.tanh(h @ p["w2"] + p["ordered"].reshape(1, 6)) * (1 + p["scale"])[None]
    return jnp.concatenate([h[:, :2] - p["cut"][None, :2], h[:, 2:] + p["cut"][None, 2:6]], 1)


def conv(x, kernel, stride=(1, 1), groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, stride, "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def grouped_convolutions(p, x):
    h = jnp.tanh(conv(x, p["depthwise"], groups=4) + p["b0"][None, None, None])
    h = jnp.tanh(conv(h, p["grouped"], (2, 1), groups=2) + p["b1"][None, None, None])
    two = [conv(h, p["halves"][..., k : k + 3]) for k in (0, 3)]
    return (two[0] * jnp.tanh(two[1] + p["b2"][None, None, None])).mean((1, 2))


def scanned_convolutions(p, x):
    """A stack of kernels, with a bias for all of them, and with biases that are turned first."""

    def shared(h, w):
        return jnp.tanh(conv(h, w) + p["b"][None, None, None]), None

    def turned(h, wb):
        return jnp.tanh(conv(h, wb[0], groups=2) + wb[1][None, None, None]), None

    h = jax.lax.scan(shared, x, p["w"])[0]
    h = jax.lax.scan(turned, h, (p["grouped"], p["turned"].T))[0]
    return jax.lax.scan(turned, h, (p["kernels"], p["own"]))[0].mean((1, 2))


def biases_of_outputs(p, x):
    """A weight on the left, a group for each expert, a projection that is turned, a part."""
    h = jax.vmap(lambda v: jnp.tanh(p["left"] @ v + p["b0"]))(x)
    h = jax.vmap(lambda w, b: jnp.tanh(h @ w + b[None]))(p["experts"], p["b1"]).sum(0)
    h = jnp.tanh(jnp.einsum("ni,ihk->hnk", h, p["turned"]) + p["b2"][:, None]).sum(0)
    return (h @ p["halves"][:, :3]) * (h @ p["halves"][:, 3:] + p["b3"][None])


IMAGES = draw(70, N, 4, 3, 4)
VIEWS = {
    "biases": (views_of_biases, {
        "w0": draw(71, 4, 6), "turned": draw(72, 2, 3), "w1": draw(73, 6, 6), "twice": draw(74, 3),
        "w2": draw(75, 6, 6), "ordered": draw(76, 3, 2), "scale": draw(77, 6), "cut": draw(78, 8),
    }, X),
    "outputs": (biases_of_outputs, {
        "left": draw(91, 5, 4), "b0": draw(92, 5), "experts": draw(93, 3, 5, 2),
        "b1": draw(94, 3, 2), "turned": draw(95, 2, 2, 4), "b2": draw(96, 2, 4),
        "halves": draw(97, 4, 6), "b3": draw(98, 3),
    }, X),
    "grouped": (grouped_convolutions, {
        "depthwise": draw(79, 3, 2, 1, 8), "b0": draw(80, 8), "grouped": draw(81, 2, 2, 4, 6),
        "b1": draw(82, 6), "halves": draw(83, 1, 2, 6, 6), "b2": draw(84, 3),
    }, IMAGES),
    "scanned": (scanned_convolutions, {
        "w": draw(85, 2, 2, 2, 4, 4), "b": draw(86, 4), "grouped": draw(87, 3, 2, 2, 2, 4),
        "turned": draw(88, 4, 3), "kernels": draw(90, 3, 2, 2, 2, 4), "own": draw(89, 3, 4),
    }, IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
def test_blocks_are_the_gradients_of_examples_in_every_view(name):
    """Second moments of each matrix; diagonals, too, where an example has one row of each entry."""
    model, params, inputs = VIEWS[name]
    objective = ok.composite(model, ok.losses.softmax_cross_entropy)
    args = (inputs, jnp.arange(N) % 3)
    layers = find_layers(objective, params, args, single=True)
    assert layers.reasons == {}
    if name == "outputs":  # each of them goes with its weight
        assert all(b.form == "kronecker" for b in layers.layout.blocks)
    matrices = [b.form == "kronecker" for b in layers.layout.blocks]
    shapes = [b.shape for b in layers.layout.blocks]
    bases = [
        tuple(jnp.broadcast_to(jnp.eye(d), (s[0], d, d)) for d in s[1:]) if is_matrix else None
        for is_matrix, s in zip(matrices, shapes, strict=True)
    ]
    oracle = bind(objective, args)

    @jax.jit
    def gather(params):
        moments = second_moments(oracle, params, layers, KEY, bases, source="empirical")[0]
        found = statistics_by_example(oracle, params, layers, KEY, source="empirical")[0].blocks
        each = jax.vmap(jax.grad(lambda p, x, y: objective(p, x[None], y[None])), (None, 0, 0))
        gradients = each(params, *args)
        return moments, found, jax.vmap(layers.matrices)(gradients), gradients

    moments, found, each, gradients = gather(params)
    for block, mine, diagonal, definition in zip(
        layers.layout.blocks, moments, found, each, strict=True
    ):
        mean = jnp.mean(definition**2, axis=0)
        if mine is not None:
            np.testing.assert_allclose(mine, mean, rtol=1e-10, atol=1e-15)
        elif name == "biases" and block.shape != (3,):  # which is repeated
            np.testing.assert_allclose(diagonal.a, mean, rtol=1e-10, atol=1e-15)
    whole = jax.tree.map(lambda g: g[0], gradients)
    loose = [jax.tree.leaves(whole)[i] for i in layers.layout.loose]
    assert difference(layers.assembled(layers.matrices(whole), loose, whole), whole) == 0


def test_sampled_factors_have_the_exact_ones_for_their_mean():
    """Of 600 draws every entry's mean is within 5 standard errors: 1 in 10^4 for 60 entries."""
    params = {"free": draw(30, 3), "s": 1 + draw(31, 4), "w": draw(32, 4, 3)}
    model = lambda p, x: (x * p["s"][None]) @ p["w"] * jnp.exp(p["free"])[None]  # noqa: E731
    objective = ok.composite(model, ok.losses.softmax_cross_entropy)
    args = (X, LABELS)
    layers = find_layers(objective, params, args)
    oracle = bind(objective, args)

    @functools.partial(jax.jit, static_argnums=1)
    def gather(key, source):
        found = statistics(oracle, params, layers, key, source=source)[0]
        return [f.g if not isinstance(f.g, tuple) else f.a for f in found.blocks], found.loose

    draws = jax.vmap(lambda k: gather(k, "sampled"))(jax.random.split(KEY, 600))
    exact = gather(KEY, "exact")[0]
    dense = jnp.diagonal(ok.fisher(objective, params, args=args).dense())
    definition = (exact, (dense[:3],))  # "free" comes first in the ravelled order
    for drawn, mean in zip(jax.tree.leaves(draws), jax.tree.leaves(definition), strict=True):
        error = jnp.std(drawn, axis=0) / 600**0.5
        assert float(jnp.max(jnp.abs(jnp.mean(drawn, axis=0) - mean) / (error + 1e-12))) < 5


def test_two_ways_of_gathering_agree_and_weights_count():
    """Sums as cotangents, and rows of each example; an example of weight 0 may hold anything."""
    model, params, inputs = MODELS["tied transformer"]
    objective = ok.composite(batched(model), ok.losses.softmax_cross_entropy)
    labels = inputs % 11
    args = (inputs, labels)
    whole, single = (find_layers(objective, params, args, single=s) for s in (False, True))
    assert whole.reasons == {}
    one = jax.jit(lambda: statistics(bind(objective, args), params, whole, KEY)[0])()
    two = jax.jit(lambda: statistics_by_example(bind(objective, args), params, single, KEY)[0])()
    a, b = by_leaf(whole, one.blocks), by_leaf(single, two.blocks)
    assert a.keys() == b.keys()
    assert max(difference(a[k], b[k]) for k in a) < 1e-12

    plain = ok.composite(network, ok.losses.softmax_cross_entropy)
    spoiled = (jnp.concatenate([X, jnp.full((1, 4), jnp.nan)]),
               jnp.concatenate([LABELS, jnp.zeros(1, int)]), jnp.append(jnp.ones(N), 0.0))  # fmt: skip
    found = []
    for data in ((X, LABELS, jnp.ones(N)), spoiled):
        layers = find_layers(plain, NET, data, single=True)
        oracle = bind(plain, data)
        gather = functools.partial(statistics_by_example, oracle, NET, layers, source="exact")
        found.append(jax.jit(lambda k, g=gather: g(k)[0].blocks)(KEY))
    assert difference(found[1], found[0]) < 1e-13


def test_reduce_averages_inputs_and_sums_gradients():
    """A model that averages over its positions, as a pooled network does."""
    x = draw(40, N, 5, 4)
    objective = ok.composite(lambda p, x: jnp.mean(x @ p, axis=1), ok.losses.squared_error)
    args, params = (x, draw(41, N, 3)), draw(42, 4, 3)
    layers = find_layers(objective, params, args, single=True)
    gather = functools.partial(statistics_by_example, bind(objective, args), params, layers)
    (found,) = jax.jit(lambda k: gather(k, source="exact", sharing="reduce")[0].blocks)(KEY)
    exact = ok.ggn(objective, params, args=args).dense()
    mean = x.mean(1)
    np.testing.assert_allclose(found.a[0], mean.T @ mean / N, rtol=1e-12)
    np.testing.assert_allclose(np.kron(found.a[0], found.g[0]), exact, rtol=1e-11, atol=1e-15)


def test_the_step_does_not_change_with_the_coordinates_of_a_layers_input():
    """x -> M x + c in front of the first layer, undone by its weights: the same function after."""
    mix, shift = jnp.eye(4) + draw(50, 4, 4), draw(51, 4)
    method = kfac(curvature="exact", damping=1e-12, learning_rate=0.5, momentum=0.0, adapt=False)
    inverse = jnp.linalg.inv(mix)
    other = {"b": NET["b"] - shift @ inverse @ NET["u"], "u": inverse @ NET["u"], "w": NET["w"]}
    x = jnp.concatenate([X, draw(52, 9, 4)])
    labels = jax.random.randint(jax.random.key(53), (15,), 0, 3)
    # squared error: a softmax has a null direction, in which nothing but the damping decides
    objective = ok.composite(network, ok.losses.squared_error)
    targets = jax.nn.one_hot(labels, 3)
    ends = []
    for params, inputs in ((NET, x), (other, x @ mix + shift[None])):
        run = ok.fit(objective, params, [(inputs, targets)], method=method,
                     budget=ok.Budget(steps=1))  # fmt: skip
        ends.append(network(run.params, inputs))
    moved = float(jnp.abs(ends[0] - network(NET, x)).max())
    assert moved > 0.01
    # conditioning of A, about 1e3, times the damping's root
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-4 * moved)


def test_a_leaf_without_a_layer_is_named_and_trained():
    params = {"free": jnp.zeros(3), "s": jnp.ones(4), "w": draw(32, 4, 3)}

    def with_free_leaf(p, x):
        return (x * p["s"][None]) @ p["w"] * jnp.exp(p["free"])[None]

    objective = ok.composite(with_free_leaf, ok.losses.squared_error)
    args = (X, 3 * with_free_leaf(params, X))
    with pytest.warns(UserWarning, match=r"kfac has no layer for: params\['free'\]") as seen:
        sol = ok.minimize(objective, params, args=args, method=kfac(), max_steps=40)
    assert len(seen) == 1
    with pytest.warns(UserWarning, match=r"params\['free'\]"):  # another model with such a leaf
        kfac().evaluate(bind(ok.composite(with_free_leaf, ok.losses.huber), args), params)
    assert float(sol.value) < 1e-3 * float(objective(params, *args))
    assert float(jnp.abs(sol.params["free"]).max()) > 0.1
    quiet = kfac(0.3, exclude=("free",), fallback=optax.sgd(0.01), adapt=False, damping=0.1)
    run = ok.fit(objective, params, [args], method=quiet, budget=ok.Budget(steps=2))
    gradient = jax.grad(objective)(params, *args)["free"]
    assert float(run.trace.value[1]) < float(run.trace.value[0])
    assert float(jnp.vdot(run.params["free"], gradient)) < 0


@pytest.mark.parametrize("name", ["tied transformer", "stacked layers"])
@pytest.mark.slow
def test_nets_with_every_kind_of_layer_train(name):
    train(name, kfac(stats_every=5, inverse_every=5))


def test_a_recurrent_net_trains_in_batches_untuned():
    train("recurrent", kfac(stats_every=5, inverse_every=5))


def train(name, method):
    model, params, inputs = MODELS[name]
    objective = ok.composite(batched(model), ok.losses.squared_error)
    targets = 0.5 * objective.fun(jax.tree.map(lambda p: 0.7 * p, params), inputs)
    run = ok.fit(objective, params, [(inputs, targets)], method=method, budget=ok.Budget(steps=25))
    assert float(run.value) < 0.1 * float(run.trace.value[0])


@pytest.mark.parametrize("factory", [kfac, ekfac, foof])
def test_a_small_network_trains_untuned_in_float32(factory):
    """In batches, by the defaults: the first damping and the rates are found."""
    params = jax.tree.map(lambda p: p.astype(jnp.float32), NET)
    x = jax.random.normal(jax.random.key(60), (64, 4), jnp.float32)
    labels = jnp.argmax(network(jax.tree.map(lambda p: 6 * p, params), jnp.roll(x, 1, 1)), axis=1)
    batches = [(x[i : i + 32], labels[i : i + 32]) for i in (0, 32)]
    objective = ok.composite(network, ok.losses.softmax_cross_entropy)
    run = ok.fit(objective, params, batches, method=factory(), budget=ok.Budget(steps=60))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(run.params))
    assert float(objective(run.params, x, labels)) < 0.5 * float(objective(params, x, labels))


def test_it_leaves_as_an_optax_transformation():
    objective = ok.composite(linear, ok.losses.squared_error)
    args = (X, draw(10, N, 3))
    method = kfac(0.5, curvature="exact", damping=1e-9, momentum=0.0, adapt=False)
    tx = as_optax(method, objective, example=args)
    with pytest.raises(TypeError, match="example="):
        as_optax(kfac(0.5), objective).init(LINEAR)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(objective)(params, *args)
        updates, state = tx.update(grads, state, params, value=value, args=args)
        return optax.apply_updates(params, updates), state, value

    params, state = LINEAR, tx.init(LINEAR)
    values = []
    for _ in range(8):
        params, state, value = step(params, state)
        values.append(float(value))
    floor = float(ok.minimize(objective, LINEAR, args=args, method="newton").value)
    # half of a Newton step each: the excess falls by four, but for the damping's root
    np.testing.assert_allclose(values[-1] - floor, (values[0] - floor) / 4**7, rtol=0.1)


def test_dampings_may_be_swept_by_vmap():
    objective = ok.composite(linear, ok.losses.squared_error)
    args = (X, draw(10, N, 3))

    def solve(damping):
        method = kfac(damping=damping, curvature="exact", adapt=False)
        return ok.minimize(objective, LINEAR, args=args, method=method, max_steps=2).value

    dampings = jnp.asarray([1e-3, 1.0])
    swept = jax.jit(jax.vmap(solve))(dampings)
    np.testing.assert_allclose(swept, [solve(d) for d in (1e-3, 1.0)], rtol=1e-9)


def test_static_mistakes_are_named():
    with pytest.raises(TypeError, match="need the model"):
        ok.minimize(lambda x: jnp.sum(x**2), jnp.ones(2), method=kfac())
    objective = ok.composite(linear, ok.losses.squared_error)
    with pytest.raises(ValueError, match="penalty="):
        ok.minimize(objective, LINEAR, args=(X, X[:, :3]), method=kfac(weight_decay=0.1))
    noisy = ok.composite(lambda p, x: linear(p, x[0]) * x[1], ok.losses.squared_error)
    args = ((X, jnp.asarray(2.0)), X[:, :3])
    for by_example in (ekfac(), ok.optimizers.natural_gradient()):
        with pytest.raises(TypeError, match=r"along axis 0 .* got shapes \[\(6, 4\), \(\)\]"):
            ok.minimize(noisy, LINEAR, args=args, method=by_example)
    for wrong in ({"damping": 0.0}, {"momentum": 1.0}, {"stats_every": 0}, {"fallback": "none"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            kfac(**wrong)


def test_damping_is_split_by_the_mean_eigenvalues():
    from optikit.calculus.factors import Factors
    from optikit.optimizers.approximation import Level

    factors = Factors(4 * jnp.eye(3)[None], jnp.eye(2)[None])
    left, right = split_damping(factors, Level(jnp.asarray([0.04]), jnp.asarray(0.0)))
    np.testing.assert_allclose((left[0], right[0]), (0.4, 0.1), rtol=1e-12)
    np.testing.assert_allclose(left * right, 0.04, rtol=1e-12)
