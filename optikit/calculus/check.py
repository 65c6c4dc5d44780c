"""A Taylor-remainder test of derivatives, in the function's own precision.

Along a random direction d, the remainder |f(x + h d) - f(x) - h <g, d>| falls as h^2 if g is the
gradient and as h if it is not; and |g(x + h d) - g(x) - h H d| likewise for the Hessian. The
observed order is read off the smallest steps whose remainder still stands above rounding noise,
which is measured, not assumed. Where a test fails, differences find the entry that is wrong.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from optikit.calculus.derivatives import Fun
from optikit.calculus.oracle import bind
from optikit.calculus.validate import as_args, as_objective, as_params, check_scalar
from optikit.core import Key, Params
from optikit.core.compiled import jit

DIRECTIONS = 3
WRONG_BELOW = 1.5  # between the orders of a wrong and of a right derivative
ABOVE_NOISE = 30.0  # remainders below this many noise levels say nothing
EVERY_ENTRY = 2048  # up to this many parameters each entry is differenced; beyond, by bisection


@dataclasses.dataclass(frozen=True)
class DerivativeReport:
    """What `check_derivatives` found; true in a boolean context if both derivatives agree.

    The orders are 2 or more for right derivatives and 1 for wrong ones: gradient_order of the
    gradient against values, hessian_order of the Hessian against gradients; infinity where the
    remainder is below the rounding noise at every step, as for a quadratic's Hessian.
    For a failure, `leaf` and `index` name the entry that disagrees most, `claimed` is what
    autodiff says there (a gradient entry, or one of H d) and `observed` what differences say.
    """

    ok: bool
    gradient_order: float
    hessian_order: float
    noise: float
    leaf: str | None
    index: tuple[int, ...] | None
    claimed: float | None
    observed: float | None
    message: str

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return self.message


def check_derivatives(
    fun: Fun, params: Params, args: tuple = (), *, has_aux: bool = False, key: Key | None = None
) -> DerivativeReport:
    """Test the gradient and Hessian of fun at params against its own values.

    Args:
      fun: a function (params, *args) -> scalar, or an Objective.
      key: for the random directions; fixed by default, so that the answer repeats.

    Returns: a report; `bool(report)` is the verdict and `print(report)` says it in words. An error
    shows only if it exceeds the rounding noise along a random direction: in float32, one wrong
    entry among 100,000 may not. Cost: about 100 values, 100 grads and 3 hvps; on failure 2 values
    per entry, or 4 log2(n) for more than 2048 parameters.

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
        return _not_finite(params, base, g)
    noise = _noise_level(along, flat, keys[0])
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
            return _failure("gradient", params, entry, float(g[entry]), observed, orders, noise)
    if hessian_order < WRONG_BELOW:
        _, _, d, hd = min(trials, key=lambda t: t[1])
        entry, observed = _worst_product_entry(gradient, flat, d, hd)
        if _differs(float(hd[entry]), observed, float(jnp.max(jnp.abs(hd))), 0.0, flat):
            return _failure("Hessian", params, entry, float(hd[entry]), observed, orders, noise)
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


def _noise_level(along, flat, key) -> float:
    """The standard deviation of f's rounding error, from fourth differences along a line."""
    eps = float(jnp.finfo(flat.dtype).eps)
    points = 12
    offsets = jnp.arange(points, dtype=flat.dtype) * (8 * eps**0.75)
    values = np.asarray(along(_direction(key, flat), offsets), float)
    fourth = np.diff(values, n=4)
    return float(
        max(np.sqrt(np.mean(fourth**2) / 70), eps * abs(values[0]) / 4, np.finfo(float).tiny)
    )


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


def _locate(params: Params, entry: int) -> tuple[str, tuple[int, ...]]:
    """The path of the leaf and the index in it of a ravelled entry."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if entry < leaf.size:
            index = tuple(int(i) for i in np.unravel_index(entry, leaf.shape))
            return f"params{jax.tree_util.keystr(path)}", index
        entry -= leaf.size
    raise IndexError(entry)


def _entry_name(leaf: str, index: tuple[int, ...]) -> str:
    return leaf + (f"[{', '.join(map(str, index))}]" if index else "")


def _failure(
    what: str,
    params: Any,
    entry: int,
    claimed: float,
    observed: float,
    orders: tuple[float, float],
    noise: float,
) -> DerivativeReport:
    leaf, index = _locate(params, entry)
    wrong = orders[0 if what == "gradient" else 1]
    quantity = "" if what == "gradient" else " of H d"
    message = (
        f"the {what} does not belong to the function: the Taylor remainder has order {wrong:.2f} "
        f"(2 expected). Worst entry{quantity}: {_entry_name(leaf, index)}, where autodiff "
        f"says {claimed:.6g} and differences say {observed:.6g}. Look for a custom derivative "
        "rule, a stop_gradient, or a kink at this point."
    )
    return DerivativeReport(False, *orders, noise, leaf, index, claimed, observed, message)


def _not_finite(params: Params, base: float, g: jax.Array) -> DerivativeReport:
    if not np.isfinite(base):
        msg = f"the function is {base} at params: derivatives cannot be checked there."
        raise FloatingPointError(msg)
    entry = int(jnp.argmin(jnp.isfinite(g)))
    leaf, index = _locate(params, entry)
    nan = float("nan")
    message = (
        f"the function is finite ({base:.6g}) but its gradient is {float(g[entry])} at "
        f"{_entry_name(leaf, index)}. Look for sqrt, log, norm or a division at 0 behind "
        "jnp.where: its untaken branch is differentiated too; make its argument safe with a "
        "second where."
    )
    return DerivativeReport(False, nan, nan, nan, leaf, index, float(g[entry]), None, message)
