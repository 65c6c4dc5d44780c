"""Conjugate gradients on a quadratic model, truncated, inside a radius, at home with saddles.

One loop serves Newton-CG (infinite radius) and the trust region (Steihaug). Where a direction of
non-positive curvature appears, the trust region follows it to the boundary; without a radius the
step is extended along it by the length that CG would take for the curvature's absolute value, so
the result is a descent direction that leaves saddles.

References: Steihaug (1983), "The conjugate gradient method and trust regions"; Nocedal & Wright
(2006), Algorithms 7.1 and 7.2; Dembo & Steihaug (1983) for the truncation.
"""

from collections.abc import Callable
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from optikit.calculus import Eval, Oracle
from optikit.calculus.oracle import CurvatureKind
from optikit.calculus.predictor import linear_predictor
from optikit.core import Counts, Key, Params, Scalar, memoized, tally, times, tree
from optikit.linalg.precondition import Change, Memory, Precondition, blank, remember
from optikit.linalg.subproblem import Direction, Inner, Model, Subproblem


class _Run(NamedTuple):
    """The iterations, within the loop in the units of `truncated`."""

    s: Params  # the step so far
    r: Params  # the model's gradient g + H s
    p: Params  # the search direction; the last one that was taken, where its curvature was negative
    rr: Scalar
    iterations: Int[Array, ""]
    done: Bool[Array, ""]
    at_boundary: Bool[Array, ""]
    convex: Bool[Array, ""]  # no direction of negative curvature so far
    bend: Scalar  # <p, H p> of the last direction that was taken
    scale: Scalar  # largest |H p| / |p| so far
    beyond: Scalar  # what the model would still give along p, where the radius cut it


FADING = 10
"""A curvature met in one step is remembered at a tenth of its size in the next: where a steep wall
lies behind, the valley's curvature is no rounding of the wall's."""

FAR = 1e9
"""Times the step's unit: beyond any radius, and its square is still finite in float32."""


@memoized
def conjugate_gradients(
    *, max_iters: int | None = None, precondition: Precondition = "none"
) -> Subproblem:
    """Truncated CG as a Subproblem, for any curvature given by products.

    Args:
      max_iters: products per proposal; by default twice the number of parameters, at most 500.
      precondition: "none"; "diagonal", exact where the objective is composite and its model affine
        in the parameters, at each step for the price of a product, else estimated from 12; or
        "nystrom", a sketch of the leading eigenspace from 10 to 80 products, for spectra that
        decay. These are built at the first step and every tenth after it. The radius is then meant
        in the norm of the preconditioner.

    Cost: the operator's setup, then one product per iteration. At a point whose gradient is
    exactly zero the model is probed along a direction without symmetry, so that a start on a saddle
    is left.

    Raises:
      ValueError: an unknown preconditioner.
    """
    check_precondition(precondition)

    def prepare(
        oracle: Oracle, at: Eval, kind: CurvatureKind, key: Key, memory: Memory | None = None
    ) -> Model:
        op = oracle.curvature(kind, at.params, key if kind == "fisher" else None)
        product = op.mv
        dtype = at.value.dtype
        length = jnp.maximum(1, tree.norm(at.params)).astype(dtype)
        change = variables(precondition, oracle, at, kind, product, op.price, key, memory)
        limit = min(2 * tree.size(at.params), 500) if max_iters is None else max_iters

        def propose(radius: Scalar, inner: Inner) -> Direction:
            gradient = or_probe(at) if change is None else change.apply(or_probe(at))
            inside = product if change is None else change.around(product)
            run = truncated(inside, gradient, radius, inner, limit)
            # <s, H s> = <s, r> - <s, g> with r = g + H s
            curvature = tree.vdot(run.s, tree.subtract(run.r, gradient)).astype(dtype)
            # on a saddle or a maximum the gradient gives no step: follow the curvature found, alone
            resting = tree.max_abs(at.grad) == 0
            bent = resting & ~run.convex & ~run.at_boundary
            inner_step = tree.where(bent, run.p, run.s)
            curvature = jnp.where(bent, run.bend, curvature)
            found = inner_step if change is None else change.apply(inner_step)
            size = tree.norm(found).astype(dtype)
            lost = (curvature < 0) & (size < 1e-3 * length) & ~run.at_boundary
            factor = jnp.where(lost, 0.1 * length / jnp.where(size > 0, size, 1), 1)
            s = tree.scale(factor, found)
            measured = None if change is None else factor * tree.norm(inner_step).astype(dtype)
            at_rest = resting & run.convex  # the model's minimum is here
            s = tree.where(at_rest, tree.zeros_like(s), s)
            slope = tree.vdot(at.grad, s).astype(dtype)
            curvature = jnp.where(at_rest, 0, factor**2 * curvature)
            bottom = run.beyond.astype(dtype) - (slope + curvature / 2)
            counts = times(run.iterations, op.price)
            return Direction(
                s, slope, curvature, run.at_boundary, run.convex, run.scale.astype(dtype), counts,
                bottom=bottom, length=measured,
            )  # fmt: skip

        look_along = convex_along(product, op.price, dtype) if kind == "hessian" else None
        spent = op.setup if change is None else tally(op.setup, change.counts)
        kept = () if change is None else change.memory
        return Model(propose, tally(spent), look_along, kept)

    init = None if precondition == "none" else lambda at: blank(precondition, at.params)
    return Subproblem(prepare, init=init, truncated=True)


