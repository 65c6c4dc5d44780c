"""The step protocol: one shape for first- and second-order, full-batch and stochastic methods."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from optikit.calculus import Eval, Objective, Oracle
from optikit.core import Box, Counts, Key, Params, Scalar, Status, tally, times, tree
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


class Refresh(NamedTuple):
    """A part of a method that is due only every so many steps, as K-FAC's statistics are.

    It is kept apart from the step so that a driver can make it a program of its own: chosen on the
    host, it reads no state that it does not change and costs nothing when it is not due. Drivers
    that know nothing of refreshes use `folded`.

    Attributes:
      every: steps from one to the next; all are due before the first step. With 0 it is due then
        alone.
      update: (oracle, at, state, key) -> (state, Counts). `at` is the evaluation of the current
        parameters on the oracle's data, as for the step; the key is `refresh_key(key, i)`.
    """

    every: int
    update: Callable[[Oracle, Eval, State, Key], tuple[State, Counts]]

    def due(self, steps: Any) -> Any:
        """Whether it comes before the step that follows so many: on the host or on the device."""
        return steps % self.every == 0 if self.every else steps == 0


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
      in_products: (objective, params, args) -> whether its time there goes into matrix products, so
        that a compiler's care for the rest does not pay; None for never.
      refresh: what is due before some of the steps only, in this order; see `Refresh`.
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
    in_products: Callable[[Objective, Params, tuple], bool] | None = None
    refresh: tuple[Refresh, ...] = ()
    calm: Callable[[State], State] = unchanged


def refresh_key(key: Key, number: int) -> Key:
    """The key of a method's refresh of that number, before the step that is given `key`."""
    return jax.random.fold_in(key, 1 + number)


class Folded(NamedTuple):
    """A method's state, and the steps that it has taken."""

    inner: State
    steps: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class _Part:
    """A part of a folded method: equal if the methods are, so compiled programs are found."""

    method: Optimizer


class _Init(_Part):
    def __call__(self, at: Eval) -> Folded:
        return Folded(self.method.init(at), jnp.asarray(0, jnp.int32))


class _Step(_Part):
    def __call__(self, oracle: Oracle, at: Eval, state: Folded, key: Key):
        inner, counts = state.inner, []
        for i, refresh in enumerate(self.method.refresh):

            def update(state: State, refresh=refresh, i=i) -> tuple[State, Counts]:
                new, price = refresh.update(oracle, at, state, refresh_key(key, i))
                return new, tally(price)

            due = refresh.due(state.steps)
            inner, spent = lax.cond(due, update, lambda s: (s, times(0, Counts())), inner)
            counts.append(spent)
        params, known, inner, info = self.method.step(oracle, at, inner, key)
        info = info._replace(counts=tally(info.counts, *counts))
        return params, known, Folded(inner, state.steps + 1), info


class _Readout(_Part):
    def __call__(self, params: Params, state: Folded) -> Params:
        return self.method.readout(params, state.inner)


class _Calm(_Part):
    def __call__(self, state: Folded) -> Folded:
        return state._replace(inner=self.method.calm(state.inner))


def folded(optimizer: Optimizer) -> Optimizer:
    """The same method without refreshes: its step does them, each where it is due.

    A method that has none is returned as it is. Folded twice from equal methods, it is equal.
    """
    if not optimizer.refresh:
        return optimizer
    return optimizer._replace(
        init=_Init(optimizer),
        step=_Step(optimizer),
        readout=keep if optimizer.readout is keep else _Readout(optimizer),
        refresh=(),
        calm=unchanged if optimizer.calm is unchanged else _Calm(optimizer),
    )


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
    if search.noise is not None:
        extras["noise"] = search.noise
    return StepInfo(
        step_norm=search.step_norm,
        accepted=search.accepted,
        counts=search.counts,
        predicted=search.promised,
        status=search.status,
        extras={
            "step_size": search.step_size,
            "full_norm": search.full_norm,
            "left": search.left,
            **extras,
        },
    )


def running() -> Int[Array, ""]:
    """The status of a step that went well."""
    return jnp.asarray(Status.RUNNING.value, jnp.int32)
