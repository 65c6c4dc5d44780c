"""What one call of each oracle of a problem costs on this device, in seconds.

Each kind is priced inside a compiled loop, where runs make their calls: a loop of many less a loop
of one. What it takes to dispatch a program is in no price; a gradient of a small problem would
else seem to cost as much as hundreds of products.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from optikit.analyze.prices import calls, products, time_call
from optikit.calculus.validate import as_objective
from optikit.core import tree
from optikit.problems import Problem

LOOP_SECONDS = 0.01
"""A loop is made so long where a call takes less."""

LONG_SECONDS = 1e-3
"""Calls from so long on are timed by themselves: dispatching takes under 1 % of that."""


def prices(problem: Problem, key: jax.Array) -> dict[str, float]:
    """Seconds (of medians, warm) of one call, by kind of oracle; see `optikit.analyze.prices`.

    Where steps see batches, the calls do.
    """
    params, args = problem.start(key), problem.step_args(key)
    objective = as_objective(problem.objective)
    single = {kind: _looped(call) for kind, call in calls(objective, params).items()}
    return {
        kind: _price(jax.jit(loop), params, args, single=kind in single)
        for kind, loop in (single | products(objective)).items()
    }


def _price(loop: Callable, params: object, args: tuple, *, single: bool) -> float:
    one = time_call(lambda: loop(params, args, 1))
    if single and one >= LONG_SECONDS:
        return one
    more = int(min(max(LOOP_SECONDS / one, 10), 1000))
    return max((time_call(lambda: loop(params, args, 1 + more)) - one) / more, 0.0)


def _looped(call: Callable) -> Callable:
    """So many calls, each at a point that waits for what the one before found.

    The barrier keeps a Hessian in the loop that is the same at every point.
    """

    def run(params, args, count):
        nothing = jnp.where(count < 0, 1.0, 0.0)  # which the compiler does not know

        def again(_, p):
            found = tree.max_abs(call(*lax.optimization_barrier((p, args))))
            return jax.tree.map(lambda x: x + (nothing * found).astype(x.dtype), p)

        return lax.fori_loop(0, count, again, params)

    return run
