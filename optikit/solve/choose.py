"""`method="auto"`: by structure, size and dtype; where these leave it open, by a measurement."""

import functools
import importlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import core
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from optikit.calculus import Objective, bind
from optikit.calculus.affine import affine_terms
from optikit.calculus.objective import outputs_of, residual_vector, split_data
from optikit.core import Key, Params, tree
from optikit.core.compiled import compiler_options, under_transformation
from optikit.optimizers.linear_newton import plan_for

DENSE_BLACK_BOX = 100
"""Parameters up to which a black box's Hessian, at n products, is worth having unmeasured."""

MEASURED = 1000
"""Parameters up to which it may be, if products are fast together: this is measured."""

WORTH = 30
"""Gradients that a dense Hessian may take: about as many as L-BFGS spends more on a solve."""

DENSE_STRUCTURED = 2000
"""Parameters up to which a linear model's Hessian, at one Gram product, is worth having."""

DENSE_JACOBIAN = 1000
"""Parameters, or residuals if fewer, up to which a dense least-squares step is worth its flops."""

BLOCK = 8
"""Hessian products that are timed together; one, where a gradient takes longer than `SLOW`."""

SLOW = 0.05
"""Seconds."""

_MEASURED: OrderedDict[Any, float] = OrderedDict()
"""Hessians over gradients, by objective, shapes and device; the last 1024."""

_ADVISED: OrderedDict[Any, tuple[str, str]] = OrderedDict()
"""Advice, by objective, shapes, device and tolerance; the last 1024."""


def choose(objective: Objective, params: Params, args: tuple) -> tuple[str, str]:
    """The name of a method and the reason for it.

    Structure and size decide first, without running anything; that is remembered by objective and
    shapes, since looking into a model means tracing it. Between 100 and 1000 parameters without
    known structure, a dense Hessian may cost n gradients or a few: there, on concrete arrays, eight
    Hessian products are timed against a gradient, once for a function and shapes. That takes two
    small compilations (some 0.2 s) and about 40 gradients; under a transformation it is left out,
    and the choice is "lbfgs".
    """
    leaves, structure = jax.tree.flatten((params, args))
    shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
    name, reason, is_open = _choose(objective, structure, shapes)
    abstract = any(isinstance(x, (core.Tracer, jax.ShapeDtypeStruct)) for x in leaves)
    if not is_open or abstract or under_transformation():
        return name, reason
    key = (objective, structure, shapes, jax.default_backend())
    if key not in _MEASURED:
        _MEASURED[key] = hessian_over_gradient(objective, params, args)
        if len(_MEASURED) > 1024:
            _MEASURED.popitem(last=False)
    cost, n = _MEASURED[key], tree.size(params)
    found = f"{n} parameters: a dense Hessian was measured at {cost:.2g} gradients"
    return ("newton-bfgs", found) if cost <= WORTH else ("lbfgs", found)


def advised(
    objective: Objective, params: Params, args: tuple, tol: float | None, key: Key | None
) -> tuple[str, str]:
    """The name of a method and the reason for it, by `ok.advise`; remembered as a measurement is.

    The adviser runs solves, so it stands above this room; it is asked by name, when it is wanted.

    Raises:
      ValueError: under a transformation, where nothing can be measured.
      TypeError: a tolerance that is traced.
    """
    if isinstance(tol, core.Tracer):
        msg = "method='advise' measures for a given tolerance: tol must be a number, not traced."
        raise TypeError(msg)
    tol = None if tol is None else float(tol)
    leaves, structure = jax.tree.flatten((params, args))
    shapes = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
    asked = (objective, structure, shapes, jax.default_backend(), tol)
    if asked not in _ADVISED:
        advise = importlib.import_module("optikit.analyze").advise
        found = advise(objective, params, args, accuracy=tol, key=key)
        _ADVISED[asked] = found.method, found.reason
        if len(_ADVISED) > 1024:
            _ADVISED.popitem(last=False)
    return _ADVISED[asked]


def hessian_over_gradient(objective: Objective, params: Params, args: tuple) -> float:
    """Seconds of a dense Hessian, by its products, over those of a gradient; on this device."""
    flat, unravel = ravel_pytree(params)

    def gradient(v: Array, args: tuple) -> Array:
        at = bind(objective, args).value_and_grad(unravel(v))
        return tree.ravel(at.grad) + 0 * at.value.astype(v.dtype)

    base = _seconds(gradient, flat, args)
    together = 1 if base > SLOW else min(BLOCK, flat.size)

    def products(v: Array, args: tuple) -> Array:
        product = bind(objective, args).curvature("hessian", unravel(v)).mv
        units = jnp.eye(together, flat.size, dtype=flat.dtype)
        return jax.vmap(lambda u: tree.ravel(product(unravel(u))))(units)

    return _seconds(products, flat, args) * flat.size / together / base


def _seconds(function: Callable[..., Array], *args: Any) -> float:
    """The faster of two calls, compilation excluded."""
    compiled = jax.jit(function).lower(*args).compile(dict(compiler_options(args)))
    stamps = []
    for _ in range(2):
        before = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        stamps.append(time.perf_counter() - before)
    return max(min(stamps), 1e-9)


@functools.lru_cache(maxsize=1024)
def _choose(objective: Objective, structure, shapes: tuple) -> tuple[str, str, bool]:
    """Method, reason, and whether a measurement should decide instead."""
    blank = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    params, args = jax.tree.unflatten(structure, blank)
    n = tree.size(params)
    narrow = {x.dtype.name for x in jax.tree.leaves(params) if x.dtype.itemsize < 4}
    if narrow:
        return "lbfgs", f"no factorisation in {', '.join(sorted(narrow))}: gradients only", False
    if objective.kind == "residuals" and (vector := residual_vector(objective)) is not None:
        m = jax.eval_shape(lambda p, a: vector(p, *a), params, args).size
        if min(m, n) <= DENSE_JACOBIAN:
            reason = f"{m} residuals of {n} parameters: a dense Jacobian is cheap"
            return "levenberg-marquardt", reason, False
    if objective.kind == "variational":
        return "natural-gradient", "an energy: its metric is known, its curvature is not", False
    if objective.kind == "composite":
        found = _linear(objective, params, args, n)
        if found:
            return "newton", found, False
    if n <= DENSE_BLACK_BOX:
        reason = f"{n} parameters: a dense Hessian costs at most {n} products"
        return "newton-bfgs", reason, False
    reason = f"{n} parameters without known structure: gradients only"
    return "lbfgs", reason, n <= MEASURED


def _linear(objective: Objective, params: Params, args: tuple, n: int) -> str:
    """Why a linear model suits Newton's method; empty if it is none, or does not."""
    found = []

    def look(p: Params, a: tuple) -> None:
        plan = plan_for(objective, p, a)
        if plan is not None:
            found.append(f"a linear model of {n} parameters: {plan.described}")
        elif n <= DENSE_STRUCTURED and _is_affine(objective, p, split_data(objective, a)[0]):
            found.append(f"a linear model of {n} parameters: its Hessian is a Gram product")

    jax.eval_shape(look, params, args)
    return found[0] if found else ""


def _is_affine(objective: Objective, params: Params, inputs: Any) -> bool:
    predict = functools.partial(outputs_of, objective)
    return affine_terms(predict, params, inputs) is not None