def check_precondition(precondition: Precondition) -> None:
    """Refuse an unknown name.

    Raises:
      ValueError: naming those that are known.
    """
    if precondition not in get_args(Precondition):
        msg = f"precondition must be 'none', 'diagonal' or 'nystrom'; got {precondition!r}."
        raise ValueError(msg)


def variables(
    precondition: Precondition,
    oracle: Oracle,
    at: Eval,
    kind: CurvatureKind,
    product: Callable[[Params], Params],
    price: Counts,
    key: Key,
    memory: Memory | None,
) -> Change | None:
    """The change of variables that preconditions a product of that price; None without one."""
    if memory is None:
        return None
    known = known_diagonal(oracle, at, kind) if precondition == "diagonal" else None
    return remember(precondition, product, price, at.params, key, memory, known)


def known_diagonal(
    oracle: Oracle, at: Eval, kind: CurvatureKind
) -> Callable[[], Float[Array, " n"]] | None:
    """The exact diagonal of a linear model's curvature, charged as a product; None elsewhere."""
    if kind not in ("hessian", "ggn"):
        return None
    predictor = linear_predictor(oracle.objective, at.params, oracle.args)
    if predictor is None or predictor.grid() is None:
        return None

    def diagonal() -> Float[Array, " n"]:
        oracle.tap("hvp" if kind == "hessian" else "ggnvp")
        entries = predictor.hessian_diagonal(oracle.output_curvature(kind), at.params)
        assert entries is not None
        return entries

    return diagonal


def convex_along(
    product: Callable[[Params], Params], price: Counts, dtype: jnp.dtype
) -> Callable[[Params], tuple[Bool[Array, ""], Counts]]:
    """`Model.is_convex_along` of a model given by products: one product looks."""

    def look(vector: Params) -> tuple[Bool[Array, ""], Counts]:
        largest = tree.max_abs(vector)
        unit = jnp.where(largest > 0, largest, 1)
        vector = jax.tree.map(lambda x: x / unit.astype(x.dtype), vector)
        image = product(vector)
        size = jnp.sqrt(tree.vdot(vector, vector)) * tree.norm(image)
        return tree.vdot(vector, image) >= -tree.eps(dtype) * size, price

    return look


def or_probe(at: Eval) -> Params:
    """The gradient; where it is exactly zero, a tiny vector without symmetry in its place."""
    zero = tree.max_abs(at.grad) == 0
    tiny = tree.eps(at.value.dtype)

    def probe(x: Array) -> Array:
        # a quasi-random sequence: irrational rotations hit no eigenvector of a structured Hessian
        turns = 2.399963 * (1 + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape))
        return jnp.where(zero, tiny * jnp.cos(turns + turns**2 / 7), x)

    return jax.tree.map(probe, at.grad)


