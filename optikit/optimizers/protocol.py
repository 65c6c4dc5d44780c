"""The step protocol: one shape for first- and second-order, full-batch and stochastic methods."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from optikit.calculus import Eval, Oracle
from optikit.core import Box, Counts, Key, Params, Scalar, Status, tree
from optikit.globalize import Search

State = Any


class StepInfo(NamedTuple):
    """What an observer wants to know of a step.

    Attributes:
      step_norm: the Euclidean length of the step taken, 0 if none was.
      accepted: whether the parameters moved.
      counts: oracle calls of this step alone.
      predicted: the decrease that the method's curvature model promised from the point where the
        step began, infinite if the model had negative curvature; a static None for a method
        without such a model.
      status: RUNNING, or why the method cannot go on.
      extras: a dict of what is particular to the method, e.g. its step size or damping.
    """

    step_norm: Scalar
    accepted: Bool[Array, ""]
    counts: Counts
    predicted: Scalar | None
    status: Int[Array, ""]
    extras: dict[str, Array]


def keep(params: Params, state: State) -> Params:
    """The read-out of a method whose iterates are its answer."""
    del state
    return params


def unchanged(state: State) -> State:
    """The state of a method that has no way to be more careful."""
    return state


def value_and_grad(oracle: Oracle, params: Params) -> tuple[Eval, Counts]:
    """The evaluation that most methods need of a point: one grad."""
    return oracle.value_and_grad(params), Counts(grad=1)


def largest_gradient(at: Eval) -> Scalar:
    """max|g|, which vanishes at a stationary point without bounds."""
    return tree.max_abs(at.grad).astype(at.value.dtype)


class Optimizer(NamedTuple):
    """A method.

    Attributes:
      init: Eval -> State, with every array in the dtypes of the evaluation.
      step: (oracle, at, state, key) -> (params, next, state, info). `at` is the evaluation of the
        current parameters on the oracle's data. `next` is the evaluation of the new ones if the
        step's own search already paid for it, else a static None and the loop evaluates.
      readout: (params, state) -> the parameters to report, e.g. an average of iterates.
      evaluate: (oracle, params) -> (Eval, Counts): how the loop evaluates a point for the method.
      measure: Eval -> how far from stationary it is; NaN or infinite if a gradient entry is.
      monotone: a static promise that on fixed data the value never rises beyond rounding and no
        non-finite point is accepted, so the current point is always the best seen.
      name: for messages and reports.
      learns: a static note that its curvature comes from gradients or products: what these missed
        is not in what it promises, and the loop asks more before it calls the end converged.
      patience: consecutive steps that leave value and gradient as they were, after which the loop
        calls the method stalled; larger for a method whose rejected trials are steps.
      calm: State -> the state to go on with after a step that met NaN or infinity: more damping, a
        smaller radius. A driver of batches asks for it; searches on fixed data back off themselves.
    """

    init: Callable[[Eval], State]
    step: Callable[[Oracle, Eval, State, Key], tuple[Params, Eval | None, State, StepInfo]]
    readout: Callable[[Params, State], Params] = keep
    evaluate: Callable[[Oracle, Params], tuple[Eval, Counts]] = value_and_grad
    measure: Callable[[Eval], Scalar] = largest_gradient
    monotone: bool = False
    name: str = "optimizer"
    learns: bool = False
    patience: int = 10
    calm: Callable[[State], State] = unchanged


class Bounded(NamedTuple):
    """A method for problems with bounds: an Optimizer as soon as the box is known.

    So other bounds are other data, not another program.

    Attributes:
      inside: Box -> a monotone Optimizer that never leaves it, from a start inside.
      name: for messages and reports.
    """

    inside: Callable[[Box], Optimizer]
    name: str


def info_from_search(search: Search, **extras: Array) -> StepInfo:
    """A StepInfo that reports a search as it went."""
    return StepInfo(
        step_norm=search.step_norm,
        accepted=search.accepted,
        counts=search.counts,
        predicted=search.promised,
        status=search.status,
        extras={"step_size": search.step_size, "full_norm": search.full_norm, **extras},
    )


def running() -> Int[Array, ""]:
    """The status of a step that went well."""
    return jnp.asarray(Status.RUNNING.value, jnp.int32)
