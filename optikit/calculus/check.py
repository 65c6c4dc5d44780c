"""A Taylor-remainder test of derivatives, in the function's own precision.

Along a random direction d, the remainder |f(x + h d) - f(x) - h <g, d>| falls as h^2 if g is the
gradient and as h if it is not; and |g(x + h d) - g(x) - h H d| likewise for the Hessian. The
observed order is read off the smallest steps whose remainder still stands above rounding noise,
which is measured, not assumed. Where a test fails, differences find the entry that is wrong, and
gradients from either side tell a kink from a wrong rule. Before all this: the same call must give
the same answer, and a function in double precision must not pass through single.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from optikit.calculus.derivatives import Fun
from optikit.calculus.narrowing import narrowed
from optikit.calculus.oracle import bind
from optikit.calculus.validate import as_args, as_objective, as_params, check_scalar
from optikit.calculus.verdict import (
    DerivativeReport,
    changing,
    contradicted,
    entry_name,
    finding,
    kinked,
    locate,
    narrow_inside,
    not_finite,
)
from optikit.core import Key, Params
from optikit.core.compiled import jit

DIRECTIONS = 3
WRONG_BELOW = 1.5  # between the orders of a wrong and of a right derivative
ABOVE_NOISE = 30.0  # remainders below this many noise levels say nothing
LOST = 1e4  # rounding units of a value that its noise must exceed to be called a loss of precision
EVERY_ENTRY = 2048  # up to this many parameters each entry is differenced; beyond, by bisection


def check_derivatives(
    fun: Fun, params: Params, args: tuple = (), *, has_aux: bool = False, key: Key | None = None
) -> DerivativeReport:
    """Test the gradient and Hessian of fun at params against its own values.

    Args:
      fun: a function (params, *args) -> scalar, or an Objective.
      key: for the random directions; fixed by default, so that the answer repeats.

    Returns: a report; `bool(report)` is the verdict and `print(report)` says it in words. An error
    shows only if it exceeds the rounding noise along a random direction: in float32, one wrong
    entry among 100,000 may not. A narrower type inside a float64 function, lost digits, a kink and
    an answer that changes from call to call fail it too; see `report.problem`. Cost: about 110
    values, 100 grads and 3 hvps; on failure 2 values per entry, or 4 log2(n) for more than 2048
    parameters.

    Raises:
      TypeError: fun is not scalar, or a parameter not floating point.
      FloatingPointError: fun is not finite at params.

    Reference: Nocedal & Wright (2006), section 8.1; Moré & Wild (2011), "Estimating computational
    noise", for the noise level.

    Example:
      >>> report = check_derivatives(lambda x: jnp.sum(jnp.exp(x)), jnp.array([0.5, 1.0]))
      >>> bool(report), round(report.gradient_order)
      (True, 2)
    """
    objective, params, args = as_objective(fun, has_aux=has_aux), as_params(params), as_args(args)
    check_scalar(objective, params, args)
    flat, unravel = ravel_pytree(params)
    door = bind(objective, args)

    @jit
    def along(d, steps):
        return jax.lax.map(lambda t: door.value(unravel(flat + t * d)), steps)

    @jit
    def at_entry(entries, step):
        return jax.lax.map(lambda i: door.value(unravel(flat.at[i].add(step))), entries)

    @jit
    def gradient(v):
        return ravel_pytree(door.value_and_grad(unravel(v)).grad)[0]

    @jit
    def gradient_remainders(d, hd, steps):
        return jax.lax.map(lambda t: jnp.linalg.norm(gradient(flat + t * d) - g - t * hd), steps)

    @jit
    def curvature_along(v, d):
        return ravel_pytree(door.curvature("hessian", unravel(v)).mv(unravel(d)))[0]

    keys = jax.random.split(jax.random.key(0) if key is None else key, DIRECTIONS)
    base = float(door.value(params))
    g = gradient(flat)
    if not np.isfinite(base) or not bool(jnp.all(jnp.isfinite(g))):
        return not_finite(params, base, g)
    again = float(door.value(params)), gradient(flat)
    if _changed(base, g, *again, flat):
        return changing(params, base, g, *again)
    narrow = narrowed(objective, params, args)
    if narrow:
        return narrow_inside(params, narrow)
    d = _direction(keys[0], flat)
    noise = _noise_level(along, flat, d)
    kink = _kink(gradient, flat, d)
    if kink is not None:
        return kinked(params, kink, float(g[kink[0]]))
    if noise > max(1e-300, LOST * float(jnp.finfo(flat.dtype).eps) * _size(along, d, base, flat)):
        return _lost(params, along, flat, noise, base)
    trials = []
    for one in keys:
        d = _direction(one, flat)
        hd = curvature_along(flat, d)
        first = _first_remainders(along, flat, d, g, base, noise)
        second = _second_remainders(gradient_remainders, flat, d, hd)
        trials.append((_order(*first), _order(*second), d, hd))
    gradient_order = min(t[0] for t in trials)
    hessian_order = min(t[1] for t in trials)
    orders = gradient_order, hessian_order
    if gradient_order < WRONG_BELOW:
        entry, observed = _worst_gradient_entry(along, at_entry, flat, g)
        if _differs(float(g[entry]), observed, float(jnp.max(jnp.abs(g))), noise, flat):
            claim = float(g[entry]), observed
            return contradicted("gradient", params, entry, *claim, orders, noise)
    if hessian_order < WRONG_BELOW:
        _, _, d, hd = min(trials, key=lambda t: t[1])
        entry, observed = _worst_product_entry(gradient, flat, d, hd)
        if _differs(float(hd[entry]), observed, float(jnp.max(jnp.abs(hd))), 0.0, flat):
            claim = float(hd[entry]), observed
            return contradicted("Hessian", params, entry, *claim, orders, noise)
    message = (
        f"gradient and Hessian agree with the function: observed orders {gradient_order:.2f} and "
        f"{hessian_order:.2f} (2 expected, 1 if wrong), rounding noise {noise:.1e}."
    )
    return DerivativeReport(
        True, gradient_order, hessian_order, noise, None, None, None, None, message
    )


def _direction(key: Key, flat: jax.Array) -> jax.Array:
    d = jax.random.normal(key, flat.shape, flat.dtype)
    return d / jnp.linalg.norm(d) * jnp.maximum(1, jnp.linalg.norm(flat))


def _noise_level(along, flat, d) -> float:
    """The standard deviation of f's rounding error, from fourth differences along a line.

    In float64 on two scales: rounding far coarser than its own does not show on the finest. In
    float32 the wider one, on which smooth functions change too, counts where values do not change.
    """
    eps = float(jnp.finfo(flat.dtype).eps)
    found = eps * 0.0
    for step in (8 * eps**0.75, 8 * eps**0.5):
        offsets = jnp.arange(12, dtype=flat.dtype) * step
        values = np.asarray(along(d, offsets), float)
        found = max(found, np.sqrt(np.mean(np.diff(values, n=4) ** 2) / 70))
        if flat.dtype.itemsize <= 4 and np.count_nonzero(np.diff(values) == 0) < 6:
            break
    return float(max(found, eps * abs(values[0]) / 4, np.finfo(float).tiny))


def _size(along, d, base: float, flat) -> float:
    """How large the function is: its value, or how much it changes over a step."""
    steps = jnp.asarray([-0.25, 0.25], flat.dtype)
    values = np.asarray(along(d, steps), float)
    return float(
        max(abs(base), np.max(np.abs(values - base), initial=0, where=np.isfinite(values)))
    )


def _kink(gradient: Callable, flat, d) -> tuple[int, float, float] | None:
    """The entry of the gradient that jumps most, and its values before and after; if one does.

    What is smooth changes as much beside the point as across it, however small the step.
    """
    eps = float(jnp.finfo(flat.dtype).eps)
    found = None
    for h in (eps ** (5 / 8), eps ** (3 / 4)):
        points = [gradient(flat + jnp.asarray(t * h, flat.dtype) * d) for t in (-3, -1, 1, 3)]
        far, left, right, further = (np.asarray(g, float) for g in points)
        across = np.linalg.norm(right - left)
        beside = max(np.linalg.norm(left - far), np.linalg.norm(further - right))
        least = 100 * eps * max(np.linalg.norm(left), np.linalg.norm(right))
        if not across > max(10 * beside, least):  # NaN near by included
            return None
        entry = int(np.argmax(np.abs(right - left)))
        found = (entry, float(left[entry]), float(right[entry]))
        if d[entry] < 0:
            found = (entry, found[2], found[1])
    return found


def _changed(base: float, g, value: float, grad, flat) -> bool:
    """Whether a second call answered otherwise, beyond sums in another order."""
    eps = 100 * float(jnp.finfo(flat.dtype).eps)
    apart = float(jnp.max(jnp.abs(g - grad), initial=0))
    scale = float(jnp.max(jnp.abs(g), initial=0))
    return not (abs(value - base) <= eps * abs(base) and apart <= eps * scale)


def _steps(flat) -> np.ndarray:
    return 2.0 ** -np.arange(2, 12 if flat.dtype.itemsize <= 4 else 28)


def _first_remainders(along, flat, d, g, base, noise):
    """Steps, f(x + h d) - f(x) - h <g, d> at each, and the size below which it is noise."""
    steps = _steps(flat)
    values = np.asarray(along(d, jnp.asarray(steps, flat.dtype)), float)
    slope = float(jnp.vdot(g, d))
    eps = float(jnp.finfo(flat.dtype).eps)
    floor = noise + eps * steps * np.sum(np.abs(np.asarray(g * d, float)))
    return steps, values - base - steps * slope, ABOVE_NOISE * floor


def _second_remainders(gradient_remainders, flat, d, hd):
    """Steps, |g(x + h d) - g(x) - h H d| at each, and the size below which it is noise."""
    steps = _steps(flat)
    tiny = np.arange(1, 5) * float(jnp.finfo(flat.dtype).eps) ** 0.75  # noise alone, or nearly
    both = jnp.asarray(np.concatenate([steps, tiny]), flat.dtype)
    sizes = np.asarray(gradient_remainders(d, hd, both), float)
    eps = float(jnp.finfo(flat.dtype).eps)
    noise = max(float(np.nanmax(sizes[len(steps) :])), np.finfo(float).tiny)
    floor = noise + eps * steps * float(jnp.linalg.norm(hd))
    return steps, sizes[: len(steps)], ABOVE_NOISE * floor


def _order(steps, remainders, floor) -> float:
    """The slope of log remainder over log step at the smallest four steps above the floor."""
    size = np.abs(remainders)
    usable = np.isfinite(size) & (size > floor)
    if not np.any(np.isfinite(size)):
        return float("nan")
    last = np.flatnonzero(usable)[-4:]
    if len(last) < 3:
        return float("inf")
    return float(np.polyfit(np.log(steps[last]), np.log(size[last]), 1)[0])


def _worst_gradient_entry(along, at_entry, flat, g) -> tuple[int, float]:
    """The entry whose central difference is farthest from the gradient's."""
    step = jnp.asarray(jnp.finfo(flat.dtype).eps ** (1 / 3), flat.dtype)
    gradient = np.asarray(g, float)
    rng = np.random.default_rng(0)
    candidates = np.arange(flat.size)
    while len(candidates) > EVERY_ENTRY:
        halves = np.array_split(candidates, 2)
        wrong = []
        for half in halves:
            d = np.zeros(flat.size)
            d[half] = rng.choice([-1.0, 1.0], len(half))
            ends = np.asarray(along(jnp.asarray(d, flat.dtype), jnp.stack([step, -step])), float)
            wrong.append(abs((ends[0] - ends[1]) / (2 * float(step)) - d @ gradient))
        candidates = halves[int(np.argmax(wrong))]
    plus, minus = (np.asarray(at_entry(candidates, t), float) for t in (step, -step))
    observed = (plus - minus) / (2 * float(step))
    worst = int(np.argmax(np.abs(observed - gradient[candidates])))
    return int(candidates[worst]), float(observed[worst])


