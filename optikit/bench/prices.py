"""What one call of each oracle costs on this device, in seconds."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optikit.calculus import bind
from optikit.calculus.objective import residual_vector
from optikit.core import tree
from optikit.problems import Problem

DENSE_UP_TO = 2000
"""Parameters up to which a dense Hessian or Jacobian is priced."""


def prices(problem: Problem, key: jax.Array) -> dict[str, float]:
    """Seconds (median, warm) of one call, by kind of oracle.

    A product is priced with its linearisation done: the price of a loop of eleven products less
    that of a loop of one, over ten. Where steps see batches, the calls do.
    """
    params = problem.start(key)
    args = problem.step_args(key)
    found = {}
    for kind, function in _calls(problem, params).items():
        compiled = jax.jit(function)
        found[kind] = time_call(lambda c=compiled: c(params, args))
    for kind, function in _products(problem).items():
        compiled = jax.jit(function)
        one, eleven = (
            time_call(lambda c=compiled, n=number: c(params, args, n)) for number in (1, 11)
        )
        found[kind] = max((eleven - one) / 10, 0.0)
    return found


def _calls(problem: Problem, params: Any) -> dict[str, Callable]:
    objective: Any = problem.objective
    calls: dict[str, Callable] = {
        "value": lambda p, a: bind(objective, a).value(p),
        "grad": lambda p, a: _kept(bind(objective, a).value_and_grad(p)),
    }
    if tree.size(params) <= DENSE_UP_TO:
        calls["hessian"] = lambda p, a: bind(objective, a).curvature("hessian", p).dense()
        if residual_vector(objective) is not None:
            calls["jacobian"] = lambda p, a: bind(objective, a).residuals_and_jacobian(p)
    return calls


def _kept(at: Any) -> Any:
    return at.value, at.grad


def _products(problem: Problem) -> dict[str, Callable]:
    objective: Any = problem.objective

    def chain(curvature: Any) -> Callable:
        def run(params, args, count):
            door = bind(objective, args)
            product = door.curvature(curvature, params).mv

            def body(_, v):  # rescaled each time, so that the chain neither overflows nor vanishes
                size = tree.norm(v)
                return product(tree.scale(1 / jnp.where(size > 0, size, 1), v))

            return jax.lax.fori_loop(0, count, body, door.value_and_grad(params).grad)

        return run

    kinds = {"hvp": "hessian"} | (
        {"ggnvp": "ggn"} if objective.kind in ("composite", "residuals") else {}
    )
    return {kind: chain(curvature) for kind, curvature in kinds.items()}


LONG_SECONDS = 2.0
"""Timing one kind of call goes on for no longer, however few the calls were."""


def time_call(function: Callable[[], Any], *, seconds: float = 0.1, least: int = 5) -> float:
    """Median seconds of a synchronised call, over at least `least` calls and about `seconds`.

    Calls that take long are fewer, one at least.
    """
    jax.block_until_ready(function())
    stamps: list[float] = []
    begun = time.perf_counter()
    spent = 0.0
    while not stamps or (
        (spent < seconds and len(stamps) < 1000) or (len(stamps) < least and spent < LONG_SECONDS)
    ):
        before = time.perf_counter()
        jax.block_until_ready(function())
        stamps.append(time.perf_counter() - before)
        spent = time.perf_counter() - begun
    return float(np.median(stamps))
