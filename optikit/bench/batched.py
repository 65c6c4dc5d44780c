"""The loop of a run on minibatches: another batch at every step, the same for every method.

As in `optikit.solve.loop`, a point is evaluated when it is reached, but on the batch of the step to
come, so a method's search on the last batch never saves an evaluation. Nothing here decides that a
run is over, except a value that is not finite: the step that led to it is taken back.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from optikit.calculus import Oracle, bind
from optikit.core import Key, Status, tally, tree
from optikit.optimizers import Optimizer
from optikit.optimizers.protocol import folded
from optikit.problems import Problem
from optikit.solve.loop import Best, Progress, begin, recorded

_ORDER = 0xFFFFFFFF
"""Folded into a run's key for the order of the data; steps, which count from 0, never get there."""


class Streamed(NamedTuple):
    """An optimizer's state, the steps that were rejected so far, and the batch of the next one."""

    inner: Any
    rejected: Int[Array, ""]
    batch: tuple


def functions(
    problem: Problem, optimizer: Optimizer, *, trace_rows: int, tap: Callable[[str], None]
):
    """The start and the chunk of a run, as `optikit.bench.programs.functions`, on batches."""
    optimizer = folded(optimizer)
    objective: Any = problem.objective
    draw: Any = problem.batches

    def batch_of(key: Key, step: Int[Array, ""], args: tuple) -> tuple:
        return draw(jax.random.fold_in(key, _ORDER), step, args)

    def door(batch: tuple) -> Oracle:
        return bind(objective, batch, fixed=False, tap=tap)

    def start(params, args, key) -> Progress:
        batch = batch_of(key, jnp.asarray(0, jnp.int32), args)
        first = begin(optimizer, door(batch), params, key, trace_rows=trace_rows)
        state = Streamed(first.state, jnp.asarray(0, jnp.int32), batch)
        return _shown(optimizer, first._replace(state=state))

    def step(p: Progress, args: tuple) -> Progress:
        key = jax.random.fold_in(p.key, p.steps)
        params, _, inner, info = optimizer.step(door(p.state.batch), p.at, p.state.inner, key)
        steps = p.steps + 1
        batch = batch_of(p.key, steps, args)
        at, price = optimizer.evaluate(door(batch), params)
        counts = tally(p.counts, info.counts, price)
        largest = optimizer.measure(at)
        usable = jnp.isfinite(at.value) & jnp.isfinite(largest)
        trace = p.trace
        if trace is not None:
            trace = recorded(trace, steps, at.value, largest, info.step_norm, counts)
        # a batch on which a search fails is passed over: another may do
        status = jnp.where(usable, Status.RUNNING.value, Status.NOT_FINITE.value)
        rejected = p.state.rejected + jnp.where(info.accepted, 0, 1).astype(jnp.int32)
        return p._replace(
            at=tree.where(usable, at, p.at),
            state=Streamed(tree.where(usable, inner, p.state.inner), rejected, batch),
            counts=counts,
            steps=steps,
            status=status.astype(jnp.int32),
            largest=jnp.where(usable, largest, p.largest),
            trace=trace,
        )

    def go(progress: Progress, args, limit) -> Progress:
        def running(p: Progress) -> Array:
            return (p.status == Status.RUNNING.value) & (p.steps < limit)

        return _shown(optimizer, lax.while_loop(running, lambda p: step(p, args), progress))

    return start, go


def _shown(optimizer: Optimizer, p: Progress) -> Progress:
    """With the parameters that the method answers with: the last ones, or its average of them."""
    return p._replace(best=Best(optimizer.readout(p.at.params, p.state.inner), p.at.value))
