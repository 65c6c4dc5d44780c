"""Whether the examples of a batch see each other in a model, as in batch normalisation.

Curvature example by example takes the model on one example alone. Where examples meet, that is
another model, and nothing in its shapes says so. The axis of examples is followed through the jaxpr
of `predict` on the whole batch: an operation that reduces it, sorts along it or contracts it makes
them meet. What is not understood is let go: to be unable is fine, a false alarm is not.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jex

from optikit.calculus.objective import Objective, fingerprint
from optikit.core import Params
from optikit.core.jaxpr import called

NONE, MET, UNKNOWN = "none", "met", "unknown"
"""Of an array: no example enters; several meet in an entry; it is not known how they enter."""

Place = int | str
"""The axis along which an array holds the examples, or one of the words above."""

_ALONG = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}
_REDUCE = {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax",
    "argmin",
}  # fmt: skip


def warn_where_examples_meet(
    objective: Objective,
    predict: Callable[[Params, Any], Any],
    params: Params,
    inputs: Any,
) -> None:
    """A warning, once for a model and these shapes, where `examples_meet`."""
    leaves, structure = jax.tree.flatten((params, inputs))
    known = _Model(predict, structure)
    _warned(objective, known, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))


class _Model:
    """A model and the structure of what it is given; alike are those of one structure."""

    def __init__(self, predict: Callable[[Params, Any], Any], structure: Any):
        self.predict, self.structure = predict, structure

    def __hash__(self) -> int:
        return hash(self.structure)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Model) and self.structure == other.structure


@functools.lru_cache(maxsize=256)
def _warned(objective: Objective, model: _Model, shapes: tuple) -> None:
    if examples_meet(model.predict, *jax.tree.unflatten(model.structure, shapes)):
        warnings.warn(
            f"{fingerprint(objective)}: examples of a batch see each other in the model (batch "
            "normalisation?), but this curvature is taken example by example, each one alone in "
            "its batch: it is that of another model. Normalise within examples, or use a method "
            "that takes the batch as a whole, such as 'kfac' or 'newton-cg'.",
            stacklevel=4,
        )


def examples_meet(predict: Callable[[Params, Any], Any], params: Params, inputs: Any) -> bool:
    """Whether an output certainly has several examples in it. Nothing is computed.

    Args:
      inputs: every array has the examples along axis 0.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.ones((8, 3))
      >>> examples_meet(lambda w, x: (x - x.mean(0)) @ w, jnp.ones((3, 2)), x)
      True
      >>> examples_meet(lambda w, x: (x - x.mean(1, keepdims=True)) @ w, jnp.ones((3, 2)), x)
      False
    """
    arrays = jax.tree.leaves(inputs)
    if not arrays or arrays[0].shape[0] < 2:
        return False
    closed = jax.make_jaxpr(predict)(params, inputs)
    places = [NONE] * len(jax.tree.leaves(params)) + [0] * len(arrays)
    return MET in _outputs(closed.jaxpr, places)


def _outputs(jaxpr: Any, places: Sequence[Place]) -> list[Place]:
    known: dict[Any, Place] = dict(zip(jaxpr.invars, places, strict=True))

    def place(atom: Any) -> Place:
        return NONE if isinstance(atom, jex.Literal) else known.get(atom, NONE)

    for eqn in jaxpr.eqns:
        known.update(zip(eqn.outvars, _through(eqn, [place(a) for a in eqn.invars]), strict=True))
    return [place(a) for a in jaxpr.outvars]


def _through(eqn: Any, places: list[Place]) -> list[Place]:
    """The places of an equation's results."""
    name, many = eqn.primitive.name, len(eqn.outvars)
    if all(p == NONE for p in places):
        return [NONE] * many
    if (inner := called(eqn)) is not None:
        return _outputs(inner.jaxpr, places)
    if name == "scan":
        return _scanned(eqn, places)
    if name == "cond":
        branches = [_outputs(b.jaxpr, places[1:]) for b in eqn.params["branches"]]
        chooser = NONE if places[0] == NONE else UNKNOWN
        return [_joined([chooser, *each]) for each in zip(*branches, strict=True)]
    if MET in places:
        return [MET] * many
    if UNKNOWN in places:
        return [UNKNOWN] * many
    return [_placed(eqn, places)] * many


def _joined(places: Sequence[Place]) -> Place:
    """Of what is the one or the other."""
    for word in (MET, UNKNOWN):
        if word in places:
            return word
    held = {p for p in places if p != NONE}
    return NONE if not held else held.pop() if len(held) == 1 else UNKNOWN


