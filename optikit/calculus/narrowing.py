"""Where a function in double precision passes through a narrower one: read off its jaxpr."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from optikit.calculus.objective import Objective, value_and_aux
from optikit.core import Params


def narrowed(objective: Objective, params: Params, args: tuple) -> list[tuple[int, str]]:
    """Leaves of float64 (by number) that are converted to fewer bits on the way, and to which type.

    Costs a trace, no oracle call. Inside loops and branches, the inputs count as one.
    """
    leaves = jax.tree.leaves(params)
    closed = jax.make_jaxpr(lambda p: value_and_aux(objective, p, args)[0])(params)
    found: dict[int, str] = {}
    wide = [
        frozenset([i]) if jnp.dtype(x.dtype).itemsize > 4 else frozenset()
        for i, x in enumerate(leaves)
    ]
    _walk(closed.jaxpr, wide, found)
    return sorted(found.items())


def _walk(jaxpr: Any, reached: list[frozenset], found: dict[int, str]) -> list[frozenset]:
    """Follow which leaves reach which variable; note conversions; the leaves of the outputs."""
    by: dict[Any, frozenset] = dict(zip(jaxpr.invars, reached, strict=True))

    def leaves(atom: Any) -> frozenset:
        return frozenset() if isinstance(atom, jex.Literal) else by.get(atom, frozenset())

    for eqn in jaxpr.eqns:
        each = [leaves(v) for v in eqn.invars]
        everything = frozenset().union(*each)
        outs = [everything] * len(eqn.outvars)
        if eqn.primitive.name == "convert_element_type" and _narrows(eqn):
            for i in everything:
                found.setdefault(i, str(eqn.outvars[0].aval.dtype))
        for inner in _inner(eqn):
            same = len(inner.invars) == len(each)
            given = each if same else [everything] * len(inner.invars)
            result = _walk(inner, given, found)
            if same and len(result) == len(outs) and eqn.primitive.name in ("jit", "pjit"):
                outs = result
        by.update(zip(eqn.outvars, outs, strict=True))
    return [leaves(v) for v in jaxpr.outvars]


def _narrows(eqn: Any) -> bool:
    before, after = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    floating = jnp.issubdtype(before, jnp.floating) and jnp.issubdtype(after, jnp.floating)
    return floating and jnp.dtype(after).itemsize < jnp.dtype(before).itemsize


def _inner(eqn: Any) -> list[Any]:
    found = []
    for value in eqn.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, jex.ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, jex.Jaxpr):
                found.append(one)
    return found
