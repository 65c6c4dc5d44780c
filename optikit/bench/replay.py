"""What a run cost in FLOPs, bytes and oracle calls: the same run again with a counter in it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from optikit.bench.programs import functions
from optikit.core.cost import Cost, count_cost, mark
from optikit.optimizers import Optimizer
from optikit.problems import Problem
from optikit.solve.loop import Progress


class Along(NamedTuple):
    """Cumulative cost of a run at each snapshot, by a replay with a counter.

    Attributes:
      costs: one `Cost` of floats per snapshot.
      ledger_agrees: whether the calls counted at the oracle's door are those the optimizer reported
        at every snapshot.
      unknown: operations whose FLOPs are not known, and left out.
    """

    costs: list[Cost]
    ledger_agrees: bool
    unknown: list[str]


def costs_along(problem: Problem, optimizer: Optimizer, key: jax.Array, steps: list[int]) -> Along:
    """What a run cost up to some steps (the first is 0): replayed with a counter, off the clock."""
    start_key, run_key = jax.random.split(key)
    start_function, go_function = functions(problem, optimizer, tap=mark)
    params = problem.start(start_key)
    unknown: set[str] = set()
    with jax.enable_x64(True):  # the counter is float64; the program's own dtypes are explicit
        options = {"xla_backend_optimization_level": 1}
        start = jax.jit(count_cost(start_function, unknown))
        go = jax.jit(count_cost(go_function, unknown), compiler_options=options)
        progress, total = start(params, problem.args, run_key)
        totals = [jax.tree.map(float, total)]
        agrees = _agrees(progress, totals[-1])
        for limit in steps[1:]:
            progress, more = go(progress, problem.args, jnp.asarray(limit, jnp.int32))
            totals.append(jax.tree.map(lambda a, b: a + float(b), totals[-1], more))
            agrees = agrees and _agrees(progress, totals[-1])
    return Along(totals, agrees, sorted(unknown))


def _agrees(progress: Progress, total: Cost) -> bool:
    return [int(n) for n in progress.counts] == [int(n) for n in total.calls]