def truncated(
    product: Callable[[Params], Params],
    g: Params,
    radius: Scalar,
    inner: Inner,
    max_iters: int | Int[Array, ""],
) -> _Run:
    """CG on H s = -g until |r| <= forcing |g|, the radius, or curvature that is not positive.

    In units, so that no square over- or underflows: residuals and directions in that of the largest
    entry of g, steps in the radius where there is one, and products in the curvature met.
    """
    largest = tree.max_abs(g)
    dtype = largest.dtype
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    radius, forcing = radius.astype(dtype), inner.forcing.astype(dtype)
    eps = tree.eps(dtype) * tree.size(g) ** 0.5
    bounded = jnp.isfinite(radius)
    length = jnp.where(bounded & (radius > 0), radius, unit)
    first = jax.tree.map(lambda x: x / unit.astype(x.dtype), g)
    rr0 = tree.vdot(first, first)

    def running(c: _Run) -> Array:
        return ~c.done & (c.iterations < max_iters)

    def body(c: _Run) -> _Run:
        hp = product(c.p)
        pp, php = tree.vdot(c.p, c.p), tree.vdot(c.p, hp)
        met = jnp.maximum(c.scale, jnp.abs(php) / jnp.where(pp > 0, pp, 1))
        met = jnp.where((met > 0) & jnp.isfinite(met), met, 1)
        sized = jax.tree.map(lambda x: x / met.astype(x.dtype), hp)
        steep = met * jnp.sqrt(tree.vdot(sized, sized) / jnp.where(pp > 0, pp, 1))
        scale = jnp.maximum(c.scale, steep)
        flat = jnp.abs(php) <= eps * scale * pp  # no curvature but rounding
        convex = (php > 0) & ~flat
        # without curvature there is no scale: a first step as long as the gradient, a later none
        size = jnp.where(flat, jnp.where(c.iterations == 0, c.rr, jnp.inf), jnp.abs(php))
        alpha = c.rr / jnp.where(size > 0, size, 1)
        ahead = alpha * unit / length  # the same in units of the step
        sp, ss = tree.vdot(c.s, c.p), tree.vdot(c.s, c.s)
        far = jnp.minimum(ahead, FAR)
        beyond = ss + 2 * far * sp + far**2 * pp >= 1
        leave = bounded & (beyond | (~convex & ~(flat & (c.iterations > 0))))
        # the positive root of |s + tau p| = radius, in the form that does not cancel
        gap = 1 - ss
        root = jnp.sqrt(jnp.maximum(sp**2 + pp * gap, 0))
        tau = jnp.where(sp > 0, gap / (root + sp), (root - sp) / jnp.where(pp > 0, pp, 1))
        s = tree.add_scaled(c.s, jnp.where(leave, tau, ahead), c.p)
        t = jnp.where(leave, tau * length / unit, alpha)
        r = tree.add_scaled(c.r, t, hp)
        rr = tree.vdot(r, r)
        p = tree.add_scaled(tree.negative(r), rr / c.rr, c.p)
        p = tree.where(php < 0, c.p, p)
        done = leave | ~convex | (rr <= forcing**2 * rr0) | ~jnp.isfinite(rr)
        left = jnp.where(leave & convex, php * (alpha - t) * (alpha - t) / 2, 0)
        still_convex = c.convex & (convex | flat)
        return _Run(s, r, p, rr, c.iterations + 1, done, leave, still_convex, php, scale, left)

    zeros = tree.zeros_like(g)
    none, no, yes = jnp.asarray(0, jnp.int32), jnp.asarray(False), jnp.asarray(True)
    scale, nothing = inner.scale.astype(dtype) / FADING, jnp.zeros((), dtype)
    start = _Run(
        zeros, first, tree.negative(first), rr0, none, rr0 == 0, no, yes, nothing, scale, nothing
    )
    run = lax.while_loop(running, body, start)
    return run._replace(
        s=tree.scale(length, run.s),
        r=tree.scale(unit, run.r),
        p=tree.scale(unit, run.p),
        bend=unit * (unit * run.bend),
        beyond=unit * (unit * run.beyond),
    )
