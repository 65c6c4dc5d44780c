"""Refreshes: what a method does only before some of its steps, folded into the step or apart."""

import collections
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optikit as ok
from optikit.calculus import bind
from optikit.core import Counts, tally
from optikit.optimizers.protocol import Optimizer, Refresh, StepInfo, folded, refresh_key, running
from optikit.solve.loop import advance, begin, gradient_criterion


class Memory(NamedTuple):
    """What the method below remembers: how often each refresh ran, and a number it drew."""

    first: jax.Array
    third: jax.Array
    draw: jax.Array


def method(rate=0.1):
    """Gradient descent that counts its refreshes: one before the first step, one every third."""

    def init(at):
        zero = jnp.zeros((), jnp.int32)
        return Memory(zero, zero, jnp.zeros_like(at.value))

    def once(oracle, at, state, key):
        del oracle, at, key
        return state._replace(first=state.first + 1), Counts()

    def thirds(oracle, at, state, key):
        value = oracle.value(at.params)
        draw = jax.random.normal(key, (), value.dtype)
        return state._replace(third=state.third + 1, draw=draw), Counts(value=1)

    def step(oracle, at, state, key):
        del oracle, key
        change = jax.tree.map(lambda g: -rate * g, at.grad)
        size = jnp.linalg.norm(jax.tree.leaves(change)[0])
        info = StepInfo(size, size > 0, tally(Counts()), None, running(), {})
        return jax.tree.map(jnp.add, at.params, change), None, state, info

    return Optimizer(init, step, name="counting", refresh=(Refresh(0, once), Refresh(3, thirds)))


METHOD = method()
BOWL = ok.black_box(lambda x: jnp.sum(x**2))


def test_each_refresh_runs_when_it_is_due_and_is_paid_for():
    taps = collections.Counter()
    oracle = bind(BOWL, tap=lambda name: jax.debug.callback(lambda: taps.update([name])))

    @jax.jit
    def run(x):
        start = begin(METHOD, oracle, x, jax.random.key(3))
        return advance(METHOD, oracle, start, 8, jnp.asarray(0.0), gradient_criterion)

    progress = jax.block_until_ready(run(jnp.ones(2)))
    jax.effects_barrier()
    memory = progress.state.inner
    assert (int(memory.first), int(memory.third)) == (1, 3)  # before steps 0, 3 and 6
    assert dict(taps) == {"value": 3, "grad": 9}
    assert (int(progress.counts.value), int(progress.counts.grad)) == (3, 9)
    key = refresh_key(jax.random.fold_in(jax.random.key(3), 6), 1)
    assert float(memory.draw) == float(jax.random.normal(key, (), jnp.float64))


def test_folding_keeps_equality_and_leaves_others_alone():
    assert folded(METHOD) == folded(METHOD)
    assert hash(folded(METHOD)) == hash(folded(METHOD))
    assert folded(folded(METHOD)) == folded(METHOD)
    assert folded(METHOD).refresh == ()
    plain = ok.optimizers.newton()
    assert folded(plain) is plain


def test_fit_and_optax_loops_do_them_too():
    run = ok.fit(BOWL, jnp.ones(2), [()], method=METHOD, budget=ok.Budget(steps=4))
    assert int(run.counts.value) == 2
    tx = ok.optimizers.as_optax(METHOD, BOWL)
    x, state = jnp.ones(2), tx.init(jnp.ones(2))
    for _ in range(4):
        updates, state = tx.update(2 * x, state, x, value=jnp.sum(x**2))
        x = optax.apply_updates(x, updates)
    assert int(state.inner.inner.third) == 2
    np.testing.assert_allclose(x, run.params, rtol=1e-15)
