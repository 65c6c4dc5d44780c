"""The referee: every solver's points judged alike, in float64, off the clock.

A solver's own values are a column, never the criterion: a float32 or TF32 run is judged by the
same float64 function on the same data as every other.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optikit.analyze import Certificate, certify
from optikit.calculus import bind
from optikit.core import tree
from optikit.optimizers import named
from optikit.problems import Problem, cast_floats
from optikit.solve import minimize

REFERENCE_STEPS = 2000
DENSE_REFERENCE = 1500
"""Parameters up to which the reference solve may be dense."""


class Verdicts(NamedTuple):
    """Float64 objective values and largest gradient entries, one per point."""

    values: list[float]
    grad_norms: list[float]


def judge(problem: Problem, points: list[Any]) -> Verdicts:
    """Evaluate the problem in float64 at each point."""
    with jax.enable_x64(True):
        exact = problem.cast(jnp.float64)

        @jax.jit
        def evaluate(params, args):
            at = bind(exact.objective, args).value_and_grad(params)  # type: ignore[arg-type]
            return at.value, tree.max_abs(at.grad)

        pairs = [jax.device_get(evaluate(cast_floats(p, jnp.float64), exact.args)) for p in points]
    return Verdicts([float(v) for v, _ in pairs], [float(g) for _, g in pairs])


class Reference(NamedTuple):
    """The best value known for a problem, how it was found, and its certificate in words."""

    value: float
    source: str
    grad_norm: float
    certificate: str
    kind: str


def reference(problem: Problem, key: jax.Array) -> Reference:
    """The optimum where it is known, else a long float64 solve to the limit of its precision."""
    with jax.enable_x64(True):
        exact = problem.cast(jnp.float64)
        start = exact.start(key)
        n = tree.size(start)
        method = named("newton" if n <= DENSE_REFERENCE else "trust-region")
        solved = minimize(
            exact.objective, start, args=exact.args, method=method, tol=1e-14,
            max_steps=REFERENCE_STEPS,
        )  # fmt: skip
        cert: Certificate = certify(exact.objective, solved.params, exact.args)
    found = float(solved.value)
    source = f"{method.name} in float64, {int(solved.steps)} steps"
    if problem.optimum is not None:
        found, source = float(problem.optimum), "known in closed form"
    return Reference(
        found, source, float(np.asarray(solved.grad_norm)), cert.message, str(cert.kind)
    )
