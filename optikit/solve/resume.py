"""Going on where a solve was cut off, bit by bit as if it had not been."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from optikit.calculus import Oracle
from optikit.core import Params, Scalar, Status
from optikit.optimizers import Optimizer
from optikit.optimizers.protocol import keep
from optikit.solve.loop import Progress, begin, blank_trace
from optikit.solve.solution import Solution


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class SolveState:
    """Where a solve stands, for `minimize(..., state=sol.state)`: on the device, like a Solution.

    It holds the current evaluation, which for a method that may leave its best point again is not
    the one the Solution reports, the optimizer's own state and the ledger; no trace.

    Attributes:
      progress: of the loop, with the key as raw data.
      tol: the tolerance it was judged by.
      method: the name of the method.
      key_impl: how the key's data is to be read.
    """

    progress: Progress
    tol: Scalar
    method: str = dataclasses.field(metadata={"static": True})
    key_impl: Any = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return f"SolveState(method={self.method!r}, steps={self.progress.steps})"


def suspended(progress: Progress, tol: Scalar, optimizer: Optimizer) -> SolveState:
    """The state to hand out, without what the Solution of a monotone method holds already."""
    kept = progress._replace(key=jax.random.key_data(progress.key), trace=None)
    if optimizer.monotone and optimizer.readout is keep:
        at = progress.at._replace(params=None, value=None, grad=None, aux=None)
        kept = kept._replace(at=at, counts=None, steps=None, largest=None)
    return SolveState(kept, tol, optimizer.name, jax.random.key_impl(progress.key))


def completed(solution: Solution) -> Solution:
    """The Solution with its state made whole; both hold the same arrays."""
    state = solution.state
    if state is None or state.progress.steps is not None:
        return solution
    at = state.progress.at._replace(
        params=solution.params, value=solution.value, grad=solution.grad, aux=solution.aux
    )
    progress = state.progress._replace(
        at=at, counts=solution.counts, steps=solution.steps, largest=solution.grad_norm
    )
    whole = dataclasses.replace(state, progress=progress)
    return dataclasses.replace(solution, state=whole)


def check_state(state: Any, optimizer: Optimizer, params: Params) -> None:
    """Whether a state can belong to this call, as far as is known without tracing.

    Raises:
      TypeError: it is no state.
      ValueError: it belongs to another method or to other parameters.
    """
    if not isinstance(state, SolveState):
        hint = "pass its .state" if isinstance(state, Solution) else "pass sol.state"
        msg = f"state must be the state of a Solution; got {type(state).__name__}: {hint}."
        raise TypeError(msg)
    if state.method != optimizer.name:
        msg = (
            f"state comes from method {state.method!r}, but this call runs {optimizer.name!r}: "
            "go on with the same method, or start anew from params=sol.params without state."
        )
        raise ValueError(msg)
    _same("params", state.progress.at.params, params)


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
    key = jax.random.wrap_key_data(state.progress.key, impl=state.key_impl)
    progress = state.progress._replace(key=key)
    fresh = jax.eval_shape(lambda p, k: begin(optimizer, oracle, p, k), params, key)
    _same("state", progress, fresh)
    looser = (progress.status == Status.CONVERGED.value) & (tol < state.tol)
    status = jnp.where(looser, Status.RUNNING.value, progress.status).astype(jnp.int32)
    trace = None
    if trace_rows:
        at, counts = progress.at, progress.counts
        trace = blank_trace(at, progress.largest, counts, trace_rows, progress.steps)
    return progress._replace(status=status, trace=trace)


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
