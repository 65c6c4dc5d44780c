"""What one call of each oracle costs on this device: seconds, FLOPs, bytes, and to compile.

A product is priced with its linearisation done: the price of a loop of eleven products less that of
a loop of one, over ten. "jvp" and "vjp" are those of the residuals; of an objective without
residuals "jvp" is the slope along a direction, and a "vjp" is its gradient. What JAX cannot
differentiate that way, as a "jvp" through a `custom_vjp`, has no price.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from optikit.calculus import Objective, bind
from optikit.calculus.objective import residual_vector
from optikit.core import Params, tree
from optikit.core.compiled import compiler_options
from optikit.core.cost import count_cost

DENSE_UP_TO = 2000
"""Parameters up to which a dense Hessian or Jacobian is priced."""

SLOWEST = 2e9
"""FLOPs a second of a factorisation, for the guess whether one fits into the time allowed."""

LONG_SECONDS = 2.0
"""Timing one kind of call goes on for no longer, however few the calls were."""


class Price(NamedTuple):
    """What a call costs.

    Attributes:
      seconds: the least of several calls, warm and synchronised.
      flops, bytes: by the operations of its program; bytes as if none were fused, an upper bound.
      compile_seconds: of tracing and compiling it; None of a part of a program.
    """

    seconds: float
    flops: float
    bytes: float
    compile_seconds: float | None = None


def oracle_prices(
    objective: Objective, params: Params, args: tuple, *, seconds: float = 5.0
) -> dict[str, Price]:
    """Prices by kind of call, "dispatch" among them: that of a program that does nothing.

    "hessian", "jacobian", "cholesky" and "eigh" are of the dense matrices over all parameters; they
    are left out where n is above 2000, or where one would take longer than a quarter of `seconds`.

    Args:
      seconds: about how much time the calls may take, compilation not counted.

    Example:
      >>> from optikit.calculus import black_box
      >>> found = oracle_prices(black_box(lambda x: jnp.sum(x**2)), jnp.ones(3), (), seconds=0.01)
      >>> found["value"].flops, found["hessian"].seconds > 0
      (6.0, True)
    """
    each = min(seconds / 20, 0.1)
    n = tree.size(params)
    found = {"dispatch": _priced(lambda x, _: x, jnp.zeros(()), (), each)}
    single = calls(objective, params)
    for kind in ("value", "grad"):
        found[kind] = _priced(single[kind], params, args, each)
    for kind, chain in products(objective).items():
        loop = functools.partial(_looped, chain)
        if kind != "hvp" and refusal(loop, params, (args, jnp.asarray(1))):
            continue
        one, eleven = (_priced(loop, params, (args, jnp.asarray(k)), each) for k in (1, 11))
        found[kind] = Price(
            max((eleven.seconds - one.seconds) / 10, 0.0),
            (eleven.flops - one.flops) / 10,
            (eleven.bytes - one.bytes) / 10,
            one.compile_seconds,
        )
    for kind in ("hessian", "jacobian"):
        quick = kind in single and n * found["hvp"].seconds <= seconds / 4
        if quick and not refusal(single[kind], params, args):
            found[kind] = _priced(single[kind], params, args, each)
    if n <= DENSE_UP_TO:
        dtype = ravel_pytree(params)[0].dtype
        matrix = jnp.eye(n, dtype=dtype) + jnp.full((n, n), 1 / (2 * n), dtype)
        factorisations = {
            "cholesky": (n**3 / 3, lambda m, _: jnp.linalg.cholesky(m)),
            "eigh": (9 * n**3, lambda m, _: jnp.linalg.eigh(m)),
        }
        for kind, (flops, function) in factorisations.items():
            if flops / SLOWEST <= seconds / 4:
                found[kind] = _priced(function, matrix, (), each)
    return found


def refusal(function: Callable, *args: Any) -> Exception | None:
    """Why JAX has no program for function(*args), as without a derivative; None if it has."""
    try:
        jax.jit(function).lower(*args)  # tracing alone lets linearised custom_vjps through
    except (TypeError, ValueError, NotImplementedError) as error:
        return error
    return None


def _looped(chain: Callable, params: Any, rest: tuple) -> Any:
    args, count = rest
    return chain(params, args, count)


def _priced(function: Callable, params: Any, args: tuple, seconds: float) -> Price:
    begun = time.perf_counter()
    options = dict(compiler_options((params, args)))
    compiled = jax.jit(function).lower(params, args).compile(options)
    took = time.perf_counter() - begun
    cost = jax.jit(lambda p, a: count_cost(function)(p, a)[1], compiler_options=options or None)(
        params, args
    )
    return Price(
        time_call(lambda: compiled(params, args), seconds=seconds, quantile=0.0),
        float(cost.flops), float(cost.bytes), took,
    )  # fmt: skip


def calls(objective: Objective, params: Params) -> dict[str, Callable]:
    """Single calls by kind of oracle, as functions of (params, args)."""
    found: dict[str, Callable] = {
        "value": lambda p, a: bind(objective, a).value(p),
        "grad": lambda p, a: _kept(bind(objective, a).value_and_grad(p)),
    }
    if tree.size(params) <= DENSE_UP_TO:
        found["hessian"] = lambda p, a: bind(objective, a).curvature("hessian", p).dense()
        if residual_vector(objective) is not None:
            found["jacobian"] = lambda p, a: bind(objective, a).residuals_and_jacobian(p)
    return found


def _kept(at: Any) -> Any:
    return at.value, at.grad


def products(objective: Objective) -> dict[str, Callable]:
    """Loops of products, as (params, args, how many) -> something that depends on all of them."""

    def curved(curvature: Any) -> Callable:
        def run(params, args, count):
            door = bind(objective, args)
            product = door.curvature(curvature, params).mv
            start = door.value_and_grad(params).grad
            return lax.fori_loop(0, count, lambda _, v: product(_unit(v, tree.norm(v))), start)

        return run

    def jacobian(transposed: bool) -> Callable:
        residual = residual_vector(objective)

        def run(params, args, count):
            function = residual if residual is not None else bind(objective, args).value
            at = args if residual is not None else ()
            if transposed:
                out, pull = jax.vjp(lambda p: function(p, *at), params)
                product, v = (lambda u: pull(u)[0]), out
            else:
                product = jax.linearize(lambda p: function(p, *at), params)[1]
                v = bind(objective, args).value_and_grad(params).grad
            # the same vector again, scaled by what came out, so that each waits for the one before
            return lax.fori_loop(0, count, lambda _, v: _unit(v, tree.max_abs(product(v))), v)

        return run

    found = {"hvp": curved("hessian"), "jvp": jacobian(transposed=False)}
    if objective.kind in ("composite", "residuals"):
        found["ggnvp"] = curved("ggn")
    if residual_vector(objective) is not None:  # else it is a gradient
        found["vjp"] = jacobian(transposed=True)
    return found


def _unit(v: Any, size: jax.Array) -> Any:
    """The direction `v` over a size, so that a chain neither overflows nor vanishes."""
    return tree.scale(1 / jnp.where(size > 0, size, 1), v)


def time_call(
    function: Callable[[], Any], *, seconds: float = 0.1, least: int = 5, quantile: float = 0.5
) -> float:
    """Median seconds of a synchronised call, over at least `least` calls and about `seconds`.

    Calls that take long are fewer, one at least.

    Args:
      quantile: another than the median; 0 for the least, which other tenants disturb least.
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
    return float(np.quantile(stamps, quantile))