def _placed(eqn: Any, places: list[Place]) -> Place:
    """Where the examples stand in the result of a single operation."""
    name, given = eqn.primitive.name, eqn.params
    shapes = [getattr(v.aval, "shape", ()) for v in eqn.invars]
    out = getattr(eqn.outvars[0].aval, "shape", ())
    axis = places[0]
    if name in _REDUCE and isinstance(axis, int):
        axes = given["axes"]
        return MET if axis in axes else axis - sum(a < axis for a in axes)
    if name in _ALONG:
        return MET if given["axis"] == axis else axis
    if name == "sort":
        axis = _joined(places)
        return MET if given["dimension"] == axis else axis
    if name == "dot_general":
        return _product(given["dimension_numbers"], [len(s) for s in shapes], places)
    if name == "conv_general_dilated" and isinstance(axis, int) and places[1] == NONE:
        numbers = given["dimension_numbers"]
        same = axis == numbers.lhs_spec[0] and given["batch_group_count"] == 1
        return numbers.out_spec[0] if same else UNKNOWN
    if name == "broadcast_in_dim" and isinstance(axis, int):
        target = given["broadcast_dimensions"][axis]
        return target if out[target] == shapes[0][axis] else UNKNOWN
    if name == "transpose" and isinstance(axis, int):
        return given["permutation"].index(axis)
    if name in ("reshape", "squeeze", "expand_dims") and isinstance(axis, int):
        return _reshaped(shapes[0], out, axis)
    if name == "gather" and places[0] == NONE and isinstance(places[1], int):
        return _looked_up(given["dimension_numbers"], places[1], len(shapes[1]), len(out))
    # an operation entry by entry, or on other axes only: every array keeps its shape along this one
    held = _joined(places)
    if name in _ENTRYWISE and len({p for p in places if isinstance(p, int)}) > 1:
        return MET  # each with each
    if isinstance(held, int) and name in _ENTRYWISE:
        mine = [s for s, p in zip(shapes, places, strict=True) if p != NONE]
        whole = all(len(s) == len(out) and s[held] == out[held] for s in mine)
        return held if whole else UNKNOWN
    if isinstance(held, int) and name in _ELSEWHERE:
        shape = next(s for s, p in zip(shapes, places, strict=True) if p == held)
        return held if len(out) == len(shape) and out[held] == shape[held] else UNKNOWN
    return UNKNOWN


_ENTRYWISE = {
    "add", "sub", "mul", "div", "rem", "neg", "sign", "abs", "exp", "exp2", "expm1", "log", "log1p",
    "sqrt", "rsqrt", "cbrt", "tanh", "sin", "cos", "tan", "sinh", "cosh", "asin", "acos", "atan",
    "asinh", "acosh", "atanh", "atan2", "logistic", "erf", "erfc", "erf_inv", "lgamma", "digamma",
    "pow", "integer_pow", "square", "max", "min", "clamp", "select_n", "floor", "ceil", "round",
    "is_finite", "and", "or", "not", "xor", "eq", "ne", "lt", "le", "gt", "ge", "nextafter",
    "convert_element_type", "stop_gradient", "copy", "copy_p", "real", "imag", "add_any",
    "optimization_barrier", "shift_left", "shift_right_logical", "shift_right_arithmetic",
}  # fmt: skip
"""Operations that work entry by entry."""

_ELSEWHERE = {"pad", "slice", "concatenate", "reduce_window_max", "reduce_window_sum", "split"}
"""Operations that leave an axis whose length they keep as it is: these do as a rule, not by law."""


def _product(numbers: Any, ranks: list[int], places: list[Place]) -> Place:
    (contract, batch) = numbers
    found: set[int] = set()
    for side, place in enumerate(places):
        if not isinstance(place, int):
            continue
        if place in contract[side]:
            return MET
        if place in batch[side]:
            found.add(batch[side].index(place))
            continue
        taken = {*contract[side], *batch[side]}
        free = [a for a in range(ranks[side]) if a not in taken]
        before = len(batch[0])
        if side:
            before += ranks[0] - len(contract[0]) - len(batch[0])
        found.add(before + free.index(place))
    # two different axes of examples in one result: each with each
    return found.pop() if len(found) == 1 else MET


def _reshaped(shape: tuple[int, ...], out: tuple[int, ...], axis: int) -> Place:
    """The axis of the result with as many entries before it and as long."""
    before = math.prod(shape[:axis])
    fits = [i for i, size in enumerate(out) if math.prod(out[:i]) == before and size == shape[axis]]
    return fits[0] if fits else UNKNOWN


def _looked_up(numbers: Any, axis: int, indices: int, rank: int) -> Place:
    """Of rows of a table at indices that belong to examples."""
    if axis == indices - 1:
        return UNKNOWN
    free = [a for a in range(rank) if a not in numbers.offset_dims]
    return free[axis]


def _scanned(eqn: Any, places: list[Place]) -> list[Place]:
    consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
    fixed, carry, along = (
        places[:consts],
        places[consts : consts + carries],
        places[consts + carries :],
    )
    if any(p == 0 for p in along):
        return [UNKNOWN] * len(eqn.outvars)  # over the examples, one after another
    rows: list[Place] = [p - 1 if isinstance(p, int) else p for p in along]
    while True:  # a carry's place changes at most twice: to an axis or unknown, then to met
        found = _outputs(eqn.params["jaxpr"].jaxpr, [*fixed, *carry, *rows])
        merged = [_joined([a, b]) for a, b in zip(carry, found[:carries], strict=True)]
        if merged == carry:
            break
        carry = merged
    stacked = [p + 1 if isinstance(p, int) else p for p in found[carries:]]
    return [*carry, *stacked]
