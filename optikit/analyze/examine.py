"""What the gradient, the Hessian and the neighbourhood of a point say about it.

All eigenvalues where the Hessian is small enough to be dense, the ends of the spectrum by Lanczos
where it is not. An eigenvalue within `flat` of zero, relative to the largest, says nothing about
its direction: the point is then degenerate, whatever the others say. What the neighbourhood
contradicts, and what rounding noise hides, is not stated.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int

from optikit.analyze.certificate import KINDS, REASONS, Certificate, Kind
from optikit.analyze.evidence import Evidence, dense_evidence, divided, krylov_evidence
from optikit.analyze.neighbourhood import Neighbourhood, look_around
from optikit.analyze.way_out import way_out
from optikit.calculus import Eval, Objective, bind
from optikit.calculus.validate import as_key
from optikit.core import Counts, Key, Params, Scalar, tally, times, tree
from optikit.core.box import Box

ROWS = 10
"""Flat directions that are held where they are not all wanted."""


def examine(
    params: Params,
    args: tuple,
    tol: Scalar | float | None,
    key: Key | None,
    box: Box | None,
    confidence: Scalar | float,
    *,
    objective: Objective,
    dense: bool,
    num_products: int,
    rows: int = ROWS,
) -> Certificate:
    """The certificate of a point, in arrays; `cannot-tell` where something is not finite."""
    at = bind(objective, args).value_and_grad(params)
    gradient, unravel = ravel_pytree(at.grad)
    dtype, n = gradient.dtype, gradient.size
    usable = jnp.isfinite(at.value) & tree.all_finite(at.grad)
    gradient = multipliers = jnp.where(usable, gradient, 0)
    held = jnp.zeros((), jnp.int32)
    free, weak = None, jnp.asarray(False)
    if box is not None:
        free, weak = _free(params, at, gradient, box)
        gradient = free * gradient
        held = jnp.sum(free == 0, dtype=jnp.int32)
    spectrum_key, near_key, way_key = jax.random.split(as_key(key), 3)

    def evidence(free: Array | None) -> tuple[Evidence, Counts]:
        if dense:
            return dense_evidence(objective, params, args, gradient, free, min(rows, n))
        return krylov_evidence(
            objective, params, args, gradient, free, min(rows, n, 4), num_products, confidence,
            spectrum_key,
        )  # fmt: skip

    s, price = evidence(free)
    reach = jnp.maximum(1, tree.norm(params)).astype(dtype)
    newton, descent = (jnp.where(jnp.isfinite(v), v, 0) for v in (s.newton, s.step))
    near, looked = look_around(objective, params, args, at, newton, descent, free, box, near_key)
    if box is not None and free is not None:
        doubtful = _doubtful(params, multipliers, free, near, box)
        once_more = jnp.any(doubtful)
        wider = jnp.maximum(free, doubtful)
        held, weak = jnp.sum(wider == 0, dtype=jnp.int32), weak | once_more
        # a loop of at most one turn: a condition would run under vmap whether needed or not
        _, s = lax.while_loop(
            lambda c: c[0], lambda _: (jnp.asarray(False), evidence(wider)[0]), (once_more, s)
        )
        price = times(1 + once_more.astype(jnp.int32), price)
    if tol is None:
        tol = 1e-4 if dtype.itemsize > 4 else 1e-2
    code, because, step_norm, decrement = _judge(s, near, at, gradient, reach, tol, dense, weak)
    finite = usable & jnp.all(jnp.isfinite(s.values))
    code = jnp.where(finite, code, _code(Kind.CANNOT_TELL))
    because = jnp.where(finite, because, REASONS.index("not-finite"))
    minimum = code == _code(Kind.MINIMUM)
    searched = finite & ~minimum
    way, point, gain, price_of_way = way_out(
        objective, params, args, at, gradient, s, near, reach, searched,
        code == _code(Kind.DEGENERATE), box, way_key,
    )  # fmt: skip
    size = tree.norm(gradient) + 3 * near.grad_noise
    bounded = minimum & (s.lower > 0)
    mu = jnp.where(bounded, s.lower, 1)
    return Certificate(
        code=code.astype(jnp.int32),
        value=at.value,
        grad_norm=tree.max_abs(at.grad) if box is None else box.stationarity(params, at.grad),
        smallest=s.smallest,
        largest=s.largest,
        smallest_error=s.errors[0],
        largest_error=s.errors[-1],
        flat=s.flat,
        step_norm=step_norm,
        decrement=decrement,
        gain=gain,
        because=because.astype(jnp.int32),
        value_noise=near.value_noise,
        grad_noise=near.grad_noise,
        at_noise=tree.norm(gradient) <= 3 * near.grad_noise,
        lower=s.lower,
        confidence=jnp.asarray(1.0 if dense else confidence, dtype),
        gap=jnp.where(bounded, size * (size / mu) / 2, jnp.inf),
        radius=jnp.where(bounded, size / mu, jnp.inf),
        num_negative=s.num_negative,
        num_flat=s.num_flat,
        num_held=held,
        way=unravel(way),
        point=point,
        flat_rows=jax.vmap(unravel)(s.rows),
        counts=tally(Counts(grad=1), price, looked, times(jnp.where(searched, 1, 0), price_of_way)),
        dense=dense,
        products=0 if dense else s.values.size,
    )


def _code(kind: Kind) -> int:
    return KINDS.index(kind)


def _free(params: Params, at: Eval, gradient: Array, box: Box) -> tuple[Array, Array]:
    """Ones where a parameter may move, and whether a bound is touched without being pushed.

    A multiplier of rounding size holds nothing: its parameter is examined as one that may move,
    which can only make a minimum harder to state.
    """
    size = jnp.max(jnp.abs(gradient), initial=0)
    pushed = jnp.abs(gradient) > 10 * tree.eps(gradient.dtype) * size
    x, low, high = (ravel_pytree(t)[0] for t in (params, box.lower, box.upper))
    active = ravel_pytree(box.held(params, at.grad))[0]
    fixed = low == high
    holding = (active & pushed) | fixed
    weak = jnp.any(((x <= low) | (x >= high)) & ~pushed & ~fixed)
    return (~holding).astype(gradient.dtype), weak


def _doubtful(
    params: Params, multipliers: Array, free: Array, near: Neighbourhood, box: Box
) -> Array:
    """Ones where a bound holds by a multiplier that is noise, or gone where the Newton step ends.

    Without it the parameter may move, and only its curvature keeps it.
    """
    x, low, high = (ravel_pytree(t)[0] for t in (params, box.lower, box.upper))
    noise = 3 * near.grad_noise / jnp.sqrt(jnp.maximum(jnp.sum(free), 1))
    sign = jnp.sign(multipliers)
    gone = sign * near.beyond <= jnp.maximum(jnp.abs(multipliers) / 10, noise)
    return (gone & (free == 0) & (low < high) & ((x <= low) | (x >= high))).astype(x.dtype)


def _judge(
    s: Evidence,
    near: Neighbourhood,
    at: Eval,
    gradient: Array,
    reach: Scalar,
    tol: Scalar | float,
    dense: bool,
    weak: Array,
) -> tuple[Int[Array, ""], Int[Array, ""], Scalar, Scalar]:
    """The kind of the point, why it cannot be told, the Newton step's length, the decrement."""
    flat, eps = s.flat, tree.eps(s.values.dtype)
    step_norm = tree.norm(divided(s.along, jnp.abs(s.sizes), flat))
    decrement = jnp.sum(s.along * divided(s.along, s.sizes, flat)) / 2
    change = jnp.sum(s.along * divided(s.along, jnp.abs(s.sizes), flat)) / 2
    size = jnp.maximum(1, jnp.abs(at.value)).astype(change.dtype)
    # along flat directions there is no step to measure: the slope itself must be negligible beside
    # those that the curvature makes
    curved = jnp.abs(s.sizes) > flat
    slope = jnp.max(jnp.where(curved, 0, jnp.abs(s.along)), initial=0)
    steepest = jnp.maximum(jnp.abs(s.smallest), jnp.abs(s.largest)) * reach
    still = slope <= jnp.maximum(10 * eps**0.5 * steepest, 3 * near.grad_noise)
    # a Ritz value is never below the smallest eigenvalue: what was seen negative is; that nothing
    # smaller was missed needs the whole spectrum, or the bound
    resolved = dense | (s.lower > flat)
    nothing_below = dense | (s.lower > -2 * flat)
    whole = (s.values[-1] < -flat) & dense
    downward = jnp.where(whole, _code(Kind.MAXIMUM), _code(Kind.DEGENERATE))
    downward = jnp.where(s.values[-1] > flat, _code(Kind.SADDLE), downward)
    cannot = _code(Kind.CANNOT_TELL)
    upward = jnp.where(
        s.smallest > flat,
        jnp.where(resolved, _code(Kind.MINIMUM), cannot),
        jnp.where(nothing_below, _code(Kind.DEGENERATE), cannot),
    )
    code = jnp.where(s.smallest < -flat, downward, upward)
    because = jnp.where(code == cannot, REASONS.index("unresolved"), 0)

    def doubted(doubt: Array, reason: str) -> tuple[Array, Array]:
        return jnp.where(doubt, cannot, code), jnp.where(doubt, REASONS.index(reason), because)

    minimum = _code(Kind.MINIMUM)
    code, because = doubted(weak & (code != minimum) & (code != cannot), "weak")
    moving = (step_norm > tol * reach) | (change > tol * size) | ~still
    at_noise = tree.norm(gradient) <= 3 * near.grad_noise
    strict = (code == minimum) | (code == _code(Kind.MAXIMUM))
    code, because = doubted(moving & at_noise & strict, "noise")
    curving = strict | (code == _code(Kind.SADDLE))
    code, because = doubted(curving & ~near.resolved, "noise")
    code, because = doubted((code != cannot) & ~near.mirrored, "bracket")
    code, because = doubted((code != cannot) & ~near.curved, "jump")
    leaving = moving & ~at_noise
    code = jnp.where(leaving, _code(Kind.NOT_STATIONARY), code)
    because = jnp.where(leaving, 0, because)
    code = jnp.where(near.smooth, code, _code(Kind.NON_SMOOTH))
    because = jnp.where(near.smooth, because, 0)
    code, because = doubted(~near.finite, "not-finite-nearby")
    return code, because, step_norm, decrement
