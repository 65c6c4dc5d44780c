"""A Taylor-remainder test of derivatives, in the function's own precision.

Along a random direction d, the remainder |f(x + h d) - f(x) - h <g, d>| falls as h^2 if g is the
gradient and as h if it is not; and |g(x + h d) - g(x) - h H d| likewise for the Hessian. The
observed order is read off the smallest steps whose remainder still stands above rounding noise,
which is measured, not assumed. A low order alone may be a kink or a wall near by: the gradient is
wrong if its integral along the line, too, is not the difference of the values; the Hessian, if
differences of gradients contradict it however short. Where a test fails, differences find the
entry, and gradients from either side tell a kink from a wrong rule. Before all this: the same call
must give the same answer, and a function in double precision must not pass through single.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from optikit.calculus.derivatives import Fun
from optikit.calculus.narrowing import narrowed
from optikit.calculus.oracle import bind
from optikit.calculus.validate import as_args, as_key, as_objective, as_params, check_scalar
from optikit.calculus.verdict import (
    DerivativeReport,
    agreeing,
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
BETWEEN = 64  # intervals of the integral of the gradient along a line
SMALL = 1e-2  # the length of parameters below which steps of that size are taken too
SHORTER = (1.0, 1 / 8, 1 / 64)  # steps of differences that must all contradict
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
    values, 100 grads and 3 hvps; 260 grads more if an order is low; on failure 4 values per entry,
    or 8 log2(n) for more than 2048 parameters. Parameters of a size far below 1 are looked at in
    steps of that size too.

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

    @jit
    def slopes(d, steps):
        return jax.lax.map(lambda t: jnp.vdot(gradient(flat + t * d), d), steps)

    keys = jax.random.split(as_key(key), DIRECTIONS)
    length = float(jnp.linalg.norm(flat))

    def measured(scale: float) -> DerivativeReport:
        """The report by steps of that size."""
        d = _direction(keys[0], flat, scale)
        noise = _noise_level(along, flat, d)
        kink = _kink(gradient, flat, d)
        if kink is not None:
            return kinked(params, kink, float(g[kink[0]]))
        eps = float(jnp.finfo(flat.dtype).eps)
        if noise > max(1e-300, LOST * eps * _size(along, d, base, flat)):
            return _lost(params, along, flat, noise, base)
        trials = []
        for one in keys:
            d = _direction(one, flat, scale)
            hd = curvature_along(flat, d)
            first = _first_remainders(along, flat, d, g, base, noise)
            second = _second_remainders(gradient_remainders, flat, d, hd, g)
            trials.append((_order(*first), _order(*second), d, hd, first))
        orders = tuple(min(t[i] for t in trials) for i in (0, 1))
        unit = eps ** (1 / 3) * min(scale, 1.0)
        if orders[0] < WRONG_BELOW:
            _, _, d, _, first = min(trials, key=lambda t: t[0])
            wide = _not_an_integral(slopes, flat, d, first)
            if wide is not None:
                entry, observed = _worst_gradient_entry(along, at_entry, flat, g, unit)
                if not _differs(g, float(g[entry]), observed, noise, unit):
                    wide *= float(jnp.max(jnp.abs(d)))  # rounding, say: not in so short a step
                    entry, observed = _worst_gradient_entry(along, at_entry, flat, g, wide)
                claim = float(g[entry]), observed
                return contradicted("gradient", params, entry, *claim, orders, noise)
        if orders[1] < WRONG_BELOW:
            _, _, d, hd, _ = min(trials, key=lambda t: t[1])
            entry, observed = _worst_product_entry(gradient, flat, d, hd)
            if _differs(hd, float(hd[entry]), observed, 0.0, eps ** (1 / 3)):
                claim = float(hd[entry]), observed
                return contradicted("Hessian", params, entry, *claim, orders, noise)
        return agreeing(orders, noise, min(orders) < WRONG_BELOW)

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
    found = measured(max(1.0, length))
    if not 0 < length < SMALL:
        return found
    closer = measured(length)
    # differences of that size say something only if they stand above noise
    told = 0 < closer.gradient_order < np.inf or closer.problem in ("gradient", "hessian")
    return closer if told else found


def _direction(key: Key, flat: jax.Array, scale: float) -> jax.Array:
    d = jax.random.normal(key, flat.shape, flat.dtype)
    return d / jnp.linalg.norm(d) * jnp.asarray(scale, flat.dtype)


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


def _second_remainders(gradient_remainders, flat, d, hd, g):
    """Steps, |g(x + h d) - g(x) - h H d| at each, and the size below which it is noise."""
    steps, eps = _steps(flat), float(jnp.finfo(flat.dtype).eps)
    tiny = np.arange(1, 5) * eps**0.75  # noise alone, or nearly
    both = jnp.asarray(np.concatenate([steps, tiny]), flat.dtype)
    sizes = np.asarray(gradient_remainders(d, hd, both), float)
    noise = max(float(np.nanmax(sizes[len(steps) :])), eps * float(jnp.linalg.norm(g)))
    noise = max(noise, np.finfo(float).tiny)
    floor = noise + eps * steps * float(jnp.linalg.norm(hd))
    return steps, sizes[: len(steps)], ABOVE_NOISE * floor


def _order(steps, remainders, floor) -> float:
    """The slope of log remainder over log step at the smallest four steps above the floor."""
    size = np.abs(remainders)
    if not np.any(np.isfinite(size)):
        return float("nan")
    last = _last(size, floor)
    if len(last) < 3:
        return float("inf")
    return float(np.polyfit(np.log(steps[last]), np.log(size[last]), 1)[0])


def _last(size, floor) -> np.ndarray:
    """Where the smallest steps are whose remainder stands above the floor."""
    return np.flatnonzero(np.isfinite(size) & (size > floor))[-4:]


def _not_an_integral(slopes: Callable, flat, d, remainders) -> float | None:
    """The shortest of the steps from which the order was read, if the gradient is not the
    derivative of the values over any of them; by the trapezoidal rule, to which a kink is nothing.
    """
    steps, left, floor = remainders
    shares = np.arange(BETWEEN + 1) / BETWEEN
    weights = np.where((shares == 0) | (shares == 1), 0.5, 1.0) / BETWEEN
    found = None
    for i in _last(np.abs(left), floor):
        along = np.asarray(slopes(d, jnp.asarray(shares * steps[i], flat.dtype)), float)
        off = left[i] - steps[i] * (weights @ along - along[0])
        if abs(off) <= abs(left[i]) / 4:
            return None
        found = float(steps[i])
    return found


def _worst_gradient_entry(along, at_entry, flat, g, step) -> tuple[int, float]:
    """The entry whose central difference is farthest from the gradient's."""
    step = jnp.asarray(step, flat.dtype)
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
    """The entry of H d farthest from differences of gradients along d, whichever comes nearest."""
    observed = []
    for share in SHORTER:
        step = jnp.asarray(share * jnp.finfo(flat.dtype).eps ** (1 / 3), flat.dtype)
        observed.append((gradient(flat + step * d) - gradient(flat - step * d)) / (2 * step))
    off = np.abs(np.asarray(jnp.stack(observed) - hd[None], float))
    entry = int(np.argmax(np.min(off, axis=0)))
    return entry, float(observed[int(np.argmin(off[:, entry]))][entry])


def _differs(whole, claimed: float, observed: float, noise: float, step: float) -> bool:
    """Whether a central difference contradicts an entry of the whole."""
    scale = float(jnp.max(jnp.abs(whole)))
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
