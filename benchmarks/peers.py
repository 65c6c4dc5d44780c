"""Every minimiser that a study compares, in one form: solve(fun, x0, args, tol) -> Outcome.

fun(x, *args) is a scalar of a vector. Rivals are used as their documentation says, with jitted JAX
derivatives where they want them. METHODS[name](max_steps) is a solve; what a method needs is
imported then.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Outcome(NamedTuple):
    """A point, whether the solver calls it a success, and its steps where it tells.

    gradients: what it asked of the objective, where it tells: a gradient is 1, a value 1/2, a
    product with the Hessian 2, a dense Hessian 2 n.
    """

    x: Any
    success: Any
    steps: Any
    gradients: Any = None


Solver = Callable[[Callable, Any, tuple, float], Outcome]


def optikit_by(method: str, max_steps: int) -> Solver:
    import optikit as ok

    def solve(fun, x0, args, tol):
        sol = ok.minimize(fun, x0, args=args, method=method, tol=tol, max_steps=max_steps)
        paid = sol.counts
        gradients = paid.grad + paid.value / 2 + 2 * paid.hvp + 2 * x0.size * paid.hessian
        return Outcome(sol.params, sol.success, sol.steps, gradients)

    return solve


def scipy_by(method: str, max_steps: int) -> Solver:
    import jax
    from scipy.optimize import minimize

    @functools.cache
    def derivatives(fun):
        product = jax.jit(
            lambda x, v, *args: jax.jvp(lambda u: jax.grad(fun)(u, *args), (x,), (v,))[1]
        )
        return jax.jit(jax.value_and_grad(fun)), product, jax.jit(jax.hessian(fun))

    stop = {"Newton-CG": "xtol"}.get(method, "gtol")

    def solve(fun, x0, args, tol):
        value_and_grad, product, hessian = derivatives(fun)

        asked = 0

        def both(x):
            nonlocal asked
            asked += 1
            value, grad = value_and_grad(x, *args)
            return float(value), np.asarray(grad, np.float64)

        def hessp(x, v):
            nonlocal asked
            asked += 2
            return np.asarray(product(x, v, *args))

        def hess(x):
            nonlocal asked
            asked += 2 * x.size
            return np.asarray(hessian(x, *args))

        options: dict[str, Any] = {stop: tol, "maxiter": max_steps}
        more: dict[str, Callable] = {}
        if method == "L-BFGS-B":
            options |= {"ftol": 0.0, "maxfun": 20 * max_steps}
        if method in ("Newton-CG", "trust-ncg", "trust-krylov"):
            more["hessp"] = hessp
        if method == "trust-exact":
            more["hess"] = hess
        start = np.asarray(x0, np.float64)
        found = minimize(both, start, jac=True, method=method, options=options, **more)
        return Outcome(found.x, found.success, found.nit, asked)

    return solve


def jaxopt_lbfgs(max_steps: int) -> Solver:
    import jaxopt

    @functools.cache
    def solver(fun, tol):
        return jaxopt.LBFGS(fun, maxiter=max_steps, tol=tol)

    def solve(fun, x0, args, tol):
        found = solver(fun, tol).run(x0, *args)
        return Outcome(found.params, found.state.error <= tol, found.state.iter_num)

    return solve


def optimistix_by(name: str, max_steps: int) -> Solver:
    import equinox as eqx
    import optimistix as optx

    @eqx.filter_jit
    def run(fun, x0, args, tol):
        # its tolerances are of steps in x and f, and enter the compiled program as constants
        solver = getattr(optx, name)(rtol=tol, atol=tol)
        found = optx.minimise(
            lambda x, args: fun(x, *args), solver, x0, args, max_steps=max_steps, throw=False
        )
        return Outcome(
            found.value, found.result == optx.RESULTS.successful, found.stats["num_steps"]
        )

    return run


def optax_lbfgs(max_steps: int) -> Solver:
    """The loop of optax's own documentation, stopped by the gradient."""
    import jax
    import jax.numpy as jnp
    import optax

    tx = optax.lbfgs()

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def solve(fun, x0, args, tol):
        bound = functools.partial(_swapped, fun, args)
        value_and_grad = optax.value_and_grad_from_state(bound)

        def step(carry):
            x, state = carry
            value, grad = value_and_grad(x, state=state)
            updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=bound)
            return optax.apply_updates(x, updates), state

        def going(carry):
            count = optax.tree.get(carry[1], "count")
            grad = optax.tree.get(carry[1], "grad")
            return (count == 0) | ((count < max_steps) & (jnp.max(jnp.abs(grad)) > tol))

        x, state = jax.lax.while_loop(going, step, (x0, tx.init(x0)))
        largest = jnp.max(jnp.abs(optax.tree.get(state, "grad")))
        return Outcome(x, largest <= tol, optax.tree.get(state, "count"))

    return solve


def _swapped(fun, args, x):
    return fun(x, *args)


OURS = (
    "auto", "newton", "newton-cg", "trust-region", "trust-region-exact", "cubic", "dogleg",
    "bfgs", "lbfgs", "sr1", "nonlinear-cg",
)  # fmt: skip
SCIPY = ("L-BFGS-B", "BFGS", "Newton-CG", "trust-ncg", "trust-exact")

METHODS: dict[str, Callable[[int], Solver]] = {
    **{f"optikit {m}": functools.partial(optikit_by, m) for m in OURS},
    **{f"scipy {m} + jax": functools.partial(scipy_by, m) for m in SCIPY},
    "jaxopt LBFGS": jaxopt_lbfgs,
    **{f"optimistix {m}": functools.partial(optimistix_by, m) for m in ("BFGS", "LBFGS")},
    "optax lbfgs": optax_lbfgs,
}
