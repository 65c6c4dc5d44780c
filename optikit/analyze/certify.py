"""What kind of point this is: a statement about a local optimum, with its evidence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from optikit.analyze.certificate import Certificate
from optikit.analyze.examine import examine
from optikit.calculus.derivatives import Fun
from optikit.calculus.validate import as_args, as_objective, as_params, check_scalar
from optikit.core import Key, Params, tree
from optikit.core.compiled import jit, under_transformation
from optikit.solve.many import batch_size

DENSE_UP_TO = 1000
"""Parameters up to which the whole Hessian is built."""

BLOCK = (512, 2**22)
"""Points certified together, and entries of their Hessians, at most."""


def certify(
    fun: Fun,
    params: Params,
    args: tuple = (),
    *,
    has_aux: bool = False,
    tol: float | None = None,
    num_products: int = 80,
    key: Key | None = None,
) -> Certificate:
    """Say what kind of point params is for fun: minimum, saddle, maximum, degenerate, or none.

    Args:
      fun: a function (params, *args) -> scalar, or an Objective.
      tol: a stationary point is one whose Newton step is at most tol max(1, |params|); by default
        1e-4 in float64 and 1e-2 in float32.
      num_products: Hessian products for Lanczos, above 1000 parameters.
      key: for the Lanczos start; fixed by default.

    Returns: a Certificate; `print` it for the statement in words. Cost: one grad and one hessian
      up to 1000 parameters, else 2 grads and `num_products` hvps; 33 values for a way out.

    Works under `jit` and `vmap`, where a point that is not finite gives `cannot-tell`, with NaN.

    Raises:
      TypeError: fun is not scalar, or a parameter not floating point.
      FloatingPointError: fun or its derivatives are not finite at params.

    Example:
      >>> cert = certify(lambda x: x[0] ** 2 - x[1] ** 2, jnp.zeros(2))
      >>> str(cert.kind), round(cert.smallest), cert.gain > 0
      ('saddle', -2, True)
    """
    objective, params, args = as_objective(fun, has_aux=has_aux), as_params(params), as_args(args)
    check_scalar(objective, params, args)
    dense = tree.size(params) <= DENSE_UP_TO
    traced = under_transformation()
    cert = (examine if traced else _examined)(
        params, args, tol, key, objective=objective, dense=dense, num_products=num_products
    )
    if traced:
        return cert
    if not np.isfinite(cert.value) or not np.isfinite(cert.grad_norm):
        msg = f"the function is {float(cert.value)} at params, or its gradient is not finite."
        raise FloatingPointError(msg)
    if not np.isfinite(cert.smallest):
        msg = "the Hessian is not finite at params."
        raise FloatingPointError(msg)
    plain = ("value", "grad_norm", "smallest", "largest", "smallest_error", "largest_error",
             "flat", "step_norm", "decrement", "gain")  # fmt: skip
    return dataclasses.replace(cert, **{name: float(getattr(cert, name)) for name in plain})


def certify_many(
    fun: Fun,
    params: Params,
    args: tuple = (),
    *,
    has_aux: bool = False,
    tol: float | None = None,
    num_products: int = 80,
    key: Key | None = None,
) -> Certificate:
    """Certify params[i] for fun(., *args[i]) for every i, as for the results of `minimize_many`.

    Axis 0 of every leaf of params and args is the problem axis. In blocks, so that memory is
    bounded and another number of points compiles nothing new.

    Args:
      fun, tol, num_products, key: as for `certify`.

    Returns: a Certificate whose leaves have the problem axis first. A point that is not finite is
      `cannot-tell`.

    Raises:
      TypeError: as `certify` does.
      ValueError: leading axes that disagree, no problem.

    Example:
      >>> certs = certify_many(lambda x: (x**2 - 1) ** 2, jnp.array([-1.0, 0.0, 1.0]))
      >>> certs.kind.tolist()
      ['minimum', 'maximum', 'minimum']
    """
    objective, args = as_objective(fun, has_aux=has_aux), as_args(args)
    size = batch_size(params, args)
    params, args = as_params(params), jax.tree.map(jnp.asarray, args)
    n = tree.size(params) // size
    dense = n <= DENSE_UP_TO
    affordable = max(BLOCK[1] // max(n * n if dense else n * num_products, 1), 1)
    lanes = min(BLOCK[0], 2 ** int(np.log2(affordable)), 1 << (size - 1).bit_length())
    options = {"objective": objective, "dense": dense, "num_products": num_products}
    if under_transformation():
        return jax.vmap(lambda p, a: examine(p, a, tol, key, **options))(params, args)
    parts = []
    for start in range(0, size, lanes):
        block = np.minimum(np.arange(start, start + lanes), size - 1).astype(np.int32)
        parts.append(
            jax.device_get(_examined_many(*_take((params, args), block), tol, key, **options))
        )
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:size], *parts)


@jit
def _take(arrays, lanes):
    return jax.tree.map(lambda x: jnp.take(x, lanes, axis=0), arrays)


STATIC = ("objective", "dense", "num_products")


@functools.partial(jit, static_argnames=STATIC)
def _examined(params, args, tol, key, *, objective, dense, num_products):
    return examine(
        params, args, tol, key, objective=objective, dense=dense, num_products=num_products
    )


@functools.partial(jit, static_argnames=STATIC)
def _examined_many(params, args, tol, key, *, objective, dense, num_products):
    def one(p: Params, a: tuple) -> Certificate:
        check_scalar(objective, p, a)
        return examine(p, a, tol, key, objective=objective, dense=dense, num_products=num_products)

    return jax.vmap(one)(params, args)