def _worst_product_entry(gradient: Callable, flat, d, hd) -> tuple[int, float]:
    """The entry of H d farthest from the difference of gradients along d."""
    step = jnp.asarray(jnp.finfo(flat.dtype).eps ** (1 / 3), flat.dtype)
    observed = (gradient(flat + step * d) - gradient(flat - step * d)) / (2 * step)
    worst = int(jnp.argmax(jnp.abs(observed - hd)))
    return worst, float(observed[worst])


def _differs(claimed: float, observed: float, scale: float, noise: float, flat) -> bool:
    """Whether a central difference contradicts an entry: the order of a remainder alone can dip
    below 2 where terms of opposite sign cancel.
    """
    step = float(jnp.finfo(flat.dtype).eps) ** (1 / 3)
    return not abs(claimed - observed) <= 10 * (noise / step + step**2 * scale)


def _lost(params: Params, along, flat, noise: float, base: float) -> DerivativeReport:
    """Which leaf and entry the noise comes with: the one along which it is largest."""
    first, worst, most = 0, (0, 0), -1.0
    for leaf in jax.tree.leaves(params):
        level = _noise_level(along, flat, _along(flat, np.arange(first, first + leaf.size)))
        if leaf.size and level > most:
            worst, most = (first, leaf.size), level
        first += leaf.size
    entries = range(worst[0], worst[0] + min(worst[1], 64))
    levels = [_noise_level(along, flat, _along(flat, np.asarray([i]))) for i in entries]
    leaf, index = locate(params, entries[int(np.argmax(levels))])
    digits = -np.log10(float(jnp.finfo(flat.dtype).eps))
    message = (
        f"the function loses precision: its rounding noise is {noise:.1e} at a value of "
        f"{base:.6g}, where {flat.dtype} has {digits:.0f} digits; most along "
        f"{entry_name(leaf, index)}. Look for a difference of large numbers (subtract before "
        "squaring, log1p, expm1, logsumexp), or a narrower type on the way (a callback)."
    )
    return finding("precision", message, leaf, index, noise=noise)


def _along(flat, entries: np.ndarray) -> jax.Array:
    """A step of the whole's size along some entries."""
    d = np.zeros(flat.size)
    d[entries] = 1
    return jnp.asarray(d / np.linalg.norm(d), flat.dtype) * jnp.maximum(1, jnp.linalg.norm(flat))
