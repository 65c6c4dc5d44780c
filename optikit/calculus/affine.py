"""Finding the linear model inside a `predict`, without being told.

If outputs are an affine function of the parameters, outputs[n, k] = sum_t sum_i A_t[n, i] V_t[i, k]
+ const with each V_t a rearrangement of one parameter leaf, then a composite objective's Hessian
is a sum of weighted Gram products of the A_t: no Hessian-vector products, no Jacobian.

The terms are read off the jaxpr of `predict`: parameters are followed through operations that
rearrange them, to the product with data (or the broadcast) in which they enter. Anything else that
touches a parameter, a nonlinearity or an unknown primitive, gives up (None), and the caller uses
general derivatives. Being wrong is not an option here, being unable is.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core as jex
from jaxtyping import Array, Float

from optikit.core import Params
from optikit.core.jaxpr import bind_equation

_REARRANGE = {"reshape", "transpose", "squeeze", "slice", "split", "rev", "copy", "copy_p", "neg"}
_INLINE = {"jit", "pjit", "closed_call", "core_call"}


@dataclasses.dataclass(frozen=True)
class View:
    """A linear rearrangement of one leaf: `apply(leaf)` has `shape`."""

    leaf: int
    apply: Callable[[Array], Array]
    shape: tuple[int, ...]

    def then(self, function: Callable[[Array], Array], shape: tuple[int, ...]) -> "View":
        """This view followed by another linear map."""
        return View(self.leaf, lambda w: function(self.apply(w)), shape)


@dataclasses.dataclass(frozen=True)
class Term:
    """outputs[n, k] gains sum_i rows[n, i] view(leaf)[i, k]; rows None is a column of ones."""

    rows: Float[Array, "m features"] | None
    view: View  # of shape (features, outputs)


@dataclasses.dataclass(frozen=True)
class _Sum:
    """An intermediate that is a sum of terms, of shape lead + (K,), lead, or (K,) + lead."""

    terms: tuple[Term, ...]
    lead: tuple[int, ...]
    outputs: int | None  # K, or None for scalar outputs
    outputs_first: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        if self.outputs is None:
            return self.lead
        if self.outputs_first:
            return (self.outputs, *self.lead)
        return (*self.lead, self.outputs)


Mark = TypeVar("Mark", bound=View | _Sum)


class _NotAffine(Exception):
    """A parameter enters in a way this reader does not know."""


def affine_terms(
    predict: Callable[[Params, Any], Array], params: Params, inputs: Any
) -> list[Term] | None:
    """The terms of an affine `predict`, or None if it is not affine (or not recognised as such).

    The rows of all terms are flattened over the leading axes of the outputs, so they align with
    outputs.reshape(-1, K), or outputs.ravel() for scalar outputs.
    """
    closed, shape = jax.make_jaxpr(predict, return_shape=True)(params, inputs)
    if not isinstance(shape, jax.ShapeDtypeStruct):
        return None
    leaves = jax.tree.leaves(params)
    tags: list[Any] = [View(i, lambda w: w, leaf.shape) for i, leaf in enumerate(leaves)]
    values = [*leaves, *jax.tree.leaves(inputs)]
    tags += [None] * (len(values) - len(leaves))
    try:
        (result,) = _read(closed.jaxpr, closed.consts, values, tags)[1]
        if result is None:
            return []
        total = result if isinstance(result, _Sum) else None
        if total is None or total.outputs_first or total.shape != shape.shape:
            return None
    except _NotAffine:
        return None
    return list(total.terms)


def _read(jaxpr, consts, args, arg_tags) -> tuple[list, list]:
    """Evaluate a jaxpr, following the parameters: values and tags of its outputs.

    Values that depend on parameters are not computed (None); their tags say what they are.
    """
    values: dict = {}
    tags: dict = {}

    def put(variables, new_values, new_tags):
        for v, x, t in zip(variables, new_values, new_tags, strict=True):
            values[v], tags[v] = (x if t is None else None), t

    def value(v):
        return v.val if isinstance(v, jex.Literal) else values[v]

    def tag(v):
        return None if isinstance(v, jex.Literal) else tags[v]

    put(jaxpr.constvars, consts, [None] * len(consts))
    put(jaxpr.invars, args, arg_tags)
    for eqn in jaxpr.eqns:
        ins, marks = [value(v) for v in eqn.invars], [tag(v) for v in eqn.invars]
        if all(mark is None for mark in marks):
            put(eqn.outvars, bind_equation(eqn, ins), [None] * len(eqn.outvars))
        elif eqn.primitive.name in _INLINE:
            put(
                eqn.outvars,
                *_read(eqn.params["jaxpr"].jaxpr, eqn.params["jaxpr"].consts, ins, marks),
            )
        else:
            outs = _follow(eqn, ins, marks)
            put(eqn.outvars, [None] * len(outs), outs)
    return [value(v) for v in jaxpr.outvars], [tag(v) for v in jaxpr.outvars]


def _follow(eqn, ins: list, marks: list) -> list:
    """Tags of an equation's outputs when some inputs are parameters."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    if name in _REARRANGE and isinstance(marks[0], View):
        view = marks[0]
        return [
            view.then(lambda w, k=k: bind_equation(eqn, [w])[k], out.aval.shape)
            for k, out in enumerate(eqn.outvars)
        ]
    if name == "convert_element_type":
        if not jnp.issubdtype(eqn.params["new_dtype"], jnp.floating):
            raise _NotAffine
        return [_convert(marks[0], eqn.params["new_dtype"])]
    if name == "broadcast_in_dim":
        return [_broadcast(marks[0], eqn, shape)]
    if name in ("reshape", "squeeze", "transpose", "copy", "copy_p"):
        return [_rearranged_sum(marks[0], name, eqn, shape)]
    if name == "neg":
        return [_negated(marks[0])]
    if name == "dot_general":
        return [_product(eqn, ins, marks)]
    if name in ("add", "add_any", "sub"):
        return [_added(name, marks, shape)]
    if name == "mul" or (name == "div" and marks[1] is None):
        return [_multiplied(name, ins, marks, shape)]
    raise _NotAffine


