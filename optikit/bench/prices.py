"""What one call of each oracle of a problem costs on this device, in seconds."""

import jax

from optikit.analyze.prices import calls, products, time_call
from optikit.calculus.validate import as_objective
from optikit.problems import Problem


def prices(problem: Problem, key: jax.Array) -> dict[str, float]:
    """Seconds (median, warm) of one call, by kind of oracle; see `optikit.analyze.prices`.

    Where steps see batches, the calls do.
    """
    params, args = problem.start(key), problem.step_args(key)
    objective = as_objective(problem.objective)
    found = {}
    for kind, function in calls(objective, params).items():
        compiled = jax.jit(function)
        found[kind] = time_call(lambda c=compiled: c(params, args))
    for kind, function in products(objective).items():
        compiled = jax.jit(function)
        one, eleven = (
            time_call(lambda c=compiled, n=number: c(params, args, n)) for number in (1, 11)
        )
        found[kind] = max((eleven - one) / 10, 0.0)
    return found
