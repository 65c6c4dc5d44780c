"""Methods exported by as_optax in training loops as Flax and Equinox users write them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optikit as ok
from optikit.optimizers import named

METHODS = {
    "adahessian": named("adahessian", learning_rate=0.05),
    "muon": named("muon", adam_learning_rate=0.02),
    "psgd-kron": named("psgd-kron", learning_rate=0.01),
    "shampoo": named("shampoo", learning_rate=0.02, precondition_every=5),
    "soap": named("soap", learning_rate=0.02, precondition_every=5),
    "sophia": named("sophia", learning_rate=0.01, every=5),
}
ASKS_FOR_MORE = {"adahessian", "sophia"}
STEPS = 30
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(64, 5)), jnp.float32)
Y = jnp.asarray(np.sin(RNG.normal(size=(5, 3)).T @ np.asarray(X).T).T, jnp.float32)


@pytest.fixture(autouse=True)
def as_a_user():
    """Flax and Equinox promote ranks and dtypes as JAX does by default."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def some(names):
    """Two of the methods by default, the others with the slow tests."""
    return [m if m in names else pytest.param(m, marks=pytest.mark.slow) for m in sorted(METHODS)]


def exported(name, predict):
    """The transformation; only a method that asks for curvature gets the objective."""
    if name not in ASKS_FOR_MORE:
        return ok.as_optax(METHODS[name]), {}
    return ok.as_optax(METHODS[name], ok.composite(predict, ok.losses.squared_error)), {
        "args": (X, Y)
    }


def loss_of(outputs):
    return jnp.mean((outputs - Y) ** 2) / 2


@pytest.mark.parametrize("name", some({"muon", "soap"}))
def test_flax_linen(name):
    nn = pytest.importorskip("flax.linen")
    train_state = pytest.importorskip("flax.training.train_state")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.tanh(nn.Dense(8)(x)))

    model = Net()
    params = model.init(jax.random.key(1), X)["params"]

    def predict(p, x):
        return model.apply({"params": p}, x)

    tx, extra = exported(name, predict)
    state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def train_step(state):
        value, grads = jax.value_and_grad(lambda p: loss_of(predict(p, X)))(state.params)
        if not extra:
            return state.apply_gradients(grads=grads), value
        updates, opt = state.tx.update(grads, state.opt_state, state.params, value=value, **extra)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt), value

    values = []
    for _ in range(STEPS):
        state, value = train_step(state)
        values.append(float(value))
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("name", some({"shampoo", "sophia"}))
def test_flax_nnx(name):
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(5, 8, rngs=rngs)
            self.second = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.tanh(self.first(x)))

    model = Net(nnx.Rngs(1))
    graph = nnx.graphdef(model)
    tx, extra = exported(name, lambda p, x: nnx.merge(graph, p)(x))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda m: loss_of(m(X)))(model)
        optimizer.update(model, grads, value=value, **extra)
        return value

    values = [float(train_step(model, optimizer)) for _ in range(STEPS)]
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("name", some({"psgd-kron", "adahessian"}))
def test_equinox(name):
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(5, 3, 8, 1, activation=jnp.tanh, key=jax.random.key(1))
    _, static = eqx.partition(model, eqx.is_inexact_array)
    tx, extra = exported(name, lambda p, x: jax.vmap(eqx.combine(p, static))(x))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def train_step(model, state):
        value, grads = eqx.filter_value_and_grad(lambda m: loss_of(jax.vmap(m)(X)))(model)
        inexact = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(grads, state, inexact, value=value, **extra)
        return eqx.apply_updates(model, updates), state, value

    values = []
    for _ in range(STEPS):
        model, state, value = train_step(model, state)
        values.append(float(value))
    assert values[-1] < 0.7 * values[0]


def test_the_export_steps_as_fit_does():
    predict = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    objective = ok.composite(predict, ok.losses.squared_error)
    params = {"a": jnp.full((5, 4), 0.1) + 0.1 * X[:5, :4], "b": 0.1 * X[:4, :3]}
    method = METHODS["shampoo"]
    run = ok.fit(objective, params, [(X, Y)], method=method, budget=ok.Budget(steps=12))
    tx = ok.as_optax(method)
    mine, state = params, tx.init(params)

    @jax.jit
    def step(mine, state):
        updates, state = tx.update(jax.grad(objective)(mine, X, Y), state, mine)
        return optax.apply_updates(mine, updates), state

    for _ in range(12):
        mine, state = step(mine, state)
    for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(run.params), strict=True):
        # float32: twelve steps, whose roots amplify roundings of 1e-7
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def test_accumulated_gradients_by_optax():
    """MultiSteps around an exported method: two half batches are one whole."""
    tx = optax.MultiSteps(ok.as_optax(METHODS["muon"]), every_k_schedule=2)
    whole = ok.as_optax(METHODS["muon"])
    p = {"w": X[:4, :3]}
    halves, full = {"w": X[4:8, :3]}, {"w": X[8:12, :3]}
    state = tx.init(p)
    first, state = tx.update(halves, state, p)
    np.testing.assert_array_equal(first["w"], 0)
    second, _ = tx.update(full, state, p)
    mean = {"w": (halves["w"] + full["w"]) / 2}
    expected, _ = whole.update(mean, whole.init(p), p)
    np.testing.assert_allclose(second["w"], expected["w"], rtol=1e-3, atol=1e-5)


def test_an_export_without_its_objective_says_what_it_lacks():
    tx = ok.as_optax(METHODS["adahessian"])
    x = jnp.ones(2)
    with pytest.raises(TypeError, match=r"adahessian needs its objective"):
        tx.update(x, tx.init(x), x)
