"""Eigenpairs, traces and diagonals of an objective's curvature, by products alone, with errors."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from optikit.analyze.operator import Look, flat_operator, require_factorizable, semidefinite
from optikit.calculus import Objective
from optikit.calculus.derivatives import Fun
from optikit.calculus.oracle import CurvatureKind
from optikit.calculus.validate import as_args, as_key, as_objective, as_params, check_scalar
from optikit.core import Counts, Key, LinearOperator, Params, Scalar, tally, times, tree
from optikit.core.compiled import jit, under_transformation
from optikit.linalg import eigenpairs as lanczos_pairs
from optikit.linalg import trace as estimators
from optikit.linalg.eigenpairs import Which

HELD = 2**26
"""Numbers that the test vectors of a trace may take; beyond, the estimator that holds none."""


class Eigenpairs(NamedTuple):
    """Eigenpairs, the most wanted first.

    Attributes:
      values: (k,). vectors: the parameters' structure, unit vectors along a leading axis of k.
      residuals: (k,): a true eigenvalue lies within this distance of each value.
      converged: whether every residual is within the tolerance asked.
      counts: oracle calls.
    """

    values: Float[Array, " k"]
    vectors: Params
    residuals: Float[Array, " k"]
    converged: Bool[Array, ""]
    counts: Counts


class Estimated(NamedTuple):
    """An unbiased estimate with its standard error.

    Attributes: value, error: a scalar, or the parameters' structure. counts: oracle calls.
    """

    value: Any
    error: Any
    counts: Counts


def eigenpairs(
    fun: Fun | LinearOperator,
    params: Params,
    args: tuple = (),
    *,
    k: int = 10,
    which: Which = "magnitude",
    curvature: CurvatureKind = "hessian",
    block: int = 1,
    basis: int | None = None,
    tol: float | None = None,
    max_restarts: int = 100,
    batch_size: int | None = None,
    leaves: str | None = None,
    scaling: Params | None = None,
    has_aux: bool = False,
    key: Key | None = None,
) -> Eigenpairs:
    """K eigenpairs of a curvature matrix, each with a bound on its error, by thick-restart Lanczos.

    Args:
      fun: a function, an Objective, or a LinearOperator over params (args and curvature are then
        of no concern).
      which: "magnitude", "largest", "smallest" (algebraically), or "ends".
      curvature: "hessian", "ggn", "fisher" (exact; `ok.fisher(..., key=)` gives an
        operator from sampled labels) or "empirical-fisher".
      block: products side by side; a cluster of that many equal eigenvalues is resolved at once.
      basis: vectors held, by default 2 k + 16 and a block. Memory is that of these.
      tol: residuals asked, relative to the largest |eigenvalue|; default 10 eps^(2/3).
      batch_size: examples at a time; see `optikit.calculus.batched.curvature_in_batches`.
      leaves: a pattern on leaf paths, e.g. "['layer1']*", for one block of the matrix.
      scaling: positive entries in the structure of params: of S A S with S their square root, the
        operator as a diagonal preconditioner (S^2 an inverse diagonal) makes it.
      key: of the first vectors; fixed by default.

    Raises:
      ValueError: k, block or basis that do not fit; a pattern without a leaf; an unknown `which`.
      TypeError: as the curvature does; parameters of half precision.

    Example:
      >>> found = eigenpairs(lambda x: x[0] ** 2 - 3 * x[1] ** 2 + x[2] ** 4, jnp.zeros(3), k=2)
      >>> [round(float(v)) for v in found.values]
      [-6, 2]
    """
    subject, params, args = as_subject(fun, params, args, has_aux)
    look = Look(curvature, batch_size, leaves)
    run = plain(_eigenpairs) if under_transformation() else _eigenpairs
    return run(
        params, args, scaling, as_key(key), subject=subject, look=look, k=k, which=which,
        block=block, basis=basis, tol=tol, max_restarts=max_restarts,
    )  # fmt: skip


def trace(
    fun: Fun | LinearOperator,
    params: Params,
    args: tuple = (),
    *,
    num_products: int = 32,
    rtol: float | None = None,
    max_products: int = 1024,
    curvature: CurvatureKind = "hessian",
    method: Literal["xtrace", "xnystrace", "hutchinson"] | None = None,
    batch_size: int | None = None,
    leaves: str | None = None,
    scaling: Params | None = None,
    has_aux: bool = False,
    key: Key | None = None,
) -> Estimated:
    """The trace of a curvature matrix, with its standard error.

    Args:
      num_products: of an estimate. rtol: a relative standard error to be reached: estimates with
        twice the products follow until one has it, or `max_products` is reached.
      method: "xtrace", whose error falls fast where few eigenvalues hold most of the trace and
        which holds as many vectors as products; "xnystrace", whose error falls faster, for positive
        semidefinite matrices alone; or "hutchinson", which holds four. By default the second for
        Fisher matrices and the GGN of a likelihood or of plain residuals, without a penalty; the
        first for others; and the last where their vectors take more than 2^26 numbers.
      others: as for `eigenpairs`.

    Raises:
      ValueError: an rtol under `jit` or `vmap`, where the products must be known beforehand.

    Example:
      >>> found = trace(lambda x: jnp.sum(x**2), jnp.ones(5))
      >>> round(float(found.value), 3), float(found.error)
      (10.0, 0.0)
    """
    found = functools.partial(
        _estimated, fun, params, args, "trace", curvature, method, batch_size, leaves, scaling,
        has_aux,
    )  # fmt: skip
    return _until(found, as_key(key), num_products, rtol, max_products)


def diagonal(
    fun: Fun | LinearOperator,
    params: Params,
    args: tuple = (),
    *,
    num_products: int = 32,
    rtol: float | None = None,
    max_products: int = 1024,
    curvature: CurvatureKind = "hessian",
    method: Literal["xtrace", "hutchinson"] | None = None,
    batch_size: int | None = None,
    leaves: str | None = None,
    scaling: Params | None = None,
    has_aux: bool = False,
    key: Key | None = None,
) -> Estimated:
    """The diagonal of a curvature matrix in the parameters' structure, with standard errors.

    Args:
      rtol: of the whole: |errors| over |values| in the Euclidean norm.
      others: as for `trace`; "xtrace" is XDiag here.

    Example:
      >>> found = diagonal(lambda p: p["a"] ** 2 + 3 * p["b"] ** 2, {"a": 1.0, "b": 1.0})
      >>> {name: float(value) for name, value in found.value.items()}
      {'a': 2.0, 'b': 6.0}
    """
    found = functools.partial(
        _estimated, fun, params, args, "diagonal", curvature, method, batch_size, leaves, scaling,
        has_aux,
    )  # fmt: skip
    return _until(found, as_key(key), num_products, rtol, max_products)


def _until(
    estimate: Callable[[Key, int], Estimated],
    key: Key,
    num_products: int,
    rtol: float | None,
    max_products: int,
) -> Estimated:
    """The first estimate of doubling cost that has the error asked for; counts are of all."""
    found = estimate(key, num_products)
    if rtol is None:
        return found
    if under_transformation():
        msg = "rtol decides while running how many products are made: under jit give num_products."
        raise ValueError(msg)
    spent = found.counts
    while num_products < max_products:
        size, error = float(tree.norm(found.value)), float(tree.norm(found.error))
        if np.isfinite(error) and error <= rtol * size:
            break
        num_products = min(2 * num_products, max_products)
        key = jax.random.fold_in(key, num_products)  # an estimate that stopped early is not reused
        found = estimate(key, num_products)
        spent = tally(spent, found.counts)
    return found._replace(counts=spent)


def _estimated(
    fun, params, args, what, curvature, method, batch_size, leaves, scaling, has_aux, key, products
) -> Estimated:
    subject, params, args = as_subject(fun, params, args, has_aux)
    if method is None:
        falling = what == "trace" and semidefinite(subject, curvature)
        method = "xnystrace" if falling else "xtrace"
        method = method if tree.size(params) * products <= HELD else "hutchinson"
    known = ("xtrace", "xnystrace", "hutchinson") if what == "trace" else ("xtrace", "hutchinson")
    if method not in known:
        msg = f"unknown method {method!r} for the {what}: use one of {', '.join(known)}."
        raise ValueError(msg)
    look = Look(curvature, batch_size, leaves)
    run = plain(_estimate) if under_transformation() else _estimate
    return run(
        params, args, scaling, key, subject=subject, look=look, what=what, method=method,
        products=products,
    )  # fmt: skip


def as_subject(
    fun: Fun | LinearOperator, params: Params, args: tuple, has_aux: bool
) -> tuple[Objective | LinearOperator, Params, tuple]:
    """The objective or operator, params and args, all checked."""
    params, args = as_params(params), as_args(args)
    if isinstance(fun, LinearOperator):
        return fun, params, args
    objective = as_objective(fun, has_aux=has_aux)
    check_scalar(objective, params, args)
    return objective, params, args


def plain(compiled: Callable) -> Callable:
    """The function under the compilation, for use inside another."""
    return compiled.__wrapped__  # type: ignore[attr-defined]


@functools.partial(
    jit, static_argnames=("subject", "look", "k", "which", "block", "basis", "tol", "max_restarts")
)
def _eigenpairs(
    params, args, scaling, key, *, subject, look, k, which, block, basis, tol, max_restarts
) -> Eigenpairs:
    flat = flat_operator(subject, params, args, look, scaling)
    require_factorizable(flat)
    found = lanczos_pairs.eigenpairs(
        flat.product, flat.size, k, key, dtype=flat.dtype, which=which, block=block,
        basis=basis, tol=tol, max_restarts=max_restarts,
    )  # fmt: skip
    return Eigenpairs(
        found.values,
        jax.vmap(flat.restore)(found.vectors),
        found.residuals,
        found.converged,
        tally(flat.setup, times(found.products, flat.price)),
    )


@functools.partial(jit, static_argnames=("subject", "look", "what", "method", "products"))
def _estimate(params, args, scaling, key, *, subject, look, what, method, products) -> Estimated:
    flat = flat_operator(subject, params, args, look, scaling)
    if method == "hutchinson":
        by = {"trace": estimators.hutchinson_trace, "diagonal": estimators.hutchinson}[what]
        found, whole = by(flat.apply, flat.like, key, num_products=products), flat.whole
    else:
        require_factorizable(flat)
        by = estimators.xdiagonal if what == "diagonal" else getattr(estimators, method)
        how = {"num_products": products, "dtype": flat.dtype}
        found, whole = by(flat.product, flat.size, key, **how), flat.restore
    value, error = found.value, found.error
    if what == "diagonal":
        value, error = whole(value), whole(error)
    paid: Scalar | int = found.products
    return Estimated(value, error, tally(flat.setup, times(paid, flat.price)))
