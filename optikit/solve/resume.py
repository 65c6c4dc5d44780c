"""Going on where a solve was cut off, bit by bit as if it had not been."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from optikit.calculus import Oracle
from optikit.core import Counts, Key, Params, Scalar, Status
from optikit.optimizers import Bounded, Optimizer
from optikit.solve.loop import Progress, begin, blank_trace
from optikit.solve.solution import Solution

SMALL = 16
"""Entries up to which an array is packed with others of its dtype: every array that a program
returns costs the host microseconds."""


class _Packed(NamedTuple):
    """A pytree whose small arrays share one vector per dtype."""

    vectors: tuple[Array, ...]
    arrays: tuple[Array, ...]


class _Layout(NamedTuple):
    structure: Any
    places: tuple  # per leaf: (vector, first entry, shape), or (None, array, shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Remainder:
    """What a compiled solve returns besides what its Solution shows, to be gone on from.

    For a monotone method the Solution shows the current evaluation, and it is not returned twice.
    """

    packed: _Packed
    layout: _Layout = dataclasses.field(metadata={"static": True})
    method: str = dataclasses.field(metadata={"static": True})
    key_impl: Any = dataclasses.field(metadata={"static": True})

    def beside(self, solution: Solution) -> "SolveState":
        """The state that it makes up together with its Solution."""
        s = solution
        return SolveState(s.params, s.value, s.grad, s.aux, s.grad_norm, s.steps, s.counts, self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class SolveState:
    """Where a solve stands, for `minimize(..., state=sol.state)`: on the device, like a Solution.

    It shares the Solution's arrays and adds the loop's own: the optimizer's memory, the key, the
    tolerance it was judged by, and for a method that may leave its best point again the current
    one. A trace is not part of it.
    """

    params: Params
    value: Scalar
    grad: Params
    aux: Any
    grad_norm: Scalar
    steps: Int[Array, ""]
    counts: Counts
    remainder: Remainder

    def __repr__(self) -> str:
        return f"SolveState(method={self.remainder.method!r}, steps={self.steps})"


def suspended(progress: Progress, tol: Scalar, *, simple: bool, name: str) -> Remainder:
    """What is left of a solve by the method of that name, in few arrays.

    Args:
      simple: whether the current evaluation is what its Solution shows.
    """
    kept = progress._replace(key=jax.random.key_data(progress.key), trace=None)
    if simple:
        at = progress.at._replace(params=None, value=None, grad=None, aux=None)
        kept = kept._replace(at=at, counts=None, steps=None, largest=None)
    packed, layout = _packed((kept, tol))
    return Remainder(packed, layout, name, jax.random.key_impl(progress.key))


def key_of(state: SolveState) -> Key:
    """The key that a solve goes on with."""
    progress, _ = _unpacked(state.remainder.packed, state.remainder.layout)
    return jax.random.wrap_key_data(progress.key, impl=state.remainder.key_impl)


def check_state(state: Any, method: Optimizer | Bounded, params: Params) -> None:
    """Whether a state can belong to this call, as far as is known without tracing.

    Raises:
      TypeError: it is no state.
      ValueError: it belongs to another method or to other parameters.
    """
    if not isinstance(state, SolveState):
        hint = "pass its .state" if isinstance(state, Solution) else "pass sol.state"
        msg = f"state must be the state of a Solution; got {type(state).__name__}: {hint}."
        raise TypeError(msg)
    if state.remainder.method != method.name:
        msg = (
            f"state comes from method {state.remainder.method!r}, but this call runs "
            f"{method.name!r}: go on with the same method, or start anew from "
            "params=sol.params without state."
        )
        raise ValueError(msg)
    _same("params", state.params, params)


def resumed(
    state: SolveState,
    optimizer: Optimizer,
    oracle: Oracle,
    params: Params,
    tol: Scalar,
    *,
    trace_rows: int = 0,
) -> Progress:
    """The progress to go on from; a solve that had met a looser tolerance runs again.

    Raises:
      ValueError: the method would not leave a state of this structure on this objective.
    """
    progress, old_tol = _unpacked(state.remainder.packed, state.remainder.layout)
    progress = progress._replace(
        key=jax.random.wrap_key_data(progress.key, impl=state.remainder.key_impl)
    )
    if progress.steps is None:
        at = progress.at._replace(
            params=state.params, value=state.value, grad=state.grad, aux=state.aux
        )
        progress = progress._replace(
            at=at, counts=state.counts, steps=state.steps, largest=state.grad_norm
        )
    fresh = jax.eval_shape(lambda p, k: begin(optimizer, oracle, p, k), params, progress.key)
    _same("state", progress, fresh)
    looser = (progress.status == Status.CONVERGED.value) & (tol < old_tol)
    status = jnp.where(looser, Status.RUNNING.value, progress.status).astype(jnp.int32)
    trace = None
    if trace_rows:
        at, counts = progress.at, progress.counts
        trace = blank_trace(at, progress.largest, counts, trace_rows, progress.steps)
    return progress._replace(status=status, trace=trace)


def _packed(tree: Any) -> tuple[_Packed, _Layout]:
    leaves, structure = jax.tree.flatten(tree)
    parts: dict[Any, list[Array]] = {}
    arrays: list[Array] = []
    places = []
    for leaf in leaves:
        if leaf.size > SMALL:
            places.append((None, len(arrays), leaf.shape))
            arrays.append(leaf)
        else:
            part = parts.setdefault(leaf.dtype, [])
            first = sum(x.size for x in part)
            places.append((list(parts).index(leaf.dtype), first, leaf.shape))
            part.append(leaf.ravel())
    vectors = tuple(jnp.concatenate(part) for part in parts.values())
    return _Packed(vectors, tuple(arrays)), _Layout(structure, tuple(places))


def _unpacked(packed: _Packed, layout: _Layout) -> Any:
    def leaf(vector: int | None, first: int, shape: tuple[int, ...]) -> Array:
        if vector is None:
            return packed.arrays[first]
        return packed.vectors[vector][first : first + math.prod(shape)].reshape(shape)

    return jax.tree.unflatten(layout.structure, [leaf(*place) for place in layout.places])


def _same(name: str, held: Any, expected: Any) -> None:
    """Two pytrees agree in structure, shapes and dtypes; the first difference is named."""
    if jax.tree.structure(held) != jax.tree.structure(expected):
        msg = (
            f"{name} does not fit the state of this solve: {jax.tree.structure(held)} was kept and "
            f"{jax.tree.structure(expected)} is needed. Go on with the function, parameters and "
            "method that the state comes from."
        )
        raise ValueError(msg)
    paths = jax.tree_util.tree_flatten_with_path(held)[0]
    for (path, a), b in zip(paths, jax.tree.leaves(expected), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            msg = (
                f"{name}{jax.tree_util.keystr(path)} is {a.dtype}{list(a.shape)} in the state, but "
                f"{b.dtype}{list(b.shape)} in this solve. Go on with the function, parameters and "
                "method that the state comes from."
            )
            raise ValueError(msg)
