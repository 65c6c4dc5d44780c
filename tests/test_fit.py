"""Minibatch fitting: budgets, streams, NaN, and agreement with a hand-written loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optikit as ok
from optikit.core import Status


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(128, 6)))
    y = jnp.asarray(rng.integers(0, 3, 128))
    return [(x[i : i + 32], y[i : i + 32]) for i in range(0, 128, 32)]


OBJECTIVE = ok.composite(
    lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], ok.losses.softmax_cross_entropy
)


@pytest.fixture
def params():
    rng = np.random.default_rng(1)
    return {"a": jnp.asarray(rng.normal(size=(6, 8))), "b": jnp.asarray(rng.normal(size=(8, 3)))}


def status(run):
    return ok.Status(int(run.status))


def test_equals_a_hand_written_optax_loop(batches, params):
    tx = optax.adamw(0.01)
    mine, state = params, tx.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for k in range(10):
            grads = jax.grad(OBJECTIVE)(mine, *batches[k % 4])
            updates, state = tx.update(grads, state, mine)
            mine = optax.apply_updates(mine, updates)
    run = ok.fit(OBJECTIVE, params, batches, method=tx, budget=ok.Budget(steps=10))
    for a, b in zip(jax.tree.leaves(run.params), jax.tree.leaves(mine), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert int(run.counts.grad) == int(run.steps) == 10
    first = float(OBJECTIVE(params, *batches[0]))
    assert float(run.trace.value[0]) == pytest.approx(first, rel=1e-13)


@pytest.mark.parametrize(
    "method", ["adam", "lbfgs", "newton-cg", "newton", "trust-region", "optax.lbfgs"]
)
def test_every_kind_of_method_steps_on_batches(method, batches, params):
    run = ok.fit(OBJECTIVE, params, batches, method=method, budget=ok.Budget(steps=12))
    assert status(run) == Status.MAX_STEPS
    assert np.all(np.isfinite(run.trace.value))
    assert run.trace.value.shape == (12,)
    full = [float(OBJECTIVE(p, *b)) for p in (params, run.params) for b in batches]
    assert sum(full[4:]) < sum(full[:4]) * 1.5


def test_a_list_is_repeated_and_an_iterator_is_not(batches, params):
    again = ok.fit(OBJECTIVE, params, batches, method="adam", budget=ok.Budget(steps=9))
    assert int(again.steps) == 9
    once = ok.fit(OBJECTIVE, params, iter(batches), method="adam", budget=ok.Budget(steps=9))
    assert int(once.steps) == 4
    assert status(once) == Status.OUT_OF_DATA


def test_budget_of_gradients(batches, params):
    run = ok.fit(OBJECTIVE, params, batches, method="adam", budget=ok.Budget(gradients=7))
    assert status(run) == Status.OUT_OF_BUDGET
    assert int(run.counts.grad) == 7
    products = ok.fit(
        OBJECTIVE, params, batches, method="newton-cg", budget=ok.Budget(gradients=40)
    )
    before_last = int(products.trace.counts.grad[-2] + products.trace.counts.hvp[-2])
    assert before_last < 40 <= int(products.counts.grad + products.counts.hvp)


def test_budget_of_seconds(batches, params):
    run = ok.fit(OBJECTIVE, params, batches, method="adam", budget=ok.Budget(seconds=0.5))
    assert status(run) == Status.OUT_OF_BUDGET
    assert int(run.steps) > 1


def test_whichever_bound_is_first(batches, params):
    run = ok.fit(
        OBJECTIVE, params, batches, method="adam", budget=ok.Budget(steps=3, seconds=600.0)
    )
    assert (int(run.steps), status(run)) == (3, Status.MAX_STEPS)


def test_a_nan_batch_ends_with_the_last_finite_point(batches, params):
    x, y = batches[0]
    run = ok.fit(OBJECTIVE, params, [*batches[:3], (x * jnp.nan, y)], method="adam",
                 budget=ok.Budget(steps=50), recoveries=0)  # fmt: skip
    assert status(run) == Status.NOT_FINITE
    assert int(run.steps) == 3
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((run.params, run.grad)))
    assert np.isfinite(float(run.value))
    clean = ok.fit(OBJECTIVE, params, batches[:3], method="adam", budget=ok.Budget(steps=3))
    for a, b in zip(jax.tree.leaves(run.params), jax.tree.leaves(clean.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_users_parameters_survive_donation(batches, params):
    before = jax.tree.map(np.asarray, params)
    ok.fit(OBJECTIVE, params, batches, method="adam", budget=ok.Budget(steps=2))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_compiles_once(batches, params):
    traces = []

    def predict(p, x):
        traces.append(1)
        return jnp.tanh(x @ p["a"]) @ p["b"]

    objective = ok.composite(predict, ok.losses.softmax_cross_entropy)
    ok.fit(objective, params, batches, method="adam", budget=ok.Budget(steps=5))
    first = len(traces)
    ok.fit(objective, params, batches, method="adam", budget=ok.Budget(steps=20))
    # the second fit only looks at shapes: the state's, and the scalar check
    assert len(traces) - first <= 3


def test_a_budget_of_nothing_evaluates_and_returns(batches, params):
    run = ok.fit(OBJECTIVE, params, batches, method="adam", budget=ok.Budget(steps=0))
    assert int(run.steps) == 0
    assert float(run.value) == pytest.approx(float(OBJECTIVE(params, *batches[0])))


WRONG = {
    "no batches": (lambda p: ok.fit(OBJECTIVE, p, [], method="adam"), ValueError, "batches is empty"),
    "no budget": (lambda p: ok.fit(OBJECTIVE, p, [()], method="adam", budget=ok.Budget()),
                  ValueError, "the budget is empty"),
    "array batch": (lambda p: ok.fit(OBJECTIVE, p, [jnp.ones(3)], method="adam"), TypeError,
                    "args must be a tuple"),
    "empty batch": (lambda p: ok.fit(OBJECTIVE, p, [(jnp.ones((0, 6)), jnp.ones(0, int))],
                                     method="adam"), ValueError, "the batch is empty"),
    "method": (lambda p: ok.fit(OBJECTIVE, p, [(jnp.ones((2, 6)), jnp.ones(2, int))], method="adm"), ValueError, "did you mean 'adam"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(WRONG))
def test_wrong_calls_raise_at_once(name, params):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call(params)


def test_progress_goes_to_stderr_only_when_wanted(batches, params, capsys):
    ok.fit(OBJECTIVE, params, batches, method="adam", budget=ok.Budget(steps=3), progress=False)
    assert capsys.readouterr() == ("", "")
    ok.fit(OBJECTIVE, params, batches, method="adam", budget=ok.Budget(steps=150), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "loss" in err
