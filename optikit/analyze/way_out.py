"""A better point than the one examined: where it is looked for, and what it was seen to gain.

Along one line where the derivatives point somewhere (the most negative curvature, the Newton step,
the slope); along several, both ways, where they do not, as at a monkey saddle: some flat directions
and a mixture of them, in which the third derivative decides.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool

from optikit.analyze.evidence import Evidence
from optikit.analyze.neighbourhood import Neighbourhood
from optikit.calculus import Eval, Objective, bind
from optikit.core import Counts, Key, Params, Scalar, tree
from optikit.core.box import Box
from optikit.core.tree import HIGHEST

LENGTHS = 2.0 ** -np.arange(-3, 30)
"""Lengths on a line, in units of the parameters' size."""

FLAT = 3
"""Flat directions tried, beside a mixture of all that are known."""


def way_out(
    objective: Objective,
    params: Params,
    args: tuple,
    at: Eval,
    gradient: Array,
    s: Evidence,
    near: Neighbourhood,
    reach: Scalar,
    searched: Bool[Array, ""],
    degenerate: Bool[Array, ""],
    box: Box | None,
    key: Key,
) -> tuple[Array, Params, Scalar, Counts]:
    """A direction down, the best of 33 points near by, its gain, and the price of a search."""
    unravel = ravel_pytree(params)[1]
    dtype = gradient.dtype
    door = bind(objective, args)
    bent = s.smallest < -s.flat
    downhill = jnp.where(jnp.vdot(s.lowest, gradient) > 0, -s.lowest, s.lowest)
    size, steep = tree.norm(s.step), tree.norm(gradient)
    newton = s.step / jnp.where(size > 0, size, 1)
    steepest = -gradient / jnp.where(steep > 0, steep, 1)
    lined = jnp.where(bent, downhill, jnp.where(size > 0, newton, steepest))
    several = s.rows.shape[0] > 0
    candidates = jnp.concatenate([lined[None], _mixed(s.rows, key)]) if several else lined[None]
    of_line = (np.zeros(len(LENGTHS), np.int32), LENGTHS)
    of_flat = _across(candidates.shape[0] - 1) if several else of_line
    spread = ~bent & (degenerate | ((size == 0) & (steep == 0)))
    index = jnp.where(spread, jnp.asarray(of_flat[0]), jnp.asarray(of_line[0]))
    lengths = jnp.where(spread, jnp.asarray(of_flat[1], dtype), jnp.asarray(of_line[1], dtype))
    lengths = lengths * reach

    def direction(i: Array) -> Array:
        return candidates[i] if several else lined

    def point(i: Array, t: Array) -> Params:
        moved = tree.add_scaled(params, t, unravel(direction(i)))
        return moved if box is None else box.project(moved)

    def look() -> tuple[Array, Scalar, Scalar]:
        values = lax.map(lambda it: door.value(point(*it)), (index, lengths))
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        best = jnp.argmin(values)
        return index[best], lengths[best], at.value - values[best]

    nowhere = (jnp.zeros((), jnp.int32), jnp.zeros((), dtype), jnp.zeros_like(at.value))
    i, length, gain = lax.cond(searched, look, lambda: nowhere)
    noise = jnp.maximum(4 * tree.eps(dtype) * jnp.abs(at.value), 3 * near.value_noise)
    found = gain > noise
    shown = searched & (found | bent)
    vector = direction(i) * jnp.where(length < 0, -1, 1).astype(dtype)
    return (
        jnp.where(shown, vector, 0),
        tree.where(found, point(i, length), params),
        jnp.where(found, gain, 0),
        Counts(value=len(LENGTHS)),
    )


def _mixed(rows: Array, key: Key) -> Array:
    """Some of the rows, and a random mixture of all."""
    weights = jax.random.normal(key, rows.shape[:1], rows.dtype)
    mixture = jnp.matmul(weights, rows, precision=HIGHEST)
    size = jnp.linalg.norm(mixture)
    return jnp.concatenate([rows[:FLAT], (mixture / jnp.where(size > 0, size, 1))[None]])


def _across(number: int) -> tuple[np.ndarray, np.ndarray]:
    """As many pairs of a direction and a signed length as there are on a line."""
    each = (len(LENGTHS) - 1) // (2 * number)
    sizes = 2.0 ** np.linspace(1, -14, each)
    pairs = [(1 + i, sign * t) for i in range(number) for t in sizes for sign in (1, -1)]
    pairs += [(0, 1.0)] * (len(LENGTHS) - len(pairs))
    index, lengths = zip(*pairs, strict=True)
    return np.asarray(index, np.int32), np.asarray(lengths)
