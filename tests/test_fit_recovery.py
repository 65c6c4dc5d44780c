"""NaN and infinity on the way of a fit; read-outs, validation, looks."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optikit as ok
from optikit.core import Counts, Status, tally
from optikit.optimizers.protocol import Optimizer, Refresh, StepInfo, folded, running


def bowl(x, b):
    return jnp.mean((x - b) ** 2)


GOOD = [(jnp.full(4, t),) for t in (1.0, 3.0, 2.0)]
BAD = (jnp.full(4, jnp.nan),)
SGD = optax.sgd(0.1, momentum=0.5)


def fit(batches, steps, **options):
    options = {"method": SGD, **options}
    return ok.fit(bowl, jnp.array(0.0), batches, budget=ok.Budget(steps=steps), **options)


def test_a_bad_batch_is_skipped_as_if_it_had_not_been_there():
    run = fit([*GOOD, BAD], 8)
    clean = fit(GOOD, 6)
    assert Status(int(run.status)) == Status.MAX_STEPS
    assert (int(run.steps), int(run.skipped)) == (6, 2)
    assert "2 skipped" in str(run)
    np.testing.assert_array_equal(run.params, clean.params)
    np.testing.assert_array_equal(run.trace.skipped, [0, 0, 0, 1, 1, 1, 1, 2])
    assert np.isnan(run.trace.value[3])
    assert int(run.counts.grad) == 8  # a void step has been paid for, too
    assert int(clean.skipped) == 0


def test_too_many_in_a_row_end_the_fit_at_finite_parameters():
    run = fit([*GOOD, *[BAD] * 4], 50, recoveries=3)
    assert Status(int(run.status)) == Status.NOT_FINITE
    assert (int(run.steps), int(run.skipped)) == (3, 3)
    assert np.isfinite(float(run.params))
    assert np.isfinite(float(run.value))
    # three in a row are borne by the same setting, again and again
    patient = fit([*GOOD, *[BAD] * 3], 24, recoveries=3)
    assert (int(patient.steps), int(patient.skipped)) == (12, 12)


class Careful(NamedTuple):
    rate: jax.Array


def careful(rate):
    """Gradient descent that can be calmed."""

    def step(oracle, at, state, key):
        size = jnp.abs(state.rate * at.grad)
        info = StepInfo(size, size > 0, tally(Counts()), None, running(), {})
        return at.params - state.rate * at.grad, None, state, info

    return Optimizer(
        lambda at: Careful(jnp.full_like(at.value, rate)), step,
        calm=lambda state: Careful(state.rate / 4),
    )  # fmt: skip


def test_a_step_too_long_is_taken_back_and_tried_calmer():
    """log has no value beyond the wall, wherever the batch: the parameters have to go back."""

    def walled(x, b):
        return -jnp.log(x) + b * x

    def run(method, **options):
        return ok.fit(walled, jnp.array(2.0), [(1.0,), (1.1,)], method=method,
                      budget=ok.Budget(steps=60), **options)  # fmt: skip

    sol = run(careful(10.0))  # to 2 - 10 (1 - 1/2) < 0
    assert int(sol.skipped) == 2  # the batch may be to blame, so the second failure goes back
    assert Status(int(sol.status)) == Status.MAX_STEPS
    assert float(sol.params) == pytest.approx(1 / 1.05, rel=0.05)
    # no parameters are kept for a method that would only take the same step again
    stuck = run(optax.sgd(10.0))
    assert Status(int(stuck.status)) == Status.NOT_FINITE
    assert (int(stuck.steps), int(stuck.skipped)) == (1, 5)
    assert float(stuck.params) == -3.0


def test_a_step_to_infinity_is_not_taken():
    """The first evaluation is finite, and the rate is not."""
    sol = ok.fit(bowl, jnp.array(0.0), GOOD, method=optax.sgd(jnp.inf), recoveries=0)
    assert Status(int(sol.status)) == Status.NOT_FINITE
    assert float(sol.params) == 0.0


class Averaged(NamedTuple):
    total: jax.Array
    steps: jax.Array


def averaging():
    """Gradient descent whose answer is the mean of its iterates."""

    def step(oracle, at, state, key):
        new = at.params - 0.1 * at.grad
        size = jnp.abs(new - at.params)
        info = StepInfo(size, size > 0, tally(Counts()), None, running(), {})
        return new, None, Averaged(state.total + new, state.steps + 1), info

    return Optimizer(
        lambda at: Averaged(jnp.zeros_like(at.params), jnp.zeros_like(at.value)), step,
        readout=lambda params, state: state.total / state.steps,
    )  # fmt: skip


def test_the_read_out_is_reported_and_validated():
    x, total, seen = 0.0, 0.0, []
    for k in range(6):
        x -= 0.1 * 2 * (x - (1.0, 3.0, 2.0)[k % 3])
        total += x
        if k % 2:
            seen.append((total / (k + 1) - 2.0) ** 2)
    mine = averaging()
    run = fit(GOOD, 6, method=mine, evaluate=([(jnp.full(2, 2.0),), (np.full(3, 2.0),)], 2))
    np.testing.assert_allclose(run.params, total / 6, rtol=1e-14)
    np.testing.assert_array_equal(run.trace.validation.steps, [2, 4, 6])
    np.testing.assert_allclose(run.trace.validation.values, seen, rtol=1e-12)
    told = fit(GOOD, 6, method=mine, evaluate=(lambda p: float(p), 3))
    np.testing.assert_allclose(told.trace.validation.values[-1], total / 6, rtol=1e-14)
    assert fit(GOOD, 2).trace.validation is None


def test_looks_are_reported():
    rows = []
    fit([*GOOD, BAD], 9, on_look=lambda steps, row: rows.append((steps, row.value, row.skipped)))
    assert rows[0][0] == 1
    assert rows[0][1] == 1.0
    assert all(a[0] < b[0] for a, b in itertools.pairwise(rows))


class Amortised(NamedTuple):
    scale: jax.Array
    seen: jax.Array
    draw: jax.Array


def amortised():
    """Gradient descent scaled by the gradient of some steps ago, with a draw before the first."""

    def scale(oracle, at, state, key):
        value = oracle.value(at.params)
        return state._replace(scale=1 / (1 + value), seen=state.seen + 1), Counts(value=1)

    def draw(oracle, at, state, key):
        return state._replace(draw=jax.random.normal(key, (), at.value.dtype)), Counts()

    def step(oracle, at, state, key):
        new = at.params - 0.1 * state.scale * at.grad + 0.01 * state.draw
        size = jnp.abs(new - at.params)
        return new, None, state, StepInfo(size, size > 0, tally(Counts()), None, running(), {})

    def init(at):
        return Amortised(at.value, jnp.zeros((), jnp.int32), at.value)

    refresh = (Refresh(3, scale), Refresh(0, draw), Refresh(4, draw))
    return Optimizer(init, step, name="amortised", refresh=refresh)


def test_refreshes_as_programs_of_their_own_equal_those_inside_the_step():
    method = amortised()
    apart, inside = (
        fit(GOOD, 20, method=m, key=jax.random.key(3)) for m in (method, folded(method))
    )
    np.testing.assert_allclose(apart.params, inside.params, rtol=1e-14)
    np.testing.assert_allclose(apart.trace.value, inside.trace.value, rtol=1e-14)
    assert jax.tree.map(int, apart.counts) == jax.tree.map(int, inside.counts)
    assert int(apart.counts.value) == 7


def test_the_first_refreshes_wait_for_a_finite_batch():
    method = amortised()
    late = fit(iter([BAD, BAD, *GOOD]), 5, method=method)
    assert (int(late.steps), int(late.skipped)) == (3, 2)
    assert float(late.params) > 0.1  # a state of zeros would not move it


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"evaluate": GOOD}, TypeError, "evaluate must be a pair"),
        ({"evaluate": (GOOD, 0)}, ValueError, "must be positive"),
        ({"evaluate": (iter(GOOD), 2)}, TypeError, "give a list"),
        ({"mesh": 8}, TypeError, "jax.make_mesh"),
        ({"checkpoint": 8}, TypeError, "ok.Checkpoint"),
    ],
)
def test_wrong_options_raise_at_once(options, error, message):
    with pytest.raises(error, match=message):
        fit(GOOD, 2, **options)
