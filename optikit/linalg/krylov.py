"""Exact minimisers of a model over a Krylov space: GLTR, and its cubic counterpart.

Lanczos vectors q_j of H, begun at the gradient, turn the model into one with a tridiagonal matrix
T, which is minimised exactly, in the ball or under the cubic term. Unlike Steihaug's path, which
stops where it meets the boundary or negative curvature, the solution goes on improving there. The
true residual is |H s + mu s + g| = beta_k |y_k|: no further product is needed to know it.

Lanczos vectors are kept and reorthogonalised, which costs memory and spares the products that lost
orthogonality wastes. The small problem is solved each time their number has grown by a third.

References: Gould, Lucidi, Roma & Toint (1999), "Solving the trust-region subproblem using the
Lanczos method"; Cartis, Gould & Toint (2011), part I, section 6.2.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.calculus.oracle import CurvatureKind
from optikit.core import Key, Scalar, memoized, tally, times, tree
from optikit.core.tree import HIGHEST
from optikit.linalg.cg import check_precondition, convex_along, or_probe, variables
from optikit.linalg.exact import Region, proposal
from optikit.linalg.precondition import Memory, Precondition, blank
from optikit.linalg.secular import in_ball, spectrum, under_cubic
from optikit.linalg.subproblem import Direction, Inner, Model, Subproblem

MEMORY = 2**27
"""Numbers that the Lanczos vectors may fill by default."""


class _Run(NamedTuple):
    basis: Float[Array, "k n"]  # orthonormal rows, zero where not yet reached
    diagonal: Float[Array, " k"]
    beside: Float[Array, " k"]  # beta_j, coupling rows j and j + 1
    q: Float[Array, " n"]  # the next row
    scale: Scalar
    products: Int[Array, ""]
    check: Int[Array, ""]  # the number of products at which to look next
    done: Bool[Array, ""]


@memoized
def krylov(
    *,
    region: Region = "ball",
    max_iters: int | None = None,
    precondition: Precondition = "none",
) -> Subproblem:
    """The minimiser over a Krylov space as a Subproblem, for any curvature given by products.

    Args:
      region: "ball" for |s| <= radius; "cubic" to add sigma |s|^3 / 3, where sigma is passed in
        place of the radius.
      max_iters: products per proposal, at most n; by default 100, fewer where their vectors would
        fill more than 2^27 numbers.
      precondition: "none", "diagonal" or "nystrom"; see `optikit.linalg.conjugate_gradients`. The
        radius is then meant in the norm of the preconditioner.

    Raises:
      ValueError: an unknown preconditioner, or one for the region "cubic".

    Cost: the operator's setup, then one product per Lanczos vector; memory for as many vectors.

    Example:
      >>> import optikit as ok
      >>> from optikit.globalize import trust_region
      >>> method = ok.second_order(solve=krylov(), globalize=trust_region())
      >>> bool(ok.minimize(lambda x: jnp.sum(x**4 - x), jnp.zeros(3), method=method).success)
      True
    """
    check_precondition(precondition)
    if region == "cubic" and precondition != "none":
        msg = f"precondition={precondition!r} is for region='ball'; got 'cubic'."
        raise ValueError(msg)

    def prepare(
        oracle: Oracle, at: Eval, kind: CurvatureKind, key: Key, memory: Memory | None = None
    ) -> Model:
        op = oracle.curvature(kind, at.params, key if kind == "fisher" else None)
        product, probe = op.mv, or_probe(at)
        change = variables(precondition, oracle, at, kind, product, op.price, key, memory)
        inside = product
        if change is not None:
            probe, inside = change.apply(probe), change.around(product)
        gradient, unravel = ravel_pytree(probe)
        size, n, dtype = tree.norm(gradient), gradient.size, at.value.dtype
        length = jnp.maximum(1, tree.norm(at.params)).astype(gradient.dtype)
        limit = min(100, max(10, MEMORY // n)) if max_iters is None else max_iters
        k = max(1, min(limit, n))

        def matrix(run: _Run) -> Float[Array, "k k"]:
            """T, with values above all of its own where it has not been reached."""
            reached = jnp.arange(k, dtype=jnp.int32) < run.products
            inside = jnp.arange(k - 1, dtype=jnp.int32) < run.products - 1
            diagonal = jnp.where(reached, run.diagonal, 0)
            beside = jnp.where(inside, run.beside[:-1], 0)
            above = jnp.max(jnp.abs(diagonal)) + 2 * jnp.max(beside, initial=0)
            diagonal = jnp.where(reached, diagonal, above)
            return jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)

        def reduced(run: _Run):
            values, vectors = jnp.linalg.eigh(matrix(run), symmetrize_input=False)
            return vectors, spectrum(values, size * vectors[0])

        def propose(bound: Scalar, inner: Inner) -> Direction:
            bound = bound.astype(gradient.dtype)
            # a gradient of zero says nothing about when to stop
            exact = tree.max_abs(at.grad) == 0
            forcing = jnp.where(exact, 0, inner.forcing).astype(gradient.dtype)

            def solved(run: _Run) -> Bool[Array, ""]:
                vectors, model = reduced(run)
                solve = under_cubic if region == "cubic" else in_ball
                radius = jnp.where(jnp.isinf(bound) & model.bent, length, bound)
                y = jnp.matmul(vectors, solve(model, radius).coefficients, precision=HIGHEST)
                last = run.products - 1
                return run.beside[last] * jnp.abs(y[last]) <= forcing * size

            def body(run: _Run) -> _Run:
                run = _extended(run, lambda v: ravel_pytree(inside(unravel(v)))[0])
                # closed: the space is invariant, and more products would say nothing
                ended = (run.beside[run.products - 1] == 0) | (run.products == k)
                look = (run.products == run.check) & ~ended
                done = ended | lax.cond(look, solved, lambda run: jnp.asarray(False), run)
                check = jnp.where(look, run.check + 1 + run.check // 3, run.check)
                return run._replace(done=done | ~jnp.isfinite(run.scale), check=check)

            run = lax.while_loop(lambda run: ~run.done, body, _begun(gradient, k))
            vectors, model = reduced(run)

            rows = jnp.matmul(vectors.T, run.basis, precision=HIGHEST)
            found, _ = proposal(model, bound, region, length, rows, dtype)
            step, measured = unravel(found.step), None
            if change is not None:
                step, measured = change.apply(step), tree.norm(found.step).astype(dtype)
            return found._replace(
                step=step,
                length=measured,
                slope=tree.vdot(at.grad, step).astype(dtype),
                scale=run.scale.astype(dtype),
                counts=times(run.products, op.price),
            )

        look_along = convex_along(product, op.price, dtype) if kind == "hessian" else None
        spent = op.setup if change is None else tally(op.setup, change.counts)
        return Model(propose, tally(spent), look_along, () if change is None else change.memory)

    init = None if precondition == "none" else lambda at: blank(precondition, at.params)
    return Subproblem(prepare, init=init, truncated=True)


def _begun(gradient: Float[Array, " n"], k: int) -> _Run:
    dtype = gradient.dtype
    size = tree.norm(gradient)
    return _Run(
        basis=jnp.zeros((k, gradient.size), dtype),
        diagonal=jnp.zeros(k, dtype),
        beside=jnp.zeros(k, dtype),
        q=gradient / jnp.where(size > 0, size, 1),
        scale=jnp.zeros((), dtype),
        products=jnp.asarray(0, jnp.int32),
        check=jnp.asarray(2, jnp.int32),
        done=jnp.asarray(False),
    )


def _extended(run: _Run, product) -> _Run:
    """One more Lanczos vector, orthogonalised twice against all before it."""
    j = run.products
    basis = run.basis.at[j].set(run.q)
    w = product(run.q)
    diagonal = run.diagonal.at[j].set(jnp.vdot(run.q, w, precision=HIGHEST))
    scale = jnp.maximum(run.scale, tree.norm(w))
    for _ in range(2):
        w = w - jnp.matmul(jnp.matmul(basis, w, precision=HIGHEST), basis, precision=HIGHEST)
    beta = tree.norm(w)
    closed = beta <= 10 * run.q.size**0.5 * tree.eps(w.dtype) * scale
    beta = jnp.where(closed, 0, beta)
    return run._replace(
        basis=basis,
        diagonal=diagonal,
        beside=run.beside.at[j].set(beta),
        q=w / jnp.where(closed, 1, beta),
        scale=scale,
        products=j + 1,
    )