def _convert(mark, dtype):
    if isinstance(mark, View):
        return mark.then(lambda w: w.astype(dtype), mark.shape)
    return mark


def _broadcast(mark, eqn, shape):
    """Growing singleton axes only rearranges; growing along examples makes a bias."""
    dims = eqn.params["broadcast_dimensions"]
    if not isinstance(mark, View):
        if math.prod(shape) != math.prod(mark.shape):
            raise _NotAffine
        return _reshaped_sum(mark, shape)
    if math.prod(shape) == math.prod(mark.shape):
        return mark.then(lambda w: jnp.reshape(w, shape), shape)
    if math.prod(mark.shape) == 1:
        mark, dims = mark.then(lambda w: w.reshape(()), ()), ()
    if dims not in ((), (len(shape) - 1,)) or not shape:
        raise _NotAffine
    lead, outputs = (shape, None) if not dims and len(shape) == 1 else (shape[:-1], shape[-1])
    return _bias(mark, lead, outputs)


def _bias(view: View, lead: tuple[int, ...], outputs: int | None) -> _Sum:
    k = outputs or 1
    return _Sum(
        (Term(None, view.then(lambda w: jnp.broadcast_to(w, (k,)).reshape(1, k), (1, k))),),
        lead,
        outputs,
    )


def _rearranged_sum(mark: _Sum, name: str, eqn, shape) -> _Sum:
    if name == "transpose":
        matrix = len(mark.lead) == 1 and mark.outputs is not None
        if tuple(eqn.params["permutation"]) != (1, 0) or not matrix:
            raise _NotAffine
        return dataclasses.replace(mark, outputs_first=not mark.outputs_first)
    return _reshaped_sum(mark, shape)


def _reshaped_sum(mark: _Sum, shape) -> _Sum:
    """Regroup the leading axes, or add or drop an outputs axis of size one."""
    if mark.outputs_first and shape != mark.shape:
        raise _NotAffine
    if shape == mark.shape:
        return mark
    k = mark.outputs or 1
    if k == 1 and (not shape or shape[-1] != 1):
        return _Sum(mark.terms, shape, None)
    if shape and shape[-1] == k:
        return _Sum(mark.terms, shape[:-1], k)
    raise _NotAffine


def _product(eqn, ins, marks) -> _Sum:
    """Data times parameters: the place where a linear model's rows appear."""
    if sum(m is not None for m in marks) != 1:
        raise _NotAffine
    (left, right), (left_batch, _) = eqn.params["dimension_numbers"]
    at = 0 if marks[0] is not None else 1
    view, data = marks[at], ins[1 - at]
    if not isinstance(view, View) or left_batch:
        raise _NotAffine
    contracted, data_contracted = (left, right) if at == 0 else (right, left)
    free = [i for i in range(len(view.shape)) if i not in contracted]
    data_free = [i for i in range(data.ndim) if i not in data_contracted]
    if len(free) > 1 or not data_free or (free and at == 0 and len(data_free) != 1):
        raise _NotAffine
    features = math.prod(view.shape[i] for i in contracted)
    outputs = view.shape[free[0]] if free else None
    lead = tuple(data.shape[i] for i in data_free)
    rows = jnp.transpose(data, (*data_free, *data_contracted)).reshape(-1, features)
    k = outputs or 1
    matrix = view.then(
        lambda w: jnp.transpose(w, (*contracted, *free)).reshape(features, k), (features, k)
    )
    return _Sum((Term(rows, matrix),), lead, outputs, outputs_first=bool(free) and at == 0)


