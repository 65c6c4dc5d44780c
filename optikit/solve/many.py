"""`minimize_many`, `least_squares_many`: independent problems at the price of their work."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optikit.calculus import Objective
from optikit.calculus.validate import as_args, as_key, as_objective, as_params
from optikit.core import Box, Key, Params, as_box, start_inside, tree
from optikit.core.compiled import under_transformation
from optikit.losses.robust import Robust
from optikit.solve.bounded import as_bounded
from optikit.solve.least_squares import as_squares, least_squares, residual_criterion
from optikit.solve.loop import Criterion, gradient_criterion
from optikit.solve.minimize import Method, as_optimizer, minimize
from optikit.solve.pool import Data, Task, run
from optikit.solve.resume import SolveState, check_state
from optikit.solve.solution import Solution


def minimize_many(
    fun: Objective | Callable[..., Any],
    params: Params,
    args: tuple = (),
    *,
    method: Method = "auto",
    tol: float | None = None,
    max_steps: int = 1000,
    has_aux: bool = False,
    key: Key | None = None,
    bounds: Any = None,
    state: SolveState | None = None,
) -> Solution:
    """Minimise fun(params[i], *args[i]) over params[i] for every i, each as `minimize` would.

    Axis 0 of every leaf of params and args is the problem axis; fun sees one problem, without it.
    Problems that are done retire, so a batch costs about the sum of its work. Inside a `jit` or
    `vmap` of the caller's, where nothing can retire, it is a `vmap` of `minimize`.

    Args:
      args: what all problems share must be repeated along axis 0, or be bound to the function.
      key: one for all problems, as if each were given it alone.
      bounds: (lower, upper) as for `minimize`; an array with the problem axis bounds each problem
        on its own, one without it, by broadcasting, all of them.
      state: `sol.state` of an earlier call, to go on from there; `jax.tree.map(lambda x: x[i],
        sol.state)` is the state of problem i, for `minimize`.

    Returns: a Solution whose leaves all have the problem axis first: status, steps and counts are
      each problem's own. `certify_many` certifies them all.

    Raises:
      TypeError: parameters that are not floating point, a function that is not scalar for one
        problem.
      ValueError: leading axes that disagree, an empty batch, an unknown method.

    Example:
      >>> sols = minimize_many(lambda x, a: (x - a) ** 4, jnp.zeros(3), (jnp.arange(3.0),))
      >>> sols.success.tolist(), sols.params.shape
      ([True, True, True], (3,))
    """
    objective = as_objective(fun, has_aux=has_aux)
    alone = functools.partial(minimize, key=key)
    return _solve(
        objective, gradient_criterion, alone, params, args, method, bounds, tol, max_steps, key,
        state,
    )  # fmt: skip


def least_squares_many(
    residual: Objective | Callable[..., Any],
    params: Params,
    args: tuple = (),
    *,
    method: Method = "levenberg-marquardt",
    bounds: Any = None,
    robust: str | Robust | None = None,
    robust_scale: float | None = None,
    tol: float | None = None,
    max_steps: int = 1000,
    has_aux: bool = False,
    state: SolveState | None = None,
) -> Solution:
    """Minimise |residual(params[i], *args[i])|^2 / 2 for every i, each as `least_squares` would.

    Axis 0 of every leaf of params and args is the problem axis, also for `bounds` and `state`; see
    `minimize_many`. `robust` is for all, see `least_squares`.

    Raises:
      TypeError: parameters that are not floating point, an objective that is no sum of squares.
      ValueError: leading axes that disagree, an empty batch, an unknown method.

    Example:
      >>> def decay(p, t, y):
      ...     return p[0] * jnp.exp(-p[1] * t) - y
      >>> t = jnp.tile(jnp.linspace(0.0, 2.0, 20), (2, 1))
      >>> y = jnp.array([[3.0], [2.0]]) * jnp.exp(-jnp.array([[0.5], [1.0]]) * t)
      >>> sols = least_squares_many(decay, jnp.ones((2, 2)), (t, y))
      >>> [[round(float(v), 3) for v in p] for p in sols.params]
      [[3.0, 0.5], [2.0, 1.0]]
    """
    objective = as_squares("least_squares_many", residual, has_aux, robust, robust_scale)
    if tol is None:
        tol = 1e-10 if tree.inner_dtype(as_params(params)) == jnp.float64 else 1e-4
    return _solve(
        objective, residual_criterion, least_squares, params, args, method, bounds, tol, max_steps,
        None, state,
    )  # fmt: skip


def batch_size(params: Params, args: tuple) -> int:
    """The length of the problem axis, which every leaf of params and args must share.

    Raises:
      ValueError: a leaf has no axis 0, axes disagree, or there is no problem.
    """
    paths = [("params", params)] + [(f"args[{i}]", a) for i, a in enumerate(args)]
    sizes: dict[str, int] = {}
    for root, branch in paths:
        for path, leaf in jax.tree_util.tree_flatten_with_path(branch)[0]:
            name = root + jax.tree_util.keystr(path)
            shape = jnp.shape(leaf)
            if not shape:
                msg = (
                    f"{name} has no leading axis: axis 0 of every leaf is the problem axis. Repeat "
                    "it for every problem with jnp.broadcast_to, or bind it to the function with "
                    "functools.partial."
                )
                raise ValueError(msg)
            sizes[name] = shape[0]
    first, size = next(iter(sizes.items()))
    for name, other in sizes.items():
        if other != size:
            msg = (
                f"leading axes disagree: {first} holds {size} problems, {name} holds {other}; "
                "axis 0 of every leaf of params and args is the problem axis."
            )
            raise ValueError(msg)
    if size == 0:
        msg = f"the batch is empty: {first} has a leading axis of length 0; give a problem."
        raise ValueError(msg)
    return size


def _solve(
    objective: Objective,
    criterion: Criterion,
    alone: Callable[..., Solution],
    params: Params,
    args: tuple,
    method: Method,
    bounds: Any,
    tol: float | None,
    max_steps: int,
    key: Key | None,
    state: SolveState | None,
) -> Solution:
    """Check, choose, and run rounds until every problem has ended."""
    args = as_args(args)
    if any(0 in jnp.shape(x)[:1] for x in jax.tree.leaves(params)):
        batch_size(params, args)
    params = as_params(params)
    size = batch_size(params, args)
    args = jax.tree.map(jnp.asarray, args)
    blank = jax.tree.map(_blank_one, (params, args))
    chosen, reason = (as_optimizer if bounds is None else as_bounded)(method, objective, *blank)
    box = None
    if bounds is not None:
        box = as_box(bounds, params)
        params = start_inside(box, params)
    if state is not None:
        check_state(state, chosen, params)
    if under_transformation():

        def one(p: Params, a: tuple, box: Box | None, state: SolveState | None) -> Solution:
            limits = {"tol": tol, "max_steps": max_steps, "bounds": box, "state": state}
            return alone(objective, p, args=a, method=chosen, **limits)

        found = jax.vmap(one)(params, args, box, state)
        return dataclasses.replace(found, reason=reason)
    if max_steps < 0:
        msg = f"max_steps must not be negative; got {max_steps}."
        raise ValueError(msg)
    key = as_key(key)
    task = Task(objective, chosen, criterion)
    return run(task, params, Data(args, box), size, key, tol, max_steps, reason, state)


def _blank_one(leaf: Any) -> np.ndarray:
    """One problem's leaf by shape and dtype, for choosing a method; it takes no memory."""
    return np.broadcast_to(np.zeros((), jnp.result_type(leaf)), jnp.shape(leaf)[1:])
