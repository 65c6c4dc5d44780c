"""The referee: every solver's points judged alike, in float64, off the clock.

A solver's own values are a column, never the criterion: a float32 or TF32 run is judged by the
same float64 function on the same data as every other.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optikit.analyze import certify
from optikit.bench.programs import programs
from optikit.calculus import bind
from optikit.core import Status, tree
from optikit.optimizers import named
from optikit.problems import Problem, cast_floats
from optikit.solve.choose import choose

REFERENCE_STEPS = 2000


def referee(problem: Problem) -> Callable[[Any], tuple[float, float]]:
    """Judge of points, whatever their dtype: (objective, largest gradient entry) in float64.

    On the whole data, or on what was held out. It is compiled once, apart from every solver's
    programs.
    """
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        exact = problem.cast(jnp.float64)

    @jax.jit
    def evaluate(params, args):
        at = bind(exact.objective, args).value_and_grad(params)  # type: ignore[arg-type]
        return at.value, tree.max_abs(at.grad)

    def judge(point: Any) -> tuple[float, float]:
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            value, largest = evaluate(cast_floats(point, jnp.float64), exact.judged)
            return float(value), float(largest)

    return judge


def appraiser(problem: Problem) -> Callable[[Any], dict[str, float]]:
    """The problem's metrics of a point in float64, by name; compiled once."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        exact = problem.cast(jnp.float64).metrics
    compiled = {name: jax.jit(metric.fun) for name, metric in exact.items()}

    def appraise(point: Any) -> dict[str, float]:
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            params = cast_floats(point, jnp.float64)
            return {
                name: float(compiled[name](params, *metric.args)) for name, metric in exact.items()
            }

    return appraise


class Reference(NamedTuple):
    """The best value known for a problem, how it was found, and its certificate in words.

    `point` is where the solve ended, in float64; None without a solve.
    """

    value: float
    source: str
    grad_norm: float
    certificate: str
    kind: str
    point: Any = None


def reference(problem: Problem, key: jax.Array, *, seconds: float, solve: bool = True) -> Reference:
    """The optimum where it is known, else a float64 solve to the limit of precision or of time.

    Dense Newton where a Hessian is cheap (few parameters, or a linear model), else the matrix-free
    trust region. The certificate is of the point that solve found. Where steps see batches, or
    points are judged on held-out data, there is nothing to solve: the best value known is that of
    the start, until trials find better.

    Args:
      seconds: running time after which the solve is left as it is.
      solve: whether to solve at all.
    """
    if not solve or problem.batches is not None or problem.held_out is not None:
        value, gradient = referee(problem)(problem.start(key))
        source = "the start, without a solve"
        if problem.optimum is not None:
            value, source = float(problem.optimum), "known in closed form"
        return Reference(value, source, gradient, "", "not examined")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        exact = problem.cast(jnp.float64)
        start = exact.start(key)
        chosen = choose(exact.objective, start, exact.args)[0]  # type: ignore[arg-type]
        method = named("newton" if chosen in ("newton", "levenberg-marquardt") else "trust-region")
        built = programs(exact, method, start, key)
        progress = built.start(start, exact.args, key)
        clock, limit = 0.0, 0
        while (
            int(progress.status) == Status.RUNNING and limit < REFERENCE_STEPS and clock < seconds
        ):
            limit = min(REFERENCE_STEPS, 2 * limit + 1)
            before = time.perf_counter()
            bound = jnp.asarray(limit, jnp.int32)
            progress = jax.block_until_ready(built.go(progress, exact.args, bound))
            clock += time.perf_counter() - before
        at = progress.at
        cert = certify(exact.objective, at.params, exact.args)  # type: ignore[arg-type]
        ended = Status(int(progress.status))
        found, gradient = float(at.value), float(tree.max_abs(at.grad))
    unfinished = f", stopped after {clock:.0f} s" if ended == Status.RUNNING else ""
    source = f"{method.name} in float64, {int(progress.steps)} steps{unfinished}"
    if problem.optimum is not None:
        found, source = float(problem.optimum), "known in closed form"
    return Reference(found, source, gradient, cert.message, str(cert.kind), at.params)
