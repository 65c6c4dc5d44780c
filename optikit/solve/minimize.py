"""`minimize`: a smooth function of any pytree, by any method, in one compiled program."""

import dataclasses
import inspect
import reprlib
from collections.abc import Callable
from typing import Any

import optax

from optikit.calculus import Objective
from optikit.calculus.validate import as_args, as_objective, as_params
from optikit.core import Key, Params
from optikit.optimizers import Bounded, Optimizer, from_optax, named
from optikit.solve.bounded import solve_in_box
from optikit.solve.choose import advised, choose
from optikit.solve.drive import drive
from optikit.solve.loop import Criterion, gradient_criterion
from optikit.solve.resume import SolveState
from optikit.solve.solution import Solution

Method = str | Optimizer | Bounded | optax.GradientTransformation


def minimize(
    fun: Objective | Callable[..., Any],
    params: Params,
    *,
    method: Method = "auto",
    args: tuple = (),
    tol: float | None = None,
    max_steps: int = 1000,
    has_aux: bool = False,
    trace: bool = False,
    key: Key | None = None,
    state: SolveState | None = None,
    bounds: Any = None,
) -> Solution:
    """Minimise fun(params, *args) over params, starting at params.

    Converged means max|g| <= tol max(1, max|g0|) and a predicted relative decrease below tol; see
    `optikit.solve.loop.gradient_criterion`. Everything that goes wrong at run time is a status,
    never an exception: the best point seen comes back with it.

    Works under `jit` and `vmap`. Compiled once per function, method and shapes: data belongs in
    `args`, not in a closure, and a lambda written anew at each call compiles anew.

    `jax.grad` and `jax.jvp` of `params`, `value` and `aux` with respect to `args` (and to what the
    function closes over) are those of the exact solution near the returned point, by the implicit
    function theorem; see `optikit.solve.implicit`. The start, the tolerance and the method have no
    part in it, so their derivatives are zero, as are those of all other fields. Where the solve
    did not converge the same formula is applied at the point returned; where the Hessian is
    singular (`certify` then says degenerate) the answer is that of least norm, and
    `implicit_response` says in a status that it is.

    Args:
      fun: a pure function (params, *args) -> scalar, or (scalar, aux) with `has_aux`; or an
        Objective, whose structure some methods use.
      params: a pytree of real floating-point arrays.
      method: a name in `ok.optimizers.OPTIMIZERS` or of optax, an Optimizer, an optax
        transformation, or "auto", which chooses by structure and size and says why; or "advise",
        which takes some seconds to try what `ok.advise` does and is remembered for the function,
        shapes and tolerance.
      tol: by default 1e-8 in float64 and 1e-4 in float32.
      max_steps: a budget, not a hyperparameter: changing it does not recompile without a trace.
      trace: record value, gradient norm, step and counts at every step.
      key: for methods that draw random numbers.
      state: `sol.state` of an earlier call with the same function, args and method: the solve goes
        on as if it had not been cut off, and `max_steps` and the counts include the earlier steps.
        Of params then only the structure matters; rows of a trace before the first new step are
        NaN.
      bounds: a pair (lower, upper) that no parameter ever leaves; each side None, a number, or a
        pytree like params with None where there is no bound. For "newton", "newton-cg", "lbfgs",
        "auto" and the factories `ok.optimizers.bounded_*`; `sol.grad_norm` is then the largest
        |x - P(x - g)|, with P the projection on the bounds, and this takes the place of max|g|
        above.

    Raises:
      TypeError: parameters that are not floating point, a function that is not scalar, a method
        for bounds without them.
      ValueError: an unknown method, no parameters, a negative budget, a state of another solve, a
        start out of bounds.

    Example:
      >>> def rosenbrock(x, b):
      ...     return (1 - x[0]) ** 2 + b * (x[1] - x[0] ** 2) ** 2
      >>> sol = minimize(rosenbrock, jnp.array([-1.2, 1.0]), method="newton", args=(100.0,))
      >>> bool(sol.success), [round(float(v), 2) for v in sol.params]
      (True, [1.0, 1.0])
      >>> def nearest(t):
      ...     return minimize(lambda x, t: jnp.sum((x - t) ** 2), jnp.zeros(3), args=(t,)).params
      >>> [round(float(v), 5) for v in jax.jacobian(nearest)(1.5)]
      [1.0, 1.0, 1.0]
    """
    objective = as_objective(fun, has_aux=has_aux)
    if bounds is not None:
        return solve_in_box(
            objective, params, bounds, method, args, tol, max_steps, trace, key, state,
            gradient_criterion,
        )  # fmt: skip
    if method == "advise":
        params, args = as_params(params), as_args(args)
        method, reason = advised(objective, params, args, tol, key)
        # its times are no part of the program: the reason is added to what comes out
        sol = minimize(
            objective, params, method=method, args=args, tol=tol, max_steps=max_steps, trace=trace,
            key=key, state=state,
        )  # fmt: skip
        return dataclasses.replace(sol, reason=reason)
    return solve(
        objective, params, method, args, tol, max_steps, trace, key, gradient_criterion, state
    )


def solve(
    objective: Objective,
    params: Params,
    method: Method,
    args: tuple,
    tol: float | None,
    max_steps: int,
    trace: bool,
    key: Key | None,
    criterion: Criterion,
    state: SolveState | None = None,
) -> Solution:
    """Choose the method, and run it."""
    params, args = as_params(params), as_args(args)
    optimizer, reason = as_optimizer(method, objective, params, args)
    return drive(
        optimizer, objective, params, args, tol, max_steps, trace, key, criterion, state, reason
    )


def as_optimizer(
    method: Method, objective: Objective, params: Params, args: tuple
) -> tuple[Optimizer, str]:
    """A method in any accepted form as an Optimizer, with the reason if it was chosen."""
    if isinstance(method, Optimizer):
        return method, ""
    if isinstance(method, str):
        if method == "auto":
            name, reason = choose(objective, params, args)
            return named(name), reason
        if method == "advise":
            msg = (
                "method='advise' is for minimize without bounds: ask ok.advise(fun, params, args) "
                "of one problem, and give the .method that it names."
            )
            raise ValueError(msg)
        return named(method), ""
    if isinstance(method, (optax.GradientTransformation, optax.GradientTransformationExtraArgs)):
        return from_optax(method), ""
    if isinstance(method, Bounded):
        msg = f"method {method.name!r} is for problems with bounds: give bounds=(lower, upper)."
        raise TypeError(msg)
    hint = (
        "it is a factory: call it first." if inspect.isfunction(method) else
        "give a name, an Optimizer or an optax transformation."
    )  # fmt: skip
    name = getattr(method, "__name__", None)
    what = reprlib.repr(method if name is None else name)
    msg = f"method is {type(method).__name__} {what}: {hint}"
    raise TypeError(msg)
