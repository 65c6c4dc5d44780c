"""Box bounds on parameters: one pair of pytrees, the projection, and the tests that go with it.

A side that is not bounded is infinite, so that every method handles one case. Reference: Nocedal &
Wright (2006), section 16.7, for the projected gradient.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from optikit.core import tree
from optikit.core.typing import Params, PyTree, Scalar


class Box(NamedTuple):
    """lower <= params <= upper, entry by entry, in the shapes and dtypes of the parameters."""

    lower: Params  # -inf where there is no bound
    upper: Params  # +inf likewise

    def project(self, params: Params) -> Params:
        """The nearest point of the box; a point inside is returned bit by bit."""
        return jax.tree.map(
            lambda x, low, high: jnp.minimum(jnp.maximum(x, low), high), params, *self
        )

    def projected_gradient(self, params: Params, grad: Params) -> Params:
        """Projected: x - P(x - g), the gradient where it may act, zero where a bound holds it."""
        return jax.tree.map(
            lambda x, g, low, high: jnp.minimum(jnp.maximum(g, x - high), x - low),
            params, grad, *self,
        )  # fmt: skip

    def stationarity(self, params: Params, grad: Params) -> Scalar:
        """The largest |x - P(x - g)|, which is zero exactly at a stationary point of the box."""
        return tree.max_abs(self.projected_gradient(params, grad))

    def held(self, params: Params, grad: Params) -> PyTree:
        """Booleans: on a bound (or where both meet), with a gradient that would lead outside."""

        def leaf(x: jax.Array, g: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
            return (low == high) | ((x <= low) & (g > 0)) | ((x >= high) & (g < 0))

        return jax.tree.map(leaf, params, grad, *self)


def as_box(bounds: Any, params: Params) -> Box:
    """Bounds in any accepted form as a Box over the parameters.

    Args:
      bounds: a pair (lower, upper) or a Box. Each side is None (unbounded), a number for all
        entries, or a pytree prefix of the parameters whose leaves are None, numbers or arrays that
        broadcast to the parameters' shapes.
      params: the parameters, as arrays.

    Raises:
      TypeError: bounds is not a pair, or a bound is not real.
      ValueError: a side has another structure or shape, holds NaN, or lies above its opposite.

    Example:
      >>> box = as_box((0.0, {"a": None, "b": 2.0}), {"a": jnp.zeros(2), "b": jnp.ones(1)})
      >>> [x.tolist() for x in jax.tree.leaves(box.upper)]
      [[inf, inf], [2.0]]
    """
    if not (isinstance(bounds, (tuple, list)) and len(bounds) == 2):
        msg = (
            f"bounds must be a pair (lower, upper); got {type(bounds).__name__}: write "
            "bounds=(lower, upper) with None for a side that is unbounded."
        )
        raise TypeError(msg)
    lower = _side("lower", bounds[0], params, -jnp.inf)
    upper = _side("upper", bounds[1], params, jnp.inf)
    for name, low, high in _named_leaves(params, lower, upper):
        where = _first(low > high) if _concrete(low, high) else None
        if where is not None:
            msg = (
                f"{name}{_index(where)} has lower bound {low[where]} above its upper bound "
                f"{high[where]}: bounds are (lower, upper), in this order."
            )
            raise ValueError(msg)
    return Box(lower, upper)


def start_inside(box: Box, params: Params) -> Params:
    """The start of a bounded solve: checked where it is known, projected where it is traced.

    Bounds that cross under a trace leave NaN, which the solve reports as not finite.

    Raises:
      ValueError: a known start lies outside; the entry is named.
    """
    for name, x, low, high in _named_leaves(params, params, *box):
        where = _first((x < low) | (x > high)) if _concrete(x, low, high) else None
        if where is not None:
            below = bool(x[where] < low[where])
            side, bound = ("below its lower", low) if below else ("above its upper", high)
            msg = (
                f"{name}{_index(where)} starts at {x[where]}, {side} bound {bound[where]}: start "
                "inside the box, for example at jnp.clip(params, lower, upper)."
            )
            raise ValueError(msg)
    inside = box.project(params)
    return jax.tree.map(
        lambda x, low, high: jnp.where(low <= high, x, jnp.nan), inside, box.lower, box.upper
    )


class _Bound:
    """A bound as a leaf: None and lists would count as structure."""

    def __init__(self, value: Any):
        self.value = value


def _side(name: str, side: Any, params: Params, unbounded: float) -> Params:
    leaves, structure = jax.tree.flatten(params)
    try:
        sides = structure.flatten_up_to(side)  # a leaf may be a list here
    except (ValueError, TypeError):
        sides = _spread(name, side, params)
    named = zip(_names(params), sides, leaves, strict=True)
    return structure.unflatten(
        [_bound(f"{name} bound of {n}", s, x, unbounded) for n, s, x in named]
    )


def _spread(name: str, side: Any, params: Params) -> list[Any]:
    def over(bound: Any, group: Params) -> Params:
        return jax.tree.map(lambda _: _Bound(bound), group)

    try:
        full = jax.tree.map(over, side, params, is_leaf=lambda x: x is None)
    except (ValueError, TypeError) as error:
        msg = (
            f"the {name} bounds are not structured like params: {error} Give None, a number, or a "
            "pytree prefix of params with None where an entry is unbounded."
        )
        raise ValueError(msg) from error
    return [leaf.value for leaf in jax.tree.leaves(full)]


def _bound(name: str, side: Any, like: jax.Array, unbounded: float) -> jax.Array:
    if side is None:
        return jnp.full(like.shape, unbounded, like.dtype)
    try:
        array = jnp.asarray(side)
    except (TypeError, ValueError) as error:
        msg = f"the {name} is {type(side).__name__}: give a number, an array or None."
        raise TypeError(msg) from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating) or array.dtype == jnp.bool_:
        msg = f"the {name} is {array.dtype.name}: bounds must be real numbers."
        raise TypeError(msg)
    try:
        array = jnp.broadcast_to(array.astype(like.dtype), like.shape)
    except ValueError as error:
        msg = f"the {name} has shape {array.shape}, which does not broadcast to {like.shape}."
        raise ValueError(msg) from error
    if _concrete(array) and np.isnan(np.asarray(array, np.float64)).any():
        msg = f"the {name} is NaN somewhere: use None or an infinite bound for an unbounded side."
        raise ValueError(msg)
    return array


def _names(params: Params) -> list[str]:
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return [f"params{jax.tree_util.keystr(path)}" for path, _ in paths]


def _named_leaves(params: Params, *trees: PyTree):
    """(name, leaf, leaf, ...) over the leaves; known leaves as numpy arrays."""
    columns = [jax.tree.leaves(t) for t in trees]
    for name, *leaves in zip(_names(params), *columns, strict=True):
        yield name, *(np.asarray(x) if _concrete(x) else x for x in leaves)


def _concrete(*arrays: Any) -> bool:
    return not any(isinstance(x, core.Tracer) for x in arrays)


def _first(wrong: Any) -> tuple[int, ...] | None:
    found = np.argwhere(wrong)
    return tuple(int(i) for i in found[0]) if len(found) else None


def _index(where: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, where))}]" if where else ""