def _added(name, marks, shape):
    a, b = marks
    if b is None:
        return _with_data(a, shape)
    if a is None:
        shifted = _with_data(b, shape)
        return _negated(shifted) if name == "sub" else shifted
    like = a if isinstance(a, _Sum) else b
    if not isinstance(like, _Sum) or like.shape != shape:
        raise _NotAffine
    first, second = _like(a, like), _like(b, like)
    layouts = [(m.lead, m.outputs, m.outputs_first) for m in (first, second)]
    if layouts[0] != layouts[1]:
        raise _NotAffine
    added = _negated(second).terms if name == "sub" else second.terms
    return dataclasses.replace(first, terms=first.terms + added)


def _with_data(mark: View | _Sum, shape: tuple[int, ...]) -> View | _Sum:
    """Parameters plus data: the data shifts, and may repeat the parameters over examples."""
    if mark.shape == shape:
        return mark
    if not isinstance(mark, View):
        raise _NotAffine
    return _as_bias(mark, shape)


def _as_bias(view: View, shape: tuple[int, ...]) -> _Sum:
    """A parameter added to data: scalars and trailing-axis vectors repeat over the examples."""
    if not shape or any(s != 1 for s in view.shape[:-1]):
        raise _NotAffine
    if len(shape) == 1:
        if math.prod(view.shape) != 1:
            raise _NotAffine
        return _bias(view.then(lambda w: w.reshape(()), ()), shape, None)
    return _bias(view.then(jnp.ravel, (math.prod(view.shape),)), shape[:-1], shape[-1])


def _like(mark: View | _Sum, like: _Sum) -> _Sum:
    """A summand in the layout of the other: a bare parameter becomes a bias."""
    return mark if isinstance(mark, _Sum) else _bias_like(mark, like)


def _bias_like(view: View, like: _Sum) -> _Sum:
    if like.outputs_first or any(s != 1 for s in view.shape[:-1]):
        raise _NotAffine
    entries = math.prod(view.shape)
    if entries not in (1, like.outputs or 1):
        raise _NotAffine
    return _bias(view.then(lambda w: w.reshape((entries,)), (entries,)), like.lead, like.outputs)


def _multiplied(name, ins, marks, shape):
    """A number times parameters scales them; one factor per example scales rows."""
    at = 0 if marks[0] is not None else 1
    mark, factor = marks[at], ins[1 - at]
    if marks[1 - at] is not None:
        raise _NotAffine
    factor = jnp.asarray(factor)
    factor = 1 / factor if name == "div" else factor
    if factor.size == 1 and mark.shape == shape:
        return _scaled(mark, factor.reshape(()))
    if isinstance(mark, View):
        if math.prod(mark.shape) != 1 or factor.ndim != 1:
            raise _NotAffine
        column = mark.then(lambda w: w.reshape(1, 1), (1, 1))
        return _Sum((Term(factor[:, None], column),), factor.shape, None)
    per_example = (*mark.lead, 1) if mark.outputs is not None else mark.lead
    if mark.outputs_first or mark.shape != shape or factor.shape != per_example:
        raise _NotAffine
    each = factor.reshape(-1, 1)
    terms = tuple(Term(each if t.rows is None else each * t.rows, t.view) for t in mark.terms)
    return dataclasses.replace(mark, terms=terms)


def _scaled(mark, factor):
    """Factor times the parameters behind a tag."""
    return _mapped(mark, lambda w: w * factor.astype(w.dtype))


def _negated(mark: Mark) -> Mark:
    return _mapped(mark, jnp.negative)


def _mapped(mark: Mark, function: Callable[[Array], Array]) -> Mark:
    if isinstance(mark, _Sum):
        terms = tuple(Term(t.rows, t.view.then(function, t.view.shape)) for t in mark.terms)
        return dataclasses.replace(mark, terms=terms)
    return dataclasses.replace(mark, apply=lambda w: function(mark.apply(w)))
