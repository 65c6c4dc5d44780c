"""What kind of point this is: a statement about a local optimum, with its evidence."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optikit.analyze.certificate import Certificate
from optikit.analyze.examine import ROWS, examine
from optikit.analyze.operator import check_wide
from optikit.calculus.derivatives import Fun
from optikit.calculus.validate import as_args, as_key, as_objective, as_params, check_scalar
from optikit.core import Key, Params, as_box, start_inside, tree
from optikit.core.box import Box
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
    confidence: float = 0.99,
    bounds: Any = None,
    key: Key | None = None,
) -> Certificate:
    """Say what kind of point params is for fun: minimum, saddle, maximum, degenerate, or none.

    Args:
      fun: a function (params, *args) -> scalar, or an Objective.
      tol: a stationary point is one whose Newton step is at most tol max(1, |params|) long and
        changes f by at most tol max(1, |f|); by default 1e-4 in float64 and 1e-2 in float32.
      num_products: Hessian products for Lanczos, above 1000 parameters.
      confidence: with which an eigenvalue below the bound of `cert.lower` was not missed by
        Lanczos; a minimum is stated where that bound is positive.
      bounds: a pair (lower, upper) as for `minimize`: is it a minimum on the box? A parameter on a
        bound that its gradient pushes against is held and taken out, but not where the push is
        noise or gone at the end of the Newton step: its curvature is then looked at, for the price
        of the Hessian or products again.
      key: for the Lanczos start and the line on which noise is measured; fixed by default.

    Returns: a Certificate; `print` it for the statement in words. Cost: 21 grads (20 to measure
      rounding noise, kinks and the slope along the Newton step) and one hessian up to 1000
      parameters, else 22 grads and `num_products` hvps; 33 values for a way out. Where a basis of
      `num_products` vectors would have more than 2^26 numbers, about 15 vectors of memory and up
      to three times the products.

    A minimum, saddle or maximum is what derivatives say in the function's own precision: errors of
    a Hessian that its neighbourhood shares are not seen.

    Works under `jit` and `vmap`, where a point that is not finite gives `cannot-tell`, with NaN.

    Raises:
      TypeError: fun is not scalar, or a parameter not floating point or narrower than float32.
      FloatingPointError: fun or its derivatives are not finite at params.
      ValueError: params outside of the bounds.

    References: Moré & Wild (2011) for the noise; Kuczynski & Wozniakowski (1992) and van Dorsselaer
    et al. (2000) for the confidence (`optikit.linalg.bracket`); Nocedal & Wright (2006), section
    12.5, for the second-order conditions on a box.

    Example:
      >>> cert = certify(lambda x: x[0] ** 2 - x[1] ** 2, jnp.zeros(2))
      >>> str(cert.kind), round(cert.smallest), cert.gain > 0
      ('saddle', -2, True)
    """
    objective, params, args = as_objective(fun, has_aux=has_aux), as_params(params), as_args(args)
    check_scalar(objective, params, args)
    check_wide(params)
    key = None if key is None else as_key(key)
    box = None if bounds is None else as_box(bounds, params)
    if box is not None:
        params = start_inside(box, params)
    n = tree.size(params)
    dense = n <= DENSE_UP_TO
    traced = under_transformation()
    cert = (examine if traced else _examined)(
        params, args, tol, key, box, confidence, objective=objective, dense=dense,
        num_products=num_products, rows=ROWS if traced or not dense else n,
    )  # fmt: skip
    if traced:
        return cert
    if not np.isfinite(cert.value) or not np.isfinite(cert.grad_norm):
        msg = f"the function is {float(cert.value)} at params, or its gradient is not finite."
        raise FloatingPointError(msg)
    if not np.isfinite(cert.largest):
        msg = "the Hessian is not finite at params."
        raise FloatingPointError(msg)
    plain = ("value", "grad_norm", "smallest", "largest", "smallest_error", "largest_error",
             "flat", "step_norm", "decrement", "gain", "value_noise", "grad_noise", "lower",
             "confidence", "gap", "radius")  # fmt: skip
    whole = ("num_negative", "num_flat", "num_held")
    return dataclasses.replace(
        cert,
        at_noise=bool(cert.at_noise),
        **{name: float(getattr(cert, name)) for name in plain},
        **{name: int(getattr(cert, name)) for name in whole},
    )


def certify_many(
    fun: Fun,
    params: Params,
    args: tuple = (),
    *,
    has_aux: bool = False,
    tol: float | None = None,
    num_products: int = 80,
    confidence: float = 0.99,
    bounds: Any = None,
    key: Key | None = None,
) -> Certificate:
    """Certify params[i] for fun(., *args[i]) for every i, as for the results of `minimize_many`.

    Axis 0 of every leaf of params and args is the problem axis. In blocks, so that memory is
    bounded and another number of points compiles nothing new.

    Args:
      fun, tol, num_products, confidence, key: as for `certify`.
      bounds: (lower, upper) of all points, in the shapes of params, or numbers.

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
    check_wide(params)
    key = None if key is None else as_key(key)
    box = None if bounds is None else as_box(bounds, params)
    if box is not None:
        params = start_inside(box, params)
    n = tree.size(params) // size
    dense = n <= DENSE_UP_TO
    affordable = max(BLOCK[1] // max(n * n if dense else n * num_products, 1), 1)
    lanes = min(BLOCK[0], 2 ** int(np.log2(affordable)), 1 << (size - 1).bit_length())
    options = {"objective": objective, "dense": dense, "num_products": num_products}
    if under_transformation():
        return jax.vmap(lambda p, a, b: examine(p, a, tol, key, b, confidence, **options))(
            params, args, box
        )
    parts = []
    for start in range(0, size, lanes):
        block = np.minimum(np.arange(start, start + lanes), size - 1).astype(np.int32)
        parts.append(
            jax.device_get(
                _examined_many(*_take((params, args, box), block), tol, key, confidence, **options)
            )
        )
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:size], *parts)


@jit
def _take(arrays, lanes):
    return jax.tree.map(lambda x: jnp.take(x, lanes, axis=0), arrays)


STATIC = ("objective", "dense", "num_products", "rows")


@functools.partial(jit, static_argnames=STATIC)
def _examined(params, args, tol, key, box, confidence, *, objective, dense, num_products, rows):
    return examine(
        params, args, tol, key, box, confidence, objective=objective, dense=dense,
        num_products=num_products, rows=rows,
    )  # fmt: skip


@functools.partial(jit, static_argnames=STATIC[:3])
def _examined_many(params, args, box, tol, key, confidence, *, objective, dense, num_products):
    def one(p: Params, a: tuple, b: Box | None) -> Certificate:
        check_scalar(objective, p, a)
        return examine(
            p, a, tol, key, b, confidence, objective=objective, dense=dense,
            num_products=num_products,
        )  # fmt: skip

    return jax.vmap(one)(params, args, box)
